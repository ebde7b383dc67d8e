"""Runs as tables: those that match, mean and spread."""

import json
import statistics

import pytest
from made_records import keep_some, record

from gl_core.training import records
from gl_core.training.config import Config
from glbook import runs


def test_the_spread_is_the_sample_standard_deviation_in_percent():
    values = [0.80, 0.82, 0.87]
    table = runs.spread_table(runs.as_table([record(i, r1) for i, r1 in enumerate(values)]))
    (row,) = table.to_dict("records")
    assert table.index.tolist() == ["group_loss"]
    assert row["runs"] == 3
    by_hand = f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
    assert row["R@1 (%)"] == by_hand == "83.0 ± 3.6"
    assert row["MAP@R (%)"] == "25.0 ± 0.0"


def test_one_run_has_no_spread_and_other_quantities_no_percent():
    table = runs.spread_table(runs.as_table([record()]), by="seed", metrics=("R@1", "wall_time_s"))
    assert table.loc[0].tolist() == [1, "50.0 (one run)", "50.000 (one run)"]


def test_groups_keep_their_order_and_may_be_settings():
    made = [record(seed, config={"num_anchors": anchors}) for seed, anchors in enumerate([3, 0, 3])]
    table = runs.spread_table(runs.as_table(made), by=["num_anchors", "method"])
    assert table["runs"].to_dict() == {(3, "group_loss"): 2, (0, "group_loss"): 1}
    assert list(table.index) == [(3, "group_loss"), (0, "group_loss")]


def test_a_metric_that_some_runs_lack_is_averaged_over_the_others():
    made = [record(0, 0.5), record(1, metrics={"R@1": 0.7}), record(2, method="x", metrics={"R@1": 0.1})]
    table = runs.spread_table(runs.as_table(made))
    assert table["MAP@R (%)"].tolist() == ["25.0 (one run)", "–"]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {"metrics": ["R@3"]}, "'R@3' is neither"),
        (1, {"by": "anchors"}, "'anchors' is neither"),
        (0, {}, "table holds no runs"),
    ],
)
def test_what_is_not_there_is_named(count, options, message):
    with pytest.raises(ValueError, match=message):
        runs.spread_table(runs.as_table([record()][:count]), **options)


def test_records_of_live_runs_and_of_files_give_the_same_table(tmp_path):
    made = [record(0), record(1)]
    for one in made:
        records.write_record(one, tmp_path)
    read = runs.load_runs(tmp_path)
    live = runs.as_table(made)
    for name in live.columns:
        assert read[name].tolist() == live[name].tolist(), name
    assert list(runs.as_table([]).columns) == runs.COLUMNS


def test_recorded_filters_by_column_and_by_setting(tmp_path):
    keep_some(tmp_path)
    found = runs.recorded(dataset="omniglot", root=tmp_path)
    assert found["run_id"].tolist() == ["run-0", "run-1", "run-2", "ce"]
    assert runs.recorded(dataset="omniglot", epochs=30, root=tmp_path)["run_id"].tolist() == ["run-0", "run-1", "run-2"]
    assert runs.recorded(method="cross_entropy", root=tmp_path)["run_id"].tolist() == ["ce"]
    assert runs.recorded(purpose="tuning", root=tmp_path)["run_id"].tolist() == ["trial"]
    assert runs.recorded(purpose=None, chapter="iterations_and_anchors", root=tmp_path)["run_id"].tolist() == ["other"]
    assert runs.recorded(dataset="cars196_half", root=tmp_path).empty
    assert runs.recorded(root=tmp_path / "absent", epochs=3).empty
    with pytest.raises(ValueError, match="unknown setting 'anchors': must be one of .*num_anchors"):
        runs.recorded(anchors=2, root=tmp_path)


def test_a_planned_sweep_has_every_combination():
    made = runs.planned("book/sweeps/iterations_and_anchors.yaml")
    cells = {(config.num_iterations, config.num_anchors, config.seed) for config in made}
    assert cells == {(T, a, s) for T in (0, 1, 2, 3, 5, 10) for a in range(5) for s in range(3)}
    assert {(config.dataset, config.epochs) for config in made} == {("omniglot", 30)}
    pairs = {(c.classes_per_batch, c.samples_per_class) for c in runs.planned("book/sweeps/batches.yaml")}
    assert pairs == {(48, 2), (24, 4), (12, 8), (6, 16)}


def test_a_tuned_sweep_plans_the_settings_that_were_found(tmp_path, monkeypatch):
    def found(given):
        if given["method"] == "triplet":
            raise ValueError("tuned: no tuning of triplet is recorded")
        return {"learning_rate": 0.005}

    monkeypatch.setattr("glbook.studies.best_settings", found)
    path = tmp_path / "sweep.yaml"
    path.write_text("chapter: training\ntuned: true\ngrid: {method: [group_loss, triplet], seed: [0, 1]}\n")
    made = runs.planned(str(path))
    found = [(config.method, config.seed, config.learning_rate) for config in made]
    assert found == [("group_loss", 0, 0.005), ("group_loss", 1, 0.005)]


@pytest.fixture
def grid(tmp_path):
    """Full configurations with two seeds each of two settings, one of them recorded twice, and a trial."""
    for number, (T, seed, r1, purpose) in enumerate(
        [(1, 0, 0.1, "final"), (1, 0, 0.5, "final"), (1, 1, 0.6, "final"), (3, 0, 0.7, "final"), (3, 1, 0.9, "tuning")]
    ):
        config = Config.resolve(dataset="omniglot", num_iterations=T, seed=seed, device="cpu").as_dict()
        del config["data_root"]
        created = f"2026-03-01T10:00:0{number}+00:00"
        made = record(seed, r1, run_id=f"run-{number}", purpose=purpose, config=config, created=created)
        records.write_record(made, tmp_path)
    return tmp_path


def test_matching_finds_the_newest_run_of_each_configuration_in_order(grid):
    wanted = [Config.resolve(dataset="omniglot", num_iterations=T, seed=s) for T in (3, 1, 2) for s in (0, 1)]
    found = runs.matching(wanted, root=grid)
    assert found["run_id"].tolist() == ["run-3", "run-1", "run-2"]
    assert runs.matching(wanted, root=grid, purpose="tuning")["run_id"].tolist() == ["run-4"]
    assert runs.matching([], root=grid).empty and runs.matching(wanted, root=grid / "absent").empty
    # The same training, recorded by another chapter for what it did afterwards, is not counted a second time.
    made = json.loads((grid / "run-3.json").read_text())
    records.write_record(made | {"run_id": "run-9", "chapter": "inference", "created": "2030"}, grid)
    assert runs.matching(wanted, root=grid)["run_id"].tolist() == ["run-3", "run-1", "run-2"]
    assert runs.matching(wanted, root=grid, chapter="inference")["run_id"].tolist() == ["run-9"]


def test_a_setting_newer_than_a_record_had_its_default(grid):
    for path in grid.glob("*.json"):
        made = json.loads(path.read_text())
        del made["config"]["num_anchors"]
        path.write_text(json.dumps(made))
    wanted = Config.resolve(dataset="omniglot", num_iterations=3)
    table = runs.matching([wanted], root=grid)
    assert runs.columns(table, "num_anchors")["num_anchors"].tolist() == [Config.num_anchors]
    assert runs.recorded(num_anchors=Config.num_anchors, purpose="tuning", root=grid)["run_id"].tolist() == ["run-4"]
