"""Figures that answer to the reader: what they carry, and the picture that they are without scripts."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gl_core import plots

W = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.25], [0.5, 0.25, 1.0]])
X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])


def playground(**given):
    settings = {"labels": [0, 1, 2], "names": ["a", "b", 'u"<'], "alt": "two & three"} | given
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


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"must be \(n, n\) and \(n, 3\)"):
        plots.simplex_playground(W[:2], X, labels=[0, 1, 2], names="abc", alt="")
    with pytest.raises(ValueError, match="names has length 2"):
        playground(names=["a", "b"])


def explorer(maps=("before", "after"), n=5):
    random = np.random.default_rng(0)
    points = {name: random.normal(size=(n, 2)) for name in maps}
    neighbours = {name: np.tile(np.arange(2), (n, 1)) for name in maps}
    images = [Image.new("L", (20, 30), 50 * i) for i in range(n)]
    labels = np.array([7, 3, 7, 3, 9])[:n]
    return points, plots.embedding_explorer(
        points, neighbours, labels=labels, class_names=[f"class {i}" for i in range(10)], images=images, alt="a map"
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
            {"a": np.zeros((1, 2))}, {}, labels=[0], class_names=["x"], images=[Image.new("L", (4, 4))], alt=""
        )
