"""k-reciprocal re-ranking against a dense one as textbooks would write it, vectorised."""

import numpy as np

from benchmarks.measure import OURS, Case
from benchmarks.neighbours import embeddings
from gl_core.evaluation import nearest_neighbours
from gl_core.rerank import k_reciprocal

DENSE = "dense, vectorised"
# The floor of both sides: all distances, and the nearest of each row.
FLOOR = "distances and nearest alone"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [_compared(200, 8, 3, repeats=1)]
    bounds = {(4_000, 20): 15.0, (4_000, 50): 20.0}
    compared = [
        _compared(n, k1, k2, repeats=3 if n < 4_000 else 2, bound=bounds.get((n, k1)))
        for k1, k2 in ((20, 6), (50, 20))
        for n in (1_000, 2_000, 4_000)
    ]
    return [
        *compared,
        *(
            Case(
                name=f"{n:,} images, best 100, k1 = {k1}, k2 = {k2}",
                prepare=lambda n=n, k1=k1, k2=k2: _whole(n, k1, k2),
                repeats=1,
                **({"target": "under 10 minutes and 6 GB", "seconds": 600.0, "megabytes": 6000} if n == 60_502 else {}),
            )
            for n, k1, k2 in ((15_126, 20, 6), (30_251, 20, 6), (60_502, 20, 6), (60_502, 50, 20))
        ),
    ]


def _compared(n: int, k1: int, k2: int, repeats: int, bound: float | None = None) -> Case:
    def prepare():
        vectors, _ = embeddings(n, 64 if n < 1_000 else 512)
        return {
            OURS: lambda: k_reciprocal(vectors, k1=k1, k2=k2, lambda_value=0.3).numpy(),
            DENSE: lambda: dense(vectors.numpy(), k1, k2, 0.3),
            FLOOR: lambda: nearest_neighbours(vectors, k=min(k1, n - 1), metric="euclidean"),
        }

    def agree(results):
        _close(results[OURS], results[DENSE])
        # What float32 cannot tell apart, float64 can.
        vectors, _ = embeddings(n, 64 if n < 1_000 else 512)
        exact = vectors.double()
        ours = k_reciprocal(exact, k1=k1, k2=k2, lambda_value=0.3).numpy()
        np.testing.assert_allclose(ours, dense(exact.numpy(), k1, k2, 0.3), rtol=0, atol=1e-9)

    return Case(
        f"{n:,} images, k1 = {k1}, k2 = {k2}",
        prepare,
        agree,
        repeats,
        **(
            {} if bound is None else {"target": f"{bound:.0f} times as fast as the dense one", "bounds": {DENSE: bound}}
        ),
    )


def _close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Neighbours that tie within the rounding of float32 may change places, and then the rows that depend on them."""
    apart = np.abs(ours - theirs)
    if (apart > 1e-4).mean() > 0.01 or apart.max() > 0.01:
        raise AssertionError(
            f"distances differ by up to {apart.max():.2e}, {(apart > 1e-4).mean():.2%} by more than 1e-4"
        )


def _whole(n: int, k1: int, k2: int) -> dict:
    vectors, _ = embeddings(n, 512)
    return {OURS: lambda: k_reciprocal(vectors, k1=k1, k2=k2, lambda_value=0.3, top_k=100)}


def dense(vectors: np.ndarray, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """The formulas of `gl_core.rerank` on (n, n) arrays; the only loops are over rows."""
    n = len(vectors)
    squared = (vectors**2).sum(axis=1)
    D = np.maximum(squared[:, None] + squared[None] - 2 * vectors @ vectors.T, 0)
    np.fill_diagonal(D, 0)
    D /= D.max(axis=1, keepdims=True)
    order = np.argpartition(D, range(k1 + 1), axis=1)[:, : k1 + 1]
    near = np.zeros((n, n), bool)
    np.put_along_axis(near, order, True, axis=1)
    reciprocal = near & near.T
    half = int(np.around(k1 / 2))
    nearer = np.zeros((n, n), bool)
    np.put_along_axis(nearer, order[:, : half + 1], True, axis=1)
    half_reciprocal = nearer & nearer.T
    half_sizes = half_reciprocal.sum(axis=1)
    V = np.zeros((n, n), vectors.dtype)
    for i in range(n):
        own = np.flatnonzero(reciprocal[i])
        theirs = half_reciprocal[own]
        joins = (theirs & reciprocal[i]).sum(axis=1) > 2 / 3 * half_sizes[own]
        members = reciprocal[i] | theirs[joins].any(axis=0)
        weights = np.exp(-D[i, members])
        V[i, members] = weights / weights.sum()
    V = V[order[:, :k2]].mean(axis=1) if n <= 500 else np.stack([V[row].mean(axis=0) for row in order[:, :k2]])
    holders = [np.flatnonzero(column) for column in V.T]
    result = lambda_value * D
    for i in range(n):
        shared = np.zeros(n, V.dtype)
        for c in np.flatnonzero(V[i]):
            shared[holders[c]] += np.minimum(V[i, c], V[holders[c], c])
        result[i] += (1 - lambda_value) * (1 - shared / (2 - shared))
    return result
