"""Exact nearest neighbours, a chunk of queries at a time, so that memory does not grow with their number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core.evaluation.arrays import Rows
from gl_core.evaluation.similarities import RANGE, Pairs

__all__ = ["nearest_neighbours"]


def nearest_neighbours(
    query: Rows, gallery: Rows | None = None, k: int = 1, *, metric: str = "cosine", chunk_size: int | None = None
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The k rows of the gallery most similar to each query, best first: their similarities and their indices.

        cosine:     s = <q, g> / (|q| |g|), in [-1, 1]; 0 if a vector is zero
        euclidean:  s = -|q - g|^2, at most 0, of the vectors as given

    Of equal similarities (those of copies can differ in the last bits) the one with the lower index comes first; which
    of those that tie at the k-th place make it is not specified.

    Args:
        query: vectors (q, d).
        gallery: vectors (g, d). None: the queries are searched among themselves, each leaving out itself by its index.
        k: neighbours of each query, from 1 to g (without a gallery q - 1).
        metric: "cosine" or "euclidean".
        chunk_size: queries compared at a time, which bounds the memory; None: as many as fit into 256 MiB.

    Returns:
        Similarities, in float64 if either set is, else in float32, and indices: both (q, k), on the device of `query`.

    Raises:
        ValueError: the vectors are not two matrices of finite numbers with equally many columns, or a setting is out of
            its range.

    >>> nearest_neighbours(torch.tensor([[0., 0.], [3., 4.], [3., 5.]]), k=1, metric="euclidean")
    (tensor([[-25.],
            [ -1.],
            [ -1.]]), tensor([[1],
            [2],
            [1]]))
    """
    pairs = Pairs(query, gallery, metric)
    pairs.check_k("k", k)
    similarity = pairs.query.new_empty(len(pairs.query), k)
    index = similarity.new_empty(similarity.shape, dtype=torch.int64)
    for rows, all_of_them in pairs.chunks(chunk_size, kept=k):
        # in the order of the gallery first, so that the stable sort leaves equal similarities in that order
        nearest = all_of_them.topk(k, sorted=False).indices.sort(dim=1).values
        values = all_of_them.gather(1, nearest).clamp_(*RANGE[metric])
        similarity[rows], order = values.sort(dim=1, descending=True, stable=True)
        index[rows] = nearest.gather(1, order)
    return similarity, index
