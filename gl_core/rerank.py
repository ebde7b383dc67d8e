"""Re-ranking by k-reciprocal encoding, on sparse neighbour lists.

Two images are alike if they are in each other's neighbourhood, and more so if their neighbourhoods overlap. With D the
squared Euclidean distances of all images, each row divided by its largest entry, and N(i, k) image i and its k nearest
others:

    R(i, k)   = {j in N(i, k): i in N(j, k)}                               reciprocal neighbours
    R*(i)     = R(i, k1) with R(j, k1/2) for each j in R(i, k1) that shares more than two thirds of it
    V_ij      = exp(-D_ij) for j in R*(i), else 0; rows divided by their sums
    V_i      <- mean of V_j over the k2 nearest j, i itself among them
    J_ij      = 1 - sum_c min(V_ic, V_jc) / sum_c max(V_ic, V_jc)          Jaccard distance
    result    = (1 - lambda) J_ij + lambda D_ij

V has a few hundred entries a row, whatever the number of images: only the passes that compare all with all, a chunk at
a time, grow with the square of that number. Those run on the device of the vectors; encodings and Jaccard distances,
which merge and count lists of different lengths, on the CPU in compiled loops (numba).

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.

Needs numba and scipy: `pip install "gl_core[rerank]"`.
"""

import math
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core import _checks
from gl_core._extras import require
from gl_core.evaluation.arrays import Rows
from gl_core.evaluation.similarities import Pairs

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["k_reciprocal"]

# From this share of entries of V that are not 0 on, it pays to work on so many rows together.
DENSE, BLOCK = 0.04, 64


@overload
def k_reciprocal(
    query: Rows, gallery: Rows | None = None, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3,
    top_k: None = None, chunk_size: int | None = None,
) -> Float[Tensor, "q g"]: ...  # fmt: skip
@overload
def k_reciprocal(
    query: Rows, gallery: Rows | None = None, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3,
    top_k: int, chunk_size: int | None = None,
) -> tuple[Float[Tensor, "q top_k"], Int[Tensor, "q top_k"]]: ...  # fmt: skip
def k_reciprocal(
    query: Rows,
    gallery: Rows | None = None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    top_k: int | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "q g"] | tuple[Float[Tensor, "q top_k"], Int[Tensor, "q top_k"]]:
    """Distances between queries and gallery after re-ranking, in [0, 1], smaller for more alike.

    Args:
        query: vectors (q, d), used as given: normalise them first where their length should not matter.
        gallery: vectors (g, d). Without it the queries are their own gallery: one set, in which each image is held
            once.
        k1: neighbours that are looked at, 1 or more. Published for Group Loss++: 50 on CUB and Cars, 6 on In-Shop.
        k2: neighbours whose encodings are averaged, 1 (none but the image's own) to k1. Published: 20 and 2.
        lambda_value: weight of the original distance, in [0, 1]; 1 gives the original ranking. Published: 0.94 and 0.4.
        top_k: if given, only the best `top_k` of each query are returned, and the (q, g) distances are never held at
            once.
        chunk_size: queries compared at a time, which bounds the memory; None: as many as fit into 256 MiB.

    Returns:
        The distances (q, g), without a gallery those of each image to itself (0) among them. With `top_k` the smallest
        distances of each query to others and their indices in the gallery, both (q, top_k), nearest first; of equal
        distances the lower index first.

    Raises:
        ValueError: the vectors are not matrices of finite numbers with equally many columns, or a setting is out of its
            range.
        ImportError: numba or scipy is not installed.
    """
    _checks.count("k1", k1, least=1)
    _checks.count("k2", k2, least=1)
    if k2 > k1:
        raise ValueError(f"k2={k2}: must be at most k1={k1}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value={lambda_value}: must lie in [0, 1]")
    pairs = Pairs(query, gallery, "euclidean")
    num_queries, device = len(pairs.query), pairs.query.device
    everyone = pairs.query if gallery is None else torch.cat([pairs.query, pairs.gallery])
    if top_k is not None:
        pairs.check_k("top_k", top_k)
    if len(everyone) < 2:
        raise ValueError("query holds a single image: there is nothing to compare it with")
    for module in ("numba", "scipy.sparse"):
        require(module, extra="rerank")

    first = 0 if gallery is None else num_queries  # of the gallery's rows among everyone's
    vectors = everyone.cpu().numpy()
    # Where distances are wanted whole, similarities are kept from the first pass, so that there is no second one.
    # By numpy, whose large arrays come in large pages: the system hands those out several times as fast.
    shape = (num_queries, len(pairs.gallery))
    whole = torch.from_numpy(np.empty(shape, vectors.dtype)) if top_k is None else None
    among_all = pairs if gallery is None else Pairs(everyone, None, "euclidean")
    ranks, farthest = _neighbourhoods(among_all, min(k1, len(everyone) - 1), chunk_size, whole)
    V = _encode(vectors, ranks, farthest, min(k2, ranks.shape[1]))
    gallery_columns = V[first:].tocsc()
    if whole is not None:
        _mix(0, V, gallery_columns, farthest, lambda_value, whole.numpy(), symmetric=gallery is None)
        return whole.to(device)
    assert top_k is not None
    distance = torch.empty(num_queries, top_k, dtype=everyone.dtype, device=device)
    index = torch.empty(num_queries, top_k, dtype=torch.int64, device=device)
    for rows, similarity in pairs.chunks(chunk_size, kept=top_k):
        if pairs.leaves_self_out:
            similarity.diagonal(offset=rows.start).fill_(0)
        mixed = similarity.cpu()
        _mix(rows.start, V, gallery_columns, farthest, lambda_value, mixed.numpy())
        mixed = mixed.to(device)
        if pairs.leaves_self_out:
            mixed.diagonal(offset=rows.start).fill_(math.inf)
        # In the order of the gallery first, so that the stable sort leaves equal distances in that order.
        nearest = mixed.topk(top_k, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        distance[rows], order = mixed.gather(1, nearest).sort(dim=1, stable=True)
        index[rows] = nearest.gather(1, order)
    return distance, index


def _neighbourhoods(
    pairs: Pairs, k: int, chunk_size: int | None, whole: Float[Tensor, "q g"] | None
) -> tuple[np.ndarray, np.ndarray]:
    """N(i, k) of every image, (n, k + 1) with itself first, and its largest squared distance (n,), in one pass.

    If `whole` is given, it is filled with the similarities of the first q images to the last g.
    """
    n = len(pairs.query)
    ranks = torch.empty(n, k + 1, dtype=torch.int32)
    farthest = torch.empty(n, dtype=pairs.query.dtype)
    ranks[:, 0] = torch.arange(n)
    for rows, similarity in pairs.chunks(chunk_size, kept=k):
        ranks[rows, 1:] = similarity.topk(k, dim=1).indices.int().cpu()
        similarity.diagonal(offset=rows.start).fill_(0)
        farthest[rows] = -similarity.amin(dim=1).cpu()
        if whole is not None and rows.start < len(whole):
            part = whole[rows]
            part.copy_(similarity[: len(part), -whole.shape[1] :])
    # All images equal: their distances are 0 whatever they are divided by.
    return ranks.numpy(), torch.where(farthest > 0, farthest, 1).numpy()


def _encode(vectors: np.ndarray, ranks: np.ndarray, farthest: np.ndarray, k2: int) -> "sparse.csr_matrix":
    """V, with the rows averaged over the k2 nearest."""
    from scipy import sparse

    from gl_core import _rerank_loops as loops

    n = len(vectors)
    half = int(np.around((ranks.shape[1] - 1) / 2))
    own, nearer = loops.reciprocal(ranks, ranks.shape[1]), loops.reciprocal(ranks, half + 1)
    sizes = loops.expanded(*own, *nearer, np.empty((0, 0), np.int32))
    members = np.full((n, sizes.max()), -1, np.int32)
    loops.expanded(*own, *nearer, members)
    indptr = np.concatenate([[0], sizes.cumsum()])
    V = sparse.csr_matrix(
        (loops.weights(vectors, members, sizes, farthest), members[members >= 0], indptr), shape=(n, n)
    )
    if k2 > 1:
        average = sparse.csr_matrix(
            (np.full(n * k2, 1 / k2, vectors.dtype), ranks[:, :k2].ravel(), np.arange(n + 1) * k2), shape=(n, n)
        )
        V = average @ V
    return V


def _mix(
    start: int,
    V: "sparse.csr_matrix",
    columns: "sparse.csc_matrix",
    farthest: np.ndarray,
    lambda_value: float,
    D: np.ndarray,
    *,
    symmetric: bool = False,
) -> None:
    """Turn negative squared distances D of queries to the gallery into re-ranked distances, in place.

    The queries are those from `start` on. `symmetric`: D holds the distances of one set to itself.
    """
    from gl_core import _rerank_loops as loops

    encodings = (V.indptr, V.indices, V.data, columns.indptr, columns.indices, columns.data)
    # Numbers in the type of D: with others the whole sum would be computed in float64.
    numbers = np.array([1 - lambda_value, 1, 2, 0], D.dtype), (-lambda_value / farthest).astype(D.dtype)
    if V.nnz > DENSE * len(farthest) ** 2:
        # Rows that have most columns in common anyway are worked on together, a vector instruction for many of them.
        loops.mix_blocks(start, BLOCK, symmetric, *encodings, *numbers, D)
    else:
        loops.mix_rows(start, *encodings, *numbers, D)
