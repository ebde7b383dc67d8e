"""Figures that answer to the reader: what they carry, and the picture that they are without scripts."""

import base64
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


def playground(**given):
    settings = {
        "labels": [0, 1, 2],
        "names": ["a", "b", 'u"<'],
        "alt": "two & three",
        "caption": "what < to find",
    } | given
    return plots.simplex_playground(W, X, **settings)


def carried(figure, kind: str) -> dict:
    import html

    return json.loads(html.unescape(re.search(rf'data-{kind}="([^"]*)"', figure.data)[1]))


def still(figure) -> Image.Image:
    alt, content = re.search(
        r'<img class="still" alt="([^"]*)" src="data:image/png;base64,([^"]*)"', figure.data
    ).groups()
    return alt, Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_playground_carries_similarities_starts_and_anchors():
    state = carried(playground(), "simplex")
    assert state["similarity"] == W.tolist()
    assert [image["anchor"] for image in state["images"]] == [True, True, False]
    assert state["images"][2] == {"name": 'u"<', "label": 2, "anchor": False, "start": pytest.approx([0.2, 0.3, 0.5])}


def test_without_scripts_there_is_a_picture_with_words():
    alt, picture = still(playground())
    assert alt == "two &amp; three" and min(picture.size) > 200
    assert playground().data.endswith("<figcaption>what &lt; to find</figcaption></figure>")


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"must be \(n, n\) and \(n, 3\)"):
        plots.simplex_playground(W[:2], X, labels=[0, 1, 2], names="abc", alt="", caption="")
    with pytest.raises(ValueError, match="names has length 2"):
        playground(names=["a", "b"])


def explorer(maps=("before", "after"), n=5):
    random = np.random.default_rng(0)
    points = {name: random.normal(size=(n, 2)) for name in maps}
    neighbours = {name: np.tile(np.arange(2), (n, 1)) for name in maps}
    images = [Image.new("L", (20, 30), 50 * i) for i in range(n)]
    labels = np.array([7, 3, 7, 3, 9])[:n]
    return points, plots.embedding_explorer(
        points,
        neighbours,
        labels=labels,
        class_names=[f"class {i}" for i in range(10)],
        images=images,
        alt="a map",
        caption="c",
    )


def test_the_explorer_carries_maps_neighbours_and_only_the_classes_shown():
    points, figure = explorer()
    state = carried(figure, "explorer")
    assert list(state["maps"]) == ["before", "after"]
    np.testing.assert_allclose(state["maps"]["after"]["points"], points["after"], atol=6e-4)
    assert state["names"] == ["class 3", "class 7", "class 9"] and state["labels"] == [1, 0, 1, 0, 2]


def test_the_sheet_holds_each_image_at_its_tile():
    state = carried(explorer()[1], "explorer")
    sheet = Image.open(io.BytesIO(base64.b64decode(state["sprite"].split(",")[1]))).convert("L")
    tile, columns = state["tile"], state["columns"]
    middles = [(i % columns * tile + tile // 2, i // columns * tile + tile // 2) for i in range(5)]
    assert [sheet.getpixel(middle) for middle in middles] == pytest.approx([0, 50, 100, 150, 200], abs=3)


def test_every_map_needs_its_neighbours():
    with pytest.raises(ValueError, match="must be the same"):
        plots.embedding_explorer(
            {"a": np.zeros((1, 2))},
            {},
            labels=[0],
            class_names=["x"],
            images=[Image.new("L", (4, 4))],
            alt="",
            caption="",
        )


def film(n=5, moments=6, **given):
    random = np.random.default_rng(0)
    maps = random.normal(size=(moments, n, 2))
    settings = {
        "titles": [f"epoch {i}" for i in range(moments)],
        "labels": np.array([7, 3, 7, 3, 9])[:n],
        "class_names": [f"class {i}" for i in range(10)],
        "alt": "maps",
        "caption": "what to find",
    } | given
    return maps, plots.embedding_film(maps, **settings)


def test_the_film_carries_every_moment():
    maps, figure = film()
    state = carried(figure, "film")
    np.testing.assert_allclose(state["maps"], maps, atol=6e-3)
    assert state["titles"][-1] == "epoch 5" and state["labels"] == [1, 0, 1, 0, 2] and state["sprite"] is None
    images = [Image.new("L", (20, 30), 50 * i) for i in range(5)]
    assert carried(film(images=images)[1], "film")["sprite"].startswith("data:image/png")


def test_the_film_without_scripts_is_a_strip_of_its_first_and_last_moments_and_some_between():
    alt, picture = still(film()[1])
    assert alt == "maps" and picture.width > 2 * picture.height
    strip = plots.film_strip(film(moments=2)[0], titles=["before", "after"], labels=[0] * 5)
    assert [ax.get_title() for ax in strip.axes] == ["before", "after"]
    assert len({ax.get_xlim() for ax in strip.axes}) == len({ax.get_ylim() for ax in strip.axes}) == 1
    titles = [f"epoch {i}" for i in range(10)]
    shown = [ax.get_title() for ax in plots.film_strip(film(moments=10)[0], titles=titles, labels=[0] * 5).axes]
    assert shown == ["epoch 0", "epoch 3", "epoch 6", "epoch 9"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"titles": ["one"]}, "titles has length 1: must be 6"),
        ({"labels": [0, 1]}, "labels has length 2: must be 5"),
        ({"images": []}, "images has length 0"),
    ],
)
def test_a_film_of_wrong_lengths_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        film(**wrong)
    with pytest.raises(ValueError, match="must be .moments, images, 2"):
        plots.embedding_film(np.zeros((3, 2)), titles=[], labels=[], class_names=[], alt="", caption="")
