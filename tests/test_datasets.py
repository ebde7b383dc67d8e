"""Data sets: the contract that all keep, reading of images wherever they lie, protocols, downloads, and every error."""

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gl_core import datasets
from gl_core.datasets import archive, cars196_half, download, omniglot

COLUMNS = ["path", "label", "split", "is_query", "is_gallery"]


def png(value=0, size=(6, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("L", size, value).save(content, "PNG")
    return content.getvalue()


def tree(root: Path, classes: int = 6, images: int = 3) -> dict[str, bytes]:
    """`classes` folders c0, c1, ... of `images` images, written below `root`; the grey value tells class and image."""
    files = {f"c{c}/{i}.png": png(10 * c + i) for c in range(classes) for i in range(images)}
    write(root, files)
    return files


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def grey_values(dataset) -> list[int]:
    return [image.getpixel((0, 0))[0] for image, _ in dataset]


@pytest.fixture
def six(tmp_path):
    """A folder of six classes of three images."""
    tree(tmp_path / "six")
    return tmp_path / "six"


# The contract


def check_contract(load) -> None:
    whole, train, test = load("all"), load("train"), load("test")
    assert len(train) + len(test) == len(whole)
    classes = len(np.unique(train.labels))
    assert np.array_equal(np.unique(train.labels), np.arange(classes))
    assert np.array_equal(np.unique(test.labels), np.arange(classes, len(whole.class_names)))
    assert not set(train.table.path) & set(test.table.path)
    for part in (whole, train, test):
        assert list(part.table.columns[:5]) == COLUMNS
        assert part.table.index.tolist() == list(range(len(part)))
        assert part.labels.dtype == np.int64 and part.labels.shape == (len(part),)
        assert torch.as_tensor(part.labels).tolist() == part.table.label.tolist()
        assert part.class_names == whole.class_names and len(set(part.class_names)) == len(part.class_names)
        assert part.table.class_name.tolist() == [part.class_names[label] for label in part.labels]
        assert part.table.is_query.dtype == part.table.is_gallery.dtype == bool
        image, label = part[len(part) - 1]
        assert image.mode == "RGB" and type(label) is int and label == part.labels[-1]
    assert set(train.table.split) == {"train"} and not train.table.is_query.any() and not train.table.is_gallery.any()
    assert set(test.table.split) == {"test"} and test.table.is_query.all() and test.table.is_gallery.all()
    assert whole.table.label.is_monotonic_increasing


def test_contract_of_a_folder(six):
    check_contract(lambda split: datasets.load("folder", six, split))
    assert datasets.load("folder", six).name == "folder"
    assert grey_values(datasets.load("folder", six, "test")) == [30, 31, 32, 40, 41, 42, 50, 51, 52]


def test_names_and_wrong_names(six):
    assert datasets.names()[:5] == ["glyphs", "omniglot", "cars196_half", "folder", "cub"]
    with pytest.raises(ValueError, match="name='imagenet': must be one of glyphs, omniglot, cars196_half, folder"):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match="split='validation': must be one of train, test, all"):
        datasets.load("folder", six, "validation")
    with pytest.raises(ValueError, match="size: is no option of folder, which has train_classes"):
        datasets.load("folder", six, size=3)
    with pytest.raises(ValueError, match="size: is no option of cars196_half, which has none"):
        datasets.load("cars196_half", six, size=3)


def test_index_out_of_range(six):
    d = datasets.load("folder", six)
    assert d[-1][1] == d.labels[-1]
    with pytest.raises(IndexError):
        d[len(d)]


def test_subset_keeps_labels_and_takes_positions_or_booleans(six):
    d = datasets.load("folder", six, "all")
    for index in ([4, 0], np.array([4, 0]), torch.tensor([4, 0])):
        assert d.subset(index).labels.tolist() == [1, 0]
    mask = d.labels == 5
    assert grey_values(d.subset(mask)) == [50, 51, 52] and d.subset(mask).table.index.tolist() == [0, 1, 2]
    assert len(d.subset([])) == 0
    assert d.subset(mask).class_names == d.class_names
    with pytest.raises(IndexError):
        d.subset([99])
    with pytest.raises(ValueError, match="split='test'.*holds no such images"):
        d.subset([0, 1]).split("test")


def test_hold_out_parts_classes_and_relabels(tmp_path):
    tree(tmp_path, classes=20)
    train = datasets.load("folder", tmp_path)
    before = {path: train.class_names[label] for path, label in zip(train.table.path, train.labels, strict=True)}
    fit, held_out = train.hold_out(0.3, seed=1)
    assert np.array_equal(np.unique(fit.labels), np.arange(7)) and np.array_equal(np.unique(held_out.labels), [7, 8, 9])
    assert len(fit) + len(held_out) == len(train)
    for part in (fit, held_out):
        after = {path: part.class_names[label] for path, label in zip(part.table.path, part.labels, strict=True)}
        assert after == {path: before[path] for path in after}
        assert part.table.class_name.tolist() == list(after.values())
        assert part.class_names[10:] == train.class_names[10:]  # the test classes
        assert {part[i][0].getpixel((0, 0))[0] for i in range(len(part))} == {
            10 * int(name[1:]) + i for name in after.values() for i in range(3)
        }
    assert held_out.table.is_query.all() and held_out.table.is_gallery.all() and not fit.table.is_query.any()
    assert set(held_out.table.split) == {"train"}
    assert train.table.label.tolist() == train.labels.tolist() and not train.table.is_query.any()  # is left as it was

    again, other = train.hold_out(0.3, seed=1), train.hold_out(0.3, seed=2)
    assert again[1].table.path.tolist() == held_out.table.path.tolist() != other[1].table.path.tolist()


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 2), (0.99, 8), (0.5, 5)])
def test_hold_out_leaves_two_classes_on_either_side(tmp_path, fraction, held_out):
    tree(tmp_path, classes=20)
    fit, rest = datasets.load("folder", tmp_path).hold_out(fraction, seed=0)
    assert (len(np.unique(fit.labels)), len(np.unique(rest.labels))) == (10 - held_out, held_out)


def test_hold_out_refuses(six):
    train = datasets.load("folder", six, train_classes=["c0", "c1", "c2", "c3"])
    for fraction in (0, 1, -0.2, float("nan")):
        with pytest.raises(ValueError, match=rf"fraction={fraction}: must lie in \(0, 1\)"):
            train.hold_out(fraction, seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        train.hold_out(0.5, seed=-1)
    with pytest.raises(ValueError, match="parting takes 4 classes or more"):
        datasets.load("folder", six).hold_out(0.5, seed=0)
    for split in ("test", "all"):
        with pytest.raises(ValueError, match="only training classes can be held out"):
            datasets.load("folder", six, split).hold_out(0.5, seed=0)


# Where images lie


@pytest.fixture(params=["folder", "tar", "tar.gz", "tar.xz", "zip"])
def stored(request, tmp_path):
    """A function that stores named files as a folder or an archive and returns its path."""

    def store(files: dict[str, bytes]) -> Path:
        if request.param == "folder":
            return write(tmp_path / "stored", files)
        path = tmp_path / f"stored.{request.param}"
        if request.param == "zip":
            return write_zip(path, files)
        return write_tar(path, files, "w" + request.param.removeprefix("tar").replace(".", ":"))

    return store


def test_every_store_holds_the_same(stored, tmp_path):
    root = stored(tree(tmp_path / "tree"))
    d = datasets.load("folder", root, "all")
    assert grey_values(d) == [10 * c + i for c in range(6) for i in range(3)]
    assert d.table.path.tolist() == [f"c{c}/{i}.png" for c in range(6) for i in range(3)]
    copy = pickle.loads(pickle.dumps(d))
    assert grey_values(copy) == grey_values(d) and copy.table.equals(d.table) and copy.class_names == d.class_names


def test_every_store_is_read_by_threads_and_forked_workers(stored, tmp_path):
    files = {f"c{c}/{i}.png": png(10 * c + i, size=(64, 64)) for c in range(6) for i in range(20)}
    d = datasets.load("folder", stored(files), "all")
    expected = [10 * c + i for c in range(6) for i in range(20)]
    # sorted by name: 0, 1, 10, 11, ...
    expected = [int(10 * c + i) for c in range(6) for i in sorted(range(20), key=str)]
    assert grey_values(d) == expected
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: d[i][0].getpixel((0, 0))[0], range(len(d)))) == expected
    loader = DataLoader(d, batch_size=10, num_workers=2, collate_fn=grey_values, multiprocessing_context="fork")
    assert [value for batch in loader for value in batch] == expected


def test_a_wrapping_folder_and_clutter_are_passed_over(stored):
    files = {f"my cars/c{c}/{i}.png": png(10 * c + i) for c in range(4) for i in range(2)}
    clutter = {
        "my cars/README.txt": b"text",
        "my cars/c0/.hidden.png": b"",
        "my cars/c0/._0.png": b"",
        "my cars/.cache/0.png": b"",
        "__MACOSX/my cars/c0/0.png": b"",
        "my cars/c0/Thumbs.db": b"",
        ".DS_Store": b"",
    }
    d = datasets.load("folder", stored(files | clutter), "all")
    assert d.table.path.tolist() == sorted(files)
    assert d.class_names == ["c0", "c1", "c2", "c3"]


def test_odd_members_of_archives_are_ignored(tmp_path, six):
    files = {f"./c{c}/{i}.png": png() for c in range(4) for i in range(2)}
    odd = {"../c0/outside.png": png(), "/c0/absolute.png": png()}
    tar, packed = write_tar(tmp_path / "a.tar", files | odd), write_zip(tmp_path / "a.zip", files | odd)
    with tarfile.open(tar, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"c0/link{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("c0/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("c0/folder.png/", "")
    for path in (tar, packed):
        assert datasets.load("folder", path, "all").table.path.tolist() == [
            f"c{c}/{i}.png" for c in range(4) for i in range(2)
        ]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.zip", "six"]


def test_later_members_of_a_tar_replace_earlier_ones(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"c{c}/{i}.png": png() for c in range(2) for i in range(2)})
    write_tar(path, {"c1/0.png": png(77)}, "a")
    assert grey_values(datasets.load("folder", path, "all")) == [0, 0, 77, 0]


def test_linked_folders_are_followed_even_in_circles(tmp_path, six):
    (tmp_path / "linked").mkdir()
    for c in range(4):
        (tmp_path / "linked" / f"d{c}").symlink_to(six / f"c{c}")
    assert len(datasets.load("folder", tmp_path / "linked", "all")) == 12
    (six / "c0" / "up").symlink_to(six)
    with pytest.raises(ValueError, match=r"c0/up/c0/0\.png lies too deep"):
        datasets.load("folder", six)


def test_the_home_folder_may_be_abbreviated(six, monkeypatch):
    monkeypatch.setenv("HOME", str(six.parent))
    assert len(datasets.load("folder", "~/six", "all")) == 18


# Images of all kinds


def saved(image: Image.Image, kind: str, **options) -> Image.Image:
    content = io.BytesIO()
    image.save(content, kind, **options)
    with Image.open(io.BytesIO(content.getvalue())) as image:
        return archive.to_rgb(image)


def test_grey_values_stay(tmp_path):
    assert saved(Image.new("L", (2, 2), 77), "PNG").getpixel((0, 0)) == (77, 77, 77)
    assert saved(Image.new("1", (2, 2), 1), "PNG").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I")])
def test_sixteen_bits_are_brought_to_eight(kind, mode):
    values = np.array([[0, 257 * 77, 257 * 78 - 100, 65535]], dtype={"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2"))
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    assert np.asarray(saved(image, kind))[0, :, 0].tolist() == [0, 77, 78, 255]


def test_pixels_without_an_agreed_range_are_refused():
    with pytest.raises(ValueError, match=r"pixels from 0 to 70000: must lie in 0\.\.65535"):
        saved(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(ValueError, match="pixels are floats"):
        saved(Image.new("F", (2, 2), 0.5), "TIFF")


def test_transparent_is_white():
    clear, solid = (200, 0, 0, 0), (200, 0, 0, 255)
    for color, expected in [(clear, (255, 255, 255)), (solid, (200, 0, 0)), ((200, 0, 0, 128), (227, 127, 127))]:
        rgb = saved(Image.new("RGBA", (2, 2), color), "PNG").getpixel((0, 0))
        assert np.allclose(rgb, expected, atol=1)
    assert saved(Image.new("LA", (2, 2), (10, 0)), "PNG").getpixel((0, 0)) == (255, 255, 255)
    assert saved(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3)).getpixel((0, 0)) == (255, 255, 255)


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert list(np.asarray(saved(image, kind))[0].ravel()) == [10, 20, 30, 40, 50, 60]
        assert list(np.asarray(saved(image, kind, transparency=1))[0].ravel()) == [10, 20, 30, 255, 255, 255]
    # A transparency of each entry of its own.
    assert list(np.asarray(saved(image, "PNG", transparency=bytes([255, 0])))[0].ravel()) == [10, 20, 30, 255, 255, 255]


def test_cmyk_and_other_colours():
    red = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95).getpixel((4, 4))
    assert red[0] > 240 and max(red[1:]) < 15
    red = saved(Image.new("YCbCr", (8, 8), (76, 85, 255)), "JPEG", quality=95).getpixel((4, 4))
    assert red[0] > 240 and max(red[1:]) < 15


def test_photographs_are_turned_upright():
    image = Image.new("RGB", (8, 16), "black")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert saved(image, "JPEG", exif=exif).size == (16, 8)
    assert saved(image, "JPEG").size == (8, 16)


@pytest.mark.parametrize(
    "content", [b"", b"no image", png()[:40], png()[:-20]], ids=["empty", "text", "cut in header", "cut in pixels"]
)
def test_an_unreadable_image_is_named(stored, content):
    files = {f"c{c}/{i}.png": png(size=(40, 40)) for c in range(2) for i in range(2)} | {"c0/1.png": content}
    root = stored(files)
    d = datasets.load("folder", root)
    d[0]
    with pytest.raises(ValueError, match=rf"{re.escape(str(root))}(: |/)c0/1\.png: the image cannot be read") as caught:
        d[1]
    assert caught.value.__cause__ is not None


def test_an_image_that_vanished_is_named(six):
    d = datasets.load("folder", six)
    (six / "c0" / "1.png").unlink()
    with pytest.raises(ValueError, match="six/c0/1.png: the image cannot be read"):
        d[1]


# folder: its split and its errors


def test_the_first_half_of_the_classes_is_trained_on(tmp_path):
    tree(tmp_path, classes=5, images=2)
    train, test = (datasets.load("folder", tmp_path, split) for split in ("train", "test"))
    assert (set(train.table.class_name), set(test.table.class_name)) == ({"c0", "c1", "c2"}, {"c3", "c4"})


def test_chosen_training_classes(six, tmp_path):
    (tmp_path / "names.txt").write_text("c4\n\n  c1  \n", encoding="utf-8")
    for chosen in (["c4", "c1"], ("c1", "c4"), tmp_path / "names.txt", str(tmp_path / "names.txt")):
        check_contract(lambda split, chosen=chosen: datasets.load("folder", six, split, train_classes=chosen))
        d = datasets.load("folder", six, "all", train_classes=chosen)
        assert d.class_names == ["c1", "c4", "c0", "c2", "c3", "c5"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["c1", "x"], "train_classes: 'x' is no class: must be among c0, c1, c2, c3, c4, c5$"),
        (["c1", "c1"], "train_classes: 'c1' is there twice"),
        ([], "train_classes names 0 of 6 classes"),
        ([f"c{i}" for i in range(6)], "train_classes names 6 of 6 classes"),
    ],
)
def test_wrong_training_classes(six, chosen, message):
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", six, train_classes=chosen)


def test_a_missing_list_of_training_classes(six):
    with pytest.raises(FileNotFoundError, match="train_classes=nowhere.txt: must be names of classes, or a text file"):
        datasets.load("folder", six, train_classes="nowhere.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images: must be a folder, tar or zip that holds class/image"),
        ({"a/notes.txt": b""}, "holds no images"),
        ({"0.png": png(), "1.png": png()}, r"0\.png is in no folder that would be its class"),
        ({"a/0.png": png(), "a/1.png": png()}, "holds the single class 'a'"),
        ({"w/a/0.png": png(), "w/a/1.png": png()}, "holds the single class 'a'"),
        ({"a/0.png": png(), "b/0.png": png(), "stray.png": png()}, r"stray\.png is in no folder"),
        ({"v/w/a/0.png": png(), "v/w/b/0.png": png()}, r"v/w/a/0\.png lies too deep"),
        ({"a/x/0.png": png(), "b/y/0.png": png()}, r"a/x/0\.png lies too deep"),
        ({"a/0.png": png(), "a/b/0.png": png()}, r"a/b/0\.png lies too deep"),
    ],
)
def test_layouts_that_are_not_understood(tmp_path, files, message):
    write(tmp_path / "x", files)
    (tmp_path / "x").mkdir(exist_ok=True)
    for root in (tmp_path / "x", write_zip(tmp_path / "x.zip", files)):
        with pytest.raises(ValueError, match=f"root={re.escape(str(root))}: .*{message}"):
            datasets.load("folder", root)


def test_classes_of_a_single_image_are_named(tmp_path):
    files = {f"c{c:02}/0.png": png() for c in range(12)} | {f"d{i}/{j}.png": png() for i in range(2) for j in range(2)}
    write(tmp_path, files)
    names = ", ".join(f"c{c:02}" for c in range(10))
    with pytest.raises(ValueError, match=rf"12 classes have a single image.*: {names}, \.\.\.$"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize("name", ["folder", "cars196_half"])
def test_a_missing_root(name, tmp_path):
    with pytest.raises(ValueError, match="root=None: must be .*data_root"):
        datasets.load(name)
    with pytest.raises(FileNotFoundError, match=rf"root={tmp_path}/nowhere: nothing is there; it must be "):
        datasets.load(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["folder", "cars196_half"])
def test_a_file_that_is_no_archive(name, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.tar: must be a folder, a tar or a zip"):
        datasets.load(name, tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_an_archive_that_is_cut_off(kind, tmp_path):
    noise = {f"c{c}/{i}.png": np.random.default_rng(c).bytes(40_000) for c in range(3) for i in range(2)}
    whole = tmp_path / f"whole.{kind}"
    write_zip(whole, noise) if kind == "zip" else write_tar(whole, noise, "w" + kind[3:].replace(".", ":"))
    content = whole.read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=rf"cut\.{kind}: (the archive is damaged or cut off|must be a folder, a tar or a zip)"
    ):
        datasets.load("folder", tmp_path / f"cut.{kind}")


# cars196_half


@pytest.fixture(scope="module")
def cars(shared):
    return shared / "data" / "cars196-crops-128.tar"


def test_cars_by_protocol(cars):
    check_contract(lambda split: datasets.load("cars196_half", cars, split))
    train, test = (datasets.load("cars196_half", cars.parent, split) for split in ("train", "test"))
    assert train.name == "cars196_half" and len(train) + len(test) == 8144
    assert sorted(set(train.table.class_name)) == [f"{i:03}" for i in range(1, 99)]
    assert sorted(set(test.table.class_name)) == [f"{i:03}" for i in range(99, 197)]
    assert train.labels[0] == 0 and train.table.class_name[0] == "001" and train[0][0].size == (128, 128)


def test_cars_unpacked_are_the_same(cars, tmp_path):
    with tarfile.open(cars) as tar:
        tar.extractall(tmp_path, filter="data")
    packed = datasets.load("cars196_half", cars, "test")
    for root in (tmp_path, tmp_path / "images"):
        unpacked = datasets.load("cars196_half", root, "test")
        assert [Path(path).name for path in unpacked.table.path] == [Path(path).name for path in packed.table.path]
        assert np.array_equal(np.asarray(unpacked[7][0]), np.asarray(packed[7][0]))


def test_cars_must_be_complete(tmp_path, monkeypatch):
    files = {f"images/{c:03}/{c:05}.webp": b"" for c in range(1, 197)}
    write(tmp_path, files)
    with pytest.raises(
        ValueError, match="holds 196 images of 196 classes: must be cars196-crops-128.tar.* 8144 images of 196"
    ):
        datasets.load("cars196_half", tmp_path)
    monkeypatch.setattr(cars196_half, "IMAGES", 196)
    assert len(datasets.load("cars196_half", tmp_path, "test")) == 98
    (tmp_path / "images" / "001").rename(tmp_path / "images" / "200")
    with pytest.raises(ValueError, match="holds 196 images of 196 classes"):
        datasets.load("cars196_half", tmp_path)


def test_an_empty_folder_is_no_cars(tmp_path):
    with pytest.raises(ValueError, match=f"root={tmp_path}: holds no images: must be cars196-crops-128.tar"):
        datasets.load("cars196_half", tmp_path)


# omniglot


@pytest.fixture(scope="module")
def handwriting(shared):
    return shared / "data" / "omniglot"


def test_omniglot_by_protocol(handwriting):
    check_contract(lambda split: datasets.load("omniglot", handwriting, split))
    train, test = (datasets.load("omniglot", handwriting, split) for split in ("train", "test"))
    assert (len(train), len(np.unique(train.labels))) == (2720, 136)
    assert (len(test), len(np.unique(test.labels))) == (2120, 106)
    assert (train.table.alphabet.nunique(), test.table.alphabet.nunique()) == (5, 3)
    assert not set(train.table.alphabet) & set(test.table.alphabet)
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
    with pytest.raises(
        FileNotFoundError, match="root=.*nowhere: nothing is there; it must be a folder that holds images_back"
    ):
        datasets.load("omniglot", tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=f"root={tmp_path}: holds neither images_background_small1.zip nor the folder"
    ):
        datasets.load("omniglot", tmp_path)
    for part in (omniglot.TRAIN, omniglot.TEST):
        (tmp_path / f"{part}.zip").symlink_to(handwriting / f"{omniglot.TRAIN}.zip")
    with pytest.raises(ValueError, match=f"root={tmp_path}: holds 5440 images of 136 and 5 characters: must be "):
        datasets.load("omniglot", tmp_path)


def test_omniglot_checksums(handwriting):
    for part, sha256 in omniglot.SHA256.items():
        assert hashlib.sha256((handwriting / f"{part}.zip").read_bytes()).hexdigest() == sha256


# Downloads


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; `server.files` holds what it serves, and `server.cut` how much of it at most."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked.append(self.path)
            content = served.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: served.cut])

        def log_message(self, *arguments):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.files, served.cut, served.asked = {}, None, []
    served.url = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


CONTENT = bytes(range(256)) * 1000
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


def test_a_download_arrives_whole(server, tmp_path, capsys):
    server.files["/a.zip"] = CONTENT
    path = tmp_path / "new" / "a.zip"
    download.fetch(f"{server.url}/a.zip", path, CHECKSUM)
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ["a.zip"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert "a.zip: 100%" in capsys.readouterr().err


def test_a_download_that_is_another_file_is_put_aside(server, tmp_path):
    server.files["/a.zip"] = CONTENT[:-1]
    (tmp_path / "a.zip").write_text("as it was")
    with pytest.raises(
        ValueError, match=f"/a.zip: has sha256 .*, but {CHECKSUM} is expected.* put it at {tmp_path}/a.zip"
    ):
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", CHECKSUM)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "a.zip.wrong"] and (tmp_path / "a.zip").read_text() == "as it was"


def test_a_download_that_breaks_off_is_kept_apart(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    server.files["/a.zip"], server.cut = CONTENT, 100_000
    with pytest.raises(ConnectionError, match=f"/a.zip: .* put it at {tmp_path}/a.zip"):
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", CHECKSUM)
    assert os.listdir(tmp_path) == ["a.zip.part"]
    server.cut = None
    download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", CHECKSUM)
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_download_that_is_not_there(server, tmp_path):
    with pytest.raises(
        ConnectionError, match=r"could not be downloaded \(HTTP Error 404: Not Found\); download .* by other means"
    ):
        download.fetch(f"{server.url}/b.zip", tmp_path / "b.zip", CHECKSUM)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty book, whose downloads go to `data`."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_omniglot_is_downloaded_once(server, project, handwriting, monkeypatch):
    monkeypatch.setattr(omniglot, "URL", f"{server.url}/python")
    for part in omniglot.SHA256:
        server.files[f"/python/{part}.zip"] = (handwriting / f"{part}.zip").read_bytes()
    assert len(datasets.load("omniglot", split="test")) == 2120
    assert sorted(os.listdir(project / "data" / "omniglot")) == sorted(f"{part}.zip" for part in omniglot.SHA256)
    assert len(datasets.load("omniglot")) == 2720 and len(server.asked) == 2


def test_omniglot_without_a_network(project, monkeypatch):
    monkeypatch.setattr(omniglot, "URL", "http://127.0.0.1:9/python")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = project / "data" / "omniglot" / f"{omniglot.TRAIN}.zip"
    with pytest.raises(ConnectionError, match=f"could not be downloaded .* put it at {path}"):
        datasets.load("omniglot")
