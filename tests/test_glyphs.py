"""The drawn letters: which classes there are, that they come out the same everywhere, how hard they are, the cache;
half of them (glyphs_half), and as persons before cameras (glyphs_reid)."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from image_trees import check_contract

from gl_core import datasets
from gl_core.datasets import glyphs, glyphs_reid, lettering, protocol
from gl_core.datasets.version import data_version
from gl_core.evaluation import retrieval_metrics
from gl_core.training.config import Config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the drawn letters."""
    root = tmp_path_factory.mktemp("glyphs")
    start = time.process_time()
    datasets.load("glyphs", root)
    assert time.process_time() - start < 20  # a few seconds on a machine that does nothing else
    return root


@pytest.fixture(scope="module")
def letters():
    return lettering.outlines()


@pytest.fixture(scope="module")
def every(kept):
    return datasets.load("glyphs", kept, "all")


def pixels(dataset, index=None) -> np.ndarray:
    index = range(len(dataset)) if index is None else index
    return np.stack([np.asarray(dataset[int(i)][0])[:, :, 0] for i in index])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glyphs", "glyphs_half", "glyphs_reid", "glyphs_reid_half"])
def test_contract(kept, name):
    check_contract(lambda split: datasets.load(name, kept, split))


def test_classes_and_images(every):
    assert every.name == "glyphs"
    classes = np.unique(every.labels[every.table.split == "train"]).size
    assert 240 <= classes <= 300 and 150 <= len(every.class_names) - classes <= 250
    _, counts = np.unique(every.labels, return_counts=True)
    assert counts.min() >= 12 and counts.max() == 16
    values = np.asarray(every[-1][0])
    assert values.shape == (32, 32, 3) and (values == values[:, :, :1]).all()
    assert every.table.path.is_unique and set(every.table.typeface) == set(lettering.TYPEFACES)


def test_scripts_of_the_test_are_never_trained_on(every):
    scripts = every.table.groupby("split").script.unique()
    assert set(scripts["train"]) == {"Latin"}
    assert set(scripts["test"]) == {"Greek", "Cyrillic", "Armenian", "Georgian"}
    letters = every.table.groupby("split").letters.apply(lambda all_letters: set("".join(all_letters)))
    assert not letters["train"] & letters["test"]
    assert not any(lettering.script(letter) == "Latin" for letter in letters["test"])


def test_letters_that_look_alike_are_one_class(every):
    label = {
        letter: label for label, letters in zip(every.labels, every.table.letters, strict=True) for letter in letters
    }
    for alike in ("AΑА", "OoΟοОоՕօ", "Vv", "PΡР", "HΗН", "pр", "eе", "ΓГг", "ФФфՓ", "Жж", "ЖЖж", "ƐɛεԐԑ"):
        assert len({label[letter] for letter in alike}) == 1, alike
    for different in ("Aa", "CG", "IiJjLl", "Nn", "Pp", "Qq", "EF", "OQØ", "ЦЩ", "ГҐ", "Ξξ", "bdpq", "БВ", "ШЩ", "ԱԲԳ"):
        assert len({label[letter] for letter in different}) == len(different), different
    assert every.class_names[label["А"]] == "A" and every.class_names[label["г"]] == "Γ"
    assert not set("ÄéñÅﬁµªЙ") & set(label), "letters composed of others are left out"


def test_every_letter_is_whole_and_on_white(every):
    images = pixels(every)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert (border > 100).all() and (border == 255).mean() > 0.97
    ink = (255.0 - images).sum(axis=(1, 2)) / 255
    assert ink.min() > 20 and ink.max() < 500


@pytest.mark.slow
def test_a_new_process_draws_the_same_pixels(tmp_path, every):
    code = "import sys; from gl_core import datasets; datasets.load('glyphs', sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        assert np.array_equal(file["images"], every.images.images)


def test_raw_pixels_are_bad_enough_because_of_the_deformations(kept, every, letters, monkeypatch):
    test = datasets.load("glyphs", kept, "test")
    ink = torch.from_numpy(255 - pixels(test).reshape(len(test), -1).astype(np.float32))
    for x in (255 - ink, ink, ink - ink.mean(0)):
        assert 0.3 < retrieval_metrics(x, test.labels)["R@1"] <= 0.6
    for name in ("WAVE", "TURN", "SHEAR", "SCALE", "ASPECT", "MOVE", "PEN"):
        monkeypatch.setattr(lettering, name, 0.0)
    table = every.table[every.table.split == "test"]
    plain = []
    for row in table.itertuples():
        letter = next(letter for letter in row.letters if row.typeface in letters[letter])
        plain.append(lettering.deform(letters[letter][row.typeface], 32, np.random.default_rng(0)))
    drawn = lettering.draw(plain, 32)
    x = torch.from_numpy(255 - drawn.reshape(len(drawn), -1).astype(np.float32))
    assert retrieval_metrics(x, table.label.to_numpy())["R@1"] > 0.7


@pytest.mark.parametrize("name", ["glyphs", "glyphs_reid"])
def test_wrong_options(tmp_path, name):
    with pytest.raises(ValueError, match="size=8: must be a whole number, 12 or more"):
        datasets.load(name, tmp_path, size=8)
    with pytest.raises(ValueError, match="seed=-1: must be a whole number, 0 or more"):
        datasets.load(name, tmp_path, seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"root={tmp_path}/file: must be a folder, in which the images are kept"):
        datasets.load(name, tmp_path / "file")


@pytest.fixture
def few(letters, monkeypatch):
    """Three letters, to draw many times. Holds the size and seed of each time."""
    some = {letter: paths for letter, paths in letters.items() if letter in "AЖв"}
    monkeypatch.setattr(lettering, "outlines", lambda: some)
    drawn = []
    original = glyphs._drawn
    monkeypatch.setattr(glyphs, "_drawn", lambda *arguments: drawn.append(arguments) or original(*arguments))
    return drawn


def test_images_are_drawn_once(few, tmp_path):
    first = datasets.load("glyphs", tmp_path / "new" / "folder", "all")
    again = datasets.load("glyphs", tmp_path / "new" / "folder", "all")
    assert few == [(32, 0)] and np.array_equal(pixels(first), pixels(again)) and first.table.equals(again.table)
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(first))), pixels(first))
    larger = datasets.load("glyphs", tmp_path / "new" / "folder", "all", size=48)
    other = datasets.load("glyphs", tmp_path / "new" / "folder", "all", seed=1)
    assert larger[0][0].size == (48, 48) and (pixels(other) != pixels(first)).any(axis=(1, 2)).all()
    assert few == [(32, 0), (48, 0), (32, 1)]
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3
    assert len({data_version(dataset) for dataset in (first, again, larger, other)}) == 3


def test_other_versions_of_libraries_or_of_the_drawing_draw_anew(few, tmp_path, monkeypatch):
    first = data_version(datasets.load("glyphs", tmp_path))
    monkeypatch.setattr(glyphs.metadata, "version", lambda name: "99.0")
    assert data_version(datasets.load("glyphs", tmp_path)) == first
    monkeypatch.setattr(lettering, "DRAWING", lettering.DRAWING + 1)
    assert data_version(datasets.load("glyphs", tmp_path)) != first
    assert len(few) == 3


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "other arrays"])
def test_a_damaged_cache_is_drawn_anew(few, tmp_path, damage):
    expected = pixels(datasets.load("glyphs", tmp_path, "all"))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "other arrays":
        np.savez(path, images=np.zeros((3, 8, 8), np.uint8), groups=np.array(["A"] * 3), typefaces=np.array(["a"] * 3))
    else:
        content[300] ^= 255
        path.write_bytes({"empty": b"", "text": b"text", "cut": content[:-100], "flipped": content}[damage])
    for _ in range(2):  # the first repairs it
        assert np.array_equal(pixels(datasets.load("glyphs", tmp_path, "all")), expected)
    assert len(few) == 2 and list(tmp_path.iterdir()) == [path]


def test_the_cache_is_the_users_and_without_one_letters_are_drawn_each_time(few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = pixels(datasets.load("glyphs", split="all"))
    assert [path.suffix for path in (tmp_path / "cache" / "glbook").iterdir()] == [".npz"]
    (tmp_path / "file").touch()
    # Nothing can be written; there is no home.
    for drawn, folder in enumerate((str(tmp_path / "file"), "~/.cache/glbook"), 2):
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, folder=folder, **__: folder)
        assert np.array_equal(pixels(datasets.load("glyphs", split="all")), expected) and len(few) == drawn


# glyphs_half: half of the classes, with the images that they have in glyphs


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_is_the_first_half_of_the_classes(kept, split):
    whole, half = (datasets.load(name, kept, split) for name in ("glyphs", "glyphs_half"))
    classes = np.unique(whole.labels)
    expected = whole.subset(np.isin(whole.labels, classes[: len(classes) // 2]))
    assert half.name == "glyphs_half" and len(half) == len(expected) > 1000
    same = [name for name in whole.table if name != "label"]
    assert half.table[same].equals(expected.table[same])
    assert [half.class_names[label] for label in half.labels] == half.table["class_name"].tolist()
    some = range(0, len(half), 100)
    assert np.array_equal(pixels(half, some), pixels(expected, some))
    assert (set("ABCXYZbdpq") if split == "train" else set("ДЖЩ")) <= set(half.table["class_name"])


def test_an_epoch_has_as_many_steps_as_that_of_glyphs(kept):
    steps = {}
    for name in ("glyphs", "glyphs_half"):
        config = Config.resolve(dataset=name)
        batch = config.classes_per_batch * config.samples_per_class
        steps[name] = len(datasets.load(name, kept, "train")) / batch
    assert steps["glyphs_half"] == pytest.approx(steps["glyphs"], rel=0.05)


# glyphs_reid: letters as persons, typefaces as cameras


@pytest.fixture(scope="module")
def persons(kept):
    return datasets.load("glyphs_reid", kept, "test")


def test_what_is_trained_on_is_that_of_glyphs(kept):
    reid, plain = (datasets.load(name, kept, "train") for name in ("glyphs_reid", "glyphs"))
    assert reid.name == "glyphs_reid" and "camera" not in plain.table
    place = {path.removeprefix("bounding_box_train/"): i for i, path in enumerate(reid.table.path)}
    assert set(place) == set(plain.table.path)
    some = range(0, len(plain), 100)
    assert np.array_equal(pixels(plain, some), pixels(reid, [place[plain.table.path[i]] for i in some]))


def test_half_of_it_trains_on_the_letters_of_glyphs_half_and_tests_the_same(kept, persons):
    half, letters = (datasets.load(name, kept, "train") for name in ("glyphs_reid_half", "glyphs_half"))
    assert half.name == "glyphs_reid_half" and len(half) == len(letters)
    assert set(half.table.path.str.removeprefix("bounding_box_train/")) == set(letters.table.path)
    tested = datasets.load("glyphs_reid_half", kept, "test")
    same = [name for name in persons.table if name != "label"]
    assert tested.table[same].equals(persons.table[same])
    assert np.array_equal(pixels(tested, range(0, len(tested), 100)), pixels(persons, range(0, len(persons), 100)))


def test_every_letter_is_asked_for_once_by_every_camera(persons):
    table = persons.table
    queries, gallery = table[table.is_query], table[table.is_gallery]
    assert not (table.is_query & table.is_gallery).any() and (table.is_query | table.is_gallery).all()
    once = queries.groupby(["label", "camera"]).size()
    others = gallery[gallery.label.isin(queries.label)]
    assert (once == 1).all() and once.equals(others.groupby(["label", "camera"]).size())
    assert set(queries.script) == {"Greek", "Cyrillic", "Armenian"}
    typefaces = table.groupby("camera").typeface.unique().map(lambda names: ",".join(names))
    assert typefaces.tolist() == list(lettering.TYPEFACES) and typefaces.index.tolist() == list(range(1, 17))


def test_distractors_are_a_class_and_junk_is_part_of_an_image_of_the_gallery(persons):
    table = persons.table
    distractors, junk = table[table.class_name == "0000"], table[table.label == -1]
    assert set(distractors.script) == {"Georgian"} and distractors.label.nunique() == 1
    assert not distractors.is_query.any() and not junk.is_query.any() and set(junk.class_name) == {"junk"}
    assert len(junk) == -(-table.is_query.sum() // 5) and "junk" not in persons.class_names
    place = {path: i for i, path in enumerate(table.path)}
    whole = pixels(persons, [place[path.replace("cut/", "")] for path in junk.path])
    parts = pixels(persons, junk.index)
    assert (parts[:, :, 20:] == 255).all() and np.array_equal(parts[:, :, :20], whole[:, :, :20])
    # A query is another drawing than its image in the gallery.
    queries = table[table.is_query].iloc[::50]
    others = pixels(persons, [place[path.replace("query/", "bounding_box_test/")] for path in queries.path])
    assert (pixels(persons, queries.index) != others).any(axis=(1, 2)).all()


def test_searching_without_cameras_looks_better(persons):
    """The other drawing of the same typeface is found, which says nothing of other typefaces."""
    x = torch.from_numpy(255 - pixels(persons, range(len(persons))).reshape(len(persons), -1).astype(np.float32))
    query, gallery = (torch.from_numpy(part) for part in protocol.query_and_gallery(persons))
    with_cameras = protocol.judge(x, persons)
    without = retrieval_metrics(x[query], persons.labels[query], x[gallery], persons.labels[gallery])
    assert with_cameras["excluded_queries"] == 0
    assert 0.2 < with_cameras["Rank-1"] < without["R@1"] - 0.03


def test_settings_suit_it_as_they_suit_glyphs():
    for profile in ("quick", "full"):
        for part in ("", "_half"):
            names = f"glyphs_reid{part}", f"glyphs{part}"
            reid, plain = (Config.resolve(profile, dataset=name).as_dict() for name in names)
            assert reid | {"dataset": names[1]} == plain


def test_the_version_knows_how_junk_is_cut(kept, persons, monkeypatch):
    before = data_version(persons)
    monkeypatch.setattr(glyphs_reid, "DRAWING", glyphs_reid.DRAWING + 1)
    assert data_version(datasets.load("glyphs_reid", kept, "test")) != before
