"""Maps of embeddings by UMAP: two dimensions to look at, and a measure of what they keep.

UMAP draws images near each other that are neighbours in the embedding space. Nothing else on a map is meant: not the
distance between groups, not their size, not the direction of the axes.

Source: McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection", 2018.
"""

import contextlib
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from gl_core import _checks
from gl_core._extras import require
from gl_core.evaluation import nearest_neighbours
from gl_core.evaluation.arrays import as_rows

__all__ = ["align", "aligned_projections", "neighbours_kept", "umap_projection"]

# For a map that begins where another ended: long enough to find its new neighbours, not to forget the old places.
FOLLOWING = {"n_epochs": 100, "learning_rate": 0.2}

Rows = Float[torch.Tensor, "n d"] | Float[np.ndarray, "n d"]


def umap_projection(
    features: Rows,
    *,
    num_neighbours: int = 15,
    min_distance: float = 0.1,
    metric: str = "cosine",
    start: str = "spectral",
    seed: int = 0,
) -> Float[np.ndarray, "n 2"]:
    """A UMAP map of vectors. The same seed gives the same map on the same machine.

    Args:
        features: vectors (n, d), n at least 4.
        num_neighbours: how many neighbours each image is tied to, 2 to n - 1; few show detail, many the whole.
        min_distance: how closely points may be packed on the map, in [0, 1].
        metric: "cosine", by which retrieval ranks, or "euclidean".
        start: where the points are before they are moved: "spectral" (by the graph of neighbours, much the same for
            every seed), "pca" or "random".
        seed: 0 or more.

    Raises:
        ValueError: if `features` is not a matrix of finite numbers or a setting is out of range.
    """
    _checks.choice("start", start, ("spectral", "pca", "random"))
    return _fit(_rows("features", features), start, num_neighbours, min_distance, metric, seed)


def align(points: Rows, onto: Rows, *, scale: bool = True) -> Float[np.ndarray, "n 2"]:
    """`points` turned, mirrored, scaled as a whole and shifted so that each lies as near as can be to its partner in
    `onto`:

        minimise  sum_i |s P_i Q + t - O_i|^2   over scale s > 0, orthogonal Q and shift t

    The directions on a UMAP map mean nothing, so two maps of the same images may be laid over each other this way.

    Args:
        points: what is moved, (n, 2).
        onto: where it is moved to, of the same shape.
        scale: False fixes s = 1. The less two maps have in common, the smaller the best s is.

    Raises:
        ValueError: if the two are not matrices of one shape with finite numbers.

    Source: Schönemann and Carroll, "Fitting one matrix to another under choice of a central dilation and a rigid
    motion", 1970.
    """
    from scipy.linalg import orthogonal_procrustes

    points, onto = _rows("points", points, np.float64), _rows("onto", onto, np.float64)
    if points.shape != onto.shape:
        raise ValueError(f"points has shape {points.shape}: must have that of onto, {onto.shape}")
    centred, target = points - points.mean(axis=0), onto - onto.mean(axis=0)
    turn, shared = orthogonal_procrustes(centred, target)
    spread = (centred**2).sum()
    factor = shared / spread if scale and spread > 0 and shared > 0 else 1.0
    return factor * centred @ turn + onto.mean(axis=0)


def aligned_projections(
    moments: Sequence[Rows],
    *,
    num_neighbours: int = 15,
    min_distance: float = 0.1,
    metric: str = "cosine",
    seed: int = 0,
) -> Float[np.ndarray, "t n 2"]:
    """UMAP maps of the same images at several moments, each begun where the one before ended, then laid over it by
    `align`.

    So an image that keeps its neighbours stays about where it was, and one that moves has new neighbours. Each map
    keeps what it can of the one before: the row of maps looks calmer than the embeddings are.

    Args:
        moments: vectors (n, d) of the same n images in the same order, at one moment or more; d may differ.
        num_neighbours: as of `umap_projection`, like `min_distance`, `metric` and `seed`.

    Raises:
        ValueError: if the moments do not hold the same number of rows or a setting is out of range.
    """
    frames = [_rows(f"moments[{i}]", rows) for i, rows in enumerate(moments)]
    if not frames:
        raise ValueError("moments is empty: must hold at least one matrix")
    for i, rows in enumerate(frames):
        if len(rows) != len(frames[0]):
            raise ValueError(f"moments[{i}] has {len(rows)} rows: must have {len(frames[0])}, as moments[0] has")
    settings = (num_neighbours, min_distance, metric, seed)
    maps = [_fit(frames[0], "spectral", *settings)]
    for rows in frames[1:]:
        maps.append(align(_fit(rows, maps[-1], *settings, **FOLLOWING), onto=maps[-1], scale=False))
    return np.stack(maps)


def neighbours_kept(features: Rows, points: Rows, k: int = 10, *, metric: str = "cosine") -> float:
    """The share of each image's k nearest neighbours that are also its k nearest on a map:

        1/(n k) sum_i |N_k(f_i) ∩ N_k(p_i)|

    Args:
        features: vectors (n, d), whose neighbours are found by `metric`.
        points: their places on the map, (n, 2), whose neighbours are found by Euclidean distance.
        k: 1 to n - 1.
        metric: "cosine" or "euclidean".

    Returns:
        A number in [0, 1]; a map that has nothing to do with the features keeps k / (n - 1) by chance.

    Raises:
        ValueError: if the numbers of rows differ or `k` is out of range.

    >>> line = torch.tensor([[0.], [1.], [3.], [7.]])
    >>> neighbours_kept(line, -5 * line, k=1, metric="euclidean")
    1.0
    """
    features, points = as_rows("features", features), as_rows("points", points)
    if len(features) != len(points):
        raise ValueError(f"points has {len(points)} rows: must have {len(features)}, one for each row of features")
    _, original = nearest_neighbours(features, k=k, metric=metric)
    _, mapped = nearest_neighbours(points, k=k, metric="euclidean")
    kept = (original.cpu()[:, :, None] == mapped.cpu()[:, None, :]).any(dim=2)
    return kept.double().mean().item()


def _fit(
    rows: np.ndarray, start: str | np.ndarray, num_neighbours: int, min_distance: float, metric: str, seed: int,
    **fitting: float,
) -> Float[np.ndarray, "n 2"]:  # fmt: skip
    n = len(rows)
    if n < 4:
        raise ValueError(f"features has {n} rows: a map needs at least 4")
    _checks.count("num_neighbours", num_neighbours, least=2)
    if num_neighbours >= n:
        raise ValueError(f"num_neighbours={num_neighbours}: must be below {n}, the rows of features")
    if not 0 <= min_distance <= 1:
        raise ValueError(f"min_distance={min_distance}: must lie in [0, 1]")
    _checks.choice("metric", metric, ("cosine", "euclidean"))
    _checks.count("seed", seed, least=0)
    with warnings.catch_warnings():
        # UMAP warns that a seed means one thread, that the spectral start of a small set is replaced by another one,
        # and on import of packages that are not there and that nothing here uses.
        warnings.simplefilter("ignore")
        mapper = _import_umap().UMAP(
            n_neighbors=num_neighbours, min_dist=min_distance, metric=metric, init=start, random_state=seed, **fitting
        )
        return np.asarray(mapper.fit_transform(rows), dtype=np.float64)


def _rows(name: str, rows: Rows, dtype: type = np.float32) -> np.ndarray:
    return as_rows(name, rows).cpu().numpy().astype(dtype)


def _import_umap():
    """UMAP, with the functions that take longest to compile compiled once a machine and not once a process."""
    umap = require("umap", extra="book")
    for name in ("fast_knn_indices", "smooth_knn_dist", "compute_membership_strengths"):
        # Other versions may have named or compiled them otherwise, and a folder for the cache may be missing.
        with contextlib.suppress(AttributeError, RuntimeError):
            getattr(umap.umap_, name).enable_caching()
    return umap
