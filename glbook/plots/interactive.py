"""Figures that the reader can move in the rendered book, and are still pictures wherever its scripts are not.

The scripts lie in the book's `_static` folder. What they need is in the figure's own HTML, around a still picture that
they replace when they start.
"""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from glbook.plots.images import as_pixels, embedding_scatter
from glbook.plots.propagation import path_on_simplex
from glbook.plots.style import as_array, panels, same_length

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["embedding_explorer", "embedding_film", "film_strip", "simplex_playground"]

STILL_ITERATIONS = 3  # of the still picture, and those at which the playground starts
TILE = 32  # pixels of a side of an image on the sheet of all images


def simplex_playground(
    similarity: Float[np.ndarray, "n n"],
    assignments: Float[np.ndarray, "n 3"],
    *,
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
    corners: Sequence[str] = ("class 1", "class 2", "class 3"),
    alt: str,
    caption: str,
) -> "HTML":
    """Replicator dynamics of a few images over three classes: similarities, starts and iterations can be moved.

    Args:
        similarity: (n, n).
        assignments: where the images start, (n, 3). One-hot rows are anchors, drawn as squares, which stay.
        labels: 0, 1 or 2; they give each image its colour.
        names: what each image is called.
        corners: what the classes are called.
        alt: in words, what the still picture shows.
        caption: what is to be found in the figure.

    Raises:
        ValueError: if the shapes disagree.
    """
    import torch

    from gl_core.propagation import replicator_dynamics

    W, X = as_array(similarity).astype(float), as_array(assignments).astype(float)
    labels = as_array(labels)
    if X.ndim != 2 or X.shape[1] != 3 or W.shape != (len(X), len(X)):
        raise ValueError(f"similarity and assignments have shapes {W.shape} and {X.shape}: must be (n, n) and (n, 3)")
    same_length("assignments", X, labels=labels, names=names)
    path = replicator_dynamics(torch.from_numpy(W), torch.from_numpy(X), STILL_ITERATIONS, return_path=True)
    still = path_on_simplex(path, labels=labels, corners=corners)
    images = [
        {"name": name, "label": int(label), "anchor": bool(row.max() == 1), "start": row.round(4).tolist()}
        for name, label, row in zip(names, labels, X, strict=True)
    ]
    state = {"corners": list(corners), "images": images, "similarity": W.round(4).tolist()}
    return _interactive("simplex", state, still, alt, caption)


def embedding_explorer(
    maps: Mapping[str, Float[np.ndarray, "n 2"]],
    neighbours: Mapping[str, Int[np.ndarray, "n k"]],
    *,
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    images: Sequence,
    alt: str,
    caption: str,
) -> "HTML":
    """Maps of one set of images, "before" and "after" for instance: pointing at an image shows it and its neighbours.

    Args:
        maps: coordinates of the images, by the name of the map; the last is shown first.
        neighbours: for each map, the positions of each image's nearest neighbours in the embedding itself, nearest
            first.
        labels: classes of the images, positions in `class_names`.
        class_names: indexed by label.
        images: PIL images or arrays, one an image; small ones suffice.
        alt: in words, what the still picture shows.
        caption: what is to be found in the figure.

    Raises:
        ValueError: if lengths disagree or a map has no neighbours.
    """
    labels = as_array(labels)
    if not maps or list(maps) != list(neighbours):
        raise ValueError(
            f"maps and neighbours are named {list(maps)} and {list(neighbours)}: must be the same, at least one"
        )
    for name in maps:
        same_length(f"maps[{name!r}]", maps[name], labels=labels, images=images, neighbours=neighbours[name])
    last = list(maps)[-1]
    still = _without_legend(embedding_scatter(maps[last], labels, images=images, title=last))
    shown = {
        name: {
            "points": np.round(as_array(points).astype(float), 3).tolist(),
            "neighbours": as_array(neighbours[name]).tolist(),
        }
        for name, points in maps.items()
    }
    state = {"maps": shown} | _images(labels, class_names, images)
    return _interactive("explorer", state, still, alt, caption)


def embedding_film(
    maps: Float[np.ndarray, "t n 2"],
    *,
    titles: Sequence[str],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    images: Sequence | None = None,
    alt: str,
    caption: str,
) -> "HTML":
    """A film of one set of images on aligned maps, one a moment: to be played, or moved through by a slider.

    Args:
        maps: coordinates of the images at each moment, of `glbook.projection.aligned_projections` for instance.
        titles: what is written above each moment, with its metrics for instance.
        labels: classes of the images, positions in `class_names`.
        class_names: indexed by label.
        images: PIL images or arrays, one an image, small ones suffice; None shows points.
        alt: in words, what the still picture shows: a few moments side by side.
        caption: what is to be found in the figure.

    Raises:
        ValueError: if lengths disagree.
    """
    maps, labels = as_array(maps).astype(float), as_array(labels)
    if maps.ndim != 3 or maps.shape[2] != 2:
        raise ValueError(f"maps has shape {maps.shape}: must be (moments, images, 2)")
    same_length("maps", maps, titles=titles)
    same_length("maps[0]", maps[0], labels=labels, images=images)
    state = {"maps": np.round(maps, 2).tolist(), "titles": list(titles)} | _images(labels, class_names, images)
    return _interactive("film", state, film_strip(maps, titles=titles, labels=labels), alt, caption)


def film_strip(
    maps: Float[np.ndarray, "t n 2"],
    *,
    titles: Sequence[str],
    labels: Int[np.ndarray, " n"],
    moments: int = 4,
) -> Figure:
    """Some moments of a film side by side, the first and the last among them, all on one scale."""
    chosen = np.unique(np.linspace(0, len(maps) - 1, moments).round().astype(int))
    figure, axes = panels(1, len(chosen), size=(2.3, 2.4), squeeze=False)
    low, high = maps.min(axis=(0, 1)), maps.max(axis=(0, 1))
    middle, reach = (low + high) / 2, 0.54 * (high - low).max()
    for ax, moment in zip(axes[0], chosen, strict=True):
        embedding_scatter(maps[moment], labels, ax=ax, title=titles[moment])
        ax.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        ax.title.set_fontsize(8.5)
    return _without_legend(figure)


def _without_legend(figure: Figure) -> Figure:
    for ax in figure.axes:
        if ax.get_legend():
            ax.get_legend().remove()
    return figure


def _interactive(kind: str, state: dict, still: Figure, alt: str, caption: str) -> "HTML":
    from IPython.display import HTML

    picture = io.BytesIO()
    still.savefig(picture, format="png", dpi=100)
    data = html.escape(json.dumps(state, separators=(",", ":"), ensure_ascii=False), quote=True)
    return HTML(
        f'<figure><div class="interactive {kind}" data-{kind}="{data}">'
        f'<img class="still" alt="{html.escape(alt, quote=True)}" src="{_data_uri(picture.getvalue())}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _images(labels: np.ndarray, class_names: Sequence[str], images: Sequence | None) -> dict:
    """What a figure carries of its images: their classes, of which it names only those that occur, and their sheet."""
    shown = sorted(set(labels.tolist()))
    columns = math.ceil(math.sqrt(len(labels)))
    return {
        "labels": [shown.index(label) for label in labels.tolist()],
        "names": [str(class_names[label]) for label in shown],
        "sprite": None if images is None else _sheet(images, columns),
        "tile": TILE,
        "columns": columns,
    }


def _sheet(images: Sequence, columns: int) -> str:
    """All images on one sheet, row by row, as a data URI."""
    from PIL import Image

    sheet = Image.new("RGB", (columns * TILE, -(-len(images) // columns) * TILE), "white")
    for i, image in enumerate(images):
        picture = Image.fromarray(as_pixels(image)).convert("RGB")
        picture.thumbnail((TILE, TILE))
        left, top = (TILE - picture.width) // 2, (TILE - picture.height) // 2
        sheet.paste(picture, (i % columns * TILE + left, i // columns * TILE + top))
    content = io.BytesIO()
    sheet.quantize(64).save(content, "PNG", optimize=True)
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
