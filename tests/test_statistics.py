"""Runs compared seed by seed: against the same computed by hand from the files."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_records import record
from scipy import stats

from gl_core.training import records
from glbook import runs, statistics, tuning


def table_of(values):
    """Runs {(method, T, anchors): [R@1 of seed 0, 1, ...]}; a None is a seed without a run."""
    made = [
        record(seed, r1, method=method, config={"num_iterations": T, "num_anchors": anchors})
        for (method, T, anchors), metrics in values.items()
        for seed, r1 in enumerate(metrics)
        if r1 is not None
    ]
    return runs.as_table(made)


METHODS = {
    "group_loss": [0.800, 0.820, 0.870, 0.830],
    "triplet": [0.700, 0.722, 0.769, 0.731],
    "arcface": [0.850, 0.874, 0.921, 0.879],
    "contrastive": [0.810, 0.790, 0.880, 0.829],
}
TABLE = table_of({(method, 1, 2): values for method, values in METHODS.items()})


def test_a_comparison_is_the_paired_t_test_over_seeds():
    made = statistics.compare(TABLE, "group_loss")
    for method, values in METHODS.items():
        own, base = 100 * np.array(values), 100 * np.array(METHODS["group_loss"])
        assert made.loc[method, "mean"] == pytest.approx(np.mean(own))
        assert made.loc[method, "std"] == pytest.approx(np.std(own, ddof=1))
        assert made.loc[method, "differences"] == pytest.approx(own - base)
        if method != "group_loss":
            # By the formula, and by scipy's test of two samples.
            margin = stats.t.ppf(0.975, 3) * np.std(own - base, ddof=1) / 2
            interval = stats.ttest_rel(own, base).confidence_interval(0.95)
            assert made.loc[method, "difference"] == pytest.approx(np.mean(own - base))
            assert made.loc[method, "margin"] == pytest.approx(margin) == (interval.high - interval.low) / 2
    assert made["verdict"].to_dict() == {
        "group_loss": "undecided", "triplet": "behind", "arcface": "ahead", "contrastive": "undecided"
    }  # fmt: skip
    assert made.loc["group_loss", ["margin", "p"]].isna().all()


def test_the_p_values_are_corrected_for_the_number_of_comparisons():
    made = statistics.compare(TABLE, "group_loss").drop(index="group_loss")
    raw = {method: stats.ttest_rel(METHODS[method], METHODS["group_loss"]).pvalue for method in made.index}
    smallest, middle, largest = sorted(raw, key=raw.get)
    # Holm: 3, 2 and 1 times, never below the one before
    assert made.loc[smallest, "p"] == pytest.approx(3 * raw[smallest])
    assert made.loc[middle, "p"] == pytest.approx(max(3 * raw[smallest], 2 * raw[middle]))
    assert made.loc[largest, "p"] == pytest.approx(raw[largest])


def test_groups_without_any_difference_are_undecided():
    same = TABLE[TABLE["method"] == "group_loss"]
    made = statistics.compare(pd.concat([same, same.assign(method="copy")]), "group_loss")
    assert made.loc["copy", ["difference", "margin", "p", "verdict"]].tolist() == [0, 0, 1, "undecided"]


def test_only_shared_seeds_are_compared_and_fewer_than_two_decide_nothing():
    values = {("a", 1, 2): [0.5, 0.6, None], ("b", 1, 2): [None, 0.7, 0.9], ("c", 1, 2): [None, None, 0.1]}
    made = statistics.compare(table_of(values), "a")
    assert made.loc["b", ["difference", "seeds"]].tolist() == pytest.approx([10, 1])
    assert made.loc["c", "seeds"] == 0 and made["margin"].isna().all() and set(made["verdict"]) == {"undecided"}


def test_within_averages_the_cells_that_both_have_before_the_test():
    values = {("g", T, a): [0.5 + 0.1 * T + 0.01 * a * s for s in range(3)] for T in (1, 2) for a in (0, 1)}
    values["g", 2, 4] = [0.9, 0.9, 0.9]  # T = 1 has no such cell
    made = statistics.compare(table_of(values), 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "difference"] == pytest.approx(10) and made.loc[2, "seeds"] == 3


def test_seeds_are_compared_in_the_same_cells():
    # The second seed lacks the cell in which both settings fail, and where they differ most.
    values = {("g", 1, 0): [0.80, 0.82], ("g", 2, 0): [0.81, 0.83], ("g", 1, 4): [0.5, None], ("g", 2, 4): [0.05, None]}
    made = statistics.compare(table_of(values), 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "differences"] == pytest.approx([1, 1])
    # Where no cell has all seeds, those with fewest cells are left out.
    values = {("g", 1, a): [0.8, None] for a in (0, 1)} | {("g", 2, a): [0.9, None] for a in (0, 1)}
    values |= {("g", 1, 4): [None, 0.5], ("g", 2, 4): [None, 0.1]}
    made = statistics.compare(table_of(values), 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "differences"] == pytest.approx([10])


def test_the_newest_run_of_a_seed_counts_and_a_reference_without_runs_is_named():
    table = runs.as_table([record(0, 0.1, run_id="old"), record(0, 0.7, run_id="new"), record(1, 0.5)])
    assert statistics.cells(table, "method").loc["group_loss", ["mean", "runs"]].tolist() == [60, 2]
    with pytest.raises(ValueError, match="reference='softmax': must be one of group_loss$"):
        statistics.compare(table, "softmax")


def test_the_table_of_a_comparison_has_its_numbers_and_marks_single_runs():
    table = pd.concat([TABLE, table_of({("soft_triple", 1, 2): [0.9]})])
    made = statistics.compare(table, "group_loss")
    shown = statistics.as_table(made)
    assert shown.index.tolist() == ["soft triple", "arcface", "group loss", "contrastive", "triplet"]
    assert shown.loc["soft triple"].tolist() == [1, "90.0 (one run)", "–", "–", "–"]
    arcface = made.loc["arcface"]
    assert shown.loc["arcface"].tolist() == [
        4, f"{arcface['mean']:.1f} ± {arcface['std']:.1f}", f"{arcface['difference']:+z.1f} ± {arcface['margin']:.1f}",
        "<0.001", "ahead",
    ]  # fmt: skip
    both = statistics.comparison_table(table, "group_loss", metrics=["R@1", "MAP@R"])
    assert both.index.tolist() == shown.index.tolist() and both["R@1 (%)"].tolist() == shown["R@1 (%)"].tolist()
    means, differences = ["MAP@R (%)", "MAP@R: difference (95 %)"]
    assert both.loc["triplet", means] == "25.0 ± 0.0"
    assert both.loc["triplet", differences] == "+0.0 ± 0.0 (undecided, p 1.000)"
    assert both.loc["group loss", differences] == "–"


def test_a_table_shows_no_minus_zero_and_no_p_of_zero():
    made = pd.DataFrame(
        {"mean": [81.0, 80.0], "std": 1.0, "runs": 5, "difference": [9.0, -0.04], "margin": 1.0, "p": [4e-4, 6e-4]},
        index=pd.Index(["triplet", "arcface"], name="method"),
    )
    shown = statistics.as_table(made.assign(verdict="ahead"))
    assert shown["difference (95 %)"].tolist() == ["+9.0 ± 1.0", "+0.0 ± 1.0"]
    assert shown["p"].tolist() == ["<0.001", "0.001"]


COMPARED = {
    "iterations_and_anchors": ("num_iterations", 1, ["num_anchors"]),
    "temperature": ("temperature", 10.0, []),
    "similarity": ("similarity", "pearson", []),
    "cross_entropy_weight": ("cross_entropy_weight", 1.0, []),
    "dynamics": ("dynamics", "replicator", ["num_iterations"]),
    "batches": ("samples_per_class", 8, []),
    "reidentification": ("random_erasing", 0.0, ["bn_neck"]),
    "losses_omniglot": ("method", "group_loss", []),
    "losses_cars196_half": ("method", "group_loss", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["R@1", "MAP@R"])
@pytest.mark.parametrize("sweep", COMPARED)
def test_what_the_book_compares_is_in_the_records(sweep, metric):
    """Every planned run is recorded (of the cars three methods are), and the differences are those of the files."""
    setting, reference, within = COMPARED[sweep]
    planned = runs.planned(f"book/sweeps/{sweep}.yaml")
    table = runs.matching(planned)
    assert len(table) == (9 if sweep == "losses_cars196_half" else len(planned))
    values = {}
    for path in table["path"]:
        with open(path) as file:
            made = json.load(file)
        level, *others = (made["config"][name] for name in (setting, *within, "seed"))
        values.setdefault(level, {})[tuple(others)] = 100 * made["metrics"][metric]
    found = statistics.compare(table, reference, by=setting, metric=metric, within=within)
    for level, own in values.items():
        assert found.loc[level, "mean"] == pytest.approx(np.mean(list(own.values())))
        differences = [value - values[reference][cell] for cell, value in own.items()]
        assert found.loc[level, "difference"] == pytest.approx(np.mean(differences))


def test_a_search_as_a_table():
    studies = {
        "triplet": SimpleNamespace(trials=[{"score": 0.5}, {"score": 0.8}], best={"learning_rate": 3.5e-3}),
        "soft_triple": SimpleNamespace(trials=[{"score": None}, {"score": 0.6}], best={"learning_rate": 2e-3}),
    }
    shown = statistics.search_table(studies)
    assert shown.loc["triplet"].tolist() == ["65.0 ± 21.2", "50.0", "80.0", "learning_rate 0.0035"]
    assert shown.loc["soft triple"].tolist() == ["one trial", "failed", "60.0", "learning_rate 0.002"]


def test_the_scores_of_the_recorded_search_are_those_of_its_runs():
    metrics = {made["run_id"]: made["metrics"] for _, made in records.read_records()}
    studies = tuning.studies("omniglot", "conv4", 28)
    assert len(studies) == 11
    for each in studies.values():
        for trial in each.trials:
            mean = (metrics[trial["run_id"]]["R@1"] + metrics[trial["run_id"]]["MAP@R"]) / 2
            assert trial["score"] == pytest.approx(mean)
