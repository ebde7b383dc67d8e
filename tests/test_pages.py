"""What a page says about its results: provenance, mean and spread."""

import statistics

import pytest

from gl_core import pages, runs
from gl_core.config import Config


def record(seed=0, r1=0.5, **changes):
    made = {
        "run_id": f"run-{seed}",
        "created": f"2026-03-0{seed + 1}T10:00:00+00:00",
        "commit": "0123456789abcdef",
        "chapter": "training",
        "dataset": "omniglot",
        "method": "group_loss",
        "seed": seed,
        "device": "a CPU",
        "wall_time_s": 50.0,
        "purpose": "final",
        "config": {"num_anchors": 2, "epochs": 30},
        "metrics": {"R@1": r1, "MAP@R": 0.25},
        "untrained": {"R@1": 0.1},
        "history": [{"epoch": 1, "loss": 2.0}],
    }
    return made | changes


@pytest.fixture
def kept(tmp_path):
    """A folder with three seeds of one method and one run each of something else."""
    for made in (
        *(record(seed, r1) for seed, r1 in enumerate([0.80, 0.82, 0.87])),
        record(5, 0.4, run_id="ce", method="cross_entropy", config={"num_anchors": 2, "epochs": 10}),
        record(6, 0.3, run_id="trial", purpose="tuning"),
        record(7, 0.2, run_id="other", dataset="glyphs", chapter="iterations_and_anchors"),
    ):
        runs.write_record(made, tmp_path)
    return tmp_path


def test_the_spread_is_the_sample_standard_deviation_in_percent():
    values = [0.80, 0.82, 0.87]
    table = pages.spread_table(pages.as_table([record(i, r1) for i, r1 in enumerate(values)]))
    (row,) = table.to_dict("records")
    assert table.index.tolist() == ["group_loss"]
    assert row["runs"] == 3
    assert (
        row["R@1 (%)"] == f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}" == "83.0 ± 3.6"
    )
    assert row["MAP@R (%)"] == "25.0 ± 0.0"


def test_one_run_has_no_spread_and_other_quantities_no_percent():
    table = pages.spread_table(pages.as_table([record()]), by="seed", metrics=("R@1", "wall_time_s"))
    assert table.loc[0].to_dict() == {"runs": 1, "R@1 (%)": "50.0", "wall_time_s": "50.000"}


def test_groups_keep_their_order_and_may_be_settings():
    made = [
        record(0, config={"num_anchors": 3}),
        record(1, config={"num_anchors": 0}),
        record(2, config={"num_anchors": 3}),
    ]
    table = pages.spread_table(pages.as_table(made), by=["num_anchors", "method"])
    assert table.index.tolist() == [(3, "group_loss"), (0, "group_loss")]
    assert table["runs"].tolist() == [2, 1]


def test_a_metric_that_some_runs_lack_is_averaged_over_the_others():
    made = [record(0, 0.5), record(1, metrics={"R@1": 0.7}), record(2, method="x", metrics={"R@1": 0.1})]
    table = pages.spread_table(pages.as_table(made))
    assert table["MAP@R (%)"].tolist() == ["25.0", "–"]


@pytest.mark.parametrize(
    "call",
    [
        lambda table: pages.spread_table(table, metrics=["R@3"]),
        lambda table: pages.spread_table(table, by="anchors"),
        lambda table: pages.spread_table(table.iloc[:0]),
    ],
)
def test_what_is_not_there_is_named(call):
    with pytest.raises(ValueError, match="'R@3' is neither|'anchors' is neither|table holds no runs"):
        call(pages.as_table([record()]))


def test_records_of_live_runs_and_of_files_give_the_same_table(tmp_path):
    made = [record(0), record(1)]
    for one in made:
        runs.write_record(one, tmp_path)
    read = runs.load_runs(tmp_path)
    live = pages.as_table(made)
    for name in live.columns:
        assert read[name].tolist() == live[name].tolist(), name
    assert list(pages.as_table([]).columns) == runs.COLUMNS


def test_recorded_filters_by_column_and_by_setting(kept):
    found = pages.recorded(dataset="omniglot", root=kept)
    assert found["run_id"].tolist() == ["run-0", "run-1", "run-2", "ce"]
    assert pages.recorded(dataset="omniglot", epochs=30, root=kept)["run_id"].tolist() == ["run-0", "run-1", "run-2"]
    assert pages.recorded(method="cross_entropy", root=kept)["run_id"].tolist() == ["ce"]
    assert pages.recorded(purpose="tuning", root=kept)["run_id"].tolist() == ["trial"]
    assert pages.recorded(purpose=None, chapter="iterations_and_anchors", root=kept)["run_id"].tolist() == ["other"]
    assert pages.recorded(dataset="cars196_half", root=kept).empty
    assert pages.recorded(root=kept / "absent", epochs=3).empty


def test_a_setting_that_no_configuration_has(kept):
    with pytest.raises(ValueError, match="unknown setting 'anchors': must be one of .*num_anchors"):
        pages.recorded(anchors=2, root=kept)


def test_the_banner_of_one_live_run():
    text = pages.banner(record(3)).data
    assert text.startswith("> **Live result**")
    for fact in ("`run-3`", "omniglot", "group_loss", "seed 3", "50 s on a CPU", "commit `012345678`", "2026-03-04"):
        assert fact in text


def test_the_banner_of_recorded_runs(kept):
    text = pages.banner(pages.recorded(dataset="omniglot", root=kept)).data
    for fact in (
        "**Recorded result**",
        "4 runs",
        "group_loss, cross_entropy",
        "seeds 0, 1, 2, 5",
        "2026-03-01 to 2026-03-06",
    ):
        assert fact in text
    assert "3 min on a CPU" in text
    assert all(run_id in text for run_id in ("run-0", "run-1", "run-2", "ce"))


def test_a_table_of_live_runs_is_live():
    made = [record(0), record(1, commit="0123456789abcdef-dirty")]
    for source in (made, pages.as_table(made)):
        text = pages.banner(source).data
        assert text.startswith("> **Live result**") and "2 runs" in text
        assert "`012345678`" in text and "`012345678 with local changes`" in text


def test_the_banner_of_nothing_says_so(kept):
    assert "No recorded result" in pages.banner(pages.recorded(dataset="folder", root=kept)).data


@pytest.mark.parametrize("seconds, words", [(119, "119 s"), (180, "3 min"), (9000, "2.5 h")])
def test_durations(seconds, words):
    assert f"{words} on" in pages.banner(record(wall_time_s=seconds)).data


def test_a_run_outside_git_and_without_commit():
    assert "commit `unknown`" in pages.banner(record(commit=None)).data


def test_a_configuration_stands_for_what_a_page_computes_without_a_record():
    config = Config.resolve(dataset="omniglot", method="cross_entropy", seed=4, device="cpu")
    text = pages.banner(config).data
    assert text.startswith("> **Live result**") and "omniglot; cross_entropy · seed 4" in text
    assert "run `" not in text and "runs" not in text and "0 s" not in text
