"""Recorded runs compared: differences between settings or methods, seed by seed, with interval and p-value.

Runs with the same seed share their initial weights, the order of their batches and the augmentation, so what they have
in common cancels in their difference. The mean of these differences over n seeds is judged by the paired t-test; its
interval is

    mean ± t(0.975, n - 1) · std / √n

which holds if the seeds are independent and their differences roughly normal. With two or three seeds it is wide: so
few runs can tell no more.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glbook import runs

if TYPE_CHECKING:
    import pandas as pd

    from glbook.studies import Study

__all__ = ["as_table", "cells", "compare", "comparison_table", "mean_interval", "search_table"]

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean by Student's t: (low, high), NaN for fewer than two values.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    if len(values) < 2:
        return math.nan, math.nan
    low, high = _t_test(values).confidence_interval(LEVEL)
    return float(low), float(high)


def cells(table: "pd.DataFrame", by: str | Sequence[str], metric: str = "R@1") -> "pd.DataFrame":
    """Mean, standard deviation over seeds (divisor n - 1) and number of runs of each group.

    Args:
        table: recorded runs, as from `glbook.runs.load_runs`; of several runs of one group and seed the newest counts.
        by: a column of the table or a setting of the runs' configurations, or a list of them.
        metric: a column; fractions are given in percent.

    Returns:
        One row a group with "mean", "std" and "runs".
    """
    by = [by] if isinstance(by, str) else list(by)
    grouped = _by_seed(table, by, metric).groupby(level=by, sort=False)
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "runs"})


def compare(
    table: "pd.DataFrame", reference: Any, *, by: str = "method", metric: str = "R@1", within: Sequence[str] = ()
) -> "pd.DataFrame":
    """Every group against a reference group, seed by seed.

    Args:
        table: recorded runs, as from `glbook.runs.load_runs`.
        reference: the value of `by` that the others are compared with.
        by: the column or setting that makes the groups.
        metric: a column; fractions are given in percent, their differences in points.
        within: further settings. Each combination of their values is compared with the reference's runs of the same
            combination, and a seed's difference is the mean over the combinations that both groups have with every
            seed.

    Returns:
        One row a group with

        - "mean" and "std" over its runs, and "runs", their number;
        - "difference": the mean over the shared seeds of group minus reference; "margin": half the width of its 95 %
          interval; "seeds": how many seeds both have; "differences": that of each of them;
        - "p": of the paired t-test, corrected by Holm's method for the number of groups;
        - "verdict": "ahead" or "behind" where p < 0.05, else "undecided".

        Margin and p are NaN for the reference itself and where fewer than two seeds are shared.

    Raises:
        ValueError: if the reference is not among the groups.
    """
    import numpy as np
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    values = _by_seed(table, [by, *within], metric)
    groups = list(dict.fromkeys(values.index.get_level_values(by)))
    if reference not in groups:
        raise ValueError(f"reference={reference!r}: must be one of {', '.join(map(str, groups))}")
    base = values.xs(reference, level=by)
    rows = {}
    for group in groups:
        own = values.xs(group, level=by)
        std = own.groupby(level="seed").mean().std(ddof=1)
        rows[group] = {"mean": own.mean(), "std": std, "runs": len(own)} | _paired(own, base)
    found = pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)
    found.loc[reference, ["margin", "p"]] = math.nan
    tested = found["p"].notna()
    if tested.any():
        found.loc[tested, "p"] = multipletests(found.loc[tested, "p"], method="holm")[1]
    sign = np.where(found["difference"] > 0, "ahead", "behind")
    found["verdict"] = np.where(found["p"] < 1 - LEVEL, sign, "undecided")
    return found


def as_table(compared: "pd.DataFrame", metric: str = "R@1") -> "pd.DataFrame":
    """The result of `compare` as text for a page: the best mean first, single runs marked."""
    import pandas as pd

    rows = {}
    for group, row in compared.sort_values("mean", ascending=False).iterrows():
        single, known = math.isnan(row["std"]), not math.isnan(row["margin"])
        rows[runs.spoken(group)] = {
            "runs": row["runs"],
            f"{metric} (%)": f"{row['mean']:.1f} (one run)" if single else f"{row['mean']:.1f} ± {row['std']:.1f}",
            "difference (95 %)": f"{row['difference']:+z.1f} ± {row['margin']:.1f}" if known else "–",
            "p": ("<0.001" if row["p"] < 0.0005 else f"{row['p']:.3f}") if known else "–",
            "verdict": row["verdict"] if known else "–",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(compared.index.name)


def comparison_table(
    table: "pd.DataFrame",
    reference: Any,
    *,
    by: str = "method",
    metrics: Sequence[str] = ("R@1", "MAP@R"),
    within: Sequence[str] = (),
) -> "pd.DataFrame":
    """`compare` for several metrics, as text side by side; the groups are in the order of the first metric's means."""
    import pandas as pd

    columns = {}
    for metric in metrics:
        part = as_table(compare(table, reference, by=by, metric=metric, within=within), metric)
        columns[part.columns[1]] = part.iloc[:, 1]
        decided = part["difference (95 %)"] + " (" + part["verdict"] + ", p " + part["p"] + ")"
        columns[f"{metric}: difference (95 %)"] = decided.where(part["p"] != "–", part["difference (95 %)"])
    # The name of the rows in the corner: one row of headers.
    order = next(iter(columns.values())).index
    return pd.DataFrame(columns, index=order).rename_axis(index=None, columns=runs.spoken(by))


def search_table(studies: "Mapping[str, Study]") -> "pd.DataFrame":
    """The studies of `glbook.tuning.studies` as text for a page: a row for each method, scores in percent."""
    import numpy as np
    import pandas as pd

    rows = {}
    for method, study in studies.items():
        scores = [100 * trial["score"] for trial in study.trials if trial["score"] is not None]
        default = study.trials[0]["score"]
        settings = {name: value for name, value in study.best.items() if name != "loss_options"}
        settings |= study.best.get("loss_options", {})
        rows[runs.spoken(method)] = {
            "all trials": f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else "one trial",
            "defaults": "failed" if default is None else f"{100 * default:.1f}",
            "best": f"{max(scores):.1f}",
            "settings of the best": ", ".join(f"{name} {value:.3g}" for name, value in settings.items()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _by_seed(table: "pd.DataFrame", by: Sequence[str], metric: str) -> "pd.Series":
    """A metric by group and seed, fractions in percent, of the newest run of each."""
    data = runs.columns(table, *by, "seed", metric).dropna(subset=[metric])
    scale = 100 if runs.is_fraction(metric) else 1
    return scale * data.groupby([*by, "seed"], sort=False)[metric].last()


def _paired(own: "pd.Series", base: "pd.Series") -> dict[str, Any]:
    """The paired t-test of two groups over the seeds that they share, which is that of their differences against 0."""
    shared = _by_shared_seed(own - base)
    low, high = mean_interval(shared)
    p = math.nan
    if len(shared) > 1:
        p = float(_t_test(shared).pvalue) if shared.any() else 1.0  # without any difference t is 0 / 0
    seeds = {"seeds": len(shared), "differences": shared.tolist()}
    return {"difference": shared.mean(), "margin": (high - low) / 2} | seeds | {"p": p}


def _t_test(values: Sequence[float]) -> Any:
    """The t-test of a sample against 0."""
    from scipy import stats

    with warnings.catch_warnings():
        # It warns of values that are equal up to rounding; their interval has no width, which says as much.
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ttest_1samp(values, 0)


def _by_shared_seed(differences: "pd.Series") -> "pd.Series":
    """The difference of each seed; with several cells the mean over those that all seeds have."""
    if differences.index.nlevels == 1:
        return differences.dropna()
    by_cell = differences.unstack("seed")
    while by_cell.shape[1] and by_cell.dropna().empty:
        by_cell = by_cell.drop(columns=by_cell.count().idxmin())
    return by_cell.dropna().mean()
