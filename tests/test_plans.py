"""What a sweep's file may say, what its runs are known by, and who may make them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from stub_book import ROOT, chapter_of, make_book

from gl_core.training import records
from glbook import notebooks, runs, sweeps
from glbook.commands import sweep as cli
from glbook.sweeps import gpus, keys, pool, worker
from glbook.sweeps.claims import Claims, TakenError
from glbook.sweeps.progress import Progress


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project")
    nbformat.write(chapter_of(["seed: int = 0\nkeep: str = None", "print(seed)"]), root / "book" / "plain.ipynb")
    nbformat.write(chapter_of(["seed: int = 0", "print(seed)"]), root / "book" / "silent.ipynb")
    monkeypatch.chdir(root)
    monkeypatch.setattr(keys, "data_version", lambda dataset, root: f"{dataset} as it is")
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
        "classes_per_batch=4 samples_per_class=6 learning_rate=1e-3 seed=0",
        "classes_per_batch=4 samples_per_class=6 learning_rate=1e-3 seed=1",
        "classes_per_batch=4 samples_per_class=6 learning_rate=0.002 seed=0",
    ]
    assert len(made.runs) == 8 == len({run.key for run in made.runs})
    assert made.runs[0].given == {
        "dataset": "glyphs", "epochs": 2, "classes_per_batch": 4, "samples_per_class": 6, "learning_rate": 1e-3, "seed": 0
    }  # fmt: skip
    assert made.runs[0].settings["optimizer"] == "radam" and made.threads == 1


def test_several_chapters_and_what_the_command_line_adds(book):
    made = plan({"grid": {"chapter": ["training", "plain"], "seed": [3]}, "keep": "tuning"}, keep="final")
    assert [(run.chapter, run.given) for run in made.runs] == [
        ("training", {"seed": 3, "keep": "final"}), ("plain", {"seed": 3, "keep": "final"})
    ]  # fmt: skip
    made = plan({"chapter": "training", "parameters": {"epochs": 1}}, {"epochs": "7", "data_root": "elsewhere"})
    assert made.runs[0].given == {"epochs": 7, "data_root": str(book / "elsewhere")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must hold chapter, parameters, grid"),
        ({"chapters": "training"}, "chapters: must be one of chapter, parameters, grid, runs, tuned, keep, threads"),
        ({}, "chapter: must be one of plain, silent, training"),
        ({"chapter": "trainnig"}, "chapter='trainnig': must be one of .*; did you mean 'training'"),
        ({"chapter": "training", "grid": {"sead": [1]}}, "sead: chapter 'training' has no such .*did you mean 'seed'"),
        ({"chapter": "training", "grid": {"seed": []}}, r"grid: seed=\[\]: must be a list of one value or more"),
        ({"chapter": "training", "grid": {"seed": 3}}, "grid: seed=3: must be a list of one value or more"),
        ({"chapter": "training", "grid": [1]}, r"grid: \[1\]: must give values to names"),
        ({"chapter": "training", "runs": []}, r"runs=\[\]: must be a list of one run or more"),
        ({"chapter": "training", "runs": [3]}, "runs: 3: must give values to names"),
        ({"chapter": "training", "grid": {"seed": [0, "one"]}}, "seed='one': must be int, not str"),
        ({"chapter": "training", "grid": {"seed": [0, 1.5]}}, "seed=1.5: must be int, not float"),
        ({"chapter": "training", "grid": {"temperature": [1, 0]}}, "temperature=0.0: must be above 0"),
        ({"chapter": "training", "grid": {"seed": [1, 1]}}, "the same run twice: seed=1 and seed=1"),
        ({"chapter": "training", "grid": {"method": [None, "group_loss"]}}, "the same run twice"),
        ({"chapter": "training", "grid": {"seed": [1]}, "parameters": {"seed": 1}}, "grid: seed has a value elsewhere"),
        ({"chapter": "training", "keep": "ever"}, "keep='ever': must be one of final, tuning"),
        ({"chapter": "silent", "keep": "final"}, "keep=final: chapter 'silent' makes no records"),
        ({"chapter": "training", "threads": 0}, "threads=0: must be a whole number, 1 or more"),
        ({"chapter": "training", "tuned": "yes"}, "tuned='yes': must be true or false"),
    ],
)
def test_what_could_not_run_is_refused_in_one_line(book, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(content)
    assert str(caught.value).startswith("sweep.yaml: ")


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_book_can_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(keys, "data_version", lambda dataset, root: "")
    monkeypatch.setattr("glbook.tuning.best_settings", lambda given: {"learning_rate": 1e-3})
    made = sweeps.read_plan(path)
    assert len(made.runs) >= 9 and {run.given["keep"] for run in made.runs} == {"final"}
    assert len({run.settings["seed"] for run in made.runs}) >= 3


def test_what_the_file_varies_cannot_be_given(book):
    with pytest.raises(ValueError, match="seed: the file varies it, so it cannot be given"):
        plan({"chapter": "training", "grid": {"seed": [1]}}, {"seed": "2"})


def test_bad_plans_leave_nothing_behind(book):
    Path("bad.yaml").write_text("chapter: plain\ngrid: {seed: []}")
    done = subprocess.run(
        [sys.executable, "-m", "glbook", "sweep", "bad.yaml"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and not Path("_build").exists()
    assert done.stderr == "glbook: bad.yaml: grid: seed=[]: must be a list of one value or more\n"
    assert "Traceback" not in done.stderr and done.stdout == ""


def key(content, **given):
    (run,) = plan(content, given).runs
    return run.key


def test_a_key_is_that_of_what_is_run_and_not_of_how_it_is_written(book):
    base = key({"chapter": "training"})
    assert key({"chapter": "training"}, method="group_loss", seed="0", temperature="10") == base
    assert key({"chapter": "training"}, data_root="somewhere") == base
    for name, value in {"seed": "1", "keep": "final", "temperature": "11", "device": "cpu"}.items():
        assert key({"chapter": "training"}, **{name: value}) != base, name
    notebook = nbformat.read("book/training.ipynb", 4)
    notebook.cells[2].source += "\n\n# a remark\n"
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, "book/training.ipynb")
    assert key({"chapter": "training"}) == base
    notebook.cells[2].source += "\nepochs = 7"
    nbformat.write(notebook, "book/training.ipynb")
    assert key({"chapter": "training"}) != base


def test_the_data_have_a_version(tmp_path):
    import numpy as np
    from PIL import Image

    def version(brightness):
        root = tmp_path / str(brightness)
        for label in range(4):
            (root / f"class{label}").mkdir(parents=True)
            for number in range(2):
                pixels = np.full((8, 8, 3), 10 * label + number + brightness * (label == number == 1), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"class{label}" / f"{number}.png")
        return keys.data_version("folder", str(root))

    assert version(0) != version(1)


def test_the_code_that_counts_is_what_training_imports():
    modules = keys.training_modules()
    assert {"training", "loss", "propagation", "sampling", "models", "images", "evaluation", "baselines"} <= set(
        modules
    )
    assert not {"cli", "plots", "chapters", "pages"} & {name.split(".")[0] for name in modules}
    assert all((ROOT / "gl_core" / name).exists() or (ROOT / "gl_core" / f"{name}.py").exists() for name in keys.EXEMPT)


def test_comments_and_layout_do_not_count():
    one = keys._meaning('def f(x):\n    """Say."""\n    # why\n    return (x+1)\n')
    assert one == keys._meaning("def f( x ):\n    return x + 1\n") != keys._meaning("def f(x):\n    return x + 2\n")
    assert keys._meaning("%pip install x") == "%pip install x"


def test_only_the_cells_of_the_run_are_executed_by_a_sweep(book):
    notebook = chapter_of(["seed: int = 0", "picture = 1", "made = seed"])
    notebook.cells[3].metadata.tags = ["run"]
    shortened = notebooks.lean(notebook)
    assert [cell.source for cell in shortened["cells"]] == ["seed: int = 0", "made = seed"]
    whole = chapter_of(["seed: int = 0", "made = seed"])
    assert notebooks.lean(whole) == whole
    training = json.loads((ROOT / "book" / "training.ipynb").read_text())
    assert [cell["id"] for cell in notebooks.lean(training)["cells"]] == ["setup", "parameters", "config", "run"]


class TestClaims:
    RECORD = {"run_id": "r", "created": "2026-01-01T00:00:00+00:00", "purpose": None}

    def hand_in(self, claim, run_id="r"):
        records.write_record(self.RECORD | {"run_id": run_id}, claim.records_folder())
        return claim.hand_in()

    def test_one_process_has_a_run_and_its_record_appears_when_it_is_done(self, book):
        claims = Claims(book / "claims")
        assert claims.last("k") is None
        claim = claims.take("k", after=0)
        assert claims.last("k").state == "running" and not claims.last("k").is_orphan()
        with pytest.raises(TakenError):
            claims.take("k", after=0)
        records.write_record(self.RECORD, claim.records_folder())
        assert len(runs.load_runs(book / "_build" / "results")) == 0
        assert claim.hand_in() == [self.RECORD]
        assert runs.load_runs(book / "_build" / "results")["run_id"].tolist() == ["r"]
        assert claims.last("k").state == "done" and claims.last("k").published
        assert list(book.glob("claims/k/*.records")) == []

    def test_the_late_record_of_a_run_that_was_taken_over_is_refused(self, book):
        claims = Claims(book / "claims")
        late = claims.take("k", after=0)
        records.write_record(self.RECORD | {"run_id": "late"}, late.records_folder())
        successor = claims.take("k", after=1)
        assert not late.is_mine() and successor.is_mine()
        with pytest.raises(TakenError):
            late.hand_in()
        with pytest.raises(TakenError):
            late.fail("too late")
        self.hand_in(successor, "in time")
        with pytest.raises(TakenError):
            late.hand_in()
        assert runs.load_runs(book / "_build" / "results")["run_id"].tolist() == ["in time"]

    def test_a_run_whose_process_is_gone_is_taken_over_at_once(self, book):
        code = "from glbook.sweeps.claims import *; import pathlib; Claims(pathlib.Path('claims')).take('k', after=0)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        claims = Claims(book / "claims")
        assert claims.last("k").is_orphan()
        assert claims.take("k", after=0).number == 2

    def test_of_another_machine_nothing_is_known_but_its_silence(self, book, monkeypatch):
        claims = Claims(book / "claims")
        claim = claims.take("k", after=0)
        monkeypatch.setattr("glbook.sweeps.claims._machine", lambda: "another")
        (run,) = plan({"chapter": "plain"}).runs
        store = pool._Store([])
        monkeypatch.setattr(pool, "LEASE", 0.05)
        for _ in range(3):
            claim.give_sign_of_life()
            assert not store.is_abandoned(run, claims.last("k"))
            time.sleep(0.04)
        time.sleep(0.06)
        assert store.is_abandoned(run, claims.last("k"))

    def test_a_record_handed_in_by_a_process_that_died_then_is_published(self, book, monkeypatch):
        (run,) = plan({"chapter": "plain"}).runs
        claims = worker.claims_of(book)
        claim = claims.take(run.key, after=0)
        monkeypatch.setattr(Claims, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.hand_in(claim)
        monkeypatch.undo()
        monkeypatch.chdir(book)
        assert len(runs.load_runs(book / "_build" / "results")) == 0
        assert pool.states(sweeps.Plan("p", [run]), []) == {run.key: "done"}
        assert pool.states(sweeps.Plan("p", [run]), []) == {run.key: "left"}, (
            "a record that is not there is wanted again"
        )
        assert runs.load_runs(book / "_build" / "results")["run_id"].tolist() == ["r"]

    def test_several_threads_and_one_winner(self, book):
        from concurrent.futures import ThreadPoolExecutor

        claims = Claims(book / "claims")

        def attempt(_):
            try:
                return claims.take("k", after=0).number
            except TakenError:
                return None

        with ThreadPoolExecutor(8) as threads:
            assert sorted(filter(None, threads.map(attempt, range(32)))) == [1]


def test_a_run_whose_code_has_changed_since_the_plan_fails_and_says_so(book):
    (run,) = plan({"chapter": "plain"}).runs
    spec = {"root": str(book), "key": run.key, "after": 0, "chapter": "plain", "given": run.given, "threads": 1}
    outcome = worker._make(spec | {"device": "cpu", "versions": run.versions | {"code": "older"}})
    assert outcome["state"] == "failed" and "the code on this worker is not that" in outcome["error"]
    last = worker.claims_of(book).last(run.key)
    assert last.state == "failed" and "Traceback" in last.content["traceback"]


def test_one_run_at_a_time_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
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


def test_a_run_that_is_taken_over_ends_at_once(book):
    """The process of a run that another has taken over: it says nothing, and leaves nothing."""
    nbformat.write(chapter_of(["seed: int = 0", "import time; time.sleep(60)"]), book / "book" / "plain.ipynb")
    (run,) = plan({"chapter": "plain"}).runs
    spec = {"root": str(book), "key": run.key, "after": 0, "chapter": "plain", "given": run.given, "threads": 1}
    code = "import sys; from glbook.sweeps import worker; worker.HEARTBEAT = 0.1; worker.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdin.write(json.dumps(spec | {"device": "cpu", "versions": run.versions}))
    process.stdin.close()
    claims = worker.claims_of(book)
    end = time.monotonic() + 60
    while claims.last(run.key) is None and time.monotonic() < end:
        time.sleep(0.05)
    claims.take(run.key, after=1)
    assert process.wait(timeout=30) == 0 and process.stdout.read() == ""
    process.stdout.close()
    assert claims.last(run.key).number == 2


WAIT = """
import sys, tempfile
from glbook.sweeps import gpus
tempfile.tempdir, gpus.count, gpus.PAUSE = sys.argv[1], lambda device: 2, 0.05
with gpus.reserved("auto") as name:
    print(name)
"""


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
    progress.skip(made.runs[0])
    assert progress.seconds_left(2) == pytest.approx(80)
    progress.end(made.runs[1], well=False)
    assert re.fullmatch(r"1 done, 1 failed, 1 left, about 0 s", progress.line(2))
    progress.end(made.runs[2], well=True)
    assert progress.line(2) == "2 done, 1 failed, 0 left"


def test_a_dry_run_tells_and_does_nothing(book, capsys):
    import argparse

    Path("sweep.yaml").write_text("chapter: training\ngrid: {seed: [0, 1]}")
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    options = parser.parse_args(["sweep.yaml", "--dry-run", "--workers", "1", "-p", "epochs", "2"])
    assert cli.run(options) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == ["left    training seed=0", "left    training seed=1"]
    assert "sweep: 2 runs: 2 left" in shown and "time: unknown" in shown
    records.write_record(like(1, 30.0) | {"purpose": None})
    assert cli.run(options) == 0
    assert "time: about 2 min, 1 at a time, by the records of like runs" in capsys.readouterr().out
    assert [path.name for path in (book / "_build").iterdir()] == ["results"]


def test_records_without_a_key_are_read_as_before(book):
    old = {"run_id": "old", "created": "2026-01-01T00:00:00+00:00", "config": {"epochs": 3}, "wall_time_s": 3.0}
    records.write_record(old)
    assert pool.records() == [old] and runs.load_runs("_build/results")["sweep"].tolist() == [None]
