"""How far a sweep is, and how long it will take."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from glbook.sweeps.plan import PlannedRun

__all__ = ["Progress", "duration", "expected_seconds"]

# What the time of an epoch depends on, beside the machine.
ALIKE = ("dataset", "backbone", "image_size", "choose_epochs")


def expected_seconds(run: PlannedRun, records: Sequence[Mapping[str, Any]]) -> float | None:
    """How long a run will take: its epochs times the median time of one in the records on the same data with the same
    backbone and image size; None where there are none."""
    if "dataset" not in run.settings:
        return None
    epochs = []
    for record in records:
        config, seconds = record.get("config") or {}, record.get("wall_time_s")
        if seconds is not None and all(config.get(name) == run.settings[name] for name in ALIKE):
            epochs.append(seconds / max(1, config.get("epochs") or 1))
    return statistics.median(epochs) * max(1, run.settings["epochs"]) if epochs else None


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(42), duration(600), duration(5 * 3600)
    ('42 s', '10 min', '5.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """Counts runs, and says after each how many are done, failed and left, and how long these will take.

    The time of those left is that of like records until some are done here, from then on as they took.
    """

    def __init__(self, runs: Sequence[PlannedRun], records: Sequence[Mapping[str, Any]]) -> None:
        self.done, self.failed = 0, 0
        self.left = {run.key: expected_seconds(run, records) for run in runs}
        self._began, self._made = time.monotonic(), 0

    def end(self, run: PlannedRun, *, well: bool = True, made: bool = True) -> None:
        """A run has ended; not `made` here: it was done before, or by others."""
        self.left.pop(run.key, None)
        self._made += made
        self.done += well
        self.failed += not well

    def seconds_left(self, at_once: int) -> float | None:
        """None where nothing is known yet."""
        if not self.left:
            return 0.0
        if self._made:
            return (time.monotonic() - self._began) / self._made * len(self.left)
        expected = [seconds for seconds in self.left.values() if seconds is not None]
        return sum(expected) / max(1, min(at_once, len(expected))) if len(expected) == len(self.left) else None

    def line(self, at_once: int) -> str:
        left = self.seconds_left(at_once)
        time_left = "" if not self.left else ", time unknown" if left is None else f", about {duration(left)}"
        return f"{self.done} done, {self.failed} failed, {len(self.left)} left{time_left}"
