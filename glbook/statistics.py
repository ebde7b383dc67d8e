"""What recorded runs say: differences between settings beside the spread over seeds, as numbers and as a sentence.

Runs that share a seed share the first weights, the order of the batches and the augmentation, so what they have in common
cancels in their difference. The mean of the differences over n seeds is judged by the paired t-test: its interval is

    mean +- t(0.975, n - 1) * std / sqrt(n)

which is right if the differences of the seeds are independent and about normally distributed. Two seeds or three make it
wide: that is no fault of the test but what so few runs can tell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glbook import runs
from glbook.plots.style import spoken

if TYPE_CHECKING:
    import pandas as pd

    from glbook.tuning import Study

__all__ = ["Finding", "as_table", "best", "cells", "compare", "ranking", "search_gain", "search_table", "trend"]

LEVEL = 0.95


@dataclass(frozen=True)
class Finding:
    """A sentence for readers, and the numbers that it says, for whoever checks it. Metrics are in percent, differences in points."""

    text: str
    numbers: dict[str, float] = field(default_factory=dict)

    def _repr_markdown_(self) -> str:
        return self.text


def cells(table: "pd.DataFrame", by: str | Sequence[str], metric: str = "R@1") -> "pd.DataFrame":
    """Mean, standard deviation over seeds (divisor n - 1) and number of runs of each group, fractions in percent.

    `by` are columns of the table of runs or settings of its configurations; of runs of the same group and seed the newest counts.
    """
    by = [by] if isinstance(by, str) else list(by)
    grouped = _by_seed(table, by, metric).groupby(level=by, sort=False)
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "runs"})


def compare(
    table: "pd.DataFrame", reference: Any, *, by: str = "method", metric: str = "R@1", within: Sequence[str] = ()
) -> "pd.DataFrame":
    """Every group against the reference, seed by seed: one row a group with

    - `mean` and `std` over its runs, `runs`;
    - `difference`: mean over the shared seeds of group minus reference, in points; `margin`: half the width of its 95 %
      interval by the paired t-test; `seeds`: how many were shared; `differences`: that of each seed;
    - `p`: of the t-test, Holm's correction for the number of groups included; `verdict`: "ahead", "behind" or "undecided",
      by p < 0.05.

    With `within`, each cell that these settings make is compared with the reference's cell, and a seed's difference is the mean
    over the cells that both have with every seed. Where fewer than two seeds are shared, margin and p are NaN and the verdict "undecided".

    Raises ValueError if the reference is not among the groups.
    """
    import numpy as np
    import pandas as pd

    values = _by_seed(table, [by, *within], metric)
    groups = list(dict.fromkeys(values.index.get_level_values(by)))
    if reference not in groups:
        raise ValueError(f"reference={reference!r}: must be one of {', '.join(map(str, groups))}")
    rows = {}
    for group in groups:
        own, base = (values.xs(name, level=by) for name in (group, reference))
        rows[group] = {
            "mean": own.mean(),
            "std": own.groupby(level="seed").mean().std(ddof=1),
            "runs": len(own),
            **_difference(own, base),
        }
    made = pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)
    made.loc[reference, ["margin", "p"]] = math.nan
    made["p"] = _holm(made["p"].to_numpy(float))
    made["verdict"] = np.where(made["p"] < 1 - LEVEL, np.where(made["difference"] > 0, "ahead", "behind"), "undecided")
    return made


def as_table(compared: "pd.DataFrame", metric: str = "R@1") -> "pd.DataFrame":
    """A comparison as text for a page: the best mean first, single runs marked, p after Holm's correction."""
    rows = {}
    for group, row in compared.sort_values("mean", ascending=False).iterrows():
        single = math.isnan(row["std"])
        known = not math.isnan(row["margin"])
        rows[_level(group)] = {
            "runs": row["runs"],
            f"{metric} (%)": f"{row['mean']:.1f} (one run)" if single else f"{row['mean']:.1f} ± {row['std']:.1f}",
            "difference (95 %)": f"{row['difference']:+z.1f} ± {row['margin']:.1f}" if known else "–",
            "p": ("<0.001" if row["p"] < 0.0005 else f"{row['p']:.3f}") if known else "–",
            "verdict": row["verdict"] if known else "–",
        }
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(compared.index.name)


def best(table: "pd.DataFrame", reference: Mapping[str, Any], metric: str = "R@1") -> Finding:
    """The best cell of a grid against the cell of the settings `reference`, {setting: value, ...}."""
    by = list(reference)
    means = cells(table, by, metric)

    def name(cell: tuple) -> str:
        return ", ".join(_named(setting, value) for setting, value in zip(by, cell, strict=True))

    if len(means) == 1:
        only = means.iloc[0]
        return Finding(f"**{metric}**: one cell, {only['mean']:.1f} %.", {"mean": only["mean"]})
    top, low = means["mean"].idxmax(), means["mean"].idxmin()
    wanted = tuple(reference.values())
    numbers = {"best": means.loc[top, "mean"], "worst": means.loc[low, "mean"]}
    text = (
        f"**{metric}** lies between {numbers['worst']:.1f} % ({name(low)}) and {numbers['best']:.1f} % ({name(top)}) in the "
        f"{len(means)} cells that have runs."
    )
    if wanted not in means.index:
        return Finding(text, numbers)
    if top == wanted:
        return Finding(f"{text} The best cell is {name(wanted)}, the usual setting.", numbers)
    values = _by_seed(table, by, metric)
    found = _difference(*(values.xs(cell, level=by) for cell in (top, wanted)))
    numbers |= {key: found[key] for key in ("difference", "margin", "seeds")}
    return Finding(f"{text} The best cell minus {name(wanted)}: {_said(found)}", numbers)


def trend(
    table: "pd.DataFrame",
    reference: Any,
    *,
    by: str,
    metric: str = "R@1",
    within: Sequence[str] = (),
) -> Finding:
    """The levels of one setting, each against the reference: which are ahead, which behind, which undecided."""
    made = compare(table, reference, by=by, metric=metric, within=within)
    numbers = {f"mean {group}": row["mean"] for group, row in made.iterrows()}
    others = made.drop(index=reference)
    if others.empty:
        return Finding(f"**{metric}**: only {_named(by, reference)} has runs: nothing to compare it with.", numbers)
    numbers |= {f"difference {group}": row["difference"] for group, row in others.iterrows()}
    numbers |= {f"margin {group}": row["margin"] for group, row in others.iterrows()}
    top = made["difference"].idxmax()
    usual = f"{made.loc[reference, 'mean']:.1f} %"
    text = f"**{metric}** is highest with {_named(by, top)}, "
    if top == reference:
        text += f"{usual}."
    else:
        text += f"by {made.loc[top, 'difference']:.1f} points against {_named(by, reference)}, where it is {usual}."
    return Finding(f"{text} {_verdicts(others, _named(by, reference))}", numbers)


def ranking(table: "pd.DataFrame", ours: str = "group_loss", *, metric: str = "R@1") -> Finding:
    """The methods, each against ours: whom it beats, by whom it is beaten, and what these seeds leave open."""
    made = compare(table, ours, by="method", metric=metric)
    numbers = {f"mean {method}": row["mean"] for method, row in made.iterrows()}
    others = made.drop(index=ours)
    if others.empty:
        return Finding(f"**{metric}**: only the {_method(ours)} has runs: nothing to compare it with.", numbers)
    numbers |= {f"difference {method}": row["difference"] for method, row in others.iterrows()}
    order = made["mean"].sort_values(ascending=False).index.tolist()
    place = order.index(ours) + 1
    numbers["place"] = place
    first = order[0]
    text = f"**{metric}**: by its mean the {_method(ours)} is {_ordinal(place)} of {len(order)} methods, with {made.loc[ours, 'mean']:.1f} %"
    text += (
        f"; next is {spoken(order[1])} with {made.loc[order[1], 'mean']:.1f} %."
        if place == 1
        else f"; the first is {spoken(first)} with {made.loc[first, 'mean']:.1f} %."
    )
    return Finding(f"{text} {_verdicts(others, f'the {_method(ours)}')}", numbers)


def search_table(studies: "Mapping[str, Study]") -> "pd.DataFrame":
    """A search for settings as text for a page: a row for each method of `glbook.tuning.studies`, scores in percent."""
    import numpy as np
    import pandas as pd

    rows = {}
    for method, study in studies.items():
        scores, default = _scores(study)
        settings = {name: value for name, value in study.best.items() if name != "loss_options"}
        settings |= study.best.get("loss_options", {})
        rows[_level(method)] = {
            "all trials": f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else "one trial",
            "defaults": "failed" if default is None else f"{default:.1f}",
            "best": f"{max(scores):.1f}",
            "settings of the best": ", ".join(f"{name} {value:.3g}" for name, value in settings.items()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def search_gain(studies: "Mapping[str, Study]") -> Finding:
    """What tuning gained over the defaults, beside what is between the methods then, and whose range was too narrow.

    A search ended at the edge if its best learning rate lies in the uppermost tenth of the range, on the logarithmic scale.
    Methods whose trial with the defaults failed count for the edge alone. Raises ValueError if there is nothing to count.
    """
    import numpy as np

    scores = {method: _scores(study) for method, study in studies.items()}
    gains = {method: max(made) - default for method, (made, default) in scores.items() if default is not None}
    if not gains:
        raise ValueError("studies holds no study whose trial with the defaults went well")
    bests = [max(made) for made, _ in scores.values()]
    edge = 0
    for study in studies.values():
        range_, default = study.space["learning_rate"], study.trials[0]["parameters"]["learning_rate"]
        place = math.log(study.best["learning_rate"] / default / range_["low"]) / math.log(
            range_["high"] / range_["low"]
        )
        edge += place > 0.9
    numbers = {f"gain {method}": gain for method, gain in gains.items()}
    numbers |= {"gain": float(np.mean(list(gains.values()))), "edge": edge}
    numbers["between"] = max(bests) - float(np.median(bests))
    return Finding(
        f"Tuning raises a loss by **{numbers['gain']:.1f} points** on average, from {min(gains.values()):.1f} to "
        f"{max(gains.values()):.1f}. Once all are tuned, **{numbers['between']:.1f} points** lie between the best of the "
        f"{len(bests)} and the median one: who tunes one loss and takes the others as they come may find what is wanted. "
        f"In {edge} of {len(studies)} searches the best learning rate lies in the uppermost tenth of its range, so a wider "
        "range might hold better settings still.",
        numbers,
    )


def _scores(study: "Study") -> tuple[list[float], float | None]:
    """What the trials that went well scored, and that with the defaults, in percent."""
    scores = [None if trial["score"] is None else 100 * trial["score"] for trial in study.trials]
    return [score for score in scores if score is not None], scores[0]


def _by_seed(table: "pd.DataFrame", by: Sequence[str], metric: str) -> "pd.Series":
    """A metric by group and seed, fractions in percent, of the newest run of each."""
    data = runs.columns(table, *by, "seed", metric).dropna(subset=[metric])
    scale = 100 if runs.is_fraction(metric) else 1
    return scale * data.groupby([*by, "seed"], sort=False)[metric].last()


def _difference(own: "pd.Series", base: "pd.Series") -> dict[str, Any]:
    """The paired t-test of two groups over the seeds that they share; NaN where fewer than two are."""
    from scipy import stats

    shared = _by_shared_seed(own - base)
    n, mean = len(shared), shared.mean()
    margin = p = math.nan
    if n > 1:
        error = shared.std(ddof=1) / math.sqrt(n)
        margin = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return {"difference": mean, "margin": margin, "seeds": n, "differences": shared.tolist(), "p": p}


def _by_shared_seed(differences: "pd.Series") -> "pd.Series":
    """The difference of each seed; with several cells, the mean over those that all seeds have, or seeds would differ by cells."""
    if differences.index.nlevels == 1:
        return differences.dropna()
    cells = differences.unstack("seed")
    while cells.shape[1] and cells.dropna().empty:
        cells = cells.drop(columns=cells.count().idxmin())
    return cells.dropna().mean()


def _holm(p: "Sequence[float]") -> list[float]:
    """Holm's correction of the p-values that are known: the k-th smallest of m, times m - k + 1, never falling."""
    order = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    adjusted, least = [math.nan] * len(p), 0.0
    for k, (value, i) in enumerate(order):
        least = max(least, min(1.0, value * (len(order) - k)))
        adjusted[i] = least
    return adjusted


def _said(row: Mapping[str, Any]) -> str:
    """A difference with its interval, in words."""
    if row["seeds"] == 0:
        return "no seed is shared, so nothing can be said."
    if math.isnan(row["margin"]):
        return f"{row['difference']:+z.1f} points in the one seed that both have: **undecided**."
    text = f"{row['difference']:+z.1f} points, ± {row['margin']:.1f} (95 %, {row['seeds']} seeds)"
    if abs(row["difference"]) <= row["margin"]:
        return f"{text}: **undecided**."
    return f"{text}. It was picked because it is the best, which flatters it."


def _verdicts(others: "pd.DataFrame", reference: str) -> str:
    """What a comparison decides, group by group, with the differences."""
    parts = []
    for verdict, words in {"ahead": "Ahead of {}", "behind": "Behind {}", "undecided": "Undecided against {}"}.items():
        chosen = others[others["verdict"] == verdict]
        if len(chosen):
            listed = [
                f"{_level(group)} ({row['difference']:+z.1f} ± {row['margin']:.1f})"
                if not math.isnan(row["margin"])
                else f"{_level(group)} (one run)"
                if row["seeds"] == 1
                else f"{_level(group)} (no shared seed)"
                for group, row in chosen.iterrows()
            ]
            parts.append(f"{words.format(reference)}: {', '.join(listed)}.")
    return " ".join(parts)


def _named(setting: str, value: Any) -> str:
    """A setting with its value as one says it."""
    anchors = "{} anchor" if value == 1 else "{} anchors"
    said = {
        "num_iterations": "$T$ = {}",
        "num_anchors": anchors,
        "temperature": "$\\tau$ = {}",
        "method": "{}",
        "strategy": "{}",
    }
    return said.get(setting, f"{spoken(setting)} {{}}").format(_level(value))


def _level(value: Any) -> str:
    return spoken(value) if isinstance(value, str) else f"{value:g}"


def _method(name: str) -> str:
    return "Group Loss" if name == "group_loss" else spoken(name)


def _ordinal(place: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh")
    return words[place - 1] if place <= len(words) else f"number {place}"
