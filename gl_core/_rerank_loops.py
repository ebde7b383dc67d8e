"""The loops of re-ranking, compiled by numba: they merge and count lists of different lengths."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["expanded", "mix_blocks", "mix_rows", "reciprocal", "weights"]


def _compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compile a function when it is first called, and keep the result in a file where one can be written."""

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the folder of this package nor the user's cache can be written
            return numba.njit(**options)(function)

    return decorate


@_compiled(parallel=True)
def reciprocal(ranks, width):
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


@_compiled(parallel=True)
def expanded(own, num_own, nearer, num_nearer, members):
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


@_compiled()
def _enter(j, is_member, members, i, count):
    if is_member[j]:
        return count
    is_member[j] = True
    if len(members) > 0:
        members[i, count] = j
    return count + 1


@_compiled(fastmath=True)
def _squared_distance(a, b):
    total = a[0] * 0
    for c in range(len(a)):
        total += (a[c] - b[c]) ** 2
    return total


@_compiled(parallel=True)
def weights(vectors, members, sizes, farthest):
    """exp(-D_ij) of the members of every R*(i), divided by their sum, row after row."""
    starts = np.cumsum(sizes) - sizes
    weights = np.empty(sizes.sum(), vectors.dtype)
    for i in numba.prange(len(sizes)):
        row = weights[starts[i] : starts[i] + sizes[i]]
        for position in range(sizes[i]):
            row[position] = math.exp(-_squared_distance(vectors[i], vectors[members[i, position]]) / farthest[i])
        row /= row.sum()
    return weights


@_compiled(parallel=True)
def mix_rows(start, starts, indices, data, column_starts, column_indices, column_data, constants, scale, D):
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


@_compiled(parallel=True)
def mix_blocks(
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
