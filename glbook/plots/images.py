"""Figures that show images: batches, neighbours, embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glbook.plots.style import COLOURS, MARKERS, RIGHT, WRONG, as_array, panels, same_length, shortened


def image_grid(
    images: Sequence, titles: Sequence[str] | None = None, *, columns: int = 8, frame_colours: Sequence | None = None,
    size: float = 0.85,
) -> Figure:  # fmt: skip
    """Images side by side, `columns` in a row.

    Args:
        images: PIL images, uint8 arrays (h, w), (h, w, 3) or (3, h, w), or floats in [0, 1].
        titles: a few words above each.
        columns: images in a row, 1 or more.
        frame_colours: a colour, or None, around each.
        size: inches of a side.
    """
    same_length("images", images, titles=titles, frame_colours=frame_colours)
    if columns < 1:
        raise ValueError(f"columns={columns}: must be 1 or more")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = panels(rows, columns, size=(size, size + (0.22 if titles is not None else 0)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i < len(images):
            _show(ax, images[i], None if frame_colours is None else frame_colours[i])
            if titles is not None:
                ax.set_title(titles[i], fontsize=8, loc="center", pad=3)
        else:
            ax.set_axis_off()
    return figure


def show_batch(
    images: Sequence,
    labels: Int[np.ndarray, " n"],
    *,
    class_names: Sequence[str] | None = None,
    anchors: Bool[np.ndarray, " n"] | None = None,
    size: float = 0.7,
) -> Figure:
    """A batch with one row a class; anchors are framed and marked with an A.

    Args:
        images: n images (see `image_grid`).
        labels: their classes.
        class_names: indexed by label; without it rows are named by the label.
        anchors: which images are anchors; none if not given.
        size: inches of a side.
    """
    labels = as_array(labels)
    anchors = np.zeros(len(labels), bool) if anchors is None else as_array(anchors)
    same_length("images", images, labels=labels, anchors=anchors)
    classes = list(dict.fromkeys(labels.tolist()))
    members = [np.flatnonzero(labels == label) for label in classes]
    columns = max(map(len, members))
    figure, axes = panels(len(classes), columns, size=(size, size), squeeze=False)
    for row, (label, indices) in enumerate(zip(classes, members, strict=True)):
        for ax in axes[row, len(indices) :]:
            ax.set_axis_off()
        for ax, i in zip(axes[row], indices, strict=False):
            _show(ax, images[i], COLOURS[0] if anchors[i] else None)
            if anchors[i]:
                _corner_sign(ax, "A", COLOURS[0])
        name = str(label) if class_names is None else class_names[label]
        axes[row, 0].set_ylabel(shortened(name), rotation=0, ha="right", va="center", fontsize=8)
    return figure


def retrieval_gallery(
    queries: Sequence,
    neighbours: Sequence[Sequence],
    correct: Bool[np.ndarray, "q k"] | None = None,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    titles: Sequence[str] | None = None,
    size: float = 0.8,
) -> Figure:
    """Each query on the left, its neighbours to the right, best first; right and wrong ones by colour and by sign.

    Args:
        queries: q images (see `image_grid`).
        neighbours: k images for each query.
        correct: whether a neighbour has the query's class; None where classes are not known.
        captions: a word below each neighbour, such as its similarity.
        titles: a few words in front of each query.
        size: inches of a side.
    """
    correct = None if correct is None else as_array(correct).astype(bool)
    same_length("queries", queries, neighbours=neighbours, correct=correct, captions=captions, titles=titles)
    k = max(map(len, neighbours))
    if correct is not None and (correct.ndim != 2 or any(len(row) != correct.shape[1] for row in neighbours)):
        raise ValueError(f"correct has shape {correct.shape}: must be (queries, neighbours of each)")
    figure, axes = panels(
        len(queries), k + 2, size=(size, size), squeeze=False, width_ratios=[1, 0.12, *[1] * k]
    )  # fmt: skip
    for row, (query, found) in enumerate(zip(queries, neighbours, strict=True)):
        axes[row, 1].set_axis_off()
        _show(axes[row, 0], query)
        if titles is not None:
            axes[row, 0].set_ylabel(shortened(titles[row]), rotation=0, ha="right", va="center", fontsize=8)
        for ax in axes[row, 2 + len(found) :]:
            ax.set_axis_off()
        for column, (ax, image) in enumerate(zip(axes[row, 2:], found, strict=False)):
            right = None if correct is None else correct[row, column]
            colour = None if right is None else RIGHT if right else WRONG
            _show(ax, image, colour)
            if right is not None:
                _corner_sign(ax, "✓" if right else "✗", colour)
            if captions is not None:
                ax.set_xlabel(captions[row][column], fontsize=8, labelpad=2)
    for ax, title in zip(np.delete(axes[0], 1), ["query", *map(str, range(1, k + 1))], strict=True):
        ax.set_title(title, fontsize=9, loc="center", pad=3)
    return figure


def embedding_scatter(
    points: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"],
    *,
    images: Sequence | None = None,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """Points in the plane, a colour and a shape for each class; with `images` a point is its image, framed so.

    Args:
        points: coordinates, of UMAP for instance; their axes mean nothing and are not drawn.
        labels: classes; beyond 56 of them colours and shapes come again.
        images: see `image_grid`.
        class_names: indexed by label; a legend names up to a dozen classes.
    """
    points, labels = as_array(points), as_array(labels)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points has shape {points.shape}: must be (n, 2)")
    same_length("points", points, labels=labels, images=images)
    ax = panels(size=(5.6, 4.6))[1] if ax is None else ax
    classes = np.unique(labels)
    for number, label in enumerate(classes):
        colour, marker = COLOURS[number % 7], MARKERS[number // 7 % len(MARKERS)]
        name = str(label) if class_names is None else class_names[label]
        mine = np.flatnonzero(labels == label)
        style = {"s": 5 if images is not None else 16, "linewidths": 0.3, "edgecolors": "#444444"}
        ax.scatter(*points[mine].T, color=colour, marker=marker, label=shortened(name), **style)
        if images is not None:
            for i in mine:
                _thumbnail(ax, images[i], points[i], colour)
    ax.margins(0.06)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)
    if len(classes) <= 12:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, markerscale=1.5)
    return ax.figure


def _show(ax: Axes, image: Any, frame: str | None = None) -> None:
    ax.imshow(as_pixels(image), cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=frame or "#cccccc", linewidth=2.2 if frame else 0.6)


def as_pixels(image: Any) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3)."""
    pixels = as_array(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3):
        raise ValueError(f"an image has shape {pixels.shape}: must be (h, w), (h, w, 3) or (3, h, w)")
    return np.round(pixels * 255).clip(0, 255).astype(np.uint8) if pixels.dtype.kind == "f" else pixels


def _corner_sign(ax: Axes, sign: str, colour: str) -> None:
    box = {"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none"}
    ax.text(0.97, 0.04, sign, transform=ax.transAxes, ha="right", va="bottom", fontsize=8, color="white", bbox=box)


def _thumbnail(ax: Axes, image: Any, at: np.ndarray, colour: str) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    pixels = as_pixels(image)
    picture = OffsetImage(pixels, zoom=14 / max(pixels.shape[:2]), cmap="gray")
    frame = {"edgecolor": colour, "linewidth": 1.2, "boxstyle": "square,pad=0.02"}
    ax.add_artist(AnnotationBbox(picture, at, pad=0, bboxprops=frame))
