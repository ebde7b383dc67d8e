"""Re-ranking by k-reciprocal encoding, on sparse neighbour lists.

Two images are alike if they are in each other's neighbourhood, and more so if their neighbourhoods overlap. With D the squared
Euclidean distances of all images, each row divided by its largest entry, and N(i, k) image i and its k nearest others:

    R(i, k)   = {j in N(i, k): i in N(j, k)}                               reciprocal neighbours
    R*(i)     = R(i, k1) with R(j, k1/2) for each j in R(i, k1) that shares more than two thirds of it
    V_ij      = exp(-D_ij) for j in R*(i), else 0; rows divided by their sums
    V_i      <- mean of V_j over the k2 nearest j, i itself among them
    J_ij      = 1 - sum_c min(V_ic, V_jc) / sum_c max(V_ic, V_jc)          Jaccard distance
    result    = (1 - lambda) J_ij + lambda D_ij

V has a few hundred entries a row, whatever the number of images, so nothing here grows with the square of that number but the
one pass that compares all with all, and the result where it is asked for whole.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

import math

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation import Rows, _Pairs

__all__ = ["k_reciprocal"]


def k_reciprocal(
    query: Rows,
    gallery: Rows | None = None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    top_k: int | None = None,
) -> Float[Tensor, "q g"] | tuple[Float[Tensor, "q top_k"], Int[Tensor, "q top_k"]]:
    """Distances between queries and gallery after re-ranking, in [0, 1], smaller for more alike.

    Args:
        query: vectors (q, d), used as given: normalise them first where their length should not matter.
        gallery: vectors (g, d). Without it the queries are their own gallery: one set, in which each image is held once.
        k1: neighbours that are looked at, 1 or more. Published for Group Loss++: 50 on CUB and Cars, 6 on In-Shop.
        k2: neighbours whose encodings are averaged, 1 (none but the image's own) to k1. Published: 20 and 2.
        lambda_value: weight of the original distance, in [0, 1]; 1 gives the original ranking. Published: 0.94 and 0.4.
        top_k: if given, only the best `top_k` of each query are returned, and the (q, g) distances are never held at once.

    Returns the distances (q, g), or with `top_k` the smallest distances of each query and their indices in the gallery, both
    (q, top_k), nearest first; of equal distances the lower index first. Without a gallery an image's distance to itself (0) is
    in the dense result, and left out of the `top_k`.

    Raises ValueError if the vectors are not matrices of finite numbers with equally many columns, or a setting is out of its
    range.
    """
    _checks.count("k1", k1, least=1)
    _checks.count("k2", k2, least=1)
    if k2 > k1:
        raise ValueError(f"k2={k2}: must be at most k1={k1}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value={lambda_value}: must lie in [0, 1]")
    pairs = _Pairs(query, gallery, "euclidean")
    num_queries, device = len(pairs.query), pairs.query.device
    everyone = pairs.query if gallery is None else torch.cat([pairs.query, pairs.gallery])
    if top_k is not None:
        _checks.count("top_k", top_k, least=1)
        if top_k > pairs.candidates:
            raise ValueError(
                f"top_k={top_k}: must be at most {pairs.candidates}, the rows that a query is compared with"
            )
    if len(everyone) < 2:
        raise ValueError("query holds a single image: there is nothing to compare it with")

    first = 0 if gallery is None else num_queries  # of the gallery's rows among everyone's
    ranks, farthest = _neighbourhoods(everyone, min(k1, len(everyone) - 1))
    vectors = everyone.cpu().numpy()
    V = _encode(vectors, ranks, farthest, min(k2, ranks.shape[1]))
    gallery_columns = V[first:].tocsc()
    if top_k is None:
        result = _dense(pairs, V[:num_queries], gallery_columns, farthest[:num_queries], lambda_value)
        return torch.from_numpy(result).to(device)
    nearest, distance = _nearest(pairs, top_k)
    best, index = _sparse(
        V.indptr[: num_queries + 1], V.indices, V.data,
        gallery_columns.indptr, gallery_columns.indices, gallery_columns.data,
        vectors[:num_queries], vectors[first:], farthest[:num_queries], nearest, distance,
        lambda_value, top_k, gallery is None,
    )  # fmt: skip
    return torch.from_numpy(best).to(device), torch.from_numpy(index).to(device)


def _neighbourhoods(vectors: Float[Tensor, "n d"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """N(i, k) of every image, (n, k + 1) with itself first, and its largest squared distance (n,), in one pass."""
    pairs = _Pairs(vectors, None, "euclidean")
    ranks = torch.empty(len(vectors), k + 1, dtype=torch.int64)
    farthest = torch.empty(len(vectors), dtype=vectors.dtype)
    ranks[:, 0] = torch.arange(len(vectors))
    for rows, similarity in pairs.chunks(kept=k):
        ranks[rows, 1:] = similarity.topk(k, dim=1).indices.cpu()
        similarity.diagonal(offset=rows.start).fill_(0)
        farthest[rows] = -similarity.amin(dim=1).cpu()
    # All images equal: their distances are 0 whatever they are divided by.
    return ranks.numpy(), torch.where(farthest > 0, farthest, 1).numpy()


def _encode(vectors: np.ndarray, ranks: np.ndarray, farthest: np.ndarray, k2: int) -> sparse.csr_matrix:
    """V, with the rows averaged over the k2 nearest."""
    n = len(vectors)
    half = int(np.around((ranks.shape[1] - 1) / 2))
    sizes = _expanded(ranks, half, np.empty((0, 0), np.int64))
    members = np.full((n, sizes.max()), -1)
    _expanded(ranks, half, members)
    indptr = np.concatenate([[0], sizes.cumsum()])
    V = sparse.csr_matrix((_weights(vectors, members, sizes, farthest), members[members >= 0], indptr), shape=(n, n))
    if k2 > 1:
        average = sparse.csr_matrix(
            (np.full(n * k2, 1 / k2, vectors.dtype), ranks[:, :k2].ravel(), np.arange(n + 1) * k2), shape=(n, n)
        )
        V = average @ V
    return V


@numba.njit(parallel=True, cache=True)
def _expanded(ranks, half, members):
    """The sizes of R*(i) for every i, and, where `members` has rows for them, the members themselves."""
    n, width = ranks.shape
    sizes = np.empty(n, np.int64)
    for i in numba.prange(n):
        own = np.empty(width, np.int64)
        num_own = _reciprocal(ranks, i, width, own)
        found = np.empty(num_own * (half + 2), np.int64)
        found[:num_own] = own[:num_own]
        num_found = num_own
        theirs = np.empty(half + 1, np.int64)
        for position in range(num_own):
            num_theirs = _reciprocal(ranks, own[position], half + 1, theirs)
            shared = 0
            for j in theirs[:num_theirs]:
                shared += _contains(own, num_own, j)
            if shared > 2 / 3 * num_theirs:
                for j in theirs[:num_theirs]:
                    if not _contains(found, num_found, j):
                        found[num_found] = j
                        num_found += 1
        sizes[i] = num_found
        if len(members) > 0:
            for position in range(num_found):
                members[i, position] = found[position]
    return sizes


@numba.njit(cache=True)
def _reciprocal(ranks, i, width, out):
    """R(i, width - 1) into `out`; returns how many."""
    count = 0
    for j in ranks[i, :width]:
        if _contains(ranks[j], width, i):
            out[count] = j
            count += 1
    return count


@numba.njit(cache=True)
def _contains(values, length, wanted):
    for position in range(length):
        if values[position] == wanted:
            return True
    return False


@numba.njit(cache=True, fastmath=True)
def _squared_distance(a, b):
    total = a[0] * 0
    for c in range(len(a)):
        total += (a[c] - b[c]) ** 2
    return total


@numba.njit(parallel=True, cache=True)
def _weights(vectors, members, sizes, farthest):
    """exp(-D_ij) of the members of every R*(i), divided by their sum, row after row."""
    starts = np.cumsum(sizes) - sizes
    weights = np.empty(sizes.sum(), vectors.dtype)
    for i in numba.prange(len(sizes)):
        row = weights[starts[i] : starts[i] + sizes[i]]
        for position in range(sizes[i]):
            row[position] = math.exp(-_squared_distance(vectors[i], vectors[members[i, position]]) / farthest[i])
        row /= row.sum()
    return weights


@numba.njit(cache=True)
def _shared(indices, data, column_starts, column_indices, column_data, total, touched):
    """Adds sum_c min(V_ic, V_jc) to total[j] for one row i given by `indices` and `data`; returns how many j it touched."""
    count = 0
    for position in range(len(indices)):
        c, value = indices[position], data[position]
        for entry in range(column_starts[c], column_starts[c + 1]):
            j = column_indices[entry]
            if total[j] == 0:
                touched[count] = j
                count += 1
            total[j] += min(value, column_data[entry])
    return count


def _dense(
    pairs: _Pairs, V: sparse.csr_matrix, columns: sparse.csc_matrix, farthest: np.ndarray, lambda_value: float
) -> np.ndarray:
    result = np.empty((V.shape[0], columns.shape[0]), V.dtype)
    arrays = (V.indptr, V.indices, V.data, columns.indptr, columns.indices, columns.data)
    for rows, similarity in pairs.chunks(kept=1):
        if pairs.leaves_self_out:
            similarity.diagonal(offset=rows.start).fill_(0)
        original = -similarity.clamp_(max=0).cpu().numpy() / farthest[rows, None]
        _mix(rows.start, *arrays, original, lambda_value, result[rows])
    return result


@numba.njit(parallel=True, cache=True)
def _mix(start, starts, indices, data, column_starts, column_indices, column_data, original, lambda_value, out):
    for row in numba.prange(len(out)):
        i = start + row
        entries = slice(starts[i], starts[i + 1])
        total, touched = np.zeros(out.shape[1], data.dtype), np.empty(out.shape[1], np.int64)
        _shared(indices[entries], data[entries], column_starts, column_indices, column_data, total, touched)
        for j in range(out.shape[1]):
            # Rows of V sum to 1, so the sum of the larger ones is 2 less the sum of the smaller ones.
            jaccard = 1 - total[j] / (2 - total[j])
            out[row, j] = (1 - lambda_value) * jaccard + lambda_value * original[row, j]


def _nearest(pairs: _Pairs, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of each query and their squared distances."""
    index = np.empty((len(pairs.query), k), np.int64)
    distance = np.empty((len(pairs.query), k), pairs.query.cpu().numpy().dtype)
    for rows, similarity in pairs.chunks(kept=k):
        values, nearest = similarity.topk(k, dim=1)
        index[rows], distance[rows] = nearest.cpu().numpy(), -values.clamp_(max=0).cpu().numpy()
    return index, distance


@numba.njit(parallel=True, cache=True)
def _sparse(
    starts, indices, data, column_starts, column_indices, column_data,
    query, gallery, farthest, nearest, nearest_distance, lambda_value, top_k, leaves_self_out,
):  # fmt: skip
    """The best `top_k` of each query.

    A gallery image whose encoding shares nothing with the query's has Jaccard distance 1, so among those the originally
    nearest come first: the best are found among the images that share something and the `top_k` originally nearest.
    """
    best = np.empty((len(query), top_k), data.dtype)
    index = np.empty((len(query), top_k), np.int64)
    for i in numba.prange(len(query)):
        entries = slice(starts[i], starts[i + 1])
        total, touched = np.zeros(len(gallery), data.dtype), np.empty(len(gallery), np.int64)
        count = _shared(indices[entries], data[entries], column_starts, column_indices, column_data, total, touched)
        candidates = np.empty(count + top_k, np.int64)
        values = np.empty(count + top_k, data.dtype)
        number = 0
        for j in touched[:count]:
            if leaves_self_out and j == i:
                continue
            original = _squared_distance(query[i], gallery[j]) / farthest[i]
            candidates[number] = j
            values[number] = (1 - lambda_value) * (1 - total[j] / (2 - total[j])) + lambda_value * original
            number += 1
        for position in range(top_k):
            j = nearest[i, position]
            if total[j] == 0:
                candidates[number] = j
                values[number] = (1 - lambda_value) + lambda_value * nearest_distance[i, position] / farthest[i]
                number += 1
        by_index = np.argsort(candidates[:number])
        order = by_index[np.argsort(values[:number][by_index], kind="mergesort")][:top_k]
        best[i], index[i] = values[order], candidates[order]
    return best, index
