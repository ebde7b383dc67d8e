"""Make the runs of a plan: several at a time on this machine, or on a Dask cluster."""

import asyncio
import contextlib
import os
import queue
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gl_core import _extras
from gl_core.training import records
from gl_core.training.version import RESULTS_VERSION
from glbook.sweeps import gpus
from glbook.sweeps.plan import Plan, PlannedRun
from glbook.sweeps.progress import Progress, duration
from glbook.sweeps.store import Store
from glbook.sweeps.worker import Children, run_one

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Outcome", "all_records", "local_workers", "run_plan"]

# How often the process of a run may be killed before the run counts as failed.
MOST_LOST = 5
PAUSE = 1.0  # seconds between two looks at the runs that other sweeps make
ANSWER = 5.0  # seconds within which a Dask scheduler answers; a wrong address is to be told within 10
MEMORY = 2 * 2**30  # what a run is reckoned to need, bytes

# Starts runs, and returns their futures in order.
Submit = Callable[[Sequence[PlannedRun]], Sequence[Any]]


@dataclass
class Outcome:
    """What a sweep left: its runs' records, the errors of those that failed, by name, and the number done."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    done: int = 0


def all_records() -> list[dict[str, Any]]:
    """All records of the book, those that are kept and those of trials."""
    folders = [records.results_folder(), records.results_folder("final")]
    return [record for folder in folders for _, record in records.read_records(folder)]


def local_workers(plan: Plan) -> int:
    """How many runs this machine makes at a time: one a GPU, or as many as its processor cores and memory carry."""
    psutil = _extras.require("psutil", extra="sweeps")
    devices = [run.settings["device"] for run in plan.runs if "device" in run.settings]
    found = max((gpus.count(device) for device in set(devices)), default=0)
    if found:
        return found
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // plan.threads, int(psutil.virtual_memory().total // MEMORY)))


def run_plan(
    plan: Plan,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Make all runs of a plan that nobody has made yet; those that failed before are tried again.

    Whatever ends it, what is done is kept, and the same call goes on from there.

    Args:
        plan: the runs.
        scheduler: the address of a Dask scheduler whose workers reach the folder of this book; None: this machine.
        workers: how many runs at a time on this machine; None: `local_workers`.
        say: is told each line of progress.

    Returns:
        The outcome, runs that were done before included.

    Raises:
        ValueError: no Dask scheduler answers at that address.
    """
    outcome, store = Outcome(), Store()
    progress = Progress(plan.runs, all_records())
    at_once = local_workers(plan) if workers is None else workers

    def take(run: PlannedRun, result: dict[str, Any]) -> str:
        """Note how a run ended. Returns it in words."""
        made, error = [], result.get("error")
        if error is None:
            try:
                made = store.keep(run.key, run.given.get("keep"))
            except ValueError as broken:
                error = str(broken)
        progress.end(run, well=error is None, made=result["state"] != "elsewhere")
        if error is not None:
            outcome.failed[run.name] = error
            return f"FAILED, {' '.join(error.split())[:200]}"
        outcome.records += made
        return _headline(made) if result["state"] == "done" else "done by another sweep"

    todo = []
    for run in plan.runs:
        if store.state(run.key) == "done":
            take(run, {"state": "elsewhere"})
        else:
            store.forget_failure(run.key)
            todo.append(run)
    say(f"{plan.name}: {len(plan.runs)} runs, {progress.line(at_once)}")
    if todo:
        made_by = _this_machine(plan, min(at_once, len(todo))) if scheduler is None else _cluster(plan, scheduler)
        with made_by as submit:
            for run, result in _results(todo, submit, store):
                words = take(run, result)
                say(f"{progress.line(at_once)} · {run.name}: {words}")
    outcome.done = progress.done
    return outcome


def _results(todo: Sequence[PlannedRun], submit: Submit, store: Store) -> Iterator[tuple[PlannedRun, dict[str, Any]]]:
    """Make runs. Yields each when it has ended, with what `run_one` says of it, whoever made it."""
    ended: queue.SimpleQueue = queue.SimpleQueue()
    running: dict[Any, PlannedRun] = {}
    lost: Counter[str] = Counter()
    # Runs that another sweep may have, and those whose process was killed: the store knows what is to be done.
    waiting: list[PlannedRun] = []

    def start(runs: Sequence[PlannedRun]) -> None:
        for run, future in zip(runs, submit(runs), strict=True):
            running[future] = run
            future.add_done_callback(ended.put)

    start(todo)
    while running or waiting:
        with contextlib.suppress(queue.Empty):
            future = ended.get(timeout=PAUSE)
            run = running.pop(future)
            error = future.exception()  # of Dask: its worker was killed too often, or cannot run our code
            result = {"state": "lost", "error": f"{type(error).__name__}: {error}"} if error else future.result()
            lost[run.key] += result["state"] == "lost"
            if lost[run.key] > MOST_LOST:
                yield run, result
            elif result["state"] in ("lost", "elsewhere"):
                waiting.append(run)
            else:
                yield run, result
        for run in list(waiting):
            state = store.state(run.key)
            if state == "running":
                continue
            waiting.remove(run)
            if state == "done":
                yield run, {"state": "elsewhere"}
            elif state == "failed":
                yield run, {"state": "failed", "error": store.failure(run.key)}
            else:
                start([run])


@contextlib.contextmanager
def _this_machine(plan: Plan, workers: int) -> Iterator[Submit]:
    """Threads, each of which waits for the process of a run. When they are left, the processes end."""
    children = Children()
    with ThreadPoolExecutor(workers) as threads:
        try:
            yield lambda runs: [threads.submit(run_one, _spec(plan, run), children) for run in runs]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            children.kill()


@contextlib.contextmanager
def _cluster(plan: Plan, address: str) -> Iterator[Submit]:
    """The workers of a Dask scheduler. Raises ValueError if none answers at that address."""
    with _client(address) as client:
        group, futures = f"glbook_run-{os.urandom(4).hex()}", []

        def submit(runs: Sequence[PlannedRun]) -> Sequence[Any]:
            # Dask keeps what it knows under these names, so no two tasks have the same. As a group of many they wait at
            # the scheduler until a worker is free; each under a name of its own, they would be dealt out at once.
            names = [(group, f"{run.chapter} {run.name} {os.urandom(4).hex()}") for run in runs]
            made = client.map(run_one, [_spec(plan, run) for run in runs], key=names, pure=False)
            futures.extend(made)
            return made

        try:
            yield submit
        finally:
            client.cancel(futures, force=True)


def _client(address: str) -> "Client":
    distributed = _extras.require("distributed", extra="sweeps")

    async def greet() -> None:
        arguments = distributed.Security().get_connection_args("client")
        async with distributed.rpc(address, connection_args=arguments) as scheduler:
            await scheduler.identity()

    try:
        # A client that meets another server than a scheduler waits for ever. In a thread, as a notebook has an event
        # loop of its own.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, asyncio.wait_for(greet(), ANSWER)).result()
        return distributed.Client(address, timeout=ANSWER)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise ValueError(f"--scheduler {address}: no Dask scheduler answers there") from error


def _spec(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    return {
        "root": str(records.project_root()),
        "key": run.key,
        "data_version": run.data_version,
        "results_version": RESULTS_VERSION,
        "chapter": run.chapter,
        "given": run.given,
        "threads": plan.threads,
        "device": run.settings.get("device", "cpu"),
    }


def _headline(made: Sequence[dict[str, Any]]) -> str:
    parts = []
    for record in made:
        metrics, seconds = record.get("metrics", {}), record.get("wall_time_s")
        words = [f"{name} {metrics[name]:.3f}" for name in ("R@1", "MAP@R") if name in metrics]
        parts.append(" ".join(words + ([] if seconds is None else [f"({duration(seconds)})"])))
    return "; ".join(filter(None, parts)) or "done"
