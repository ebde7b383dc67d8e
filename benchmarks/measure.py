"""Measuring two things side by side: time by interleaved repeats, memory in processes of their own."""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Case", "extra_memory", "measure"]

OURS = "gl_core"
# Arrays are mapped one by one instead of being cut from a heap that keeps what was freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """Something that is done by several sides.

    `sides` maps a name, ours first, to a function without arguments; `prepare` makes them, so that a process that
    measures one side builds nothing twice. `agree` raises an error if what the sides returned, by name, is not the same
    thing. `target` is in words; `bounds` maps a side to the speed-up over it that is aimed at (below 1: so much slower
    is admitted), `seconds` and `megabytes` bound our own time and extra memory, `memory_share` ours as a share of the
    other side's.
    """

    name: str
    prepare: Callable[[], dict[str, Callable[[], Any]]]
    agree: Callable[[dict[str, Any]], None] = lambda results: None
    repeats: int = 5
    target: str = ""
    bounds: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    megabytes: float | None = None
    memory_share: dict[str, float] = field(default_factory=dict)
    memory: str | None = "host"  # or "gpu": whose memory is measured; None: no one's


def measure(part: str, case: Case, quick: bool) -> dict[str, Any]:
    """Median seconds and extra memory of every side, and whether the targets are met."""
    # What takes minutes is done once, and its memory is that of the same call.
    seconds, memory = _once(case) if case.repeats == 1 else _repeated(part, case, quick)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians[OURS]
    speedups = {name: value / ours for name, value in medians.items() if name != OURS}
    met = [speedups[name] >= bound for name, bound in case.bounds.items()]
    if case.seconds is not None:
        met.append(ours <= case.seconds)
    if case.memory and case.megabytes is not None:
        met.append(memory[OURS] <= case.megabytes)
    if case.memory:
        met += [memory[OURS] <= share * memory[name] for name, share in case.memory_share.items()]
    return {
        "part": part,
        "case": case.name,
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in seconds.items()},
        "megabytes": memory,
        "speedup": speedups,
        "target": case.target,
        "met": all(met) if met else None,
    }


def _once(case: Case) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    results, seconds, memory = {}, {}, {}
    for name, side in case.prepare().items():
        gc.collect()
        peak = peak_above_now(case.memory)
        started = time.perf_counter()
        results[name] = side()
        seconds[name] = [time.perf_counter() - started]
        memory[name] = peak()
    case.agree(results)
    return seconds, memory


def _repeated(part: str, case: Case, quick: bool) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    sides = case.prepare()
    # The first call compiles, fills caches, and shows whether all sides do the same.
    case.agree({name: side() for name, side in sides.items()})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(2 if quick else case.repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    if case.memory == "host":
        names = list(sides)
        del sides
        return seconds, {name: extra_memory(part, case.name, name, quick) for name in names}
    memory = {}
    for name, side in sides.items():
        peak = peak_above_now(case.memory)
        side()
        memory[name] = peak()
    return seconds, memory


def extra_memory(part: str, case: str, side: str, quick: bool) -> float:
    """The largest memory, in 10^6 bytes, that one call takes on top of its inputs; in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", part, case, side, *(["--quick"] if quick else [])]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{part}, {case}, {side}: the memory could not be measured\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_above_now(memory: str | None) -> Callable[[], float | None]:
    """A function that gives the most memory, in 10^6 bytes, that was taken on top of what is taken now."""
    if memory is None:
        return lambda: None
    if memory == "gpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - before) / 1e6
    forget_peak()
    before, _ = resident()
    return lambda: max(0, resident()[1] - before) / 1e6


def resident() -> tuple[int, int]:
    """Resident memory now, and at most since `forget_peak`, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    now, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def load() -> float:
    """Processes that want a core, averaged over the last minute: a figure taken on a busy machine says so."""
    return round(os.getloadavg()[0], 2)
