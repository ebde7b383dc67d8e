"""Figures of results: curves over epochs, grids of settings, methods compared."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glbook import runs
from glbook.plots.style import COLOURS, GROUND, QUIET, RIGHT, WRONG, colours, heatmap, panels, spoken

if TYPE_CHECKING:
    import pandas as pd

    from glbook.tuning import Study


def learning_curves(
    source: "pd.DataFrame | Mapping[str, Sequence] | Sequence",
    y: str = "loss",
    *,
    by: str = "method",
    part: str = "history",
    x: str = "epoch",
    reference: Mapping[str, float] | None = None,
    marker: str | None = "o",
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A quantity over the epochs: the mean over runs as a line, one standard deviation as a band, each run thin.

    Args:
        source: one history (a list of dicts, as `Run.history`), a list of histories, a mapping from a name to either, or a
            table of runs, grouped by the column or setting `by`.
        y: the quantity; fractions are shown in percent. Entries without it are passed over.
        part: "history" or "selection", the column of a table that holds the histories.
        x: what runs to the right.
        reference: values for level lines, by name.
        marker: of each value of the mean; None for a plain line.
    """
    import pandas as pd

    curves = _curves(source, by, part)
    scale = 100 if runs.is_fraction(y) else 1
    ax = panels(size=(5.6, 3.4))[1] if ax is None else ax
    drawn = False
    for colour, (name, histories) in zip(colours(len(curves)), curves.items(), strict=True):
        points = pd.DataFrame([{e[x]: scale * e[y] for e in history if e.get(y) is not None} for history in histories])
        if points.empty:
            continue
        drawn = True
        points = points.sort_index(axis=1)
        mean, spread = points.mean(), points.std(ddof=1)
        ax.plot(mean.index, mean, color=colour, marker=marker, markersize=3.5, label=name)
        if len(points) > 1:
            ax.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
            ax.plot(mean.index, points.to_numpy().T, color=colour, alpha=0.35, linewidth=0.7)
    if not drawn:
        raise ValueError(f"y={y!r}: no entry of the histories holds it")
    for style, (name, value) in zip(("--", ":", "-.") * len(reference or ()), (reference or {}).items(), strict=False):
        ax.axhline(scale * value, color=QUIET, linestyle=style, linewidth=1.2, label=name)
    ax.set(xlabel=x, ylabel=f"{y} (%)" if scale == 100 else y)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if any(name for name in curves) or reference:
        ax.legend()
    if title:
        ax.set_title(title)
    return ax.figure


def metric_grid(
    table: "pd.DataFrame",
    *,
    index: str = "num_iterations",
    columns: str = "num_anchors",
    value: str = "R@1",
    rows: Sequence | None = None,
    across: Sequence | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A metric over two settings: each cell shows the mean over runs, ± one standard deviation; a single run is marked.

    `index`, `columns` and `value` are columns of the table of runs, or settings of its configurations. `rows` and `across` are
    their values, in order; those that have no run stay empty. By default they are those of the table.
    """
    cells = runs.columns(table, index, columns, value).groupby([index, columns])[value]
    scale = 100 if runs.is_fraction(value) else 1
    mean, spread, count = (
        (factor * found.unstack(columns)).reindex(index=rows, columns=across)
        for factor, found in ((scale, cells.mean()), (scale, cells.std(ddof=1)), (1, cells.count()))
    )
    ax = panels(size=(1.6 + 1.05 * mean.shape[1], 1.2 + 0.62 * mean.shape[0]))[1] if ax is None else ax
    # A cell that fails altogether would leave one colour for all others: it is shown as the palest, and its number says the rest.
    high, usual = np.nanmax(mean), np.nanmedian(mean)
    low = max(np.nanmin(mean), usual - 4 * (high - usual)) if high > usual else np.nanmin(mean)
    picture = heatmap(ax, mean.to_numpy(), title, vmin=low, vmax=high)
    ax.set_aspect("auto")
    middle = (low + high) / 2
    for (row, column), level in np.ndenumerate(mean.to_numpy()):
        single = count.iloc[row, column] == 1
        text = f"{level:.1f}\n" + ("(one run)" if single else f"± {spread.iloc[row, column]:.1f}")
        ax.text(
            column, row, text if np.isfinite(level) else "–", ha="center", va="center",
            fontsize=7 if single else 8.5, color="white" if level > middle else "black",
        )  # fmt: skip
    ax.set_xticks(range(mean.shape[1]), mean.columns)
    ax.set_yticks(range(mean.shape[0]), mean.index)
    ax.set(xlabel=spoken(columns), ylabel=spoken(index))
    label = f"{value} (%)" if scale == 100 else value
    ax.figure.colorbar(picture, ax=ax, label=label, extend="min" if low > np.nanmin(mean) else "neither")
    return ax.figure


def setting_curve(
    table: "pd.DataFrame",
    setting: str,
    metric: str = "R@1",
    *,
    by: str | None = None,
    log: bool = False,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A metric over the values of a setting: dots for the mean over runs with its 95 % interval, a ring for each run.

    `setting` holds numbers; `by`, a column or another setting, gives a line for each of its values. The interval is that of
    Student's t over the runs; a single run has none, and its dot is hollow. `log` spaces the values by their logarithm.
    """
    from scipy import stats

    data = runs.columns(table, setting, metric, *[by] * (by is not None)).dropna(subset=[metric]).sort_values(setting)
    scale = 100 if runs.is_fraction(metric) else 1
    data[metric] *= scale
    ax = panels(size=(4.6, 3.2))[1] if ax is None else ax
    groups = {"": data} if by is None else {spoken(name): part for name, part in data.groupby(by, sort=True)}
    for colour, (name, part) in zip(colours(len(groups)), groups.items(), strict=True):
        values = part.groupby(setting)[metric]
        mean, n = values.mean(), values.count()
        margin = stats.t.ppf(0.975, (n - 1).clip(lower=1)) * values.std(ddof=1) / np.sqrt(n)
        ax.errorbar(mean.index, mean, yerr=margin, color=colour, marker="o", markersize=5, capsize=3, label=name)
        ax.plot(mean[n == 1], "o", color=colour, markersize=5, markerfacecolor=GROUND, zorder=3)
        ax.plot(part[setting], part[metric], "o", color=colour, markersize=4, markerfacecolor="none", alpha=0.6)
    if log:
        ax.set_xscale("log")
    levels = sorted(data[setting].unique())
    ax.set_xticks(levels, [f"{level:g}" for level in levels])
    ax.minorticks_off()
    ax.set(xlabel=spoken(setting), ylabel=f"{metric} (%)" if scale == 100 else metric)
    if by is not None:
        ax.legend(title=spoken(by), fontsize=8, title_fontsize=8)
    if title:
        ax.set_title(title)
    return ax.figure


def differences(
    compared: "pd.DataFrame", reference: str, *, metric: str = "R@1", ax: Axes | None = None, title: str | None = None
) -> Figure:
    """Groups against a reference: a dot for the mean difference with its 95 % interval, a ring for each seed.

    `compared` is a table of `glbook.statistics.compare`; `reference` is how its reference is called. The row of the reference is
    left out. Filled dots are differences that the seeds decide.
    """
    shown = compared[compared["margin"].notna() | (compared["difference"] != 0)]
    ax = panels(size=(5.6, 1.0 + 0.36 * max(1, len(shown))))[1] if ax is None else ax
    ax.axvline(0, color=QUIET, linestyle="--", linewidth=1.2)
    for place, (_, row) in enumerate(shown.iterrows()):
        decided = row["verdict"] != "undecided"
        colour = QUIET if not decided else RIGHT if row["difference"] > 0 else WRONG
        found = row["differences"]
        ax.plot(found, np.full(len(found), place + 0.24), "o", markersize=4, markerfacecolor="none", color=colour)
        ax.errorbar(
            row["difference"], place, xerr=None if np.isnan(row["margin"]) else row["margin"], fmt="o", markersize=7,
            color=colour, markerfacecolor=colour if decided else "none", capsize=3,
        )  # fmt: skip
    ax.set_yticks(range(len(shown)), [spoken(name) if isinstance(name, str) else f"{name:g}" for name in shown.index])
    unit = f"{metric}, points" if runs.is_fraction(metric) else metric
    ax.set(xlabel=f"difference to {reference} ({unit})", ylim=(len(shown) - 0.4, -0.6))
    if title:
        ax.set_title(title)
    return ax.figure


def comparison(table: "pd.DataFrame", *, by: str = "method", metrics: Sequence[str] = ("R@1", "MAP@R")) -> Figure:
    """Metrics side by side: a dot for the mean over runs with one standard deviation, a ring for each run.

    `by` is a column of the table of runs or a setting of its configurations.
    """
    data = runs.columns(table, by, *metrics)
    groups = list(dict.fromkeys(data[by]))
    figure, axes = panels(
        1, len(metrics), size=(6.6 / len(metrics), 0.9 + 0.5 * len(groups)), sharey=True, squeeze=False
    )
    for ax, metric in zip(axes[0], metrics, strict=True):
        scale = 100 if runs.is_fraction(metric) else 1
        for row, (group, colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
            values = scale * data.loc[data[by] == group, metric].dropna().to_numpy(float)
            spread = values.std(ddof=1) if len(values) > 1 else None
            if len(values) > 1:
                ax.plot(
                    values, np.full(len(values), row + 0.22), "o", markersize=5, markerfacecolor="none", color=colour
                )
            if len(values):
                ax.errorbar(values.mean(), row, xerr=spread, fmt="o", markersize=7, color=colour, capsize=3)
        ax.set(xlabel=f"{metric} (%)" if scale == 100 else metric, ylim=(len(groups) - 0.5, -0.5))
        ax.margins(x=0.15)
    axes[0, 0].set_yticks(range(len(groups)), [spoken(group) for group in groups])
    return figure


def trials(studies: "Mapping[str, Study]") -> Figure:
    """What trials of a search scored, in percent: a row for each method, the best on top.

    Rings are trials, a diamond is the trial with the defaults, a dot the best. `studies` are those of `glbook.tuning.studies`;
    trials that failed are left out. Raises ValueError if there is no study.
    """
    if not studies:
        raise ValueError("studies is empty")
    scores = {
        method: [None if trial["score"] is None else 100 * trial["score"] for trial in study.trials]
        for method, study in studies.items()
    }
    made = {method: [score for score in all_ if score is not None] for method, all_ in scores.items()}
    order = sorted(made, key=lambda method: max(made[method]), reverse=True)
    figure, ax = panels(size=(6.6, 1.1 + 0.3 * len(order)))
    for row, method in enumerate(order):
        rest = sorted(made[method])
        best, default = rest.pop(), scores[method][0]
        ax.plot(rest, np.full(len(rest), row), "o", markersize=5, markerfacecolor="none", color=COLOURS[0])
        if default is not None:
            ax.plot(default, row, "D", markersize=9, color=COLOURS[1], zorder=3)
        ax.plot(best, row, "o", markersize=7, color=COLOURS[0], zorder=4)
    ax.set(xlabel="mean of R@1 and MAP@R on held-out classes (%)", ylim=(len(order) - 0.5, -0.5))
    ax.set_yticks(range(len(order)), [spoken(method) for method in order])
    ax.margins(x=0.05)
    return figure


def _curves(source: Any, by: str, part: str) -> dict[str, list]:
    """Lists of histories by name."""
    if hasattr(source, "groupby"):
        data = runs.columns(source, by, part)
        return {
            spoken(name) if isinstance(name, str) else f"{spoken(by)}: {name}": [
                h for h in data.loc[data[by] == name, part] if h
            ]
            for name in dict.fromkeys(data[by])
        }
    named = source if isinstance(source, Mapping) else {"": source}
    if not named or not all(len(histories) for histories in named.values()):
        raise ValueError("source holds no history")
    return {spoken(name): [h] if isinstance(h[0], Mapping) else list(h) for name, h in named.items()}
