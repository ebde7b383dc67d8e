"""Search in galleries that outgrow exact search: an inverted file of faiss, and its recall against exact search."""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core._extras import require
from gl_core.evaluation import nearest_neighbours

__all__ = ["Approximate", "build", "open_index"]

# Recall is measured for this many neighbours of this many images of the gallery; lists are read until it is reached.
NEIGHBOURS, SAMPLE, WANTED = 10, 200, 0.98
# Training the lists needs no more vectors a list than this.
A_LIST = 64


@dataclass
class Approximate:
    """An inverted file: vectors in lists around centres, of which a query reads the nearest `lists_read`.

    `recall` is the share of the exact 10 nearest that it found, over a sample of the gallery.
    """

    index: Any
    lists_read: int
    recall: float
    metric: str

    def search(self, queries: Float[Tensor, "q d"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """As `nearest_neighbours`, approximately. For cosine the queries must have length 1."""
        lists_read = self.lists_read
        while True:
            self.index.nprobe = lists_read
            similarity, index = self.index.search(np.ascontiguousarray(queries.numpy(), dtype=np.float32), k)
            if (index >= 0).all() or lists_read >= self.index.nlist:
                break
            # The lists that were read hold fewer than k vectors.
            lists_read = min(2 * lists_read, self.index.nlist)
        similarity = torch.from_numpy(similarity)
        return (similarity if self.metric == "cosine" else -similarity), torch.from_numpy(index)


def build(embeddings: Float[np.ndarray, "n d"], metric: str) -> Approximate:
    """The inverted file of these vectors (of length 1 for cosine), with about sqrt(n) lists, and its recall.

    Twice as many lists are read until the recall on the sample is high enough, or all are read.
    """
    faiss = require("faiss", extra="search")
    n, d = embeddings.shape
    lists = max(1, round(math.sqrt(n)))
    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    index = faiss.index_factory(d, f"IVF{lists},Flat", kind)
    random = np.random.default_rng(0)
    some = np.sort(random.choice(n, min(n, A_LIST * lists), replace=False))
    index.train(np.ascontiguousarray(embeddings[some]))
    for start in range(0, n, 65536):
        index.add(np.ascontiguousarray(embeddings[start : start + 65536]))
    found = Approximate(index, 1, 0.0, metric)
    sample = torch.from_numpy(np.array(embeddings[random.choice(n, min(n, SAMPLE), replace=False)]))
    k = min(NEIGHBOURS, n)
    _, exact = nearest_neighbours(sample, torch.from_numpy(np.asarray(embeddings)), k, metric=metric)
    while True:
        _, nearest = found.search(sample, k)
        found.recall = (exact[:, :, None] == nearest[:, None, :]).any(2).double().mean().item()
        if found.recall >= WANTED or found.lists_read >= lists:
            return found
        found.lists_read = min(2 * found.lists_read, lists)


def open_index(
    path: Path, embeddings: Float[np.ndarray, "n d"], metric: str, *, say: Callable[[str], object]
) -> Approximate:
    """The inverted file at `path`, beside it its recall; built, and kept, if it is not there. Says its recall."""
    faiss = require("faiss", extra="search")
    beside, found = path.with_suffix(".recall"), None
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        recall, index = float(beside.read_text()), faiss.read_index(str(path))
        if index.ntotal == len(embeddings):
            found = Approximate(index, index.nprobe, recall, metric)
    if found is None:
        say(f"{len(embeddings):,} images: building a faiss index ...")
        found = build(embeddings, metric)
        found.index.nprobe = found.lists_read
        part = Path(f"{path}.part")
        faiss.write_index(found.index, str(part))
        os.replace(part, path)
        beside.write_text(str(found.recall))
    say(
        f"approximate search by faiss: {found.lists_read} of {found.index.nlist} lists read, "
        f"recall@{NEIGHBOURS} {found.recall:.3f} against exact search"
    )
    return found
