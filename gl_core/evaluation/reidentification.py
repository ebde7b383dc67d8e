"""Re-identification: is the same person, or thing, found again by *another* camera?

Source: Zheng et al., "Scalable Person Re-identification: A Benchmark" (Market-1501), ICCV 2015, for the protocol.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gl_core import distributed
from gl_core.evaluation.arrays import Labels, Rows, as_cutoffs, as_labels
from gl_core.evaluation.similarities import ClassMembers, averaged, compared

__all__ = ["JUNK", "reid_metrics"]

JUNK = -1  # the identity of gallery images that count neither for nor against anybody


def reid_metrics(
    query: Rows,
    query_ids: Labels,
    query_cameras: Labels,
    gallery: Rows,
    gallery_ids: Labels,
    gallery_cameras: Labels,
    *,
    ranks: int | Iterable[int] = (1, 5, 10),
    metric: str = "cosine",
    distances: Float[Tensor, "q g"] | np.ndarray | None = None,
    chunk_size: int | None = None,
    shared: bool = False,
    per_query: bool = False,
) -> dict[str, Any]:
    """Mean average precision and the cumulative matching characteristic by the Market-1501 protocol.

    Left out for each query are the gallery images of its identity *and* its camera. Of what remains, its positives are
    the images of its identity, R of them, and all others are negatives. Let v_j be the number of negatives at least as
    similar as its j-th most similar positive:

        AP     = 1/R sum_j j / (j + v_j)
        Rank-K = 1 if 1 + v_1 <= K, else 0

    AP is the mean of the precision at each positive. (The benchmark's MATLAB code integrates precision over recall by
    trapezoids instead, which gives slightly other values.) Gallery images of identity -1 are junk, and removed; every
    other identity is one, 0 included: the distractors of Market-1501 (0000) are negatives of everybody. Ties count
    against the query, as in `gl_core.evaluation.retrieval_metrics`.

    Args:
        query: vectors (q, d).
        query_ids: whole numbers (q,), the identities.
        query_cameras: whole numbers (q,), the cameras.
        gallery: vectors (g, d).
        gallery_ids: whole numbers (g,).
        gallery_cameras: whole numbers (g,).
        ranks: the K of Rank-K, one or several, which may exceed the gallery.
        metric: "cosine" or "euclidean" (see `gl_core.evaluation.nearest_neighbours`).
        distances: (q, g), in the place of `metric`: those of `gl_core.rerank.k_reciprocal` for instance.
        chunk_size: queries compared at a time, which bounds the memory; None: as many as fit into 256 MiB.
        shared: the processes of `gl_core.distributed` share out the queries, as in `retrieval_metrics`.
        per_query: return the values of each query in the place of their means.

    Returns:
        The fractions "mAP" and "Rank-K", in [0, 1], and the number "excluded_queries" of queries without a positive,
        which are left out of the averages. With `per_query` a float64 tensor (q,) for each of the fractions, NaN for
        those queries.

    Raises:
        ValueError: the vectors are not two matrices of finite numbers with equally many columns, identities or cameras
            are missing or not one whole number a row, no query has a positive, or a setting is out of its range.

    The query's nearest image is of its own camera and left out; then come another person and, third, a positive.

    >>> gallery = torch.tensor([[1.], [2.], [3.]])
    >>> reid_metrics(torch.tensor([[0.]]), [7], [1], gallery, [7, 5, 7], [1, 2, 2], ranks=(1, 2), metric="euclidean")
    {'mAP': 0.5, 'Rank-1': 0.0, 'Rank-2': 1.0, 'excluded_queries': 0}
    """
    cutoffs = as_cutoffs("ranks", ranks)
    named = {"query_cameras": query_cameras, "gallery_cameras": gallery_cameras, "gallery": gallery}
    for name, values in named.items():
        if values is None:
            raise ValueError(f"{name} is missing: re-identification needs the cameras of all images, and a gallery")
    pairs = compared(query, gallery, metric, distances)
    query_ids = as_labels("query_ids", query_ids, pairs.num_queries, pairs.device)
    query_cameras = as_labels("query_cameras", query_cameras, pairs.num_queries, pairs.device)
    gallery_ids = as_labels("gallery_ids", gallery_ids, pairs.num_gallery, pairs.device)
    gallery_cameras = as_labels("gallery_cameras", gallery_cameras, pairs.num_gallery, pairs.device)
    junk = gallery_ids == JUNK
    people = ClassMembers(query_ids, gallery_ids)
    j = torch.arange(1, people.width + 1, device=pairs.device).double()
    metrics = torch.full((pairs.num_queries, 2), math.nan, dtype=torch.float64, device=pairs.device)
    average_precision, best_rank = metrics.unbind(dim=1)
    part = distributed.share(pairs.num_queries) if shared else None
    # All negatives are sorted, which takes their values and their places once more.
    for rows, similarity in pairs.chunks(chunk_size, kept=people.width + pairs.num_gallery // 8, part=part):
        members, same_person = people.of(rows)
        is_positive = same_person & (gallery_cameras[members] != query_cameras[rows, None])
        is_positive &= (query_ids[rows] != JUNK)[:, None]
        positive = similarity.gather(1, members) - pairs.rounding(rows, members)
        positive = positive.masked_fill_(~is_positive, -math.inf).sort(dim=1, descending=True).values
        # What is left out ranks behind everything, and so is in front of no positive.
        negative = similarity.scatter_(1, members, -math.inf).masked_fill_(junk, -math.inf)
        v = torch.searchsorted(-negative.sort(dim=1, descending=True).values, -positive, right=True)
        found = is_positive.sum(dim=1)
        relevant = j <= found[:, None]
        average_precision[rows] = (relevant * j / (j + v)).sum(dim=1) / found
        best_rank[rows] = torch.where(found > 0, 1 + v[:, 0], math.nan)
    if shared:
        average_precision, best_rank = distributed.join(metrics[part], pairs.num_queries).unbind(dim=1)
    used = ~best_rank.isnan()
    if not used.any():
        missing = "a positive, a gallery image of its identity by another camera"
        raise ValueError(f"query_ids: none of the {len(used)} queries has {missing}")
    of_each = {"mAP": average_precision} | {f"Rank-{cutoff}": (best_rank <= cutoff).double() for cutoff in cutoffs}
    return averaged(of_each, used, per_query)
