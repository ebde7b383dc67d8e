"""Sweeps as a whole: runs that are killed, moved, refused, made at the same time, and still made once."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from stub_book import chapter_of, make_book

from glbook import processes

GLBOOK = [sys.executable, "-m", "glbook"]
PARAMETERS = """\
seed: int = 0
steps: int = 5
rate: float = 0.5
tags: list = None
keep: str = None
"""
# "Trains" for a second without loading torch; what comes out depends on the parameters alone.
TRAIN = """\
import json, os, time
from gl_core import runs

if seed == 99:
    raise KeyError("the reason")
loss = 1.0 + seed
for step in range(steps):
    loss *= 1 - rate / 7
    time.sleep(0.1)
made = {"run_id": f"run-{seed}-{os.urandom(4).hex()}", "created": "2026-01-01T00:00:00+00:00", "purpose": keep}
made |= {"sweep": json.loads(os.environ["GLBOOK_SWEEP"]), "session": os.environ["GLBOOK_RUN"], "seed": seed}
made |= {"threads": os.environ["OMP_NUM_THREADS"], "trim": os.environ["MALLOC_TRIM_THRESHOLD_"]}
runs.write_record(made | {"metrics": {"R@1": loss}})
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project", ())
    nbformat.write(chapter_of([PARAMETERS, TRAIN]), root / "book" / "stub.ipynb")
    monkeypatch.chdir(root)
    return root


def write(content, name="sweep.yaml") -> Path:
    Path(name).write_text(json.dumps(content))  # JSON is YAML
    return Path(name)


def eight(**more) -> Path:
    return write({"chapter": "stub", "grid": {"seed": list(range(8))}, "threads": 1} | more)


def glbook(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*GLBOOK, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def recorded(root: Path) -> dict[int, float]:
    """R@1 of each seed; each must have one record."""
    made = [json.loads(path.read_text()) for path in (root / "_build" / "results").glob("*.json")]
    assert len({record["seed"] for record in made}) == len(made)
    return {record["seed"]: record["metrics"]["R@1"] for record in made}


def expected(seed, steps=5, rate=0.5) -> float:
    return float(f"{(1 + seed) * (1 - rate / 7) ** steps:.7g}")


def descendants(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_part_of_a_run(process: psutil.Process) -> bool:
    try:
        return any("glbook.sweeps.worker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def is_dask_worker(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def test_killed_at_random_moments_and_restarted_it_makes_each_run_once(book):
    plan, dice, kills = eight(), random.Random(0), 0
    while True:
        sweep = subprocess.Popen(
            [*GLBOOK, "sweep", str(plan)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while sweep.poll() is None and kills < 4:
            time.sleep(dice.uniform(0.5, 2.5))
            family = descendants(sweep.pid)
            victims = [process for process in family if is_part_of_a_run(process) or is_dask_worker(process)]
            if not victims:
                continue
            kills += 1
            if kills == 3:  # the whole sweep
                sweep.kill()
                _, alive = psutil.wait_procs(family, timeout=60)
                assert alive == [], "nothing outlives the sweep"
                break
            victim = dice.choice(victims)
            below = descendants(victim.pid)
            victim.kill()
            _, alive = psutil.wait_procs(below, timeout=60)
            assert alive == [], "a worker's run and its kernel die with it"
        output, _ = sweep.communicate(timeout=400)
        if sweep.returncode == 0:
            break
    assert kills == 4
    assert recorded(book) == {seed: expected(seed) for seed in range(8)}
    assert "8 done, 0 failed, 0 left" in output.splitlines()[-1]
    again = glbook("sweep", plan)
    assert again.returncode == 0 and "8 runs, 8 done, 0 failed, 0 left" in again.stdout
    assert len(recorded(book)) == 8


WAITING = """
import time
from pathlib import Path
from glbook.sweeps import pool, read_plan
from glbook.sweeps.progress import Progress

if __name__ == "__main__":
    pool.run_one = lambda spec: time.sleep(2)
    plan = read_plan(Path("sweep.yaml"))
    with pool._client(None, 2) as client:
        sweep = pool._Sweep(plan, pool._Store([]), client, Progress(plan.runs, []), pool.Outcome(), print, 2)
        sweep._submit([(run, None) for run in plan.runs])
        time.sleep(1)
        print(client.run_on_scheduler(
            lambda dask_scheduler: ([len(w.processing) for w in dask_scheduler.workers.values()], len(dask_scheduler.queued))
        ))
"""


def test_runs_wait_where_any_free_worker_finds_them(book):
    """Not at a worker, which would keep them while another stands idle: how long they take, nobody knows."""
    eight()
    Path("waiting.py").write_text(WAITING)
    done = subprocess.run([sys.executable, "waiting.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["([1, 1], 6)"], done.stderr


def test_a_run_keeps_its_memory_whatever_dask_asks_of_its_workers(book):
    write({"chapter": "stub", "grid": {"seed": [0]}})
    done = glbook("sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    (path,) = Path("_build/results").glob("*.json")
    assert json.loads(path.read_text())["trim"] == processes.MEMORY["MALLOC_TRIM_THRESHOLD_"]


def test_a_sweep_on_a_cluster_of_other_processes(book):
    """A scheduler and two workers that somebody else has started; one of them is killed for good."""
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3"}
    address_file = book / "scheduler.json"
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
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
                [sys.executable, "-c", program.format("worker"), "--scheduler-file", str(address_file), "--nthreads", "1",
                 "--no-nanny", "--no-dashboard"], cwd=book.parent, **quiet,
            ))  # fmt: skip
        until(address_file.exists)
        address = json.loads(address_file.read_text())["address"]
        plan = write({"chapter": "stub", "grid": {"seed": [0, 99, 1]}})
        sweep = subprocess.Popen(
            [*GLBOOK, "sweep", str(plan), "--scheduler", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: any(is_part_of_a_run(process) for process in descendants(workers[0].pid)))
        workers[0].kill()
        output, _ = sweep.communicate(timeout=400)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
    assert sweep.returncode == 1, output
    assert recorded(book) == {seed: expected(seed) for seed in (0, 1)}
    assert "failed: seed=99: KeyError: 'the reason'" in output
    assert "2 done, 1 failed, 0 left" in output


def test_the_same_command_gives_the_same_metrics_bit_for_bit(tmp_path):
    """Quick glyphs, in two books at the same time."""
    command = [*GLBOOK, "run", "training", "-p", "epochs", "1", "-p", "image_size", "28", "-p", "device", "cpu"]
    command += ["-p", "classes_per_batch", "12", "-p", "samples_per_class", "8", "-p", "temperature", "5"]
    roots = [make_book(tmp_path / name) for name in ("one", "other")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for root in roots
    ]
    for process in started:
        assert process.communicate(timeout=300) and process.returncode == 0
    first, second = (
        json.loads(path.read_text()) for root in roots for path in (root / "_build" / "results").glob("*.json")
    )
    assert first["run_id"] != second["run_id"] and first["metrics"]["R@1"] > first["untrained"]["R@1"]
    assert first["metrics"] == second["metrics"] and first["untrained"] == second["untrained"]
    assert [entry["loss"] for entry in first["history"]] == [entry["loss"] for entry in second["history"]]
    assert "1 threads" in first["device"]


def until(condition, seconds=60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
