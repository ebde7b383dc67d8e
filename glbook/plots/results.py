"""Figures of results, drawn by seaborn: curves over epochs, grids of settings, methods compared."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glbook import runs
from glbook.plots.style import COLOURS, QUIET, RIGHT, SEQUENTIAL, WRONG, colours, panels
from glbook.runs import spoken

if TYPE_CHECKING:
    import pandas as pd

    from glbook.studies import Study

# How far below its mean the single values of a group are drawn, in rows.
BELOW = 0.26


def learning_curves(
    source: "pd.DataFrame | Mapping[str, Sequence] | Sequence",
    y: str = "loss",
    *,
    by: str = "method",
    part: str = "history",
    x: str = "epoch",
    marker: str | None = "o",
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A quantity over the epochs: the mean over runs as a line, one standard deviation as a band, each run as a thin
    line.

    Args:
        source: one history (a list of dicts, as `Run.history`), a list of histories, a mapping from a name to either,
            or a table of runs, grouped by the column or setting `by`.
        y: the quantity; fractions are shown in percent. Entries without it are passed over.
        part: "history" or "selection", the column of a table that holds the histories.
        x: what runs to the right.
        marker: of each value of the mean; None for a plain line.

    Raises:
        ValueError: if there is no history, or none holds `y`.
    """
    import pandas as pd
    import seaborn as sns

    scale, curves = _scale(y), _curves(source, by, part)
    data = pd.DataFrame(
        [
            {"name": name, "run": run, x: entry[x], y: scale * entry[y]}
            for name, histories in curves.items()
            for run, history in enumerate(histories)
            for entry in history
            if entry.get(y) is not None
        ]
    )
    if data.empty:
        raise ValueError(f"y={y!r}: no entry of the histories holds it")
    ax = panels(size=(5.6, 3.4))[1] if ax is None else ax
    shared = {"data": data, "x": x, "y": y, "hue": "name", "palette": colours(data["name"].nunique()), "ax": ax}
    named = any(curves)
    sns.lineplot(**shared, errorbar="sd", marker=marker, markersize=3.5, markeredgewidth=0, legend=named)
    if data.groupby("name")["run"].nunique().max() > 1:
        sns.lineplot(**shared, units="run", estimator=None, alpha=0.35, linewidth=0.7, legend=False)
    ax.set(xlabel=x, ylabel=_label(y))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if named:
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
) -> Figure:
    """A metric over two settings: each cell shows the mean over runs ± one standard deviation; a single run is marked.

    Args:
        table: recorded runs.
        index: the column or setting whose values make the rows.
        columns: the column or setting whose values make the columns.
        value: the metric; fractions are shown in percent.
        rows: values of `index`, in order; those of the table if not given. Cells without runs stay empty.
        across: values of `columns`, likewise.
    """
    import seaborn as sns

    cells = runs.columns(table, index, columns, value).groupby([index, columns])[value]
    mean, text = (
        cells.agg(each).unstack(columns).reindex(index=rows, columns=across)
        for each in (lambda values: _scale(value) * values.mean(), lambda values: _cell(values, _scale(value)))
    )
    figure, ax = panels(size=(1.6 + 1.05 * mean.shape[1], 1.2 + 0.62 * mean.shape[0]))
    # A cell that fails altogether would leave one colour for all others: it is shown as the palest, and its number says
    # the rest.
    lowest, high, middle = np.nanmin(mean), np.nanmax(mean), np.nanmedian(mean)
    low = max(lowest, middle - 4 * (high - middle)) if high > middle else lowest
    bar = {"label": _label(value), "extend": "min" if low > lowest else "neither"}
    sns.heatmap(
        mean, vmin=low, vmax=high, cmap=SEQUENTIAL, annot=text, fmt="", annot_kws={"fontsize": 8.5}, cbar_kws=bar, ax=ax
    )  # fmt: skip
    ax.collections[0].colorbar.outline.set_linewidth(0.8)  # so that its lower end shows
    ax.tick_params(length=0, labelrotation=0)
    ax.set(xlabel=spoken(columns), ylabel=spoken(index))
    ax.grid(False)
    return figure


def setting_curve(
    table: "pd.DataFrame",
    setting: str,
    metric: str = "R@1",
    *,
    by: str | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """A metric over the values of a setting: dots for the mean over runs with its 95 % interval, a ring for each run.

    Args:
        table: recorded runs.
        setting: a column or setting that holds numbers.
        metric: a column; fractions are shown in percent.
        by: a column or setting that gives a line for each of its values.
        log: whether to space the values by their logarithm.

    The interval is that of Student's t over the runs; a single run has none.
    """
    import seaborn as sns

    from glbook.statistics import mean_interval

    data = runs.columns(table, setting, metric, *[by] * (by is not None)).dropna(subset=[metric])
    data[metric] *= _scale(metric)
    ax = panels(size=(4.6, 3.2))[1] if ax is None else ax
    shared = {"data": data, "x": setting, "y": metric, "ax": ax}
    if by is None:
        shared["color"] = COLOURS[0]
    else:
        shared |= {"hue": by, "palette": colours(data[by].nunique())}
    sns.scatterplot(**shared, s=18, alpha=0.7, legend=False)
    _hollow(ax)
    sns.lineplot(
        **shared, errorbar=mean_interval, err_style="bars", err_kws={"capsize": 3}, marker="o", markersize=5,
        markeredgewidth=0, legend=False if by is None else "full",
    )  # fmt: skip
    if log:
        ax.set_xscale("log")
    levels = sorted(data[setting].unique())
    ax.set_xticks(levels, [f"{level:g}" for level in levels])
    ax.minorticks_off()
    ax.set(xlabel=spoken(setting), ylabel=_label(metric))
    if by is not None:
        ax.legend(title=spoken(by))
    return ax.figure


def differences(compared: "pd.DataFrame", reference: str, *, metric: str = "R@1", ax: Axes | None = None) -> Figure:
    """Groups against a reference: a dot for the mean difference with its 95 % interval, a ring for each seed.

    Args:
        compared: a table of `glbook.statistics.compare`. The row of its reference is left out.
        reference: how the reference is called.
        metric: the metric that was compared.

    Filled dots are differences that the seeds decide.
    """
    from glbook.statistics import mean_interval

    shown = compared[compared["margin"].notna() | (compared["difference"] != 0)]
    order = [spoken(group) for group in shown.index]
    data = shown.assign(group=order).explode("differences").astype({"differences": float})
    ax = panels(size=(5.6, 1.0 + 0.36 * max(1, len(shown))))[1] if ax is None else ax
    ax.axvline(0, color=QUIET, linestyle="--", linewidth=1.2)
    for verdict, colour in {"ahead": RIGHT, "behind": WRONG, "undecided": QUIET}.items():
        part = data[data["verdict"] == verdict]
        filling = "none" if verdict == "undecided" else colour
        _dots_with_rings(
            ax, part, "differences", "group", order, errorbar=mean_interval, color=colour, markerfacecolor=filling
        )
    unit = f"{metric}, points" if runs.is_fraction(metric) else metric
    ax.set(xlabel=f"difference to {reference}\n({unit})", ylabel="", ylim=(len(order) - 0.4, -0.6))
    return ax.figure


def comparison(table: "pd.DataFrame", *, by: str = "method", metrics: Sequence[str] = ("R@1", "MAP@R")) -> Figure:
    """Metrics side by side: a dot for the mean over runs with one standard deviation, a ring for each run.

    Args:
        table: recorded runs.
        by: a column of the table or a setting of the runs' configurations, whose values make the rows.
        metrics: columns; fractions are shown in percent.
    """
    data = runs.columns(table, by, *metrics)
    data[by] = data[by].map(spoken)
    order = data[by].unique().tolist()
    figure, axes = panels(
        1, len(metrics), size=(6.6 / len(metrics), 0.9 + 0.5 * len(order)), sharey=True, squeeze=False
    )
    for ax, metric in zip(axes[0], metrics, strict=True):
        data[metric] *= _scale(metric)
        for group, colour in zip(order, colours(len(order)), strict=True):
            _dots_with_rings(ax, data[data[by] == group], metric, by, order, errorbar="sd", color=colour)
        ax.set(xlabel=_label(metric), ylabel="", ylim=(len(order) - 0.5, -0.5))
        ax.margins(x=0.15)
    return figure


def trials(studies: "Mapping[str, Study]") -> Figure:
    """What the trials of a search scored, in percent: a row for each method, the best on top.

    Rings are trials, a diamond is the trial with the default settings, a dot the best; trials that failed are left out.

    Args:
        studies: those of `glbook.tuning.studies`.

    Raises:
        ValueError: if there is no study.
    """
    import pandas as pd
    import seaborn as sns

    if not studies:
        raise ValueError("studies is empty")
    data = pd.DataFrame(
        [
            {"method": spoken(method), "score": 100 * trial["score"], "default": number == 0}
            for method, study in studies.items()
            for number, trial in enumerate(study.trials)
            if trial["score"] is not None
        ]
    )
    best = data.groupby("method")["score"].max().sort_values(ascending=False).reset_index()
    figure, ax = panels(size=(6.6, 1.1 + 0.3 * len(best)))
    shared = {"x": "score", "y": "method", "order": best["method"], "jitter": False, "ax": ax}
    sns.stripplot(data, **shared, size=5, color=COLOURS[0])
    _hollow(ax)
    sns.stripplot(data[data["default"]], **shared, size=9, marker="D", color=COLOURS[1])
    sns.stripplot(best, **shared, size=7, color=COLOURS[0])
    ax.set(xlabel="mean of R@1 and MAP@R on held-out classes (%)", ylabel="")
    ax.margins(x=0.05)
    return figure


def _dots_with_rings(ax: Axes, data: "pd.DataFrame", x: str, y: str, order: list[str], **of_mean: Any) -> None:
    """The mean of each group with its error bar, and below it a ring for each value where there are several."""
    import seaborn as sns

    if data.empty:
        return
    sns.pointplot(
        data, x=x, y=y, order=order, linestyle="none", markersize=7, capsize=0.18, err_kws={"linewidth": 1.5}, ax=ax,
        **of_mean,
    )  # fmt: skip
    several = data[data.groupby(y)[x].transform("count") > 1]
    rows = [order.index(group) + BELOW for group in several[y]]
    ax.plot(several[x], rows, "o", markersize=4.5, markerfacecolor="none", color=of_mean["color"])


def _hollow(ax: Axes) -> None:
    """Makes rings of the dots that have been scattered so far."""
    for points in ax.collections:
        points.set(edgecolor=points.get_facecolor(), facecolor="none", linewidth=1)


def _cell(values: "pd.Series", scale: float) -> str:
    mean = f"{scale * values.mean():.1f}"
    return f"{mean}\n(one run)" if len(values) == 1 else f"{mean}\n± {scale * values.std(ddof=1):.1f}"


def _scale(metric: str) -> int:
    return 100 if runs.is_fraction(metric) else 1


def _label(metric: str) -> str:
    return f"{metric} (%)" if runs.is_fraction(metric) else metric


def _curves(source: Any, by: str, part: str) -> dict[str, list]:
    """Lists of histories by name."""
    if hasattr(source, "groupby"):
        data = runs.columns(source, by, part)
        groups = data[data[part].map(bool)].groupby(by, sort=False)[part]
        return {
            spoken(name) if isinstance(name, str) else f"{spoken(by)}: {name}": list(histories)
            for name, histories in groups
        }
    named = source if isinstance(source, Mapping) else {"": source}
    if not named or not all(len(histories) for histories in named.values()):
        raise ValueError("source holds no history")
    return {spoken(name): [h] if isinstance(h[0], Mapping) else list(h) for name, h in named.items()}
