"""What pages say of recorded runs, against the numbers in the records."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from stub_book import ROOT
from test_pages import record

from gl_core.training import records
from gl_core.training.config import Config
from glbook import runs, statistics, tuning


def write(folder, values):
    """Records of {(method, T, anchors): [R@1 of seed 0, 1, ...]}; a None is a seed without a run."""
    number = 0
    for (method, T, anchors), metrics in values.items():
        for seed, r1 in enumerate(metrics):
            if r1 is None:
                continue
            number += 1
            made = record(
                seed, r1, method=method, run_id=f"run-{number:03}", config={"num_iterations": T, "num_anchors": anchors}
            )
            records.write_record(made, folder)
    return runs.load_runs(folder)


def rewrite(folder, change):
    """The records again, with R@1 changed."""
    for path in folder.glob("*.json"):
        made = json.loads(path.read_text())
        made["metrics"]["R@1"] = change(made)
        path.write_text(json.dumps(made))
    return runs.load_runs(folder)


def by_hand(folder):
    """R@1 in percent by (method, T, anchors) and seed, straight from the files."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        made = json.loads(path.read_text())
        key = made["method"], made["config"]["num_iterations"], made["config"]["num_anchors"]
        found.setdefault(key, {})[made["seed"]] = 100 * made["metrics"]["R@1"]
    return found


def said(text):
    """The numbers with one decimal in a text."""
    return [float(number) for number in re.findall(r"[+-]?\d+\.\d", text)]


METHODS = {
    ("group_loss", 1, 2): [0.800, 0.820, 0.870, 0.830],
    ("triplet", 1, 2): [0.700, 0.722, 0.769, 0.731],
    ("arcface", 1, 2): [0.850, 0.874, 0.921, 0.879],
    ("contrastive", 1, 2): [0.810, 0.790, 0.880, 0.829],
}


def test_a_comparison_is_the_paired_t_test_over_seeds(tmp_path):
    made = statistics.compare(write(tmp_path, METHODS), "group_loss")
    values = {method: list(seeds.values()) for (method, _, _), seeds in by_hand(tmp_path).items()}
    for method, own in values.items():
        assert made.loc[method, "mean"] == pytest.approx(np.mean(own))
        assert made.loc[method, "std"] == pytest.approx(np.std(own, ddof=1))
        if method == "group_loss":
            continue
        tested = stats.ttest_rel(own, values["group_loss"])
        interval = tested.confidence_interval(0.95)
        assert made.loc[method, "difference"] == pytest.approx((interval.low + interval.high) / 2)
        assert made.loc[method, "margin"] == pytest.approx((interval.high - interval.low) / 2)
        assert made.loc[method, "seeds"] == 4
    assert made["verdict"].to_dict() == {
        "group_loss": "undecided", "triplet": "behind", "arcface": "ahead", "contrastive": "undecided"
    }  # fmt: skip


def test_the_table_of_a_comparison_says_its_numbers_and_marks_single_runs(tmp_path):
    made = statistics.compare(write(tmp_path, METHODS | {("soft_triple", 1, 2): [0.9]}), "group_loss")
    shown = statistics.as_table(made)
    assert shown.index.tolist() == ["soft triple", "arcface", "group loss", "contrastive", "triplet"]
    assert shown.loc["soft triple"].tolist() == [1, "90.0 (one run)", "–", "–", "–"]
    arcface = made.loc["arcface"]
    assert shown.loc["arcface"].tolist() == [
        4, f"{arcface['mean']:.1f} ± {arcface['std']:.1f}", f"{arcface['difference']:+z.1f} ± {arcface['margin']:.1f}",
        "<0.001", "ahead",
    ]  # fmt: skip


def test_a_table_shows_no_minus_zero_and_no_p_of_zero():
    made = pd.DataFrame(
        {
            "mean": [81.0, 80.0],
            "std": 1.0,
            "runs": 5,
            "difference": [9.0, -0.04],
            "margin": 1.0,
            "p": [4e-4, 6e-4],
            "verdict": "ahead",
        },
        index=pd.Index(["triplet", "arcface"], name="method"),
    )
    shown = statistics.as_table(made)
    assert shown["difference (95 %)"].tolist() == ["+9.0 ± 1.0", "+0.0 ± 1.0"]
    assert shown["p"].tolist() == ["<0.001", "0.001"]


def test_the_p_values_are_corrected_for_the_number_of_comparisons(tmp_path):
    made = statistics.compare(write(tmp_path, METHODS), "group_loss").drop(index="group_loss")
    values = {method: list(seeds.values()) for (method, _, _), seeds in by_hand(tmp_path).items()}
    raw = {method: stats.ttest_rel(values[method], values["group_loss"]).pvalue for method in made.index}
    smallest, middle, largest = sorted(raw, key=raw.get)
    # Holm: 3, 2 and 1 times, never below the one before
    assert made.loc[smallest, "p"] == pytest.approx(3 * raw[smallest])
    assert made.loc[middle, "p"] == pytest.approx(max(3 * raw[smallest], 2 * raw[middle]))
    assert made.loc[largest, "p"] == pytest.approx(raw[largest])


def test_only_shared_seeds_are_compared_and_fewer_than_two_decide_nothing(tmp_path):
    made = statistics.compare(
        write(tmp_path, {("a", 1, 2): [0.5, 0.6, None], ("b", 1, 2): [None, 0.7, 0.9], ("c", 1, 2): [None, None, 0.1]}),
        "a",
    )
    assert made.loc["b", ["difference", "seeds"]].tolist() == pytest.approx([10, 1])
    assert made.loc["c", "seeds"] == 0 and made["margin"].isna().all() and set(made["verdict"]) == {"undecided"}


def test_within_averages_the_cells_that_both_have_before_the_test(tmp_path):
    values = {("g", T, a): [0.5 + 0.1 * T + 0.01 * a * s for s in range(3)] for T in (1, 2) for a in (0, 1)}
    values["g", 2, 4] = [0.9, 0.9, 0.9]  # T = 1 has no such cell
    table = write(tmp_path, values)
    made = statistics.compare(table, 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "difference"] == pytest.approx(10) and made.loc[2, "seeds"] == 3


def test_seeds_are_compared_in_the_same_cells(tmp_path):
    # The second seed lacks the cell in which both settings fail, and where they differ most.
    values = {
        ("g", 1, 0): [0.80, 0.82],
        ("g", 2, 0): [0.81, 0.83],
        ("g", 1, 4): [0.50, None],
        ("g", 2, 4): [0.05, None],
    }
    made = statistics.compare(write(tmp_path, values), 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "differences"] == pytest.approx([1, 1])
    # Where no cell has all seeds, those with fewest cells are left out.
    values = {("g", 1, a): [0.8, None] for a in (0, 1)} | {("g", 2, a): [0.9, None] for a in (0, 1)}
    values |= {("g", 1, 4): [None, 0.5], ("g", 2, 4): [None, 0.1]}
    (tmp_path / "other").mkdir()
    made = statistics.compare(write(tmp_path / "other", values), 1, by="num_iterations", within=["num_anchors"])
    assert made.loc[2, "differences"] == pytest.approx([10])


def test_the_newest_run_of_a_seed_counts(tmp_path):
    table = runs.as_table([record(0, 0.1, run_id="old"), record(0, 0.7, run_id="new"), record(1, 0.5)])
    assert statistics.cells(table, "method").loc["group_loss", ["mean", "runs"]].tolist() == [60, 2]


@pytest.mark.parametrize("ours", ["group_loss", "triplet"])
def test_the_ranking_says_the_numbers_of_the_records(tmp_path, ours):
    found = statistics.ranking(write(tmp_path, METHODS), ours)
    values = {method: list(seeds.values()) for (method, _, _), seeds in by_hand(tmp_path).items()}
    order = sorted(values, key=lambda method: -np.mean(values[method]))
    assert found.numbers["place"] == order.index(ours) + 1
    assert ["first", "second", "third", "fourth"][order.index(ours)] + " of 4 methods" in found.text
    for method in values:
        assert found.numbers[f"mean {method}"] == pytest.approx(np.mean(values[method]))
    assert said(found.text)[:2] == [round(np.mean(values[ours]), 1), round(np.mean(values[order[0]]), 1)]
    for method in set(values) - {ours}:
        difference = np.mean(np.subtract(values[method], values[ours]))
        margin = stats.t.ppf(0.975, 3) * np.std(np.subtract(values[method], values[ours]), ddof=1) / 2
        assert f"{method.replace('_', ' ')} ({difference:+z.1f} ± {margin:.1f})" in found.text


def test_a_ranking_that_is_lost_is_said_to_be_lost(tmp_path):
    text = statistics.ranking(write(tmp_path, METHODS)).text
    assert "Group Loss is second of 4 methods" in text and "the first is arcface" in text
    assert "Ahead of the Group Loss: arcface" in text and "Behind the Group Loss: triplet" in text
    assert "Undecided against the Group Loss: contrastive" in text


GRID = {
    ("g", T, a): [0.5 + 0.05 * T + 0.01 * a + 0.002 * s * (a + 1) for s in range(3)] for T in (0, 1, 3) for a in (0, 2)
}


def test_the_best_cell_against_the_usual_one(tmp_path):
    found = statistics.best(write(tmp_path, GRID), {"num_iterations": 1, "num_anchors": 2})
    values = by_hand(tmp_path)
    top, usual = values["g", 3, 2], values["g", 1, 2]
    assert found.numbers["best"] == pytest.approx(np.mean(list(top.values())))
    assert found.numbers["difference"] == pytest.approx(np.mean([top[seed] - usual[seed] for seed in top]))
    assert "$T$ = 3, 2 anchors" in found.text and "6 cells" in found.text
    assert said(found.text)[1] == round(found.numbers["best"], 1)


def test_the_trend_of_a_setting(tmp_path):
    found = statistics.trend(write(tmp_path, GRID), 1, by="num_iterations", within=["num_anchors"])
    assert found.numbers["difference 3"] == pytest.approx(10) and found.numbers["difference 0"] == pytest.approx(-5)
    assert (
        "highest with $T$ = 3, by 10.0 points against $T$ = 1, where it is 56" in found.text
        and "Ahead of $T$ = 1: 3 (+10.0 ± 0.0)" in found.text
    )


@pytest.mark.parametrize(
    "finding",
    [
        lambda table: statistics.best(table, {"num_iterations": 1, "num_anchors": 2}),
        lambda table: statistics.trend(table, 1, by="num_iterations", within=["num_anchors"]),
        lambda table: statistics.ranking(
            table.assign(method=[f"T{c['num_iterations']}" for c in table["config"]]), "T1"
        ),
    ],
)
def test_a_changed_record_changes_the_sentence(tmp_path, finding):
    before = finding(write(tmp_path, {key: value for key, value in GRID.items() if key[2] == 2}))
    after = finding(
        rewrite(tmp_path, lambda made: made["metrics"]["R@1"] - 0.07 * (made["config"]["num_iterations"] == 3))
    )
    assert before.text != after.text and before.numbers != after.numbers
    assert before._repr_markdown_() == before.text


def test_single_runs_are_said_to_be_single(tmp_path):
    table = write(tmp_path, {key: values[:1] for key, values in GRID.items()})
    assert "**undecided**" in statistics.best(table, {"num_iterations": 1, "num_anchors": 2}).text
    assert "0 (one run), 3 (one run)" in statistics.trend(table, 1, by="num_iterations", within=["num_anchors"]).text
    only = table[[config == {"num_iterations": 1, "num_anchors": 2} for config in table["config"]]]
    assert "nothing to compare" in statistics.trend(only, 1, by="num_iterations").text
    assert "nothing to compare" in statistics.ranking(only, "g").text
    assert "one cell" in statistics.best(only, {"num_iterations": 1}).text


def test_a_reference_without_runs_is_named(tmp_path):
    table = write(tmp_path, METHODS)
    with pytest.raises(ValueError, match="reference='softmax': must be one of arcface, contrastive"):
        statistics.compare(table.sort_values("method"), "softmax")
    found = statistics.best(table, {"num_iterations": 1, "num_anchors": 7})
    assert "difference" not in found.numbers


def kept(**wanted):
    """The records in data/results with these settings, straight from the files: {(num_iterations, num_anchors, seed): record}."""
    found = {}
    for path in sorted((ROOT / "data" / "results").glob("*.json")):
        made = json.loads(path.read_text())
        usual = {
            "temperature": 10.0,
            "similarity": "pearson",
            "epochs": 30,
            "evaluate_on": "test",
            "learning_rate": 2e-3,
        }
        if (
            made["purpose"] == "final"
            and made["chapter"] == "training"
            and made["seed"] in (0, 1, 2)
            and made["config"].get("precision", "auto") == "auto"
            and all(made["config"].get(k) == v for k, v in (usual | wanted).items())
        ):
            found[made["config"]["num_iterations"], made["config"]["num_anchors"], made["seed"]] = made
    return found


@pytest.mark.parametrize("metric", ["R@1", "MAP@R"])
def test_what_the_book_says_of_its_grid_is_in_the_records(metric):
    table = runs.matching(runs.planned("book/sweeps/iterations_and_anchors.yaml"))
    records = kept(dataset="omniglot", method="group_loss")
    assert len(table) == len(records) > 0
    values = {}
    for (T, a, _), made in records.items():
        values.setdefault((T, a), []).append(100 * made["metrics"][metric])
    means = {cell: np.mean(found) for cell, found in values.items()}
    found = statistics.best(table, {"num_iterations": 1, "num_anchors": 2}, metric)
    assert found.numbers["best"] == pytest.approx(max(means.values()))
    assert found.numbers["worst"] == pytest.approx(min(means.values()))
    assert f"{min(means.values()):.1f} %" in found.text and f"{max(means.values()):.1f} %" in found.text
    at_one = [mean for (T, _), found_ in values.items() if T == 1 for mean in found_]
    trend = statistics.trend(table, 1, by="num_iterations", metric=metric, within=["num_anchors"])
    assert trend.numbers["mean 1"] == pytest.approx(np.mean(at_one))
    assert f"{np.mean(at_one):.1f} %" in trend.text


@pytest.mark.parametrize("metric", ["R@1", "MAP@R"])
def test_what_the_book_says_of_the_losses_is_in_the_records(metric):
    table = runs.matching(runs.planned("book/sweeps/losses_omniglot.yaml"))
    found = statistics.ranking(table, metric=metric)
    records = [json.loads(Path(path).read_text()) for path in table["path"]]
    ours, theirs = (
        {made["seed"]: 100 * made["metrics"][metric] for made in records if made["method"] == method}
        for method in ("group_loss", "cross_entropy")
    )
    assert len(ours) > 1 and len(theirs) > 1
    shared = [theirs[seed] - ours[seed] for seed in ours.keys() & theirs.keys()]
    assert found.numbers["mean group_loss"] == pytest.approx(np.mean(list(ours.values())))
    assert found.numbers["difference cross_entropy"] == pytest.approx(np.mean(shared))
    margin = stats.t.ppf(0.975, len(shared) - 1) * np.std(shared, ddof=1) / np.sqrt(len(shared))
    assert f"cross entropy ({np.mean(shared):+z.1f} ± {margin:.1f})" in found.text


def test_what_the_book_says_of_the_search_is_in_the_records():
    studies = tuning.studies("omniglot", "conv4", 28)
    records = {record["run_id"]: record["metrics"] for _, record in runs.read_records(ROOT / "data" / "results")}
    scores = {
        method: [50 * sum(records[trial["run_id"]][name] for name in ("R@1", "MAP@R")) for trial in study.trials]
        for method, study in studies.items()
    }
    found, shown = statistics.search_gain(studies), statistics.search_table(studies)
    gains = {method: max(values) - values[0] for method, values in scores.items()}
    for method, values in scores.items():
        assert found.numbers[f"gain {method}"] == pytest.approx(gains[method])
        row = shown.loc[method.replace("_", " ")]
        assert row.tolist()[:3] == [
            f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}", f"{values[0]:.1f}", f"{max(values):.1f}",
        ]  # fmt: skip
    best = sorted(max(values) for values in scores.values())
    assert said(found.text) == [
        round(number, 1)
        for number in (np.mean(list(gains.values())), min(gains.values()), max(gains.values()), best[-1] - best[5])
    ]
    assert f"In {found.numbers['edge']} of 11 searches" in found.text


def test_a_search_whose_defaults_failed_and_one_at_the_edge():
    def study(*trials):
        made = [{"parameters": {"learning_rate": rate}, "score": score} for rate, score in trials]
        best = max((trial for trial in made if trial["score"] is not None), key=lambda trial: trial["score"])[
            "parameters"
        ]
        return SimpleNamespace(trials=made, best=best, space={"learning_rate": {"low": 0.25, "high": 4, "log": True}})

    studies = {"triplet": study((1e-3, 0.5), (3.5e-3, 0.8)), "arcface": study((1e-3, None), (2e-3, 0.6))}
    found = statistics.search_gain(studies)
    assert found.numbers == pytest.approx({"gain triplet": 30, "gain": 30, "edge": 1, "between": 10})
    assert statistics.search_table(studies)["defaults"].tolist() == ["50.0", "failed"]
    assert statistics.search_table(studies).loc["triplet", "settings of the best"] == "learning_rate 0.0035"
    with pytest.raises(ValueError, match="no study whose trial with the defaults went well"):
        statistics.search_gain({"arcface": studies["arcface"]})


ABLATIONS = [
    ("temperature", "temperature", 10.0, []),
    ("similarity", "similarity", "pearson", []),
    ("cross_entropy_weight", "cross_entropy_weight", 1.0, []),
    ("dynamics", "dynamics", "replicator", ["num_iterations"]),
    ("batches", "samples_per_class", 8, []),
]


@pytest.mark.parametrize("metric", ["R@1", "MAP@R"])
@pytest.mark.parametrize("sweep, setting, usual, within", ABLATIONS, ids=[each[0] for each in ABLATIONS])
def test_what_the_book_says_of_a_setting_is_in_the_records(sweep, setting, usual, within, metric):
    """All runs of the sweep are there, with three seeds; the sentence has the means of the files."""
    content = yaml.safe_load((ROOT / "book" / "sweeps" / f"{sweep}.yaml").read_text())
    varied = {"seed": {0, 1, 2}}
    for entry in [content["grid"], *content.get("runs", [])]:
        for name, value in entry.items():
            varied.setdefault(name, set()).update(value if isinstance(value, list) else [value])
    shared = Config.resolve(**content["parameters"]).as_dict()
    free = {"data_root", "device", "preset", *varied}
    values = {}
    for path in sorted((ROOT / "data" / "results").glob("*.json")):
        made = json.loads(path.read_text())
        config = made["config"]
        if (
            (made["purpose"], made["chapter"]) == ("final", "training")
            and all(config.get(name, value) == value for name, value in shared.items() if name not in free)
            and all(config[name] in levels for name, levels in varied.items())
            and config["classes_per_batch"] * config["samples_per_class"] == 96
        ):
            cell = (config[setting], *(config[name] for name in within), made["seed"])
            values[cell] = 100 * made["metrics"][metric]
    table = runs.matching(runs.planned(f"book/sweeps/{sweep}.yaml"))
    assert len(table) == len(values) == len(runs.planned(f"book/sweeps/{sweep}.yaml"))
    found = statistics.trend(table, usual, by=setting, metric=metric, within=within)
    for level in varied[setting]:
        of_level = {cell[1:]: value for cell, value in values.items() if cell[0] == level}
        assert found.numbers[f"mean {level}"] == pytest.approx(np.mean(list(of_level.values())))
        if level != usual:
            differences = [value - values[usual, *rest] for rest, value in of_level.items()]
            assert found.numbers[f"difference {level}"] == pytest.approx(np.mean(differences))
            assert f"({np.mean(differences):+z.1f} ± " in found.text
