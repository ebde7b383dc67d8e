"""k-means, and how well its clusters agree with the classes.

Written for thousands of clusters: distances come from matrix products, chunk by chunk, seeds several at a time, and the
chance term of AMI is summed over distinct sizes instead of pairs of clusters.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation.arrays import Labels, Rows, as_labels, as_rows, squared_norms, unit_rows

__all__ = ["clustering_metrics", "kmeans", "mutual_information"]

Counts = Int[Tensor, "..."]

CHUNK_BYTES = 64 * 2**20  # of distances held at once
SEEDING_ROUNDS = 128


def clustering_metrics(
    embeddings: Rows, labels: Labels, *, seed: int = 0, metric: str = "cosine", chunk_size: int | None = None
) -> dict[str, float]:
    """How well k-means clusters of the embeddings, as many as classes, agree with these (see `mutual_information`).

    The clusters are the best of ten runs of `kmeans` where that is quick (n k up to a million), else those of one run.

    Args:
        embeddings: vectors (n, d).
        labels: whole numbers (n,), of two classes or more.
        seed: of the initial centres.
        metric: "cosine" normalises the rows first, "euclidean" takes them as given.
        chunk_size: see `kmeans`.

    Returns:
        "NMI", in [0, 1], and "AMI", at most 1 and about 0 for random clusters.

    Raises:
        ValueError: `embeddings` is not a matrix of finite numbers, `labels` is not one whole number a row or holds a
            single class, or a setting is out of its range.

    >>> clustering_metrics(torch.tensor([[1., 0.], [2., 0.], [0., 1.], [0., 3.]]), [0, 0, 1, 1])
    {'NMI': 1.0, 'AMI': 1.0}
    """
    _checks.choice("metric", metric, ("cosine", "euclidean"))
    embeddings = as_rows("embeddings", embeddings)
    labels = as_labels("labels", labels, len(embeddings), embeddings.device)
    num_classes = len(labels.unique())
    if num_classes == 1:
        raise ValueError(f"labels holds a single class, {int(labels[0])}: must hold at least two")
    if metric == "cosine":
        embeddings = unit_rows(embeddings)
    restarts = 10 if len(embeddings) * num_classes <= 1_000_000 else 1
    clusters, _, _ = kmeans(embeddings, num_classes, seed=seed, restarts=restarts, chunk_size=chunk_size)
    return mutual_information(labels, clusters)


def kmeans(
    x: Float[Tensor, "n d"] | np.ndarray,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 1,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    chunk_size: int | None = None,
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"], float]:
    """Clusters a and centres c that make the inertia small: Lloyd's iterations from k-means++ seeds.

        inertia = sum_i |x_i - c_a(i)|^2

    A cluster that lost all its rows starts again at the row farthest from its own centre. The same `seed` gives the
    same result on the same machine and number of threads.

    Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++: the advantages of
    careful seeding", 2007.

    Args:
        x: vectors (n, d).
        k: number of clusters, from 1 to n.
        seed: of the initial centres.
        restarts: runs, of which the one with the smallest inertia counts.
        max_iterations: updates of the centres in a run, 0 or more.
        tolerance: a run ends when an iteration lowers the inertia by no more than this fraction, in [0, 1).
        chunk_size: rows compared with the centres at a time, which bounds the memory; None: as many as fit into 64 MiB.

    Returns:
        The cluster of each row, in 0..k-1, always the one whose centre is nearest; the centres (k, d); the inertia.

    Raises:
        ValueError: `x` is not a matrix of finite numbers, or a setting is out of its range.

    >>> assignment, centres, inertia = kmeans(torch.tensor([[0.], [2.], [10.], [12.]]), 2)
    >>> sorted(centres.flatten().tolist()), inertia
    ([1.0, 11.0], 4.0)
    """
    x = as_rows("x", x)
    _checks.count("k", k, least=1)
    _checks.count("restarts", restarts, least=1)
    _checks.count("max_iterations", max_iterations, least=0)
    if k > len(x):
        raise ValueError(f"k={k}: must be at most {len(x)}, the number of rows")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: must be in [0, 1)")
    if chunk_size is None:
        chunk_size = max(1, CHUNK_BYTES // (k * x.element_size()))
    _checks.count("chunk_size", chunk_size, least=1)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    # The expanded square |x|^2 - 2<x, c> + |c|^2 loses digits where all rows share a large offset.
    offset = x.mean(dim=0)
    x = x - offset
    squared = squared_norms("x", x)
    with torch.autocast(x.device.type, enabled=False):
        seeds = (_seed_centres(x, squared, k, generator, chunk_size) for _ in range(restarts))
        runs = (_lloyd(x, squared, centres, max_iterations, tolerance, chunk_size) for centres in seeds)
        assignment, centres, inertia = min(runs, key=lambda run: run[2])
    return assignment, centres + offset, inertia


def mutual_information(labels: Int[Tensor, " n"], clusters: Int[Tensor, " n"]) -> dict[str, float]:
    """How much two partitions of n items, into classes and into clusters, tell about each other.

        NMI = I / M        AMI = (I - E[I]) / (M - E[I])        M = (H(classes) + H(clusters)) / 2

    I is the mutual information, H the entropy, and E[I] the mean of I over random partitions with the same sizes. NMI
    lies in [0, 1] and grows with the number of random clusters; AMI, at most 1, is 0 for them on average.

    Source: Vinh, Epps and Bailey, "Information theoretic measures for clusterings comparison", JMLR 2010.

    Args:
        labels: whole numbers (n,), the classes.
        clusters: whole numbers (n,).

    Returns:
        "NMI" and "AMI"; both 1 where neither partition leaves room above chance (one whole, or single items).

    >>> mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3]))
    {'NMI': 1.0, 'AMI': 1.0}
    """
    u, u_sizes = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)[1:]
    v, v_sizes = torch.unique(clusters.cpu(), return_inverse=True, return_counts=True)[1:]
    pair, joint = torch.unique(u * len(v_sizes) + v, return_counts=True)
    n, a, b = len(u), u_sizes[pair // len(v_sizes)], v_sizes[pair % len(v_sizes)]
    information = _information(joint, a, b, n).sum().item()
    mean_entropy = (_entropy(u_sizes) + _entropy(v_sizes)) / 2
    expected = _expected_information(u_sizes, v_sizes)
    # Without room above chance both partitions are one whole, or both are single items: they are the same.
    room = mean_entropy - expected
    return {
        "NMI": min(max(information / mean_entropy, 0.0), 1.0) if mean_entropy > 0 else 1.0,
        "AMI": min((information - expected) / room, 1.0) if room > 1e-12 * mean_entropy else 1.0,
    }


def _information(shared: Counts, a: Counts, b: Counts, n: int) -> Float[Tensor, "..."]:
    """What a class of size a and a cluster of size b that share so many of n items add to I."""
    shared = shared.double()
    return shared / n * (n * shared / (a * b)).log()


def _entropy(sizes: Int[Tensor, " k"]) -> float:
    share = sizes.double() / sizes.sum()
    return -(share * share.log()).sum().item()


def _expected_information(u_sizes: Int[Tensor, " c"], v_sizes: Int[Tensor, " k"]) -> float:
    """E[I]: what a class of size a shares with a cluster of size b is hypergeometric, so only distinct sizes matter."""
    n = int(u_sizes.sum())
    log_factorial = torch.lgamma(torch.arange(n + 1, dtype=torch.float64) + 1)
    b, b_times = v_sizes.unique(return_counts=True)
    expected = 0.0
    for a, a_times in zip(*u_sizes.unique(return_counts=True), strict=True):
        shared = torch.arange(1, int(min(a, b.max())) + 1)[:, None]
        possible = (shared <= b) & (shared >= a + b - n)
        log_ways = log_factorial[a] + log_factorial[b] + log_factorial[n - a] + log_factorial[n - b] - log_factorial[n]
        log_apart = log_factorial[(b - shared).clamp(min=0)] + log_factorial[(n - a - b + shared).clamp(min=0)]
        chance = (log_ways - log_factorial[shared] - log_factorial[a - shared] - log_apart).exp()
        cells = torch.where(possible, chance * _information(shared, a, b, n), 0.0)
        expected += (a_times * b_times * cells).sum().item()
    return expected


def _seed_centres(
    x: Float[Tensor, "n d"], squared: Float[Tensor, " n"], k: int, generator: torch.Generator, chunk_size: int
) -> Float[Tensor, "k d"]:
    """k-means++: rows drawn with a chance proportional to the squared distance from the centres so far.

    Of several draws the one that lowers the inertia most is taken. For many clusters a round adds several centres: to
    read every row once for each centre would take longer than the iterations that follow.
    """
    draws = 2 + int(math.log(k))
    # No more distances at once than `chunk_size` rows have from all k centres.
    batch = max(1, min(k // SEEDING_ROUNDS, chunk_size * k // (len(x) * draws)))
    chosen = torch.randint(len(x), (1,), generator=generator, device=x.device)
    gap = _squared_distance(x, squared, x[chosen]).squeeze(1)
    while len(chosen) < k:
        size = min(batch, k - len(chosen))
        # The largest of weight / exponential noise are a weighted sample without replacement.
        keys = gap / torch.empty_like(gap).exponential_(generator=generator)
        sample = keys.topk(min(draws, len(x) // size) * size).indices.view(-1, size)
        gaps = _squared_distance(x, squared, x[sample.flatten()])
        gaps = torch.minimum(gaps, gap[:, None], out=gaps)
        best = gaps.sum(dim=0).view(sample.shape).argmin(dim=0, keepdim=True)
        gap = gaps.view(len(x), *sample.shape).take_along_dim(best[None], dim=1).flatten(1).amin(dim=1)
        chosen = torch.cat([chosen, sample.take_along_dim(best, dim=0).flatten()])
    return x[chosen]


def _lloyd(
    x: Float[Tensor, "n d"],
    squared: Float[Tensor, " n"],
    centres: Float[Tensor, "k d"],
    max_iterations: int,
    tolerance: float,
    chunk_size: int,
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"], float]:
    before, updates = math.inf, 0
    while True:
        assignment, gap = _nearest_centre(x, squared, centres, chunk_size)
        inertia = gap.sum(dtype=torch.float64).item()
        if updates == max_iterations or inertia >= (1 - tolerance) * before:
            return assignment, centres, inertia
        centres = _update_centres(x, assignment, gap, centres)
        before, updates = inertia, updates + 1


def _nearest_centre(
    x: Float[Tensor, "n d"], squared: Float[Tensor, " n"], centres: Float[Tensor, "k d"], chunk_size: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    parts = zip(x.split(chunk_size), squared.split(chunk_size), strict=True)
    nearest = [_squared_distance(part, its_squared, centres).min(dim=1) for part, its_squared in parts]
    return torch.cat([part.indices for part in nearest]), torch.cat([part.values for part in nearest])


def _update_centres(
    x: Float[Tensor, "n d"], assignment: Int[Tensor, " n"], gap: Float[Tensor, " n"], centres: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """The means of the clusters, after each empty one has taken over one of the rows farthest from their centres."""
    sizes = assignment.bincount(minlength=len(centres))
    empty = (sizes == 0).nonzero().squeeze(1)
    if len(empty):
        assignment = assignment.index_copy(0, gap.topk(len(empty)).indices, empty)
        sizes = assignment.bincount(minlength=len(centres))
    # Sums over rows sorted by cluster: additions in the order in which a GPU's threads come by differ from run to run.
    sums = torch.segment_reduce(x[assignment.argsort(stable=True)], "sum", lengths=sizes, axis=0)
    # A cluster whose only row was taken over keeps its centre.
    return torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)


def _squared_distance(
    x: Float[Tensor, "n d"], squared: Float[Tensor, " n"], centres: Float[Tensor, "k d"]
) -> Float[Tensor, "n k"]:
    distance = torch.addmm(centres.square().sum(dim=1), x, centres.T, alpha=-2)
    return distance.add_(squared[:, None]).clamp_(min=0)
