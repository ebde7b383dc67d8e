"""Nearest neighbours and what is reported of them: R@K, MAP@R, R-Precision, and NMI and AMI of clusters.

Similarities are computed for a chunk of queries at a time, so that memory does not grow with their number, and every
metric is exact: no index, no sampling. All of it runs on the device of the query vectors, in float32 or float64,
whatever autocast says. `torch.set_float32_matmul_precision` does reach it: keep its default, "highest", to rank by full
float32 products.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gl_core import _checks, distributed
from gl_core.evaluation.arrays import Labels, Rows, as_labels
from gl_core.evaluation.similarities import ClassMembers, compared

__all__ = ["retrieval_metrics"]


def retrieval_metrics(
    query: Rows,
    query_labels: Labels,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    metric: str = "cosine",
    distances: Float[Tensor, "q g"] | np.ndarray | None = None,
    same_images: bool = False,
    chunk_size: int | None = None,
    shared: bool = False,
) -> dict[str, float | int]:
    """How well the neighbours of a query share its label, averaged over queries.

    A query has R positives: the rows of the gallery with its label, without itself where the queries are their own
    gallery. Let v_j be the number of negatives at least as similar as its j-th most similar positive, which then has
    rank j + v_j:

        R@K         = 1 if 1 + v_1 <= K, else 0
        R-Precision = 1/R sum_j [j + v_j <= R]
        MAP@R       = 1/R sum_j [j + v_j <= R] j / (j + v_j)

    Ties count against the query: embeddings that have collapsed to one point score no better than chance. As equal
    vectors do not always give equal bits, a difference within the rounding error of a product of d terms is a tie, too:
    for cosine, max(4, sqrt(d) / 2) times the machine epsilon, 1.3e-6 in float32 and 2.5e-15 in float64 at d = 512; for
    euclidean, that times |q|^2 + |g|^2. Any larger difference decides.

    `distances` (q, g), those of `gl_core.rerank.k_reciprocal` for instance, take the place of `metric`; without a gallery
    they are (q, q). With `same_images` the gallery shows the same images as the queries, row by row, in vectors of their own:
    an image leaves out itself. `chunk_size` is the number of queries compared at a time, which bounds the memory; if None, as many as
    fit into 256 MiB.

    With `shared` the processes of `gl_core.distributed`, which all call this with the same vectors, share out the queries, and
    all return the metrics of all queries.

    Returns the fractions "R@K" for each K of `recall_at` (which may exceed the gallery), "MAP@R" and "R-Precision", all
    in [0, 1], and the number "excluded_queries" of queries without any positive: they are left out of the averages.

    Raises ValueError if the vectors are not two matrices of finite numbers with equally many columns, if labels are not
    one whole number a row, if no query has a positive, or a setting is out of its range.

    Source: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, for MAP@R and R-Precision.

    The neighbours are wrong, right, wrong, right, so the positives rank 2nd and 4th: MAP@R = 1/2 (1/2 + 0).

    >>> gallery = torch.tensor([[1.], [2.], [3.], [4.]])
    >>> retrieval_metrics(torch.tensor([[0.]]), [7], gallery, [5, 7, 5, 7], recall_at=(1, 2), metric="euclidean")
    {'R@1': 0.0, 'R@2': 1.0, 'MAP@R': 0.25, 'R-Precision': 0.5, 'excluded_queries': 0}
    """
    recall_at = tuple(recall_at)
    for cutoff in recall_at:
        _checks.count("recall_at", cutoff, least=1)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels: must be given together, or neither of them")
    if chunk_size is not None:
        _checks.count("chunk_size", chunk_size, least=1)
    pairs = compared(query, gallery, metric, distances, same_images=same_images)
    query_labels = as_labels("query_labels", query_labels, pairs.num_queries).to(pairs.device)
    if gallery is None:
        gallery_labels = query_labels
    else:
        gallery_labels = as_labels("gallery_labels", gallery_labels, pairs.num_gallery).to(pairs.device)

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
    return {
        **{f"R@{cutoff}": (best_rank[used] <= cutoff).double().mean().item() for cutoff in recall_at},
        "MAP@R": average_precision[used].mean().item(),
        "R-Precision": precision[used].mean().item(),
        "excluded_queries": int((~used).sum()),
    }
