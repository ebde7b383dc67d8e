"""Maps of embeddings: they show neighbours, the same ones each time, and the measure of what they keep is right."""

import numpy as np
import pytest
import torch

from glbook.projection import align, aligned_projections, neighbours_kept, umap_projection


@pytest.fixture(scope="module")
def groups() -> tuple[np.ndarray, np.ndarray]:
    """Three tight bundles of directions, 20 vectors each, of various lengths."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    directions = np.eye(3, 8)[labels] + 0.05 * random.normal(size=(60, 8))
    return directions * random.uniform(1, 100, size=(60, 1)), labels


def turned(points: np.ndarray, angle: float, scale: float, shift: list[float], mirror: bool) -> np.ndarray:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return scale * points @ turn @ np.diag([-1.0 if mirror else 1.0, 1.0]) + shift


def test_umap_puts_bundles_of_directions_apart(groups):
    features, labels = groups
    points = umap_projection(torch.as_tensor(features), num_neighbours=10)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_maps_depend_on_their_seed_alone_and_are_quiet(groups, film, capfd, recwarn):
    features, _ = groups
    moments, maps = film
    first = umap_projection(features, seed=3, num_neighbours=10)
    state = np.random.get_state()[1].copy()
    again = umap_projection(features, seed=3, num_neighbours=10)
    assert (np.random.get_state()[1] == state).all()
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, umap_projection(features, seed=4, num_neighbours=10))
    assert not np.allclose(first, umap_projection(features, seed=3, num_neighbours=10, start="random"))
    np.testing.assert_array_equal(aligned_projections(moments, num_neighbours=10), maps)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize(
    "features", [np.ones((20, 4)), np.zeros((20, 4)), np.random.default_rng(0).normal(size=(4, 4))]
)
def test_umap_of_collapsed_or_few_features_is_finite(features):
    assert np.isfinite(umap_projection(features, num_neighbours=3)).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_neighbours": 60}, "num_neighbours=60: must be below 60"),
        ({"num_neighbours": 1}, "num_neighbours"),
        ({"min_distance": 2.0}, r"min_distance=2.0: must lie in \[0, 1\]"),
        ({"metric": "manhattan"}, "metric"),
        ({"start": "somewhere"}, "start"),
        ({"seed": -1}, "seed"),
    ],
)
def test_umap_refuses_settings_out_of_range(groups, changed, message):
    with pytest.raises(ValueError, match=message):
        umap_projection(groups[0], **changed)


@pytest.mark.parametrize(
    ("features", "message"),
    [(np.eye(3), "features has 3 rows: a map needs at least 4"), (np.full((9, 2), np.nan), r"features\[0, 0\]=nan")],
)
def test_umap_refuses_features_that_do_not_fit(features, message):
    with pytest.raises(ValueError, match=message):
        umap_projection(features, num_neighbours=2)


@pytest.fixture(scope="module")
def film(groups):
    """Bundles that fray a little from one moment to the next, and their aligned maps."""
    features = groups[0] / np.linalg.norm(groups[0], axis=1, keepdims=True)
    noise = np.random.default_rng(1).normal(scale=features.std(), size=features.shape)
    moments = [features + 0.02 * i * noise for i in range(4)]
    return moments, aligned_projections(moments, num_neighbours=10)


def restlessness(maps) -> float:
    """How far an image moves from one map to the next, as a share of the map's radius."""
    steps = [np.linalg.norm(after - before, axis=1).mean() for before, after in zip(maps, maps[1:], strict=False)]
    return np.mean(steps) / np.mean([np.linalg.norm(points - points.mean(axis=0), axis=1).mean() for points in maps])


def test_aligned_maps_move_less_than_maps_of_their_own_and_show_as_much(film):
    moments, maps = film
    assert maps.shape == (4, len(moments[0]), 2) and np.isfinite(maps).all()
    alone = [umap_projection(moments[0], num_neighbours=10)]
    for i, moment in enumerate(moments[1:], 1):
        alone.append(align(umap_projection(moment, num_neighbours=10, seed=i), onto=alone[-1], scale=False))
    np.testing.assert_array_equal(maps[0], alone[0])
    assert restlessness(maps) < 0.7 * restlessness(alone)
    for moment, points, own in zip(moments, maps, alone, strict=True):
        assert neighbours_kept(moment, points, 10) > 0.9 * neighbours_kept(moment, own, 10)


def test_aligned_maps_tell_when_neighbours_are_new(film):
    moments, maps = film
    shuffled = np.random.default_rng(0).permutation(len(maps[0]))
    moved = aligned_projections([moments[0], moments[0][shuffled]], num_neighbours=10)
    assert restlessness(moved) > 3 * restlessness(maps)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ([], "moments is empty"),
        ([np.ones((9, 2)), np.ones((8, 2))], r"moments\[1\] has 8 rows: must have 9"),
        ([np.ones((9, 2)), np.full((9, 2), np.nan)], r"moments\[1\]\[0, 0\]=nan"),
    ],
)
def test_aligned_maps_refuse_misuse(moments, message):
    with pytest.raises(ValueError, match=message):
        aligned_projections(moments)


@pytest.mark.parametrize("mirror", [False, True])
def test_align_undoes_turning_mirroring_scaling_and_shifting(mirror):
    original = np.random.default_rng(1).normal(size=(30, 2))
    moved = turned(original, angle=2.1, scale=0.3, shift=[4.0, -7.0], mirror=mirror)
    np.testing.assert_allclose(align(moved, original), original, atol=1e-12)


def test_align_is_no_worse_than_any_other_motion():
    random = np.random.default_rng(2)
    points, onto = random.normal(size=(2, 30, 2))
    best = ((align(points, onto) - onto) ** 2).sum()
    for _ in range(200):
        shift = random.normal(size=2)
        other = turned(points, random.uniform(0, 7), random.uniform(0.01, 2), shift, bool(random.integers(2)))
        assert best <= ((other - onto) ** 2).sum()


def test_align_without_scale_keeps_the_size():
    points, onto = np.random.default_rng(0).normal(size=(2, 30, 2))
    sides = np.linalg.norm(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(np.linalg.norm(np.diff(align(points, onto, scale=False), axis=0), axis=1), sides)
    np.testing.assert_allclose(align(turned(onto, 0.4, 1.0, [3.0, 1.0], True), onto, scale=False), onto, atol=1e-9)


def test_align_of_points_that_coincide_and_of_other_shapes():
    onto = np.array([[0.0, 0.0], [2.0, 4.0]])
    np.testing.assert_allclose(align(np.ones((2, 2)), onto), [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"points has shape \(3, 2\): must have that of onto, \(2, 2\)"):
        align(np.ones((3, 2)), onto)


def test_neighbours_kept_by_hand():
    # On the line 0, 1, 3, 7 the nearest are 1, 0, 1, 3. Moving the last to 0.4 makes them 0.4, 0.4, 1, 0.
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    moved = np.array([[0.0], [1.0], [3.0], [0.4]])
    assert neighbours_kept(line, line, k=1, metric="euclidean") == 1
    assert neighbours_kept(line, moved, k=1, metric="euclidean") == 1 / 4
    assert neighbours_kept(line, moved, k=3, metric="euclidean") == 1


def test_neighbours_kept_of_unrelated_points_is_chance():
    random = np.random.default_rng(4)
    kept = neighbours_kept(random.normal(size=(400, 16)), random.normal(size=(400, 2)), k=20)
    assert kept == pytest.approx(20 / 399, abs=0.01)


@pytest.mark.parametrize(("rows", "k", "message"), [(3, 1, "points has 3 rows: must have 4"), (4, 4, "k=4")])
def test_neighbours_kept_refuses_misuse(rows, k, message):
    with pytest.raises(ValueError, match=message):
        neighbours_kept(np.ones((4, 2)), np.ones((rows, 2)), k=k)
