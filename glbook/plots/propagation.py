"""Figures of label propagation: similarities, assignments, and how assignments move."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glbook.plots.style import COLOURS, WRONG, as_array, heatmap, panels, same_length, shortened


def similarity_heatmap(
    similarity: Float[np.ndarray, "n n"],
    labels: Sequence | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    colorbar_label: str = "$W_{ij}$",
) -> Figure:
    """Similarities of pairs of images, with lines between classes.

    Args:
        similarity: (n, n), in [0, 1].
        labels: classes, in order of class.
    """
    W = as_array(similarity)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"similarity has shape {W.shape}: must be square")
    ax = panels(size=(4.2, 3.6))[1] if ax is None else ax
    picture = heatmap(ax, W, title, vmin=0, vmax=max(1.0, float(W.max())))
    ax.set_aspect("equal")
    ax.set(xlabel="image $j$", ylabel="image $i$")
    _integer_ticks(ax.xaxis, W.shape[1])
    _integer_ticks(ax.yaxis, W.shape[0])
    if labels is not None:
        same_length("similarity", W, labels=labels)
        for edge in np.flatnonzero(np.diff(np.unique(as_array(labels), return_inverse=True)[1])) + 0.5:
            ax.axhline(edge, color=WRONG, linewidth=0.7)
            ax.axvline(edge, color=WRONG, linewidth=0.7)
    ax.figure.colorbar(picture, ax=ax, label=colorbar_label, shrink=0.85)
    return ax.figure


def assignments_heatmap(
    assignments: Float[np.ndarray, "n C"],
    labels: Int[np.ndarray, " n"] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    anchors: Bool[np.ndarray, " n"] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Figure:
    """Assignments, one row an image and one column a class; a ring marks the true class, an A stands before anchors.

    Args:
        assignments: (n, C), in [0, 1].
        labels: true classes, as columns of `assignments`.
        class_names: of the columns.
        anchors: which images are anchors.
    """
    X = as_array(assignments)
    if X.ndim != 2:
        raise ValueError(f"assignments has shape {X.shape}: must be (images, classes)")
    same_length("assignments", X, labels=labels, anchors=anchors)
    ax = panels(size=(4.2, 3.6))[1] if ax is None else ax
    picture = heatmap(ax, X, title, vmin=0, vmax=1)
    ax.set_aspect("auto")
    ax.set(xlabel="class $c$", ylabel="image $i$")
    if class_names is not None:
        same_length("class_names", class_names, **{"columns of assignments": X.T})
        ax.set_xticks(range(X.shape[1]), [shortened(name, 12) for name in class_names])
    else:
        _integer_ticks(ax.xaxis, X.shape[1])
    _integer_ticks(ax.yaxis, len(X))
    if labels is not None:
        size = np.clip(260 / len(X), 4, 60)
        ax.scatter(as_array(labels), range(len(X)), s=size, facecolors="none", edgecolors=WRONG, linewidths=0.9)
    if anchors is not None:
        ax.set_yticks(range(len(X)), [f"A {i}" if a else str(i) for i, a in enumerate(as_array(anchors))], fontsize=8)
    if colorbar:
        ax.figure.colorbar(picture, ax=ax, label="$X_{ic}$", shrink=0.85)
    return ax.figure


def path_on_simplex(
    paths: Float[np.ndarray, "T+1 n 3"],
    *,
    labels: Int[np.ndarray, " n"] | None = None,
    corners: Sequence[str] = ("class 1", "class 2", "class 3"),
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """How assignments to three classes move: rings where they start, dots after each iteration, larger ones at the end.

    Every point of the triangle is a distribution over three classes; a corner is certainty. Images that never move
    (anchors) are squares.

    Args:
        paths: assignments after 0 to T iterations.
        labels: 0, 1 or 2; they give a path and its corner the colour of its true class.
        corners: what the classes are called.
    """
    paths = as_array(paths)
    if paths.ndim != 3 or paths.shape[2] != 3:
        raise ValueError(f"paths has shape {paths.shape}: must be (T + 1, images, 3)")
    if len(corners) != 3:
        raise ValueError(f"corners holds {len(corners)} names: must hold 3")
    if labels is not None:
        same_length("images of paths", paths[0], labels=labels)
    ax = panels(size=(4.4, 3.9))[1] if ax is None else ax
    at = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    ax.fill(*at.T, facecolor="white", edgecolor="#555555", linewidth=1)
    for corner in range(3):
        # The lines on which a class has a probability of 1/4, 1/2 and 3/4.
        for share in (0.25, 0.5, 0.75):
            ends = share * at[corner] + (1 - share) * np.delete(at, corner, axis=0)
            ax.plot(*ends.T, color="#e4e4e0", linewidth=0.8, zorder=1)
        side = {"ha": "center", "va": "bottom" if corner == 2 else "top"}
        ax.annotate(
            corners[corner], at[corner], (0, 7 if corner == 2 else -7), textcoords="offset points", weight="bold",
            color=COLOURS[corner] if labels is not None else "black", **side,
        )  # fmt: skip
    for i, path in enumerate(np.moveaxis(paths @ at, 1, 0)):
        colour = COLOURS[int(as_array(labels)[i])] if labels is not None else COLOURS[i % len(COLOURS)]
        if len(path) > 1 and np.allclose(path, path[0]):
            ax.plot(*path[0], marker="s", markersize=8, color=colour, zorder=4)
            continue
        ax.plot(*path.T, color=colour, linewidth=1.1, marker="o", markersize=2.6, zorder=3, alpha=0.85)
        ax.plot(*path[0], marker="o", markersize=6.5, markerfacecolor="white", markeredgecolor=colour, zorder=4)
        ax.plot(*path[-1], marker="o", markersize=6.5, color=colour, zorder=4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.margins(0.08)
    if title:
        ax.set_title(title, pad=12)
    return ax.figure


def _integer_ticks(axis: Any, n: int) -> None:
    axis.set_ticks(range(0, n, max(1, -(-n // 6))))
