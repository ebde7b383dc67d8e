"""Figures that answer to the reader: what they carry, and the picture that they are without scripts."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from glbook import plots

W = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.25], [0.5, 0.25, 1.0]])
X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
WORDS = {"alt": "two & three", "caption": "what < to find"}
# Five images of three of ten classes.
SHOWN = {"labels": np.array([7, 3, 7, 3, 9]), "class_names": [f"class {i}" for i in range(10)]} | WORDS
IMAGES = [Image.new("L", (20, 30), 50 * i) for i in range(5)]


def carried(figure, kind: str) -> dict:
    return json.loads(html.unescape(re.search(rf'data-{kind}="([^"]*)"', figure.data)[1]))


def picture(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def still(figure) -> tuple[str, Image.Image]:
    found = re.search(r'<img class="still" alt="([^"]*)" src="data:image/png;base64,([^"]*)"', figure.data)
    return found[1], picture(found[2])


def playground(similarity=W, names=("a", "b", 'u"<')):
    return plots.simplex_playground(similarity, X, labels=[0, 1, 2], names=names, **WORDS)


def explorer(neighbours=("before", "after")):
    maps = dict(zip(("before", "after"), np.random.default_rng(0).normal(size=(2, 5, 2)), strict=True))
    near = {name: np.tile(np.arange(2), (5, 1)) for name in neighbours}
    return maps, plots.embedding_explorer(maps, near, images=IMAGES, **SHOWN)


def film(moments=6, **given):
    maps = np.random.default_rng(0).normal(size=(moments, 5, 2))
    return maps, plots.embedding_film(maps, **SHOWN | {"titles": [f"epoch {i}" for i in range(moments)]} | given)


def test_the_playground_carries_similarities_starts_and_anchors():
    state = carried(playground(), "simplex")
    assert state["similarity"] == W.tolist()
    assert [image["anchor"] for image in state["images"]] == [True, True, False]
    assert state["images"][2] == {"name": 'u"<', "label": 2, "anchor": False, "start": pytest.approx([0.2, 0.3, 0.5])}


def test_without_scripts_there_is_a_picture_with_words():
    alt, shown = still(playground())
    assert alt == "two &amp; three" and min(shown.size) > 200
    assert playground().data.endswith("<figcaption>what &lt; to find</figcaption></figure>")


def test_the_explorer_carries_maps_neighbours_and_only_the_classes_shown():
    maps, figure = explorer()
    state = carried(figure, "explorer")
    assert list(state["maps"]) == ["before", "after"]
    np.testing.assert_allclose(state["maps"]["after"]["points"], maps["after"], atol=6e-4)
    assert state["maps"]["after"]["neighbours"] == [[0, 1]] * 5
    assert state["names"] == ["class 3", "class 7", "class 9"] and state["labels"] == [1, 0, 1, 0, 2]


def test_the_sheet_holds_each_image_at_its_tile():
    state = carried(explorer()[1], "explorer")
    sheet = picture(state["sprite"].removeprefix("data:image/png;base64,")).convert("L")
    tile, columns = state["tile"], state["columns"]
    middles = [(i % columns * tile + tile // 2, i // columns * tile + tile // 2) for i in range(5)]
    assert [sheet.getpixel(middle) for middle in middles] == pytest.approx([0, 50, 100, 150, 200], abs=3)


def test_the_film_carries_every_moment():
    maps, figure = film()
    state = carried(figure, "film")
    np.testing.assert_allclose(state["maps"], maps, atol=6e-3)
    assert state["titles"][-1] == "epoch 5" and state["labels"] == [1, 0, 1, 0, 2] and state["sprite"] is None
    assert carried(film(images=IMAGES)[1], "film")["sprite"].startswith("data:image/png")


@pytest.mark.parametrize(("moments", "chosen"), [(2, [0, 1]), (10, [0, 3, 6, 9])])
def test_the_film_without_scripts_is_a_strip_of_its_first_and_last_moments_and_some_between(moments, chosen):
    maps, figure = film(moments)
    assert still(figure)[1].width > len(chosen) / 2 * still(figure)[1].height
    titles = [f"epoch {i}" for i in range(moments)]
    strip = plots.film_strip(maps, titles=titles, labels=[0] * 5)
    assert [ax.get_title() for ax in strip.axes] == [titles[i] for i in chosen]
    assert len({ax.get_xlim() for ax in strip.axes}) == len({ax.get_ylim() for ax in strip.axes}) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: playground(W[:2]), r"must be \(n, n\) and \(n, 3\)"),
        (lambda: playground(names=["a", "b"]), "names has length 2"),
        (lambda: explorer(neighbours=["before"]), "must be the same"),
        (lambda: film(titles=["one"]), "titles has length 1: must be 6"),
        (lambda: film(labels=[0, 1]), "labels has length 2: must be 5"),
        (lambda: film(images=[]), "images has length 0"),
        (lambda: plots.embedding_film(np.zeros((3, 2)), titles=[], **SHOWN), r"must be \(moments, images, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
