"""Colours, defaults and the small parts that all figures share."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, the black last: as a class colour it would look like text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
RIGHT, WRONG, QUIET = "#009E73", "#D55E00", "#8a8a8a"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GROUND = "#fcfcfa"
SEQUENTIAL = "Blues"


def use_book_style() -> None:
    """Set matplotlib's defaults for the book, and let a notebook show a Figure that is the last value of a cell."""
    mpl.rcParams.update(
        {
            "figure.facecolor": GROUND,
            "axes.facecolor": GROUND,
            "savefig.facecolor": GROUND,
            "savefig.pad_inches": 0.15,
            "figure.dpi": 144,
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#555555",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e0",
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.interpolation": "nearest",
        }
    )
    from IPython import get_ipython

    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png")


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (3.2, 3.0), **options: Any
) -> tuple[Figure, Any]:
    """A figure with a grid of axes, each `size` inches wide and high: (Figure, Axes or array of Axes).

    `options` go to matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def as_array(values: Any) -> np.ndarray:
    """A numpy array of whatever holds numbers, tensors that require a gradient included."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def same_length(name: str, values: Sequence, **others: Sequence | None) -> None:
    if len(values) == 0:
        raise ValueError(f"{name} is empty: must hold at least one")
    for other, these in others.items():
        if these is not None and len(these) != len(values):
            raise ValueError(f"{other} has length {len(these)}: must be {len(values)}, as {name}")


def heatmap(ax: Axes, values: np.ndarray, title: str | None, **limits: float) -> Any:
    picture = ax.imshow(values, cmap=SEQUENTIAL, **limits)
    ax.grid(False)
    if title:
        ax.set_title(title)
    return picture


def colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def shortened(name: Any, length: int = 22) -> str:
    """A name cut to at most `length` characters, with an ellipsis where something is missing."""
    text = str(name)
    return text if len(text) <= length else text[: length - 1] + "…"
