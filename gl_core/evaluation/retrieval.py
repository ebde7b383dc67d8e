"""Retrieval metrics: R@K, R-Precision and MAP@R."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gl_core import distributed
from gl_core.evaluation.arrays import Labels, Rows, as_cutoffs, as_labels
from gl_core.evaluation.similarities import ClassMembers, averaged, compared

__all__ = ["retrieval_metrics"]


def retrieval_metrics(
    query: Rows,
    query_labels: Labels,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
    *,
    recall_at: int | Iterable[int] = (1, 2, 4, 8),
    metric: str = "cosine",
    distances: Float[Tensor, "q g"] | np.ndarray | None = None,
    same_images: bool = False,
    chunk_size: int | None = None,
    shared: bool = False,
    per_query: bool = False,
) -> dict[str, Any]:
    """How well the neighbours of a query share its label, averaged over queries.

    A query has R positives: the rows of the gallery with its label, without itself where the queries are their own
    gallery. Let v_j be the number of negatives at least as similar as its j-th most similar positive, which then has
    rank j + v_j:

        R@K         = 1 if 1 + v_1 <= K, else 0
        R-Precision = 1/R sum_j [j + v_j <= R]
        MAP@R       = 1/R sum_j [j + v_j <= R] j / (j + v_j)

    Ties count against the query: embeddings that have collapsed to one point score no better than chance. A difference
    within the rounding error of a product of d terms is a tie, too: for cosine, max(4, sqrt(d) / 2) times the machine
    epsilon (1.3e-6 in float32 at d = 512); for euclidean, that times |q|^2 + |g|^2, after subtracting an offset that
    all vectors share.

    Source: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, for MAP@R and R-Precision.

    Args:
        query: vectors (q, d).
        query_labels: whole numbers (q,).
        gallery: vectors (g, d). None, or `query` itself: the queries are their own gallery, each left out of its own
            neighbours by its index. Vectors that only equal those of the queries are other images, with a warning.
        gallery_labels: whole numbers (g,), given with a gallery.
        recall_at: the K of R@K, one or several, which may exceed the gallery.
        metric: "cosine" or "euclidean" (see `gl_core.evaluation.nearest_neighbours`).
        distances: (q, g), in the place of `metric`: those of `gl_core.rerank.k_reciprocal` for instance.
        same_images: row i of the gallery shows the image of query i, as another vector: it is left out for that query.
        chunk_size: queries compared at a time, which bounds the memory; None: as many as fit into 256 MiB.
        shared: the processes of `gl_core.distributed`, which all call this with the same vectors, share out the
            queries; all return the metrics of all queries.
        per_query: return the values of each query in the place of their means.

    Returns:
        The fractions "R@K", "MAP@R" and "R-Precision", in [0, 1], and the number "excluded_queries" of queries without
        any positive, which are left out of the averages. With `per_query` a float64 tensor (q,) for each of the
        fractions, NaN for queries without a positive.

    Raises:
        ValueError: the vectors are not two matrices of finite numbers with equally many columns, labels are not one
            whole number a row, no query has a positive, or a setting is out of its range.

    The neighbours are wrong, right, wrong, right, so the positives rank 2nd and 4th: MAP@R = 1/2 (1/2 + 0).

    >>> gallery = torch.tensor([[1.], [2.], [3.], [4.]])
    >>> retrieval_metrics(torch.tensor([[0.]]), [7], gallery, [5, 7, 5, 7], recall_at=(1, 2), metric="euclidean")
    {'R@1': 0.0, 'R@2': 1.0, 'MAP@R': 0.25, 'R-Precision': 0.5, 'excluded_queries': 0}
    """
    cutoffs = as_cutoffs("recall_at", recall_at)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels: must be given together, or neither of them")
    pairs = compared(query, None if gallery is query else gallery, metric, distances, same_images=same_images)
    query_labels = as_labels("query_labels", query_labels, pairs.num_queries, pairs.device)
    if gallery_labels is None:
        gallery_labels = query_labels
    else:
        gallery_labels = as_labels("gallery_labels", gallery_labels, pairs.num_gallery, pairs.device)
        if pairs.leaves_self_out and not gallery_labels.equal(query_labels):
            raise ValueError("gallery_labels: must be equal to query_labels, as the gallery shows the same images")
        if distances is None and not pairs.leaves_self_out and pairs.query.equal(pairs.gallery):
            warnings.warn(
                "gallery holds the vectors of query, so that each query finds itself: pass gallery=None if they are "
                "the same images",
                stacklevel=2,
            )

    classes = ClassMembers(query_labels, gallery_labels)
    num_positives = classes.sizes - int(pairs.leaves_self_out)
    used = num_positives > 0
    if not used.any():
        raise ValueError(f"query_labels: none of the {len(used)} queries has a positive, a gallery row of its label")

    j = torch.arange(1, classes.width + 1, device=pairs.device).double()
    found = torch.empty(len(used), 3, dtype=torch.float64, device=pairs.device)
    best_rank, precision, average_precision = found.unbind(dim=1)
    part = distributed.share(len(used)) if shared else None
    for rows, similarity in pairs.chunks(chunk_size, kept=classes.width, part=part):
        positives = num_positives[rows, None]
        members, belongs = classes.of(rows)
        positive = similarity.gather(1, members) - pairs.rounding(rows, members)
        positive = positive.masked_fill_(~belongs, -math.inf).sort(dim=1, descending=True).values
        negative = similarity.scatter_(1, members, -math.inf)
        # v_j of the formula, cut off at `width`: from there on the rank exceeds R in any case
        v = torch.searchsorted(-negative.topk(classes.width).values, -positive, right=True)
        rank = j + v
        relevant = rank <= positives
        precision[rows] = relevant.sum(dim=1) / positives.squeeze(1).double()
        average_precision[rows] = (relevant * j / rank).sum(dim=1) / positives.squeeze(1)
        first_rank = 1 + v[:, 0].double()
        # Where more negatives are in front of the best positive than were looked at, all are counted.
        far = (v[:, 0] == classes.width).nonzero().squeeze(1)
        first_rank[far] = 1 + (negative[far] >= positive[far, :1]).sum(dim=1).double()
        best_rank[rows] = first_rank
    if shared:
        best_rank, precision, average_precision = distributed.join(found[part], len(used)).unbind(dim=1)
    of_each = {f"R@{cutoff}": (best_rank <= cutoff).double() for cutoff in cutoffs}
    of_each |= {"MAP@R": average_precision, "R-Precision": precision}
    return averaged(of_each, used, per_query)
