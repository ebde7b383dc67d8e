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
passes that compare all with all, a chunk at a time, and the result where it is asked for whole.

The products and neighbours of those passes are found on the device of the vectors, a GPU where they are on one. Encodings and
Jaccard distances are made on the CPU in any case, chunks of distances going there and back: they merge and count lists of
different lengths, which compiled loops (numba) do as they are, while a GPU would need padding or additions in random order.

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
from gl_core.evaluation.arrays import Rows
from gl_core.evaluation.similarities import Pairs

__all__ = ["k_reciprocal"]

# From this share of entries of V that are not 0 on, it pays to work on so many rows together.
DENSE, BLOCK = 0.04, 64


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
        gallery: vectors (g, d). Without it the queries are their own gallery: one set, in which each image is held once.
        k1: neighbours that are looked at, 1 or more. Published for Group Loss++: 50 on CUB and Cars, 6 on In-Shop.
        k2: neighbours whose encodings are averaged, 1 (none but the image's own) to k1. Published: 20 and 2.
        lambda_value: weight of the original distance, in [0, 1]; 1 gives the original ranking. Published: 0.94 and 0.4.
        top_k: if given, only the best `top_k` of each query are returned, and the (q, g) distances are never held at once.
        chunk_size: queries compared at a time, which bounds the memory; if None, as many as fit into 256 MiB.

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
    pairs = Pairs(query, gallery, "euclidean")
    num_queries, device = len(pairs.query), pairs.query.device
    everyone = pairs.query if gallery is None else torch.cat([pairs.query, pairs.gallery])
    if top_k is not None:
        _checks.count("top_k", top_k, least=1)
        if top_k > pairs.candidates:
            raise ValueError(
                f"top_k={top_k}: must be at most {pairs.candidates}, the rows that a query is compared with"
            )
    if chunk_size is not None:
        _checks.count("chunk_size", chunk_size, least=1)
    if len(everyone) < 2:
        raise ValueError("query holds a single image: there is nothing to compare it with")

    first = 0 if gallery is None else num_queries  # of the gallery's rows among everyone's
    # Where distances are wanted whole, similarities are kept from the first pass, so that there is no second one.
    vectors, whole = everyone.cpu().numpy(), None
    if top_k is None:
        # By numpy, whose large arrays come in large pages: the system hands those out several times as fast.
        whole = torch.from_numpy(np.empty((num_queries, len(pairs.gallery)), vectors.dtype))
    among_all = pairs if gallery is None else Pairs(everyone, None, "euclidean")
    ranks, farthest = _neighbourhoods(among_all, min(k1, len(everyone) - 1), chunk_size, whole)
    V = _encode(vectors, ranks, farthest, min(k2, ranks.shape[1]))
    gallery_columns = V[first:].tocsc()
    if top_k is None:
        _mix(0, V, gallery_columns, farthest, lambda_value, whole.numpy(), symmetric=gallery is None)
        return whole.to(device)
    distance = torch.empty(num_queries, top_k, dtype=everyone.dtype, device=device)
    index = torch.empty(num_queries, top_k, dtype=torch.int64, device=device)
    for rows, similarity in pairs.chunks(chunk_size, kept=top_k):
        itself = similarity.diagonal(offset=rows.start) if pairs.leaves_self_out else similarity.new_empty(0)
        itself.fill_(0)
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
    in_place = whole is not None and whole.shape == (n, n) and whole.device == pairs.device
    for rows, similarity in pairs.chunks(chunk_size, kept=k, whole=whole if in_place else None):
        ranks[rows, 1:] = similarity.topk(k, dim=1).indices.int().cpu()
        similarity.diagonal(offset=rows.start).fill_(0)
        farthest[rows] = -similarity.amin(dim=1).cpu()
        if whole is not None and not in_place and rows.start < len(whole):
            part = whole[rows]
            part.copy_(similarity[: len(part), -whole.shape[1] :])
    # All images equal: their distances are 0 whatever they are divided by.
    return ranks.numpy(), torch.where(farthest > 0, farthest, 1).numpy()


def _encode(vectors: np.ndarray, ranks: np.ndarray, farthest: np.ndarray, k2: int) -> sparse.csr_matrix:
    """V, with the rows averaged over the k2 nearest."""
    n = len(vectors)
    half = int(np.around((ranks.shape[1] - 1) / 2))
    own, nearer = _reciprocal(ranks, ranks.shape[1]), _reciprocal(ranks, half + 1)
    sizes = _expanded(*own, *nearer, np.empty((0, 0), np.int32))
    members = np.full((n, sizes.max()), -1, np.int32)
    _expanded(*own, *nearer, members)
    indptr = np.concatenate([[0], sizes.cumsum()])
    V = sparse.csr_matrix((_weights(vectors, members, sizes, farthest), members[members >= 0], indptr), shape=(n, n))
    if k2 > 1:
        average = sparse.csr_matrix(
            (np.full(n * k2, 1 / k2, vectors.dtype), ranks[:, :k2].ravel(), np.arange(n + 1) * k2), shape=(n, n)
        )
        V = average @ V
    return V


@numba.njit(parallel=True, cache=True)
def _reciprocal(ranks, width):
    """R(i, width - 1) of every image i, and how many they are."""
    n = len(ranks)
    found = np.empty((n, width), np.int32)
    sizes = np.zeros(n, np.int64)
    for i in numba.prange(n):
        for j in ranks[i, :width]:
            for other in ranks[j, :width]:
                if other == i:
                    found[i, sizes[i]] = j
                    sizes[i] += 1
                    break
    return found, sizes


@numba.njit(parallel=True, cache=True)
def _expanded(own, num_own, nearer, num_nearer, members):
    """The sizes of R*(i) for every i, and, where `members` has rows for them, the members themselves."""
    n = len(own)
    sizes = np.empty(n, np.int64)
    for i in numba.prange(n):
        is_own, is_member = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for j in own[i, : num_own[i]]:
            is_own[j] = True
        count = 0
        for j in own[i, : num_own[i]]:
            count = _enter(j, is_member, members, i, count)
        for j in own[i, : num_own[i]]:
            theirs = nearer[j, : num_nearer[j]]
            shared = 0
            for other in theirs:
                shared += is_own[other]
            if shared > 2 / 3 * len(theirs):
                for other in theirs:
                    count = _enter(other, is_member, members, i, count)
        sizes[i] = count
    return sizes


@numba.njit(cache=True)
def _enter(j, is_member, members, i, count):
    if is_member[j]:
        return count
    is_member[j] = True
    if len(members) > 0:
        members[i, count] = j
    return count + 1


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


def _mix(
    start: int,
    V: sparse.csr_matrix,
    columns: sparse.csc_matrix,
    farthest: np.ndarray,
    lambda_value: float,
    D: np.ndarray,
    *,
    symmetric: bool = False,
) -> None:
    """Similarities D of the queries from `start` on to the gallery, squared distances with a minus, become re-ranked distances,
    in place.

    `symmetric`: D holds all similarities of one set to itself.
    """
    encodings = (V.indptr, V.indices, V.data, columns.indptr, columns.indices, columns.data)
    # Numbers in the type of D: with others the whole sum would be computed in float64.
    numbers = np.array([1 - lambda_value, 1, 2, 0], D.dtype), (-lambda_value / farthest).astype(D.dtype)
    if V.nnz > DENSE * math.prod(V.shape):
        # Rows that have most columns in common anyway are worked on together, a vector instruction for many of them.
        _mix_blocks(start, BLOCK, symmetric, *encodings, *numbers, D)
    else:
        _mix_rows(start, *encodings, *numbers, D)


@numba.njit(parallel=True, cache=True)
def _mix_rows(start, starts, indices, data, column_starts, column_indices, column_data, constants, scale, D):
    weight, one, two, zero = constants[0], constants[1], constants[2], constants[3]
    for row in numba.prange(len(D)):
        # shared[j] = sum_c min(V_ic, V_jc)
        shared = np.zeros(D.shape[1], data.dtype)
        for position in range(starts[start + row], starts[start + row + 1]):
            c, own = indices[position], data[position]
            for entry in range(column_starts[c], column_starts[c + 1]):
                shared[np.uint32(column_indices[entry])] += min(own, column_data[entry])
        mixed, own_scale = D[row], scale[start + row]
        for j in range(len(mixed)):
            # Rows of V sum to 1, so the sum of the larger ones is 2 less the sum of the smaller ones.
            mixed[j] = weight * (one - shared[j] / (two - shared[j])) + own_scale * min(zero, mixed[j])


@numba.njit(parallel=True, cache=True)
def _mix_blocks(
    start, block, mirrored, starts, indices, data, column_starts, column_indices, column_data, constants, scale, D
):
    weight, one, two, zero = constants[0], constants[1], constants[2], constants[3]
    for number in numba.prange((len(D) + block - 1) // block):
        first, end = number * block, min((number + 1) * block, len(D))
        # The columns that occur in these rows, and their values: a row for each column, 0 where it does not occur.
        place = np.full(len(column_starts) - 1, -1, np.int32)
        occurring = np.empty(len(column_starts) - 1, np.int32)
        count = 0
        for entry in range(starts[start + first], starts[start + end]):
            if place[indices[entry]] < 0:
                place[indices[entry]] = count
                occurring[count] = indices[entry]
                count += 1
        values = np.zeros((count, block), data.dtype)
        for row in range(first, end):
            for entry in range(starts[start + row], starts[start + row + 1]):
                values[place[indices[entry]], row - first] = data[entry]
        # shared[j, i] = sum_c min(V_ic, V_jc)
        shared = np.zeros((D.shape[1], block), data.dtype)
        for position in range(count):
            c, own = occurring[position], values[position]
            begin = column_starts[c]
            if mirrored:
                begin += np.searchsorted(column_indices[begin : column_starts[c + 1]], first)
            for entry in range(begin, column_starts[c + 1]):
                theirs, sums = column_data[entry], shared[np.uint32(column_indices[entry])]
                # Compiled to vector instructions, as long as the length is not known to the compiler.
                for i in range(len(own)):
                    value = own[i]
                    sums[i] += value if value < theirs else theirs
        for row in range(first, end):
            for j in range(row if mirrored else 0, D.shape[1]):
                jaccard = weight * (one - shared[j, row - first] / (two - shared[j, row - first]))
                D[row, j] = jaccard + scale[start + row] * min(zero, D[row, j])
                if mirrored and j > row:
                    D[j, row] = jaccard + scale[j] * min(zero, D[j, row])
