"""The drawn letters: which classes there are, that they come out the same everywhere, how hard they are, the cache."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gl_core import datasets
from gl_core.datasets import glyphs, lettering
from gl_core.evaluation import retrieval_metrics


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


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(image)[:, :, 0] for image, _ in dataset])


def test_contract(kept, every):
    train, test = (datasets.load("glyphs", kept, split) for split in ("train", "test"))
    classes = len(np.unique(train.labels))
    assert np.array_equal(np.unique(train.labels), np.arange(classes))
    assert np.array_equal(np.unique(test.labels), np.arange(classes, len(every.class_names)))
    assert 240 <= classes <= 300 and 150 <= len(every.class_names) - classes <= 250
    assert len(train) + len(test) == len(every) and every.name == "glyphs"
    _, counts = np.unique(every.labels, return_counts=True)
    assert counts.min() >= 12 and counts.max() == 16
    image, label = test[0]
    assert (image.mode, image.size, label) == ("RGB", (32, 32), classes)
    values = np.asarray(image)
    assert (values == values[:, :, :1]).all()
    assert every.table.path.is_unique and set(every.table.typeface) == set(lettering.TYPEFACES)
    assert every.table.class_name.tolist() == [every.class_names[label] for label in every.labels]
    assert test.table.is_query.all() and test.table.is_gallery.all()
    assert not train.table.is_query.any() and not train.table.is_gallery.any()


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


def test_letters_composed_of_others_are_left_out(every):
    assert not set("ÄéñÅﬁµªЙ") & set("".join(every.table.letters.unique()))


def test_every_letter_is_whole_and_on_white(every):
    images = pixels(every)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert (border > 100).all() and (border == 255).mean() > 0.97
    ink = (255.0 - images).sum(axis=(1, 2)) / 255
    assert ink.min() > 20 and ink.max() < 500


def test_a_new_process_draws_the_same_pixels(tmp_path, every):
    code = "import sys; from gl_core import datasets; datasets.load('glyphs', sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        assert np.array_equal(file["images"], every.images.images)


def test_an_image_depends_on_nothing_but_itself(letters):
    """Fewer letters, the same drawings: no image depends on the order of the others."""
    some = {letter: letters[letter] for letter in "Щж"}

    def drawn(chosen):
        random = [np.random.default_rng((0, ord(letter), 3)) for letter in chosen]
        faces = [chosen[letter][lettering.TYPEFACES[3]] for letter in chosen]
        return lettering.draw([lettering.deform(path, 32, r) for path, r in zip(faces, random, strict=True)], 32)

    whole = dict(zip(letters, drawn(letters), strict=True))
    for letter, image in zip(some, drawn(some), strict=True):
        assert np.array_equal(image, whole[letter])


@pytest.mark.parametrize("form", ["pixels", "ink", "centred"])
def test_raw_pixels_are_bad_enough(kept, form):
    test = datasets.load("glyphs", kept, "test")
    x = pixels(test).reshape(len(test), -1).astype(np.float32)
    x = {"pixels": x, "ink": 255 - x, "centred": x - x.mean(axis=0)}[form]
    recall = retrieval_metrics(torch.from_numpy(x), test.labels)["R@1"]
    assert 0.3 < recall <= 0.6


def test_without_deformation_raw_pixels_would_do(every, letters, monkeypatch):
    """So the difficulty is that of the deformations, and pixels are fit to see the letters."""
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


def test_sizes_and_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="size=8: must be a whole number, 12 or more"):
        datasets.load("glyphs", tmp_path, size=8)
    with pytest.raises(ValueError, match="seed=-1: must be a whole number, 0 or more"):
        datasets.load("glyphs", tmp_path, seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"root={tmp_path}/file: must be a folder, in which the images are kept"):
        datasets.load("glyphs", tmp_path / "file")


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
    assert datasets.load("glyphs", tmp_path / "new" / "folder", "all", size=48)[0][0].size == (48, 48)
    other = datasets.load("glyphs", tmp_path / "new" / "folder", "all", seed=1)
    assert (pixels(other) != pixels(first)).any(axis=(1, 2)).all()
    assert few == [(32, 0), (48, 0), (32, 1)]
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3


def test_other_versions_of_typefaces_or_code_draw_anew(few, tmp_path, monkeypatch):
    import matplotlib

    datasets.load("glyphs", tmp_path)
    monkeypatch.setattr(matplotlib, "__version__", "99.0")
    datasets.load("glyphs", tmp_path)
    (tmp_path / "code.py").write_text("other code")
    monkeypatch.setattr(lettering, "__file__", str(tmp_path / "code.py"))
    datasets.load("glyphs", tmp_path)
    assert len(few) == 3


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "other arrays", "other size"])
def test_a_damaged_cache_is_drawn_anew(few, tmp_path, damage):
    expected = pixels(datasets.load("glyphs", tmp_path, "all"))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "other arrays":
        np.savez(path, a=np.zeros(3))
    elif damage == "other size":
        with np.load(path) as file:
            np.savez(path, **(dict(file) | {"images": file["images"][:, 1:]}))
    else:
        content[300] ^= 255
        path.write_bytes({"empty": b"", "text": b"text", "cut": content[:-100], "flipped": content}[damage])
    assert np.array_equal(pixels(datasets.load("glyphs", tmp_path, "all")), expected)
    assert len(few) == 2
    datasets.load("glyphs", tmp_path)  # was repaired
    assert len(few) == 2 and list(tmp_path.iterdir()) == [path]


def test_the_cache_is_the_users(few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.load("glyphs")
    assert [path.suffix for path in (tmp_path / "cache" / "gl_core").iterdir()] == [".npz"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    datasets.load("glyphs")
    assert (tmp_path / "home" / ".cache" / "gl_core").is_dir()


def test_where_nothing_can_be_written_letters_are_drawn_each_time(few, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(datasets.load("glyphs", split="all")) == len(datasets.load("glyphs", split="all")) > 0
    assert len(few) == 2


def test_nor_where_the_user_has_no_home(few, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(glyphs.Path, "expanduser", homeless)
    assert len(datasets.load("glyphs", split="all")) > 0


def test_pickles(few, tmp_path):
    d = datasets.load("glyphs", tmp_path, "all")
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(d))), pixels(d))


def test_a_missing_drawing_is_named(few, tmp_path):
    d = datasets.load("glyphs", tmp_path)
    d.images.position.clear()
    with pytest.raises(ValueError, match="glyphs: Latin/0041/DejaVuSans: the image cannot be read"):
        d[0]
