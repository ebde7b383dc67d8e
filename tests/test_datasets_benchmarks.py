"""The six benchmarks: miniatures in the form of the originals, read by the official protocols."""

import pickle
import sys
import time

import numpy as np
import pytest
from image_trees import check_contract
from miniatures import BUILDERS, cars196, cub, cuhk03_release, inshop, market1501, sop

from gl_core import datasets
from gl_core.datasets.version import data_version


@pytest.fixture(params=BUILDERS)
def mini(request, tmp_path):
    """(how `load` is called for the parts, images of the parts: trained on, queries, gallery, classes of training and
    test)"""
    name, build = BUILDERS[request.param]
    root = build(tmp_path / "data")
    expected = {
        "cub": (12, 12, 12, 4, 4),
        "cars196": (12, 12, 12, 4, 4),
        "cars196 devkit": (16, 16, 16, 4, 4),
        "sop": (15, 12, 12, 5, 4),
        "inshop": (10, 8, 8, 5, 4),
        "inshop nested": (10, 8, 8, 5, 4),
        # 6 images of persons, 2 of them junk, 3 distractors, which make a class
        "market1501": (16, 6, 11, 4, 4),
        "cuhk03": (16, 6, 6, 4, 3),
        "cuhk03_labelled": (16, 6, 5, 4, 3),
        "cuhk03 release": (32, 6, 18, 4, 3),
        "cuhk03_labelled release": (32, 6, 18, 4, 3),
    }[request.param]
    return lambda split, **options: datasets.load(name, root, split, **options), expected, name


def test_splits_labels_and_cameras(mini):
    load, (trained_on, queries, gallery, train_classes, test_classes), name = mini
    check_contract(load)
    train, test = load("train"), load("test")
    assert test.name == name
    assert (len(train), test.table.is_query.sum(), test.table.is_gallery.sum()) == (trained_on, queries, gallery)
    assert (len(np.unique(train.labels)), len(test.class_names)) == (train_classes, train_classes + test_classes)
    if name not in ("market1501", "cuhk03", "cuhk03_labelled"):
        assert "camera" not in test.table
        return
    table = test.table
    assert set(table.camera) == {1, 2}
    for query in table[table.is_query].itertuples():
        others = table[table.is_gallery & (table.label == query.label) & (table.camera != query.camera)]
        assert len(others) or name == "cuhk03_labelled"


def test_every_image_is_read_and_is_in_the_version(mini):
    load, _, name = mini
    dataset = pickle.loads(pickle.dumps(load("all")))
    pixels = [np.asarray(image) for image, _ in dataset]  # some are grey
    assert all(array.shape[2] == 3 for array in pixels)
    assert len({array.tobytes() for array in pixels}) == len(pixels), "each picture of a miniature is another"
    version = data_version(dataset)
    assert version == data_version(load("all")) != data_version(load("test"))
    if name in ("cub", "cars196"):
        assert data_version(load("all", crop=True)) != version


def test_a_lacking_root(mini, tmp_path):
    _, _, name = mini
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"root={tmp_path}/empty: lacks .*; it must be the folder that holds"):
        datasets.load(name, tmp_path / "empty")
    with pytest.raises(ValueError, match="root=None: must be the folder that holds"):
        datasets.load(name)


@pytest.mark.parametrize(
    ("name", "build", "top"),
    [
        ("cub", cub, "CUB_200_2011"),
        ("sop", sop, "Stanford_Online_Products"),
        ("market1501", market1501, "Market-1501-v15.09.15"),
    ],
)
def test_the_top_folder_itself_will_do(tmp_path, name, build, top):
    build(tmp_path)
    inside, around = datasets.load(name, tmp_path / top, "all"), datasets.load(name, tmp_path, "all")
    assert inside.table.equals(around.table)


# Each protocol's own


@pytest.mark.parametrize(("name", "build", "border"), [("cub", cub, 100), ("cars196", cars196, 98)])
def test_classes_are_parted_by_their_numbers_and_images_cut_to_boxes(tmp_path, name, build, border):
    build(tmp_path)
    for split in ("train", "test"):
        numbers = {int(class_name[:3]) for class_name in datasets.load(name, tmp_path, split).table.class_name}
        assert all((number <= border) == (split == "train") for number in numbers)
        assert border + (split == "test") in numbers
    whole, cropped = datasets.load(name, tmp_path), datasets.load(name, tmp_path, crop=True)
    # left 4, top 2, 20 x 10; MATLAB's 5..24 and 3..12 are the same
    expected = np.asarray(whole[0][0])[2:12, 4:24]
    assert whole[0][0].size == (40, 32) and np.array_equal(np.asarray(cropped[0][0]), expected)
    assert cropped.table.equals(whole.table)


def test_boxes_are_optional(tmp_path):
    (cub(tmp_path) / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    assert len(datasets.load("cub", tmp_path)) == 12
    with pytest.raises(FileNotFoundError, match="crop=True: takes .*bounding_boxes.txt, which is not there"):
        datasets.load("cub", tmp_path, crop=True)


def test_super_classes_of_products(tmp_path):
    table = datasets.load("sop", sop(tmp_path), "all").table
    assert {path.split("_final/")[0] for path in table.path} == set(table.super_class) == {"bicycle", "cabinet"}
    assert table.group.equals(table.super_class)
    assert (table.groupby("label").super_class.nunique() == 1).all()


def test_queries_and_gallery_of_items(tmp_path):
    test = datasets.load("inshop", inshop(tmp_path), "test").table
    assert not (test.is_query & test.is_gallery).any()
    assert set(test[test.is_query].label) == set(test[test.is_gallery].label)


def test_junk_and_distractors_of_market(tmp_path):
    test = datasets.load("market1501", market1501(tmp_path), "test")
    junk, distractors = test.labels == -1, (test.table.class_name == "0000").to_numpy()
    assert junk.sum() == 2 and distractors.sum() == 3
    assert test.table.path[junk].str.contains("/-1_c").all() and not test.table.is_query[junk | distractors].any()
    assert test.table.is_gallery[junk | distractors].all() and (test.labels[distractors] >= 0).all()
    assert "of 4 classes" in repr(test) and test.table[~junk].is_gallery.sum() == 9
    folder = tmp_path / "Market-1501-v15.09.15" / "query"
    min(folder.glob("0001_*")).rename(folder / "-1_c1s1_000010_00.jpg")
    with pytest.raises(ValueError, match="query/-1_c1s1_000010_00.jpg: is junk"):
        datasets.load("market1501", tmp_path)
    (folder / "-1_c1s1_000010_00.jpg").rename(folder / "person.jpg")
    with pytest.raises(ValueError, match="query/person.jpg: the name must begin with person and camera"):
        datasets.load("market1501", tmp_path)

    (folder / "person.jpg").rename(folder.parent / "bounding_box_train" / "0001_c1s1_000000_00.jpg")
    with pytest.raises(ValueError, match="class '0001' is in training and in the test"):
        datasets.load("market1501", tmp_path)


def test_images_of_the_release_are_upright_and_know_who_cut_them(tmp_path, monkeypatch):
    cuhk03_release(tmp_path)
    versions = set()
    for name, mark in (("cuhk03", 0), ("cuhk03_labelled", 1)):
        dataset = datasets.load(name, tmp_path, "all")
        versions.add(data_version(dataset))
        for path, (image, _) in zip(dataset.table.path, dataset, strict=True):
            pair, person, view, number = (int(part) for part in path.removesuffix(".png").split("_"))
            assert image.size == (16, 32)
            assert image.getpixel((15, 0)) == (100 * pair + 10 * person + number, mark, 255)
            assert (view == 1) == (number <= 5)
    assert len(versions) == 2
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="h5py is not installed: pip install"):
        datasets.load("cuhk03", tmp_path)


# What goes wrong


@pytest.mark.parametrize(
    ("name", "build", "file", "content", "message"),
    [
        ("cars196", cars196, "cars_annos.mat", "MATLAB 5.0 MAT-file", "is no MATLAB file that can be read"),
        ("sop", sop, "Ebay_test.txt", "image_id class_id super_class_id path\n1 6", "line 2 holds . of 4 values"),
        ("cub", cub, "image_class_labels.txt", "1 1\n", "holds no class of 001.Bird_1/Bird_1_0001_7.jpg"),
        (
            "inshop",
            inshop,
            "list_eval_partition.txt",
            "1\nname item status\na.jpg id_1 val\n",
            "'val' is no part: must",
        ),
    ],
)
def test_damaged_lists_are_named(tmp_path, name, build, file, content, message):
    next(build(tmp_path).rglob(file)).write_text(content)
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        datasets.load(name, tmp_path)


def test_the_table_of_all_products_is_quick(tmp_path):
    top, position = tmp_path / "Stanford_Online_Products", 0
    top.mkdir()
    for name, first, products, images in (("Ebay_train.txt", 1, 11318, 59551), ("Ebay_test.txt", 11319, 11316, 60502)):
        rows = ["image_id class_id super_class_id path"]
        for i in range(images):
            position += 1
            rows.append(f"{position} {first + i * products // images} 1 bicycle_final/{111085122871 + i}_{i % 7}.JPG")
        (top / name).write_text("\n".join(rows))
    datasets.load("sop", sop(tmp_path / "small"))  # whatever is imported on first use
    began = time.process_time()
    whole = datasets.load("sop", tmp_path, "all")
    assert time.process_time() - began < 2
    assert len(whole) == 120_053 and len(whole.class_names) == 22_634
