"""Letters as persons, typefaces as cameras: who is query, gallery, distractor and junk, and how it is judged."""

import numpy as np
import pytest
import torch

from gl_core import datasets
from gl_core.datasets import lettering, protocol
from gl_core.evaluation import retrieval_metrics
from gl_core.training.config import Config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("drawings")


@pytest.fixture(scope="module")
def test(kept):
    return datasets.load("glyphs_reid", kept, "test")


def pixels(dataset, index) -> np.ndarray:
    return np.stack([np.asarray(dataset[int(i)][0])[:, :, 0] for i in index])


def test_what_is_trained_on_is_that_of_glyphs(kept):
    reid, plain = (datasets.load(name, kept, "train") for name in ("glyphs_reid", "glyphs"))
    assert reid.name == "glyphs_reid" and "camera" not in plain.table
    assert np.array_equal(np.unique(reid.labels), np.arange(len(np.unique(plain.labels))))
    assert not reid.table.is_query.any() and not reid.table.is_gallery.any()
    place = {path.removeprefix("bounding_box_train/"): i for i, path in enumerate(reid.table.path)}
    assert set(place) == set(plain.table.path)
    some = range(0, len(plain), 100)
    assert np.array_equal(pixels(plain, some), pixels(reid, [place[plain.table.path[i]] for i in some]))


def test_half_of_it_trains_on_the_letters_of_glyphs_half_and_tests_the_same(kept, test):
    half, letters = (datasets.load(name, kept, "train") for name in ("glyphs_reid_half", "glyphs_half"))
    assert half.name == "glyphs_reid_half" and len(half) == len(letters)
    assert set(half.table.path.str.removeprefix("bounding_box_train/")) == set(letters.table.path)
    assert np.array_equal(np.unique(half.labels), np.unique(letters.labels))
    tested = datasets.load("glyphs_reid_half", kept, "test")
    same = [name for name in test.table if name != "label"]
    assert tested.table[same].equals(test.table[same])
    assert np.array_equal(pixels(tested, range(0, len(tested), 100)), pixels(test, range(0, len(test), 100)))


def test_every_letter_is_asked_for_once_by_every_camera(test):
    table = test.table
    queries, gallery = table[table.is_query], table[table.is_gallery]
    assert not (table.is_query & table.is_gallery).any() and (table.is_query | table.is_gallery).all()
    once = queries.groupby(["label", "camera"]).size()
    persons = gallery[gallery.label.isin(queries.label)]
    assert (once == 1).all() and once.equals(persons.groupby(["label", "camera"]).size())
    assert set(queries.script) == {"Greek", "Cyrillic", "Armenian"}
    typefaces = table.groupby("camera").typeface.unique().map(lambda names: ",".join(names))
    assert typefaces.tolist() == list(lettering.TYPEFACES) and typefaces.index.tolist() == list(range(1, 17))


def test_distractors_are_a_class_and_junk_is_none(test):
    table = test.table
    distractors, junk = table[table.class_name == "0000"], table[table.label == -1]
    assert (
        set(distractors.script) == {"Georgian"} and distractors.label.nunique() == 1 and (distractors.label >= 0).all()
    )
    assert not distractors.is_query.any() and not junk.is_query.any() and set(junk.class_name) == {"junk"}
    assert len(junk) == -(-table.is_query.sum() // 5) and "junk" not in test.class_names


def test_junk_is_part_of_an_image_of_the_gallery(test):
    place = {path: i for i, path in enumerate(test.table.path)}
    junk = np.flatnonzero(test.labels == -1)
    whole = [place[test.table.path[i].replace("cut/", "")] for i in junk]
    parts = pixels(test, junk)
    assert (parts[:, :, 20:] == 255).all() and np.array_equal(parts[:, :, :20], pixels(test, whole)[:, :, :20])


def test_a_query_is_another_drawing_than_its_gallery_image(test):
    place = {path: i for i, path in enumerate(test.table.path)}
    queries = np.flatnonzero(test.table.is_query)[::50]
    others = [place[test.table.path[i].replace("query/", "bounding_box_test/")] for i in queries]
    assert (pixels(test, queries) != pixels(test, others)).any(axis=(1, 2)).all()


def test_searching_without_cameras_looks_better(test):
    """The other drawing of the same typeface is found, which says nothing of other typefaces."""
    x = torch.from_numpy(255 - pixels(test, range(len(test))).reshape(len(test), -1).astype(np.float32))
    query, gallery = (torch.from_numpy(part) for part in protocol.query_and_gallery(test))
    with_cameras = protocol.judge(x, test)
    without = retrieval_metrics(x[query], test.labels[query], x[gallery], test.labels[gallery])
    assert with_cameras["excluded_queries"] == 0
    assert 0.2 < with_cameras["Rank-1"] < without["R@1"] - 0.03


def test_settings_suit_it_as_they_suit_glyphs():
    for profile in ("quick", "full"):
        for part in ("", "_half"):
            names = f"glyphs_reid{part}", f"glyphs{part}"
            reid, plain = (Config.resolve(profile, dataset=name).as_dict() for name in names)
            assert reid | {"dataset": names[1]} == plain


def test_wrong_options(tmp_path):
    for seed in (-1, "one"):
        with pytest.raises(ValueError, match=f"seed={seed!r}: must be a whole number, 0 or more"):
            datasets.load("glyphs_reid", tmp_path, seed=seed)
    with pytest.raises(ValueError, match="size=8: must be a whole number, 12 or more"):
        datasets.load("glyphs_reid", tmp_path, size=8)
