"""How memory, traffic and time of a step grow with the number of classes, the classifier dealt out over two processes.

    torchrun --standalone --nproc-per-node 2 benchmarks/sharded.py

prints one line of JSON for each number of classes. `grow` gives the same as a list.
"""

import json
import resource
import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from gl_core import distributed
from gl_core.sharded import ShardedGroupLoss


def grow(
    num_classes: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000),
    *,
    classes_per_batch: int = 10,
    samples_per_class: int = 6,
    embedding_size: int = 32,
    steps: int = 5,
) -> list[dict[str, float]]:
    """Forward and backward pass of this process, by the number of classes: median seconds, bytes sent and held.

    `message_bytes` are those of the tensors that a process gives into collectives in one step, `weight_bytes` those of its part
    of the classifier, `peak_bytes` the most that the process has held so far (its resident memory, libraries included), so
    that the numbers of classes should rise. Call it in every process.
    """
    labels = torch.arange(classes_per_batch).repeat_interleave(samples_per_class)
    part = distributed.share(len(labels))
    rows = []
    for classes in num_classes:
        torch.manual_seed(0)
        loss = ShardedGroupLoss(classes, embedding_size)
        embeddings = torch.randn(len(labels), embedding_size)[part].requires_grad_()
        seconds, sent = [], 0
        for _ in range(steps):
            loss.zero_grad()
            began = time.perf_counter()
            with _Traffic() as traffic:
                loss(embeddings, labels[part]).backward()
            seconds.append(time.perf_counter() - began)
            sent = traffic.bytes
        rows.append(
            {
                "classes": classes,
                "seconds": statistics.median(seconds),
                "message_bytes": sent,
                "weight_bytes": sum(p.numel() * p.element_size() for p in loss.parameters()),
                "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            }
        )
    return rows


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
    with distributed.processes():
        for row in grow():
            if distributed.is_main():
                print(json.dumps(row), flush=True)
