"""Queries compared with a gallery, a chunk of queries at a time: what all retrieval metrics are read from."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation.arrays import Rows, as_rows, common_offset, squared_norms, unit_rows

__all__ = ["RANGE", "ClassMembers", "GivenDistances", "Pairs", "averaged", "compared"]

CHUNK_BYTES = 256 * 2**20  # that the rows of one chunk of queries take, similarities and workspace together
WORKSPACE_BYTES = 128  # for each neighbour or positive that is kept of a row
RANGE = {"cosine": (-1.0, 1.0), "euclidean": (-math.inf, 0.0)}


class Pairs:
    """Query and gallery, checked, in one dtype on one device, to be compared by `metric` a chunk of queries at a time.

    Cosine: the rows are normalised. Euclidean: an offset that all rows share is subtracted. `query_scale` and
    `gallery_scale` add up to the bound of the terms of a similarity, to which its rounding errors are proportional:
    |q| |g| = 1 for unit vectors, |q|^2 + |g|^2 for squared distances.

    Args:
        query: vectors (q, d).
        gallery: vectors (g, d); None: the queries are their own gallery, and each leaves itself out.
        metric: "cosine" or "euclidean".
        same_images: row i of the gallery shows the image of query i, which leaves it out.
    """

    def __init__(self, query: Rows, gallery: Rows | None, metric: str, *, same_images: bool = False):
        _checks.choice("metric", metric, RANGE)
        self.metric, self.leaves_self_out = metric, gallery is None or same_images
        query = as_rows("query", query)
        if gallery is not None:
            gallery = as_rows("gallery", gallery).to(query.device)
            if gallery.shape[1] != query.shape[1]:
                raise ValueError(f"gallery has {gallery.shape[1]} columns: must have {query.shape[1]}, as query has")
            dtype = torch.promote_types(query.dtype, gallery.dtype)
            query, gallery = query.to(dtype), gallery.to(dtype)
        sets = {"query": query} if gallery is None else {"query": query, "gallery": gallery}
        if metric == "euclidean":
            offset = common_offset(*sets.values())
            sets = sets if offset is None else {name: x - offset for name, x in sets.items()}
            prepared = [(x, squared_norms(name, x)) for name, x in sets.items()]
        else:
            prepared = [(unit_rows(x), x.new_full((len(x),), 0.5)) for x in sets.values()]
        (self.query, self.query_scale), (self.gallery, self.gallery_scale) = prepared[0], prepared[-1]
        self.num_queries, self.num_gallery = len(self.query), len(self.gallery)
        self.dtype, self.device = self.query.dtype, self.query.device
        self.candidates = self.num_gallery - int(self.leaves_self_out)

    def check_k(self, name: str, k: int) -> None:
        """A query has k neighbours."""
        _checks.count(name, k, least=1)
        if k > self.candidates:
            raise ValueError(f"{name}={k}: must be at most {self.candidates}, the rows that a query is compared with")

    def rounding(self, rows: slice, index: Int[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """How far two computations of the similarity of these queries and gallery rows may lie apart.

        Sums of d terms in different orders drift apart like a random walk of d steps.
        """
        d = self.query.shape[1]
        spread = max(4.0, math.sqrt(d) / 2) * torch.finfo(self.query.dtype).eps
        return spread * (self.query_scale[rows, None] + self.gallery_scale[index])

    def chunks(
        self, chunk_size: int | None = None, *, kept: int, part: slice | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "q g"]]]:
        """Queries as a slice, and their similarity to the gallery; minus infinity to themselves if they are left out.

        The caller may overwrite the similarities, which are valid until the next step only: all chunks share one
        buffer.

        Args:
            chunk_size: queries compared at a time; None: as many as fit into 256 MiB.
            kept: how many neighbours or positives of a query the caller works on, which takes memory too.
            part: the queries to go through; None: all.
        """
        if chunk_size is None:
            chunk_size = max(1, CHUNK_BYTES // (self.num_gallery * self.dtype.itemsize + kept * WORKSPACE_BYTES))
        _checks.count("chunk_size", chunk_size, least=1)
        buffer = torch.empty(min(chunk_size, self.num_queries), self.num_gallery, dtype=self.dtype, device=self.device)
        first, last = (0, self.num_queries) if part is None else (part.start, part.stop)
        for start in range(first, last, chunk_size):
            rows = slice(start, min(start + chunk_size, last))
            similarity = buffer[: rows.stop - start]
            self._compare(rows, similarity)
            if self.leaves_self_out:
                similarity.diagonal(offset=start).fill_(-math.inf)
            yield rows, similarity

    def _compare(self, rows: slice, similarity: Float[Tensor, "q g"]) -> None:
        _product(self.query[rows], self.gallery, similarity)
        if self.metric == "euclidean":
            # -|q - g|^2 = 2 <q, g> - |g|^2 - |q|^2
            torch.add(-self.gallery_scale, similarity, alpha=2, out=similarity).sub_(self.query_scale[rows, None])


class GivenDistances(Pairs):
    """Pairs whose distances are known, from re-ranking for instance: their similarity is the negative."""

    def __init__(
        self, distances: Float[Tensor, "q g"] | np.ndarray, num_queries: int, num_gallery: int, *, same_images: bool
    ):
        self.distances = as_rows("distances", distances)
        expected = (num_queries, num_gallery)
        if self.distances.shape != expected:
            found = tuple(self.distances.shape)
            raise ValueError(f"distances has shape {found}: must be {expected}, queries by gallery")
        self.num_queries, self.num_gallery, self.leaves_self_out = num_queries, num_gallery, same_images
        self.dtype, self.device = self.distances.dtype, self.distances.device

    def rounding(self, rows: slice, index: Int[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """How far two computations of the same distance may lie apart: a few units in the last place."""
        return 4 * torch.finfo(self.dtype).eps * self.distances[rows].gather(1, index).abs()

    def _compare(self, rows: slice, similarity: Float[Tensor, "q g"]) -> None:
        torch.neg(self.distances[rows], out=similarity)


class ClassMembers:
    """Which rows of the gallery have the label of a query: `sizes` (q,) of them, `width` at most (and at least 1)."""

    def __init__(self, query_labels: Int[Tensor, " q"], gallery_labels: Int[Tensor, " g"]):
        # The gallery sorted by label: the members of a query's class are those from `first` to before `end`.
        ordered, self._by_label = gallery_labels.sort()
        self._first = torch.searchsorted(ordered, query_labels)[:, None]
        self._end = torch.searchsorted(ordered, query_labels, right=True)[:, None]
        self.sizes = (self._end - self._first).squeeze(1)
        self.width = max(1, int(self.sizes.max()))
        self._step = torch.arange(self.width, device=query_labels.device)

    def of(self, rows: slice) -> tuple[Int[Tensor, "q width"], Bool[Tensor, "q width"]]:
        """Gallery rows for these queries, and which of them belong to their class.

        Small classes repeat their last member, and a query whose class is missing gets any row.
        """
        place, end = self._first[rows] + self._step, self._end[rows]
        return self._by_label[torch.minimum(place, (end - 1).clamp(min=0))], place < end


def compared(
    query: Rows,
    gallery: Rows | None,
    metric: str,
    distances: Float[Tensor, "q g"] | np.ndarray | None,
    *,
    same_images: bool = False,
) -> Pairs:
    """Queries and gallery compared by `metric`, or by the distances that are given."""
    if same_images and gallery is not None and len(query) != len(gallery):
        raise ValueError(f"gallery has {len(gallery)} rows: must have {len(query)}, those of the same images as query")
    if distances is None:
        return Pairs(query, gallery, metric, same_images=same_images)
    _checks.choice("metric", metric, RANGE)
    num_gallery = len(query if gallery is None else gallery)
    return GivenDistances(distances, len(query), num_gallery, same_images=same_images or gallery is None)


def averaged(
    of_each: dict[str, Float[Tensor, " q"]], used: Bool[Tensor, " q"], per_query: bool = False
) -> dict[str, Any]:
    """Means over the queries that have positives, and the number of others; `per_query` the values, NaN for those."""
    if per_query:
        return {name: value.masked_fill(~used, math.nan) for name, value in of_each.items()}
    means = {name: value[used].mean().item() for name, value in of_each.items()}
    return means | {"excluded_queries": int((~used).sum())}


def _product(query: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], out: Float[Tensor, "q g"]) -> None:
    """The inner products of all queries with the gallery, into `out`, whatever autocast says.

    On a CPU by numpy: its BLAS (OpenBLAS) has kernels for every make of processor, where that of torch (MKL) took 1.4
    times as long on an AMD EPYC; and numpy computes only half of the products of a set with itself.
    """
    if query.device.type != "cpu":
        torch.mm(query, gallery.T, out=out)
        return
    with _threads_of_torch():
        np.matmul(query.numpy(), gallery.numpy().T, out=out.numpy())


def _threads_of_torch() -> contextlib.AbstractContextManager:
    """Let numpy use as many threads as torch, where threadpoolctl is there to tell it."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(torch.get_num_threads(), user_api="blas")
