"""The classifier of very many classes dealt out over two processes, against one process that holds all of it.

    python -m benchmarks.sharded C        or, for several processes, under torchrun

measures steps with C classes in processes of their own, and prints one line of JSON.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measure import OURS, Case, Measured, peak_above_now
from gl_core import distributed
from gl_core.loss import GroupLoss
from gl_core.sharded import ShardedGroupLoss

PROCESSES = 2
WHOLE = "one process with the whole classifier"
CLASSES_PER_BATCH, SAMPLES_PER_CLASS, EMBEDDING_SIZE, STEPS = 10, 6, 128, 5


def cases(quick: bool) -> list[Case]:
    return [
        Case(
            name=f"step of {CLASSES_PER_BATCH * SAMPLES_PER_CLASS} images, {C:,} classes over {PROCESSES} processes",
            prepare=lambda C=C: {OURS: lambda: _launched(C, PROCESSES), WHOLE: lambda: _launched(C, 1)},
            agree=_agree,
            repeats=1,
            growth={"C": C},
        )
        for C in ([300] if quick else [10_000, 100_000, 1_000_000])
    ]


def _launched(num_classes: int, processes: int) -> Measured:
    """What `main` prints, with as many threads in all as this process has."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    threads = max(1, torch.get_num_threads() // processes)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "benchmarks.sharded", str(num_classes)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{num_classes} classes, {processes} processes: could not be measured\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _agree(results: dict[str, Measured]) -> None:
    ours, whole = results[OURS].value, results[WHOLE].value
    if not math.isclose(ours, whole, rel_tol=1e-5):
        raise AssertionError(f"a loss of {ours} over {PROCESSES} processes, {whole} in one")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("num_classes", type=int)
    given = parser.parse_args()
    with distributed.processes():
        measured = _steps(given.num_classes)
        if distributed.is_main():
            print(json.dumps(measured))


def _steps(num_classes: int) -> dict:
    """The fields of `Measured` of this process: its memory holds its part of the classifier, with gradients."""
    labels = torch.arange(CLASSES_PER_BATCH).repeat_interleave(SAMPLES_PER_CLASS)
    embeddings = torch.randn(len(labels), EMBEDDING_SIZE, generator=torch.Generator().manual_seed(0))
    part = distributed.share(len(labels))
    own = embeddings[part].requires_grad_()
    peak = peak_above_now("host")
    kind = ShardedGroupLoss if distributed.num_processes() > 1 else GroupLoss
    loss = kind(num_classes, EMBEDDING_SIZE)
    classes = torch.arange(num_classes)[distributed.share(num_classes)]
    with torch.no_grad():
        # The same weights, whoever holds them.
        for number, column in enumerate(loss.classifier.weight.T, 1):
            column.copy_(torch.sin(number * classes) / 8)
        loss.classifier.bias.zero_()
    seconds = []
    for _ in range(STEPS):
        loss.zero_grad()
        with _Traffic() as traffic:
            began = time.perf_counter()
            value = loss(own, labels[part])
            value.backward()
            seconds.append(time.perf_counter() - began)
    return {
        "value": value.item(),
        "seconds": statistics.median(seconds),
        "megabytes": peak(),
        "facts": {"kB sent by a process": traffic.bytes / 1000},
    }


class _Traffic:
    """Counts the bytes that this process gives into the collectives called within."""

    def __enter__(self) -> "_Traffic":
        self.bytes = 0
        self._saved = dist.all_reduce, dist.all_gather
        reduce, collect = self._saved

        def all_reduce(tensor, *arguments, **keywords):
            self.bytes += tensor.numel() * tensor.element_size()
            return reduce(tensor, *arguments, **keywords)

        def all_gather(parts, tensor, *arguments, **keywords):
            self.bytes += tensor.numel() * tensor.element_size()
            return collect(parts, tensor, *arguments, **keywords)

        dist.all_reduce, dist.all_gather = all_reduce, all_gather
        return self

    def __exit__(self, *_) -> None:
        dist.all_reduce, dist.all_gather = self._saved


if __name__ == "__main__":
    main()
