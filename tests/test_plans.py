"""What a sweep's file may say, what its runs are known by, how many are made at a time, and how long they take."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import nbformat
import psutil
import pytest
from stub_book import ROOT, chapter_of, make_book

from gl_core.training import records
from gl_core.training.config import Config
from glbook import notebooks, sweeps
from glbook.cli import main
from glbook.sweeps import gpus, keys, pool
from glbook.sweeps.progress import Progress


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project")
    nbformat.write(chapter_of(["seed: int = 0\nkeep: str = None", "print(seed)"]), root / "book" / "plain.ipynb")
    nbformat.write(chapter_of(["seed: int = 0", "print(seed)"]), root / "book" / "silent.ipynb")
    monkeypatch.chdir(root)
    monkeypatch.setattr(keys, "dataset_version", lambda dataset, root: f"{dataset} as it is")
    return root


def plan(content, given=None, keep=None):
    path = Path("sweep.yaml")
    path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
    return sweeps.read_plan(path, given, keep)


def test_a_grid_is_every_combination_of_a_list(book):
    made = plan(
        """
        chapter: training
        parameters: {dataset: glyphs, epochs: 2}
        runs:
          - {classes_per_batch: 4, samples_per_class: 6}
          - {classes_per_batch: 6, samples_per_class: 4}
        grid:
          learning_rate: [1e-3, 2.0e-3]
          seed: [0, 1]
        """
    )
    assert [run.name for run in made.runs][:3] == [
        "classes_per_batch=4 samples_per_class=6 learning_rate=0.001 seed=0",
        "classes_per_batch=4 samples_per_class=6 learning_rate=0.001 seed=1",
        "classes_per_batch=4 samples_per_class=6 learning_rate=0.002 seed=0",
    ]
    assert len(made.runs) == 8 == len({run.key for run in made.runs})
    batch = {"classes_per_batch": 4, "samples_per_class": 6}
    assert made.runs[0].given == {"dataset": "glyphs", "epochs": 2, "learning_rate": 1e-3, "seed": 0} | batch
    assert made.runs[0].settings["optimizer"] == "radam" and made.threads == 1


def test_several_chapters_and_what_the_command_line_adds(book):
    made = plan({"grid": {"chapter": ["training", "plain"], "seed": [3]}, "keep": "tuning"}, keep="final")
    assert [(run.chapter, run.given) for run in made.runs] == [
        ("training", {"seed": 3, "keep": "final"}), ("plain", {"seed": 3, "keep": "final"})
    ]  # fmt: skip
    made = plan({"chapter": "training", "parameters": {"epochs": 1}}, {"epochs": "7", "data_root": "elsewhere"})
    assert made.runs[0].given == {"epochs": 7, "data_root": str(book / "elsewhere")}
    with pytest.raises(ValueError, match="seed: the file varies it, so it cannot be given"):
        plan({"chapter": "training", "grid": {"seed": [1]}}, {"seed": "2"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must hold chapter, parameters, grid"),
        ("chapter: training\nchapter: plain", "'chapter'.* twice"),
        ("chapter: training\nparameters: {epochs: 010}", "010"),
        ({"chapters": "training"}, "chapters: must be one of chapter, parameters, grid, runs, tuned, keep, threads"),
        ({}, "chapter: must be one of plain, silent, training"),
        ({"chapter": "trainnig"}, "chapter='trainnig': must be one of .*; did you mean 'training'"),
        ({"chapter": "training", "grid": {"sead": [1]}}, "sead: chapter 'training' has no such .*did you mean 'seed'"),
        ({"chapter": "training", "grid": {"seed": []}}, r"grid.seed=\[\]: list should have at least 1 item"),
        ({"chapter": "training", "grid": {"seed": [0, "one"]}}, "seed='one': must be a whole number"),
        ({"chapter": "training", "grid": {"temperature": [1, 0]}}, "temperature=0.0: must be a number above 0"),
        ({"chapter": "training", "grid": {"seed": [1, 1]}}, "the same run twice: seed=1 and seed=1"),
        ({"chapter": "training", "grid": {"method": [None, "group_loss"]}}, "the same run twice"),
        ({"chapter": "training", "grid": {"seed": [1]}, "parameters": {"seed": 1}}, "grid: seed has a value elsewhere"),
        ({"chapter": "training", "keep": "ever"}, "keep='ever': must be one of final, tuning"),
        ({"chapter": "silent", "keep": "final"}, "keep=final: chapter 'silent' makes no records"),
        ({"chapter": "training", "threads": 0}, "threads=0: input should be greater than or equal to 1"),
    ],
)
def test_what_could_not_run_is_refused_in_one_line_and_leaves_nothing(book, capsys, content, message):
    with pytest.raises(ValueError, match=message):
        plan(content)
    assert main(["sweep", "sweep.yaml"]) == 2 and not Path("_build").exists()
    output = capsys.readouterr()
    assert output.err.startswith("glbook: sweep.yaml: ") and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_book_can_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(keys, "dataset_version", lambda dataset, root: "")
    monkeypatch.setattr("glbook.studies.best_settings", lambda given: {"learning_rate": 1e-3})
    made = sweeps.read_plan(path)
    assert len(made.runs) >= 9 and {run.given["keep"] for run in made.runs} == {"final"}
    assert len({run.settings["seed"] for run in made.runs}) >= 3


def key(content, **given):
    (run,) = plan(content, given).runs
    return run.key


def test_a_key_is_that_of_what_is_run_and_not_of_how_it_is_written(book, monkeypatch):
    base = key({"chapter": "training"})
    assert key({"chapter": "training"}, method="group_loss", seed="0", temperature="10") == base
    for name, value in {"data_root": "somewhere", "device": "cpu", "keep": "final", "profile": "full"}.items():
        assert key({"chapter": "training"}, dataset="glyphs", **{name: value}) == base, name
    for name, value in {"seed": "1", "temperature": "11", "before": "pass", "dataset": "omniglot"}.items():
        assert key({"chapter": "training"}, **{name: value}) != base, name
    with monkeypatch.context() as changed:
        changed.setattr(keys, "dataset_version", lambda dataset, root: "other images")
        assert key({"chapter": "training"}) != base
    monkeypatch.setattr(keys, "RESULTS_VERSION", 0)
    assert key({"chapter": "training"}) != base


def test_the_recorded_runs_are_those_of_their_keys():
    """Fails when a setting is added: name it in `keys.ADDED`, with the value at which results are as they were."""
    found = [record for _, record in records.read_records(ROOT / "data" / "results")]
    assert len(found) > 300
    for record in found:
        if record["results_version"] == keys.RESULTS_VERSION:
            assert keys.run_key(record["chapter"], {}, record["config"], record["data_version"]) == record["key"]


def test_a_new_setting_leaves_keys_as_they_are_where_it_changes_nothing(monkeypatch):
    config = Config().as_dict()
    with monkeypatch.context() as before:
        before.setattr(Config, "names", classmethod(lambda cls: [name for name in config if name != "dynamics"]))
        old = keys.run_key("training", {}, config, "v")
    monkeypatch.setattr(keys, "ADDED", {"dynamics": "replicator"})
    assert keys.run_key("training", {}, config, "v") == old
    assert keys.run_key("training", {}, config | {"dynamics": "exponential"}, "v") != old


def test_only_the_cells_of_the_run_are_executed_by_a_sweep(book):
    notebook = chapter_of(["seed: int = 0", "picture = 1", "made = seed"])
    notebook.cells[3].metadata.tags = ["run"]
    shortened = notebooks.lean(notebook)
    assert [cell.source for cell in shortened["cells"]] == ["seed: int = 0", "made = seed"]
    whole = chapter_of(["seed: int = 0", "made = seed"])
    assert notebooks.lean(whole) == whole
    training = json.loads((ROOT / "book" / "training.ipynb").read_text())
    kept = [cell["id"] for cell in notebooks.lean(training)["cells"]]
    assert kept == ["setup", "parameters", "imports", "config", "run"]


def test_one_run_at_a_time_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(gpus, "count", lambda device: 2)
    monkeypatch.setattr(gpus, "PAUSE", 0.01)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    with gpus.reserved("auto") as first:
        assert first == "4" == os.environ["CUDA_VISIBLE_DEVICES"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
        with gpus.reserved("cuda") as second:
            assert second == "GPU-7"
            waiter = subprocess.Popen([sys.executable, "-c", WAIT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            time.sleep(0.5)
            assert waiter.poll() is None
        assert waiter.communicate(timeout=60)[0] == "GPU-7\n"
    monkeypatch.setattr(gpus, "count", lambda device: 0)
    with gpus.reserved("cpu") as none:
        assert none is None


WAIT = """
import pathlib, platformdirs, sys
from glbook.sweeps import gpus
platformdirs.user_cache_path = lambda name: pathlib.Path(sys.argv[1]) / name
gpus.count, gpus.PAUSE = lambda device: 2, 0.05
with gpus.reserved("auto") as name:
    print(name)
"""


def test_the_lock_on_a_gpu_follows_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(gpus, "count", lambda device: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpus.reserved("cuda:0"):
        (lock,) = tmp_path.rglob("*.lock")
    precious = tmp_path / "thesis.tex"
    precious.write_text("precious")
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises((OSError, filelock.Timeout)), gpus.reserved("cuda:0"):
        pass
    assert precious.read_text() == "precious"


def test_a_machine_makes_as_many_runs_at_a_time_as_it_can_carry(book, monkeypatch):
    made = plan({"chapter": "training", "grid": {"seed": [0, 1]}})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 64 * 2**30}))
    monkeypatch.setattr(gpus, "count", lambda device: 0)
    assert pool.local_workers(made) == 8
    assert pool.local_workers(sweeps.Plan("p", made.runs, threads=3)) == 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 7 * 2**30}))
    assert pool.local_workers(made) == 3
    monkeypatch.setattr(gpus, "count", lambda device: 2)
    assert pool.local_workers(made) == 2


def like(epochs, seconds, **config):
    run = {"dataset": "glyphs", "backbone": "conv4", "image_size": 28, "choose_epochs": False, "epochs": epochs}
    return {"run_id": "r", "config": run | config, "wall_time_s": seconds}


def test_the_time_is_that_of_like_runs_until_some_are_done(book):
    made = plan({"chapter": "training", "grid": {"seed": [0, 1, 2], "epochs": [4]}})
    unlike = like(1, 1000.0, dataset="omniglot")
    assert Progress(made.runs, [unlike]).line(2) == "0 done, 0 failed, 3 left, time unknown"
    progress = Progress(made.runs, [unlike, like(1, 10.0), like(2, 40.0), like(1, 30.0)])
    assert progress.line(2) == "0 done, 0 failed, 3 left, about 2 min"
    progress.end(made.runs[0], made=False)
    assert progress.seconds_left(2) == pytest.approx(80)
    progress.end(made.runs[1], well=False)
    assert progress.line(2) == "1 done, 1 failed, 1 left, about 0 s"
    progress.end(made.runs[2], well=True)
    assert progress.line(2) == "2 done, 1 failed, 0 left"


def test_a_dry_run_tells_and_does_nothing(book, capsys):
    Path("sweep.yaml").write_text("chapter: training\ngrid: {seed: [0, 1]}")
    command = ["sweep", "sweep.yaml", "--dry-run", "--workers", "1", "-p", "epochs", "2"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == ["left    training seed=0", "left    training seed=1"]
    assert "sweep: 2 runs: 2 left" in shown and "time: unknown" in shown
    records.write_record(like(1, 30.0) | {"purpose": None})
    assert main(command) == 0
    assert "time: about 2 min, 1 at a time, by the records of like runs" in capsys.readouterr().out
    assert [path.name for path in (book / "_build").iterdir()] == ["results"]
