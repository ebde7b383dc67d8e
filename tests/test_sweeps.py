"""Sweeps as a whole: runs that are killed, refused, or made by two sweeps at the same time, and still made once."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from stub_book import chapter_of, make_book

from gl_core.training import records
from glbook import processes, sweeps
from glbook.sweeps import pool, worker
from glbook.sweeps.store import Store

GLBOOK = [sys.executable, "-m", "glbook"]
PARAMETERS = """\
seed: int = 0
steps: int = 5
rate: float = 0.5
count: int = 1
keep: str = None
"""
# "Trains" for half a second without loading torch; what comes out depends on the parameters alone.
TRAIN = """\
import json, os, signal, time
from pathlib import Path
from gl_core.training import records

if seed == 99:
    raise KeyError("the reason")
if seed == 98 and not Path("killed").exists():
    Path("killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)
loss = 1.0 + seed
for step in range(steps):
    loss *= 1 - rate / 7
    time.sleep(0.1)
for number in range(count):
    made = {"run_id": f"run-{seed}-{os.urandom(4).hex()}", "created": "2026-01-01T00:00:00+00:00", "purpose": keep}
    made |= json.loads(os.environ["GLBOOK_SWEEP"]) | {"session": os.environ["GLBOOK_RUN"], "seed": seed}
    made |= {"threads": os.environ["OMP_NUM_THREADS"], "trim": os.environ["MALLOC_TRIM_THRESHOLD_"]}
    records.write_record(made | {"metrics": {"R@1": loss}})
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project", ())
    nbformat.write(chapter_of([PARAMETERS, TRAIN]), root / "book" / "stub.ipynb")
    monkeypatch.chdir(root)
    return root


def write(grid, **more) -> Path:
    path = Path("sweep.yaml")
    path.write_text(json.dumps({"chapter": "stub", "grid": grid} | more))  # JSON is YAML
    return path


def start(*arguments) -> subprocess.Popen:
    command = [*GLBOOK, "sweep", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sweep(*arguments) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def recorded(root: Path, folder: str = "_build") -> dict[int, float]:
    """R@1 of each seed; each must have one record."""
    made = [json.loads(path.read_text()) for path in (root / folder / "results").glob("*.json")]
    assert len({record["seed"] for record in made}) == len(made)
    return {record["seed"]: record["metrics"]["R@1"] for record in made}


def expected(*seeds, steps=5, rate=0.5) -> dict[int, float]:
    return {seed: float(f"{(1 + seed) * (1 - rate / 7) ** steps:.7g}") for seed in seeds}


def descendants(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def runs_below(process: int) -> list[psutil.Process]:
    """The processes of runs that a sweep, or a Dask worker, has started."""
    found = []
    for child in descendants(process):
        with contextlib.suppress(psutil.Error):
            if any("glbook.sweeps.worker" in word for word in child.cmdline()):
                found.append(child)
    return found


def until(condition, seconds=60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_at_random_moments_and_restarted_it_makes_each_run_once(book):
    plan, dice, kills = write({"seed": list(range(8))}), random.Random(0), 0
    while True:
        process = start(plan, "--workers", 2)
        while process.poll() is None and kills < 5:
            time.sleep(dice.uniform(0.5, 2.5))
            family, victims = descendants(process.pid), runs_below(process.pid)
            if not victims:
                continue
            kills += 1
            if kills == 3:  # the whole sweep
                process.kill()
            else:
                victim = dice.choice(victims)
                family = descendants(victim.pid)
                victim.kill()
            _, alive = psutil.wait_procs(family, timeout=60)
            assert alive == [], "a run and its kernel die with what started them"
        output, _ = process.communicate(timeout=400)
        if process.returncode == 0:
            break
    assert kills == 5
    assert recorded(book) == expected(*range(8))
    assert "8 done, 0 failed, 0 left" in output.splitlines()[-1]
    status, again = sweep(plan)
    assert status == 0 and "8 runs, 8 done, 0 failed, 0 left" in again
    assert len(recorded(book)) == 8
    assert not [path for path in (book / "_build" / "sweeps").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_runs(book):
    plan = write({"seed": [0, 1, 2, 3, 99]})
    processes = [start(plan, "--workers", 2) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert recorded(book) == expected(0, 1, 2, 3)
    assert all("4 done, 1 failed, 0 left" in output for output in outputs)
    assert all("failed: seed=99: KeyError: 'the reason'" in output for output in outputs)
    assert any("done by another sweep" in output for output in outputs)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_sweep_on_a_cluster_of_other_processes(book):
    """A scheduler and two workers that somebody else has started; one of them is killed for good."""
    address_file = book / "scheduler.json"
    quiet = {
        "env": os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3", "MALLOC_TRIM_THRESHOLD_": "65536"},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    program = "from distributed.cli.dask_{0} import main; main()"
    scheduler = subprocess.Popen(
        [sys.executable, "-c", program.format("scheduler"), "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(address_file)], **quiet,
    )  # fmt: skip
    workers = []
    try:
        for _ in range(2):
            # Elsewhere than in the book: a worker is told where it lies.
            workers.append(subprocess.Popen(
                [sys.executable, "-c", program.format("worker"), "--scheduler-file", str(address_file), "--nthreads",
                 "1", "--no-nanny", "--no-dashboard"], cwd=book.parent, **quiet,
            ))  # fmt: skip
        until(address_file.exists)
        address = json.loads(address_file.read_text())["address"]
        process = start(write({"seed": [0, 99, 1]}), "--scheduler", address)
        until(lambda: runs_below(workers[0].pid))
        workers[0].kill()
        output, _ = process.communicate(timeout=400)
    finally:
        for each in (*workers, scheduler):
            each.kill()
            each.wait()
    assert process.returncode == 1, output
    assert recorded(book) == expected(0, 1)
    assert "failed: seed=99: KeyError: 'the reason'" in output
    assert "2 done, 1 failed, 0 left" in output
    made = json.loads(next((book / "_build" / "results").glob("*.json")).read_text())
    assert made["trim"] == processes.MEMORY["MALLOC_TRIM_THRESHOLD_"], "not what Dask asks of its workers"


@pytest.mark.slow
def test_a_failed_run_says_why_and_is_tried_again_as_is_one_whose_kernel_was_killed(book):
    plan = write({"seed": [98, 99]}, parameters={"count": 2})
    status, output = sweep(plan)
    assert status == 1 and "failed: seed=99: KeyError: 'the reason'" in output
    (failed,) = (book / "_build" / "sweeps").glob("*.failed")
    text = failed.read_text()
    assert text.startswith("KeyError: 'the reason'\n") and "Traceback" in text and "executed notebook: " in text
    notebook = nbformat.read("book/stub.ipynb", 4)
    notebook.cells[2].source = notebook.cells[2].source.replace("seed == 99", "False")
    nbformat.write(notebook, "book/stub.ipynb")
    assert sweep(plan)[0] == 0 and not failed.exists()
    for run in sweeps.read_plan(plan).runs:
        names = {path.name for path in (book / "_build" / "results").glob(f"*{run.key}*")}
        seed = run.given["seed"]
        assert names == {f"{seed}-{run.key}.json", f"{seed}-{run.key}-2.json"}


@pytest.mark.slow
def test_interrupted_it_ends_at_once_and_quietly(book):
    process = start(write({"seed": [0, 1, 2]}, parameters={"steps": 600}), "--workers", 2)
    until(lambda: len(runs_below(process.pid)) == 2)
    family = descendants(process.pid)
    assert psutil.Process(process.pid).net_connections() == [], "other users of the machine reach nothing"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in output and "semaphore" not in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == [] and not (book / "_build" / "results").exists()


@pytest.mark.parametrize("listens", [True, False])
def test_where_no_scheduler_answers_is_said_soon(monkeypatch, listens):
    """Another server there lets a Dask client wait for ever. Also in a notebook, where an event loop runs already."""
    monkeypatch.setattr(pool, "ANSWER", 0.5)

    async def connect(address):
        with pytest.raises(ValueError, match=f"--scheduler {address}: no Dask scheduler answers there"):
            pool._client(address)

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        asyncio.run(connect(address))


class TestStore:
    """What sweeps know of each other's runs; without running any."""

    def made(self, run, *run_ids) -> None:
        with Store().lock(run.key):
            staged = Store().begin(run.key)
            for name in run_ids:
                records.write_record({"run_id": name, "created": "2026-01-01", "purpose": None}, staged)
            Store().end(run.key, staged)

    def test_records_appear_when_the_run_has_ended_well(self, book):
        (run,) = sweeps.read_plan(write({"seed": [0]})).runs
        store = Store()
        with store.lock(run.key):
            assert store.state(run.key) == "running"
            staged = store.begin(run.key)
            for name in ("a", "b"):
                records.write_record({"run_id": name, "purpose": None}, staged)
            assert not (book / "_build" / "results").exists()
            staged.rename(store.folder / f"{run.key}.ended")
        # The process is killed after it has moved one record: the run is not done yet.
        store._write(run.key, {"run_id": "a", "purpose": None}, 1)
        assert store.state(run.key) == "left"
        with store.lock(run.key):
            store.finish(run.key)
        assert store.state(run.key) == "done"
        assert sorted(record["run_id"] for record in store.keep(run.key, None)) == ["a", "b"]

    def test_trials_are_kept_without_running_again(self, book):
        plan = write({"seed": [0]})
        self.made(sweeps.read_plan(plan).runs[0], "a", "b")
        kept = sweeps.run_plan(sweeps.read_plan(plan, keep="final"), say=lambda line: None).records
        assert [(record["run_id"], record["purpose"]) for record in kept] == [("a", "final"), ("b", "final")]
        assert [len(list((book / top / "results").iterdir())) for top in ("data", "_build")] == [2, 2]

    def test_a_run_without_records_leaves_a_mark(self, book):
        (run,) = sweeps.read_plan(write({"seed": [0]})).runs
        self.made(run)
        assert Store().state(run.key) == "done" and Store().keep(run.key, None) == []

    @pytest.mark.filterwarnings("ignore:.*passed over")
    def test_a_broken_record_is_named_and_spoils_no_other_run(self, book):
        plan = sweeps.read_plan(write({"seed": [0, 1]}))
        for run in plan.runs:
            self.made(run, f"run-{run.name}")
        (path,) = (book / "_build" / "results").glob(f"*{plan.runs[0].key}*")
        path.write_text('{"run_id": ')
        outcome = sweeps.run_plan(plan, say=lambda line: None)
        assert outcome.done == 1 and list(outcome.failed) == ["seed=0"]
        assert outcome.failed["seed=0"].startswith(f"{path}: the record is broken")
        path.unlink()
        assert Store().state(plan.runs[0].key) == "left"

    def test_code_of_another_version_makes_no_run(self, book):
        (run,) = sweeps.read_plan(write({"seed": [0]})).runs
        spec = pool._spec(sweeps.Plan("p", [run]), run) | {"results_version": 0}
        outcome = worker.make(spec)
        assert outcome["state"] == "failed" and "the code on this worker is not that of the sweep" in outcome["error"]
        assert Store().state(run.key) == "failed" and Store().failure(run.key) == outcome["error"]
