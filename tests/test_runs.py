"""Records: written whole or not at all, read back as a table."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from gl_core.training import records
from gl_core.training.config import Config
from gl_core.training.version import RESULTS_VERSION
from glbook import runs


def record(**changes):
    config = Config.resolve(dataset="omniglot", seed=3).as_dict()
    made = records.new_record(chapter="training", config=config, device="a CPU")
    made |= {
        "wall_time_s": 1.5,
        "metrics": {"R@1": 0.123456789, "MAP@R": 0.5},
        "untrained": {"R@1": 0.1},
        "history": [],
    }
    return made | changes


def test_a_record_comes_back_as_a_row_and_says_what_a_reader_needs_to_trust_it(tmp_path):
    made = record()
    assert made["created"].endswith("+00:00") and len(made["code"]) == 16
    assert made["results_version"] == RESULTS_VERSION and {"python", "torch", "numpy"} <= set(made["versions"])
    assert "data_root" not in made["config"]
    path = records.write_record(made, tmp_path)
    assert path.name == f"{made['run_id']}.json" and record()["run_id"] != made["run_id"]
    (row,) = runs.load_runs(tmp_path).to_dict("records")
    assert list(row)[:11] == runs.COLUMNS
    assert all(row[name] == made[name] for name in runs.COLUMNS)
    assert row["R@1"] == 0.1234568 and row["MAP@R"] == 0.5 and row["untrained R@1"] == 0.1
    assert row["config"]["seed"] == 3


def test_a_folder_of_records_and_of_files_that_are_none(tmp_path):
    first = records.write_record(record(created="2026-01-02T00:00:00+00:00"), tmp_path)
    second = records.write_record(record(created="2026-01-01T00:00:00+00:00"), tmp_path / "deep")
    (tmp_path / "benchmark.json").write_text('{"table": []}')
    (tmp_path / "broken.json").write_text('{"run_id": ')
    with pytest.warns(UserWarning, match="broken.json: passed over"):
        assert runs.load_runs(tmp_path)["path"].tolist() == [str(second), str(first)]
    table = runs.load_runs(tmp_path / "absent")
    assert len(table) == 0 and list(table.columns) == [*runs.COLUMNS, "repeat"]


def test_repeats_are_marked_and_copies_count_once(tmp_path):
    made = record(key="k", purpose="final")
    for run_id, changes in {
        "0": {}, "1": {}, "2": {"purpose": "tuning"}, "3": {"key": "other"}, "4": {"key": None}, "5": {"key": None},
        "6": {"config": made["config"] | {"seed": 4}},  # another training of the same run
    }.items():  # fmt: skip
        records.write_record(made | {"run_id": run_id, "created": f"2026-01-0{9 - int(run_id)}"} | changes, tmp_path)
    records.write_record(made | {"run_id": "3", "key": "other", "created": "2026-01-06"}, tmp_path / "copies")
    table = runs.load_runs(tmp_path)
    assert sorted(table["run_id"]) == ["0", "1", "2", "3", "4", "5", "6"]
    assert table["run_id"][table["repeat"]].tolist() == ["0"], "1 is older"
    assert "0" not in runs.recorded(root=tmp_path)["run_id"].tolist()


def test_only_kept_runs_go_to_the_tracked_folder(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").touch()
    (tmp_path / "book" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book" / "deeper")
    assert records.project_root() == tmp_path
    assert records.write_record(record()).parent == tmp_path / "_build" / "results"
    kept = records.new_record(chapter="training", config={}, device="a CPU", keep="tuning") | {"metrics": {}}
    assert records.write_record(kept).parent == tmp_path / "data" / "results"
    assert runs.load_runs()["purpose"].tolist() == ["tuning"]
    with pytest.raises(ValueError, match="keep='forever': must be one of final, tuning"):
        records.new_record(chapter="training", config={}, device="a CPU", keep="forever")


def test_a_record_is_never_overwritten(tmp_path):
    made = record()
    path = records.write_record(made, tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        records.write_record(made | {"metrics": {"R@1": 1.0}}, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_no_result(tmp_path):
    with pytest.raises(ValueError):
        records.write_record(record(metrics={"R@1": float("nan")}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    # The kernel refuses bytes past the limit just as a full disk does, half way through the file.
    program = """if True:
        import pathlib, resource, signal, sys
        from gl_core.training import records
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        made = {"run_id": "x", "purpose": None, "metrics": {str(i): i for i in range(99)}}
        records.write_record(made, pathlib.Path(sys.argv[1]))
    """
    done = subprocess.run([sys.executable, "-B", "-c", program, tmp_path], capture_output=True, text=True)
    assert "the record could not be written (File too large)" in done.stderr and f"{tmp_path}/x.json" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_hard_links_a_record_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", mock.Mock(side_effect=OSError(errno.EPERM, "no links on exFAT")))
    path = records.write_record(record(run_id="r"), tmp_path)
    with pytest.raises(FileExistsError):
        records.write_record(record(run_id="r"), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_the_user_gives_to_files(tmp_path):
    before = os.umask(0o027)
    try:
        assert records.write_record(record(), tmp_path).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_the_tracked_records_are_readable_and_real():
    table = runs.load_runs()
    for row in table.to_dict("records"):
        assert row["purpose"] in records.PURPOSES
        assert row["commit"] and not row["commit"].endswith("-dirty"), f"{row['path']} was made from uncommitted code"
        assert json.loads(Path(row["path"]).read_text())["config"]["profile"] in ("quick", "full")
