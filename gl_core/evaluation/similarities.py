"""Queries compared with a gallery, a chunk at a time: what neighbours and all retrieval metrics are read from."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation.arrays import Rows, as_rows, squared_norms, unit_rows

__all__ = ["RANGE", "ClassMembers", "GivenDistances", "Pairs", "compared"]

CHUNK_BYTES = 256 * 2**20  # that the rows of one chunk of queries take, similarities and workspace together
WORKSPACE_BYTES = 128  # for each neighbour or positive that is kept of a row
RANGE = {"cosine": (-1.0, 1.0), "euclidean": (-math.inf, 0.0)}


class Pairs:
    """Query and gallery, checked, in one dtype on one device, to be compared by `metric` a chunk of queries at a time.

    `query_scale` and `gallery_scale` hold what the rounding errors of a row are proportional to. The terms that are
    added up for a similarity of q and g are bounded by |q| |g| = 1/2 + 1/2 for unit vectors, by |q|^2 + |g|^2 for
    squared distances.
    """

    def __init__(self, query: Rows, gallery: Rows | None, metric: str, *, same_images: bool = False):
        _checks.choice("metric", metric, RANGE)
        self.metric, self.leaves_self_out = metric, gallery is None or same_images
        if gallery is not None and same_images and len(query) != len(gallery):
            raise ValueError(
                f"gallery has {len(gallery)} rows: must have {len(query)}, those of the same images as query"
            )
        query = as_rows("query", query)
        if gallery is not None:
            gallery = as_rows("gallery", gallery).to(query.device)
            if gallery.shape[1] != query.shape[1]:
                raise ValueError(f"gallery has {gallery.shape[1]} columns: must have {query.shape[1]}, as query has")
            dtype = torch.promote_types(query.dtype, gallery.dtype)
            query, gallery = query.to(dtype), gallery.to(dtype)
        self.query, self.query_scale = self._prepare("query", query)
        self.gallery, self.gallery_scale = (
            (self.query, self.query_scale) if gallery is None else self._prepare("gallery", gallery)
        )
        self.num_queries, self.num_gallery, self.device = len(self.query), len(self.gallery), self.query.device
        self.candidates = self.num_gallery - int(self.leaves_self_out)

    def _prepare(self, name: str, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        if self.metric == "cosine":
            return unit_rows(x), x.new_full((len(x),), 0.5)
        return x, squared_norms(name, x)

    def rounding(self, rows: slice, index: Int[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """How far two computations of the similarity of these queries and gallery rows may lie apart.

        Sums of d terms in different orders drift apart like a random walk of d steps.
        """
        d = self.query.shape[1]
        spread = max(4.0, math.sqrt(d) / 2) * torch.finfo(self.query.dtype).eps
        return spread * (self.query_scale[rows, None] + self.gallery_scale[index])

    def chunks(
        self,
        chunk_size: int | None = None,
        *,
        kept: int,
        part: slice | None = None,
        whole: Float[Tensor, "q g"] | None = None,
    ) -> Iterator[tuple[slice, Float[Tensor, "q g"]]]:
        """Queries as a slice, and their similarity to the gallery, minus infinity for themselves if they are left out.

        All queries, or those of a `part`, in turn.

        The similarities may be overwritten, and are not valid after the next step: all chunks share one buffer, unless
        there is a place for the `whole`. `kept` is the number of neighbours or positives of each query that the caller
        works on.
        """
        if chunk_size is None:
            chunk_size = rows_of_a_chunk(len(self.gallery), self.query.element_size(), kept)
        if whole is None:
            buffer = self.query.new_empty(min(chunk_size, len(self.query)), len(self.gallery))
        for rows in _slices(part, len(self.query), chunk_size):
            similarity = buffer[: rows.stop - rows.start] if whole is None else whole[rows]
            _product(self.query[rows], self.gallery, similarity)
            if self.metric == "euclidean":
                # -|q - g|^2 = 2 <q, g> - |g|^2 - |q|^2
                torch.add(-self.gallery_scale, similarity, alpha=2, out=similarity).sub_(self.query_scale[rows, None])
            if self.leaves_self_out:
                similarity.diagonal(offset=rows.start).fill_(-math.inf)
            yield rows, similarity


class GivenDistances:
    """Distances that were computed before, by re-ranking for instance, in the place of `Pairs`: similarity is their negative."""

    def __init__(self, distances: Float[Tensor, "q g"] | np.ndarray, num_queries: int, num_gallery: int | None):
        distances = as_rows("distances", distances)
        expected = (num_queries, num_queries if num_gallery is None else num_gallery)
        if distances.shape != expected:
            raise ValueError(f"distances has shape {tuple(distances.shape)}: must be {expected}, queries by gallery")
        self.similarity, self.leaves_self_out = -distances, num_gallery is None
        self.num_queries, self.num_gallery, self.device = *expected, distances.device

    def rounding(self, rows: slice, index: Int[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """How far two computations of the same distance may lie apart: a few units in the last place."""
        values = self.similarity[rows].gather(1, index)
        return 4 * torch.finfo(values.dtype).eps * values.abs()

    def chunks(
        self, chunk_size: int | None = None, *, kept: int, part: slice | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "q g"]]]:
        """As `Pairs.chunks`."""
        if chunk_size is None:
            chunk_size = rows_of_a_chunk(self.num_gallery, self.similarity.element_size(), kept)
        for rows in _slices(part, self.num_queries, chunk_size):
            similarity = self.similarity[rows].clone()
            if self.leaves_self_out:
                similarity.diagonal(offset=rows.start).fill_(-math.inf)
            yield rows, similarity


class ClassMembers:
    """Which rows of the gallery have the label of a query.

    `sizes` (q,) is how many they are, `width` the most of any query, at least 1.
    """

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
) -> Pairs | GivenDistances:
    """Queries and gallery compared by `metric`, or by the distances that are given."""
    if distances is None:
        return Pairs(query, gallery, metric, same_images=same_images)
    _checks.choice("metric", metric, RANGE)
    return GivenDistances(distances, len(query), None if gallery is None else len(gallery))


def _slices(part: slice | None, n: int, chunk_size: int) -> Iterator[slice]:
    """The rows of a part, or all n, a chunk at a time."""
    first, last = (0, n) if part is None else (part.start, part.stop)
    for start in range(first, last, chunk_size):
        yield slice(start, min(start + chunk_size, last))


def rows_of_a_chunk(num_gallery: int, element_size: int, kept: int) -> int:
    """How many queries may be compared at a time."""
    return max(1, CHUNK_BYTES // (num_gallery * element_size + kept * WORKSPACE_BYTES))


def _product(query: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], out: Float[Tensor, "q g"]) -> None:
    """The inner products of all queries with the gallery, into `out`, whatever autocast says.

    On a CPU by numpy: its BLAS (OpenBLAS) has kernels for every make of processor, where that of torch (MKL) took 1.4 times as
    long on an AMD EPYC. It uses as many threads as torch, and numpy computes only half of the products of a set with itself.
    """
    if query.device.type != "cpu":
        torch.mm(query, gallery.T, out=out)
        return
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        np.matmul(query.numpy(), gallery.numpy().T, out=out.numpy())
