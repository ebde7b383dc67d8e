"""glyphs_half: half of the classes of glyphs, with the images that they have there."""

import numpy as np
import pytest

from gl_core import datasets
from gl_core.training.config import Config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder in which the letters are drawn once."""
    return tmp_path_factory.mktemp("drawings")


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
    assert all(np.array_equal(np.asarray(half[i][0]), np.asarray(expected[i][0])) for i in some)


def test_labels_number_the_classes_that_are_left(kept):
    train, test = (datasets.load("glyphs_half", kept, split) for split in ("train", "test"))
    found = np.unique(train.labels), np.unique(test.labels)
    assert np.array_equal(np.concatenate(found), np.arange(len(train.class_names)))
    assert set("ABCXYZbdpq") <= set(np.array(train.class_names)[found[0]])
    assert {"Greek", "Cyrillic"} <= set(test.table["script"]) and set(train.table["script"]) == {"Latin"}


def test_an_epoch_has_as_many_steps_as_that_of_glyphs(kept):
    steps = {}
    for name in ("glyphs", "glyphs_half"):
        config = Config.resolve(dataset=name)
        batch = config.classes_per_batch * config.samples_per_class
        steps[name] = len(datasets.load(name, kept, "train")) / batch
    assert steps["glyphs_half"] == pytest.approx(steps["glyphs"], rel=0.05)
    assert (
        Config.resolve(dataset="glyphs_half").epochs == 1 and Config.resolve("full", dataset="glyphs_half").epochs > 1
    )


def test_options_are_those_of_glyphs(kept):
    assert datasets.load("glyphs_half", kept, "train", size=20)[0][0].size == (20, 20)
    with pytest.raises(ValueError, match="size=8: must be a whole number, 12 or more"):
        datasets.load("glyphs_half", kept, size=8)
    with pytest.raises(ValueError, match="seed=-1: must be a whole number, 0 or more"):
        datasets.load("glyphs_half", kept, seed=-1)
