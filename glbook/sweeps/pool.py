"""The runs of a plan on a Dask cluster: one of this machine's size, or any that exists."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gl_core.training import records
from glbook import runs
from glbook.sweeps import gpus
from glbook.sweeps.claims import Entry
from glbook.sweeps.plan import Plan, PlannedRun
from glbook.sweeps.progress import Progress, duration
from glbook.sweeps.worker import claims_of, run_one

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Outcome", "all_records", "local_workers", "run_plan", "states"]

# A process on another machine that has given no sign of life for so many seconds has lost its run.
LEASE = 60.0
# How often the process of a run may be killed before the run counts as failed.
MOST_LOST = 5
PAUSE = 1.0  # seconds between two looks at runs that others have
MEMORY = 2 * 2**30  # what a run is reckoned to need, bytes


@dataclass
class Outcome:
    """What a sweep left: the records of the runs made here, the errors of those that failed, by name, and the time."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    done: int = 0
    seconds: float = 0.0


def all_records() -> list[dict[str, Any]]:
    """All records of the book, those that are kept and those of trials."""
    folders = [records.results_folder(), records.project_root() / "data" / "results"]
    return [record for folder in folders for _, record in runs.read_records(folder)]


def states(plan: Plan, made: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is known of each run, by its key: "done", "failed", "running", or "left".

    The records of a run that ended while nobody was there to publish them are published.
    """
    store = _Store(made)
    return {run.key: store.look(run) for run in plan.runs}


def local_workers(plan: Plan) -> int:
    """How many runs this machine makes at a time: one a GPU, or as many as its processor cores and memory carry."""
    import psutil

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

    Args:
        plan: see `read_plan`.
        scheduler: the address of a Dask scheduler whose workers reach the folder of this book; None: a cluster of this machine.
        workers: how many runs at a time on this machine; None: `local_workers`.
        say: is told each line of progress.

    Raises ValueError if no scheduler answers at that address. Whatever ends it, what is done is kept, and the same call goes on.
    """
    began, outcome, made = time.monotonic(), Outcome(), all_records()
    store, progress, todo = _Store(made), Progress(plan.runs, made), []
    for run in plan.runs:
        if store.look(run) == "done":
            progress.skip(run)
        else:
            todo.append(run)
    at_once = local_workers(plan) if workers is None else workers
    say(f"{plan.name}: {len(plan.runs)} runs, {progress.line(at_once)}")
    if todo:
        with _client(scheduler, min(at_once, len(todo))) as client:
            _Sweep(plan, store, client, progress, outcome, say, at_once).go(todo)
    outcome.done, outcome.seconds = progress.done, time.monotonic() - began
    return outcome


class _Store:
    """What is known of runs: from the records there are, and from the claims."""

    def __init__(self, made: Sequence[Mapping[str, Any]]) -> None:
        self.claims = claims_of(records.project_root())
        self.recorded = {record["sweep"]["key"] for record in made if record.get("sweep")}
        self._seen: dict[str, tuple[int, int, float]] = {}

    def last(self, run: PlannedRun) -> Entry | None:
        return self.claims.last(run.key)

    def look(self, run: PlannedRun) -> str:
        """ "done", "failed", "running" or "left"."""
        last = self.last(run)
        if last is not None and last.state == "done" and not last.published:
            self.claims.publish(run.key, last)
            return "done"
        if run.key in self.recorded:
            return "done"
        if last is None:
            return "left"
        if last.state == "done":  # a record that somebody has deleted since is wanted again
            return "left" if last.content["records"] else "done"
        return "left" if last.is_orphan() else last.state

    def is_abandoned(self, run: PlannedRun, last: Entry) -> bool:
        """Whether the process that has the run is gone, or silent for too long: no clocks are compared but our own."""
        now = (last.number, last.sign_of_life)
        if self._seen.get(run.key, (0, 0, 0.0))[:2] != now:
            self._seen[run.key] = (*now, time.monotonic())
        return last.is_orphan() or time.monotonic() - self._seen[run.key][2] > LEASE


class _Sweep:
    """The runs of a plan that are on their way."""

    def __init__(
        self,
        plan: Plan,
        store: _Store,
        client: "Client",
        progress: Progress,
        outcome: Outcome,
        say: Callable[[str], None],
        at_once: int,
    ) -> None:
        self.plan, self.store, self.client, self.progress, self.outcome = plan, store, client, progress, outcome
        self.say, self.at_once = say, at_once
        self.group = f"glbook_run-{os.urandom(4).hex()}"
        self.futures: dict[Future, PlannedRun] = {}
        self.elsewhere: dict[str, PlannedRun] = {}
        self.lost: Counter[str] = Counter()
        self.after: dict[str, int] = {}  # what was said of a run up to here is of earlier attempts

    def go(self, todo: list[PlannedRun]) -> None:
        from distributed import wait

        free = []
        for run in todo:
            last = self.store.last(run)
            if last is not None and last.state == "running":
                self.elsewhere[run.key] = run
            else:
                free.append((run, last))
        self._submit(free)
        try:
            while self.futures or self.elsewhere:
                self._look_elsewhere()
                if not self.futures:
                    time.sleep(PAUSE)
                    continue
                with contextlib.suppress(TimeoutError):
                    wait(list(self.futures), timeout=PAUSE if self.elsewhere else 10, return_when="FIRST_COMPLETED")
                for future in [future for future in self.futures if future.done()]:
                    self._take_in(future, self.futures.pop(future))
        finally:
            self.client.cancel(list(self.futures), force=True)

    def _submit(self, free: Sequence[tuple[PlannedRun, Entry | None]]) -> None:
        """Give runs to the cluster, each with the last entry that is known of it."""
        for run, last in free:
            self.after[run.key] = last.number if last else 0
        specs = [
            {
                "root": str(records.project_root()),
                "key": run.key,
                "after": self.after[run.key],
                "chapter": run.chapter,
                "given": run.given,
                "versions": run.versions,
                "threads": self.plan.threads,
                "device": run.settings.get("device", "cpu"),
            }
            for run, _ in free
        ]
        # Dask keeps what it knows under these names, so no two tasks have the same. As a group of many they wait at the scheduler
        # until a worker is free. Tasks that each have a name of their own are dealt out at once, by a guess of how long they take,
        # and one worker may end with all that is left.
        names = [(self.group, f"{run.chapter} {run.name} {os.urandom(4).hex()}") for run, _ in free]
        futures = self.client.map(run_one, specs, key=names, pure=False)
        self.futures |= dict(zip(futures, (run for run, _ in free), strict=True))

    def _take_in(self, future: "Future", run: PlannedRun) -> None:
        if future.status == "finished":
            result = future.result()
        else:  # its worker died too often, or cannot run our code
            result = {"state": "lost", "error": f"{type(future.exception()).__name__}: {future.exception()}"}
        if result["state"] == "elsewhere":
            self.elsewhere[run.key] = run
        elif result["state"] == "lost":
            self.lost[run.key] += 1
            if self.lost[run.key] > MOST_LOST:
                self._end(run, error=result["error"])
            else:
                self.elsewhere[run.key] = run
        elif result["state"] == "failed":
            self._end(run, error=result["error"])
        else:
            self.outcome.records += result["records"]
            self._end(run, records=result["records"])

    def _look_elsewhere(self) -> None:
        """Take note of runs that others have ended, and take over those that nobody works on any more."""
        for key, run in list(self.elsewhere.items()):
            last = self.store.last(run)
            if last is None or (last.state != "running" and last.number <= self.after.get(key, 0)):
                self._submit([(run, last)])
            elif last.state == "done":
                if not last.published:
                    self.store.claims.publish(key, last)
                self.progress.skip(run)
                self.say(f"{self.progress.line(self.at_once)} · {run.name}: done by another sweep")
            elif last.state == "failed":
                self._end(run, error=last.content["error"])
            elif self.store.is_abandoned(run, last):
                self._submit([(run, last)])
            else:
                continue
            del self.elsewhere[key]

    def _end(self, run: PlannedRun, records: list | None = None, error: str | None = None) -> None:
        self.progress.end(run, well=error is None)
        if error is not None:
            self.outcome.failed[run.name] = error
        result = f"FAILED, {' '.join(error.split())[:200]}" if error else _headline(records)
        self.say(f"{self.progress.line(self.at_once)} · {run.name}: {result}")


@contextlib.contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator["Client"]:
    """A client of that scheduler, or of a cluster of processes on this machine that ends with it."""
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(f"--scheduler {scheduler}: no Dask scheduler answers there") from error
        with client:
            yield client
        return
    quiet = {
        "distributed.scheduler.allowed-failures": 10**6,
        "distributed.scheduler.worker-saturation": 1.0,  # no run waits at a worker while another is free
        "distributed.comm.timeouts.connect": "60s",
        # Dask's looks at itself, hundreds a second, cost a twentieth of two cores that have runs to make.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
        "distributed.admin.system-monitor.gil.enabled": False,
    }
    # The runs are processes of their own, so Dask has no memory to watch.
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None, silence_logs="CRITICAL"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _headline(records: list[dict[str, Any]]) -> str:
    parts = []
    for record in records:
        metrics = [
            f"{name} {record['metrics'][name]:.3f}" for name in ("R@1", "MAP@R") if name in record.get("metrics", {})
        ]
        seconds = [f"({duration(record['wall_time_s'])})"] if record.get("wall_time_s") is not None else []
        parts += [" ".join(metrics + seconds)]
    return "; ".join(filter(None, parts)) or "done"
