"""Maps of embeddings: two dimensions to look at, and a measure of what they keep.

UMAP draws images near each other that are neighbours in the embedding space. Nothing else on a map is meant: not the distance
between groups, not their size, not the direction of the axes.

Source: McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction", 2018.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from gl_core import _checks
from gl_core.evaluation import nearest_neighbours
from gl_core.evaluation.arrays import as_rows

__all__ = ["align", "aligned_projections", "neighbours_kept", "umap_projection"]

# How a map is fitted that begins where another ended: long enough to find its new neighbours, not to forget the old places.
FOLLOWING = {"n_epochs": 100, "learning_rate": 0.2}

Rows = Float[torch.Tensor, "n d"] | Float[np.ndarray, "n d"]


def umap_projection(
    features: Rows,
    *others: Rows,
    num_neighbours: int = 15,
    min_distance: float = 0.1,
    metric: str = "cosine",
    start: str = "spectral",
    seed: int = 0,
) -> Float[np.ndarray, "n 2"] | list[Float[np.ndarray, "m 2"]]:
    """A UMAP map of `features`, and the places of `others` on it.

    The map is fitted on `features` alone; `others` are laid onto it one after the other and move nothing. Returns the map, an
    array (n, 2), or with `others` a list of such arrays. The same seed gives the same map on the same machine.

    Args:
        features: vectors (n, d), n at least 4.
        others: vectors (m, d) to be placed on the map of `features`.
        num_neighbours: how many neighbours each image is tied to, 2 to n - 1; few show detail, many the whole.
        min_distance: how closely points may be packed on the map, in [0, 1].
        metric: "cosine", by which retrieval ranks, or "euclidean".
        start: where the points are before they are moved: "spectral" (by the graph of neighbours, much the same for every
            seed), "pca" or "random".
        seed: 0 or more.

    Raises ValueError if the vectors are not matrices of finite numbers with equally many columns or a setting is out of range.
    """
    features, *others = (_rows(name, rows) for name, rows in _named(features, others))
    for i, rows in enumerate(others):
        if rows.shape[1] != features.shape[1]:
            raise ValueError(f"others[{i}] has {rows.shape[1]} columns: must have {features.shape[1]}, as features has")
    _checks.choice("start", start, ("spectral", "pca", "random"))
    _check_settings(len(features), num_neighbours, min_distance, metric, seed)
    maps = _fitted([features, *others], num_neighbours, min_distance, metric, seed, start)
    return maps if others else maps[0]


def align(points: Rows, onto: Rows, *, scale: bool = True) -> Float[np.ndarray, "n 2"]:
    """`points` turned, mirrored, scaled as a whole and shifted so that each lies as near as can be to its partner in `onto`.

        minimise  sum_i |s P_i Q + t - O_i|^2   over scale s > 0, orthogonal Q and shift t

    Without `scale`, s = 1: the less two maps have in common, the smaller the best s is.

    The directions on a UMAP map mean nothing, so two maps of the same images may be laid over each other this way; the shape of
    each stays as it was. Raises ValueError if the two are not matrices of one shape with finite numbers.

    Source: Schönemann and Carroll, "Fitting one matrix to another under choice of a central dilation and a rigid motion", 1970.
    """
    points, onto = _rows("points", points, np.float64), _rows("onto", onto, np.float64)
    if points.shape != onto.shape:
        raise ValueError(f"points has shape {points.shape}: must have that of onto, {onto.shape}")
    centred, target = points - points.mean(axis=0), onto - onto.mean(axis=0)
    left, singular, right = np.linalg.svd(centred.T @ target)
    spread = (centred**2).sum()
    factor = singular.sum() / spread if scale and spread > 0 and singular.sum() > 0 else 1.0
    return factor * centred @ (left @ right) + onto.mean(axis=0)


def aligned_projections(
    moments: Sequence[Rows],
    *,
    num_neighbours: int = 15,
    min_distance: float = 0.1,
    metric: str = "cosine",
    seed: int = 0,
) -> Float[np.ndarray, "t n 2"]:
    """UMAP maps of the same images at several moments, each begun where the one before ended, then turned and
    shifted to lie over it (see `align`).

    So an image that has kept its neighbours stays about where it was, and what moves between two maps has new ones. A map
    that is begun from another keeps what it can of it: the row of maps looks calmer than the embeddings are.

    Args:
        moments: vectors (n, d) of the same n images in the same order, at one moment or more; d may differ.
        num_neighbours, min_distance, metric, seed: as of `umap_projection`; the first map has its spectral start.

    Raises ValueError if the moments do not hold the same number of rows or a setting is out of range.
    """
    frames = [_rows(f"moments[{i}]", rows) for i, rows in enumerate(moments)]
    if not frames:
        raise ValueError("moments is empty: must hold at least one matrix")
    for i, rows in enumerate(frames):
        if len(rows) != len(frames[0]):
            raise ValueError(f"moments[{i}] has {len(rows)} rows: must have {len(frames[0])}, as moments[0] has")
    settings = {"num_neighbours": num_neighbours, "min_distance": min_distance, "metric": metric, "seed": seed}
    maps = [umap_projection(frames[0], **settings)]
    for rows in frames[1:]:
        maps.append(align(_fitted([rows], start=maps[-1], **settings, **FOLLOWING)[0], onto=maps[-1], scale=False))
    return np.stack(maps)


def neighbours_kept(features: Rows, points: Rows, k: int = 10, *, metric: str = "cosine") -> float:
    """The part of each image's k nearest neighbours among `features` that are also its k nearest on the map `points`.

        1/(n k) sum_i |N_k(f_i) ∩ N_k(p_i)|

    In [0, 1]; a map that has nothing to do with the features keeps k / (n - 1) by chance. Neighbours among the features are
    found by `metric`, those on the map by Euclidean distance. Raises ValueError if the numbers of rows differ or `k` is not
    in 1..n-1.

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


def _fitted(
    rows: list[np.ndarray], num_neighbours: int, min_distance: float, metric: str, seed: int, start: str | np.ndarray,
    **fitting: float,
) -> list[np.ndarray]:  # fmt: skip
    """The map of the first matrix, and the places of the others on it."""
    umap = _import_umap()
    with warnings.catch_warnings():
        # It warns that a seed means one thread, and that the spectral start of a small set is replaced by another one.
        warnings.simplefilter("ignore")
        mapper = umap.UMAP(
            n_neighbors=num_neighbours, min_dist=min_distance, metric=metric, init=start, random_state=seed,
            **fitting,
        )  # fmt: skip
        maps = [mapper.fit_transform(rows[0]), *(mapper.transform(each) for each in rows[1:])]
    return [np.asarray(points, dtype=np.float64) for points in maps]


def _check_settings(n: int, num_neighbours: int, min_distance: float, metric: str, seed: int) -> None:
    if n < 4:
        raise ValueError(f"features has {n} rows: a map needs at least 4")
    _checks.count("num_neighbours", num_neighbours, least=2)
    if num_neighbours >= n:
        raise ValueError(f"num_neighbours={num_neighbours}: must be below {n}, the rows of features")
    if not 0 <= min_distance <= 1:
        raise ValueError(f"min_distance={min_distance}: must lie in [0, 1]")
    _checks.choice("metric", metric, ("cosine", "euclidean"))
    _checks.count("seed", seed, least=0)


def _named(features: Rows, others: tuple[Rows, ...]) -> list[tuple[str, Rows]]:
    return [("features", features), *((f"others[{i}]", rows) for i, rows in enumerate(others))]


def _rows(name: str, rows: Rows, dtype: type = np.float32) -> np.ndarray:
    return as_rows(name, rows).detach().cpu().numpy().astype(dtype)


def _import_umap():
    """UMAP, with the two functions whose compilation takes most of a first call compiled once a machine and not once a process."""
    with warnings.catch_warnings():
        # Its imports warn of packages that are not there and that nothing here uses.
        warnings.simplefilter("ignore")
        import umap
        from umap import umap_
    for function in (umap_.fast_knn_indices, umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        # Other versions may have named or compiled them otherwise, and a folder for the cache may be missing.
        try:
            function.enable_caching()
        except (AttributeError, RuntimeError):
            continue
    return umap
