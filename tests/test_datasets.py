"""Data sets: the contract that all keep, held-out classes, and the readers of folders, Cars196-half and Omniglot."""

import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from image_trees import check_contract, grey_values, png, tree, write, write_zip

from gl_core import datasets
from gl_core.datasets import cars196_half, omniglot


@pytest.fixture
def six(tmp_path):
    """A folder of six classes of three images."""
    return write(tmp_path / "six", tree())


def test_wrong_names_splits_and_options(six):
    with pytest.raises(ValueError, match="name='imagenet': must be one of glyphs, omniglot, cars196_half, folder"):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match="split='validation': must be one of train, test, all"):
        datasets.load("folder", six, "validation")
    for name, known in (("folder", "train_classes"), ("cars196_half", "none")):
        with pytest.raises(ValueError, match=f"size: is no option of {name}, which has {known}"):
            datasets.load(name, six, size=3)


def test_subset_keeps_labels_and_takes_positions_or_booleans(six):
    d = datasets.load("folder", six, "all")
    for index in ([4, 0], np.array([4, 0]), torch.tensor([4, 0])):
        assert d.subset(index).labels.tolist() == [1, 0]
    last = d.subset(d.labels == 5)
    assert grey_values(last) == [50, 51, 52] and last.table.index.tolist() == [0, 1, 2]
    assert len(d.subset([])) == 0 and last.class_names == d.class_names
    with pytest.raises(IndexError):
        d.subset([99])
    with pytest.raises(ValueError, match="split='test'.*holds no such images"):
        d.subset([0, 1]).split("test")


def test_hold_out_parts_classes_and_relabels(tmp_path):
    train = datasets.load("folder", write(tmp_path, tree(classes=20)))
    before = {path: train.class_names[label] for path, label in zip(train.table.path, train.labels, strict=True)}
    fit, held_out = train.hold_out(0.3, seed=1)
    assert np.array_equal(np.unique(fit.labels), np.arange(7)) and np.array_equal(np.unique(held_out.labels), [7, 8, 9])
    assert len(fit) + len(held_out) == len(train)
    for part in (fit, held_out):
        after = {path: part.class_names[label] for path, label in zip(part.table.path, part.labels, strict=True)}
        assert after == {path: before[path] for path in after}
        assert part.table.class_name.tolist() == list(after.values())
        assert part.class_names[10:] == train.class_names[10:]  # the test classes
        assert set(grey_values(part)) == {10 * int(name[1:]) + i for name in after.values() for i in range(3)}
    assert held_out.table.is_query.all() and held_out.table.is_gallery.all() and not fit.table.is_query.any()
    assert set(held_out.table.split) == {"train"}
    assert train.table.label.tolist() == train.labels.tolist() and not train.table.is_query.any()  # is left as it was

    again, other = train.hold_out(0.3, seed=1), train.hold_out(0.3, seed=2)
    assert again[1].table.path.tolist() == held_out.table.path.tolist() != other[1].table.path.tolist()
    # Two classes at least are left on either side.
    for fraction, expected in [(0.01, 2), (0.99, 8), (0.5, 5)]:
        fit, rest = train.hold_out(fraction, seed=0)
        assert (len(np.unique(fit.labels)), len(np.unique(rest.labels))) == (10 - expected, expected)


def test_hold_out_refuses(six):
    train = datasets.load("folder", six, train_classes=["c0", "c1", "c2", "c3"])
    for fraction in (0, 1, float("nan")):
        with pytest.raises(ValueError, match=rf"fraction={fraction}: must lie in \(0, 1\)"):
            train.hold_out(fraction, seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        train.hold_out(0.5, seed=-1)
    with pytest.raises(ValueError, match="parting takes 4 classes or more"):
        datasets.load("folder", six).hold_out(0.5, seed=0)
    with pytest.raises(ValueError, match="only training classes can be held out"):
        datasets.load("folder", six, "all").hold_out(0.5, seed=0)


# folder


def test_the_first_half_of_the_classes_is_trained_on(tmp_path):
    write(tmp_path, tree(classes=5))
    check_contract(lambda split: datasets.load("folder", tmp_path, split))
    train, test = (datasets.load("folder", tmp_path, split) for split in ("train", "test"))
    assert (set(train.table.class_name), set(test.table.class_name)) == ({"c0", "c1", "c2"}, {"c3", "c4"})
    assert test.name == "folder" and grey_values(test) == [30, 31, 32, 40, 41, 42]
    assert test.table.is_query.all() and test.table.is_gallery.all()


def test_chosen_training_classes(six, tmp_path):
    (tmp_path / "names.txt").write_text("c4\n\n  c1  \n", encoding="utf-8")
    for chosen in (["c4", "c1"], str(tmp_path / "names.txt")):
        check_contract(lambda split, chosen=chosen: datasets.load("folder", six, split, train_classes=chosen))
        d = datasets.load("folder", six, "all", train_classes=chosen)
        assert d.class_names == ["c1", "c4", "c0", "c2", "c3", "c5"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["c1", "x"], "train_classes: 'x' is no class: must be among c0, c1, c2, c3, c4, c5$"),
        (["c1", "c1"], "train_classes: 'c1' is there twice"),
        ([f"c{i}" for i in range(6)], "train_classes names 6 of 6 classes"),
        ("nowhere.txt", "train_classes=nowhere.txt: must be names of classes, or a text file"),
    ],
)
def test_wrong_training_classes(six, chosen, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.load("folder", six, train_classes=chosen)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/notes.txt": b""}, "holds no images: must be a folder, tar or zip that holds class/image"),
        ({"a/photo.heic": b""}, r"holds no images.*; 1 left out: a/photo\.heic \(its format cannot be decoded here\)"),
        ({"0.png": png(), "1.png": png()}, r"0\.png is in no folder that would be its class"),
        ({"w/a/0.png": png(), "w/a/1.png": png()}, r"holds 1 classes of two images or more \(a\)"),
        ({"a/0.png": png(), "b/0.png": png()}, r"holds 0 classes .*; 2 left out: a/0.png \(its class a has no other"),
        ({"a/x/0.png": png(), "b/y/0.png": png()}, r"a/x/0\.png lies too deep"),
    ],
)
def test_layouts_that_are_not_understood(tmp_path, files, message):
    for root in (write(tmp_path / "x", files), write_zip(tmp_path / "x.zip", files)):
        with pytest.raises(ValueError, match=f"root={re.escape(str(root))}: .*{message}"):
            datasets.load("folder", root)


@pytest.mark.parametrize("name", ["folder", "cars196_half"])
def test_a_root_that_is_missing_or_no_archive(name, tmp_path):
    with pytest.raises(ValueError, match="root=None: must be .*data_root"):
        datasets.load(name)
    with pytest.raises(FileNotFoundError, match=rf"root={tmp_path}/nowhere: nothing is there; it must be "):
        datasets.load(name, tmp_path / "nowhere")
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.tar: must be a folder, a tar or a zip"):
        datasets.load(name, tmp_path / "a.tar")


# cars196_half


@pytest.mark.slow
def test_cars_by_protocol(shared, tmp_path):
    cars = shared / "data" / "cars196-crops-128.tar"
    check_contract(lambda split: datasets.load("cars196_half", cars, split))
    train, test = (datasets.load("cars196_half", cars.parent, split) for split in ("train", "test"))
    assert train.name == "cars196_half" and len(train) + len(test) == 8144
    assert sorted(set(train.table.class_name)) == [f"{i:03}" for i in range(1, 99)]
    assert sorted(set(test.table.class_name)) == [f"{i:03}" for i in range(99, 197)]
    assert train.labels[0] == 0 and train.table.class_name[0] == "001" and train[0][0].size == (128, 128)
    with tarfile.open(cars) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = datasets.load("cars196_half", tmp_path, "test")
    assert unpacked.table.path.tolist() == test.table.path.tolist()
    assert np.array_equal(np.asarray(unpacked[7][0]), np.asarray(test[7][0]))


def test_cars_must_be_complete(tmp_path, monkeypatch):
    write(tmp_path, {f"images/{c:03}/{c:05}.webp": b"" for c in range(1, 197)})
    with pytest.raises(
        ValueError, match="holds 196 images of 196 classes: must be cars196-crops-128.tar.* 8144 images of 196"
    ):
        datasets.load("cars196_half", tmp_path)
    monkeypatch.setattr(cars196_half, "IMAGES", 196)
    assert len(datasets.load("cars196_half", tmp_path, "test")) == 98
    (tmp_path / "images" / "001").rename(tmp_path / "images" / "200")
    with pytest.raises(ValueError, match="holds 196 images of 196 classes"):
        datasets.load("cars196_half", tmp_path)


# omniglot; its download is tested with the others


@pytest.fixture(scope="module")
def handwriting(shared):
    return shared / "data" / "omniglot"


def test_omniglot_by_protocol(handwriting):
    check_contract(lambda split: datasets.load("omniglot", handwriting, split))
    train, test = (datasets.load("omniglot", handwriting, split) for split in ("train", "test"))
    assert (len(train), len(np.unique(train.labels))) == (2720, 136)
    assert (len(test), len(np.unique(test.labels))) == (2120, 106)
    assert (train.table.group.nunique(), test.table.group.nunique()) == (5, 3)
    assert not set(train.table.group) & set(test.table.group)
    assert (np.unique(train.labels, return_counts=True)[1] == 20).all()
    pixels = np.asarray(train[0][0])
    assert pixels.shape == (105, 105, 3) and set(np.unique(pixels)) == {0, 255} and pixels.mean() > 200  # ink is black


def test_omniglot_unpacked_is_the_same(handwriting, tmp_path):
    with zipfile.ZipFile(handwriting / f"{omniglot.TRAIN}.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / f"{omniglot.TEST}.zip").symlink_to(handwriting / f"{omniglot.TEST}.zip")
    packed, mixed = (datasets.load("omniglot", root, "all") for root in (handwriting, tmp_path))
    assert mixed.table.equals(packed.table) and mixed.class_names == packed.class_names
    assert np.array_equal(np.asarray(mixed[0][0]), np.asarray(packed[0][0]))
    (tmp_path / packed.table.path[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{tmp_path}/{packed.table.path[0]}: the image cannot be read"):
        mixed[0]


def test_omniglot_that_is_not_there(tmp_path, handwriting):
    with pytest.raises(FileNotFoundError, match=f"root={tmp_path}: holds neither images_background_small1.zip nor the"):
        datasets.load("omniglot", tmp_path)
    for part in (omniglot.TRAIN, omniglot.TEST):
        (tmp_path / f"{part}.zip").symlink_to(handwriting / f"{omniglot.TRAIN}.zip")
    with pytest.raises(ValueError, match=f"root={tmp_path}: holds 5440 images of 136 and 5 characters: must be "):
        datasets.load("omniglot", tmp_path)
