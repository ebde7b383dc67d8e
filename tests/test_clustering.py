"""k-means against scikit-learn's best of ten, and mutual information against scikit-learn's scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_wine, make_blobs
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from gl_core.evaluation import clustering
from gl_core.evaluation.clustering import kmeans, mutual_information

DATA = {
    "digits": (load_digits().data, 10),
    "wine": (load_wine().data, 5),
    "noise": (np.random.default_rng(0).normal(size=(600, 16)), 20),
    "blobs": (make_blobs(1000, centers=30, n_features=8, cluster_std=2.0, random_state=1)[0], 30),
}


@pytest.mark.parametrize("name", DATA)
def test_inertia_is_that_of_scikit_learn_within_two_percent(name):
    x, k = DATA[name]
    reference = KMeans(k, n_init=10, random_state=0).fit(x).inertia_
    for seed in range(3):
        assert kmeans(x, k, seed=seed, restarts=10)[2] <= 1.02 * reference


def test_many_clusters_seeded_several_at_a_time(monkeypatch):
    x, k = DATA["noise"][0], 150
    reference = KMeans(k, n_init=1, random_state=0).fit(x).inertia_
    monkeypatch.setattr(clustering, "SEEDING_ROUNDS", 30)
    for seed in range(3):
        assignment, _, inertia = kmeans(x, k, seed=seed)
        assert inertia <= 1.05 * reference
        assert len(assignment.unique()) == k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_iterations", [0, 2, 100])
def test_assignment_centres_and_inertia_belong_together(dtype, max_iterations, monkeypatch):
    x = torch.tensor(DATA["digits"][0][:500], dtype=dtype)
    assignment, centres, inertia = kmeans(x, 12, max_iterations=max_iterations)
    distance = torch.cdist(x.double(), centres.double()).square()
    assert (assignment.shape, assignment.dtype, centres.shape, centres.dtype) == ((500,), torch.int64, (12, 64), dtype)
    assert torch.equal(assignment, distance.argmin(dim=1))
    assert inertia == pytest.approx(distance.amin(dim=1).sum().item(), rel=1e-5)
    assert torch.equal(assignment, kmeans(x, 12, max_iterations=max_iterations, chunk_size=7)[0])
    monkeypatch.setattr(clustering, "CHUNK_BYTES", 1)
    assert torch.equal(assignment, kmeans(x, 12, max_iterations=max_iterations)[0])


def test_chunk_size_bounds_the_distances_held_at_once(monkeypatch):
    monkeypatch.setattr(clustering, "SEEDING_ROUNDS", 10)
    x, k, held, distance = torch.from_numpy(DATA["blobs"][0]), 60, [], clustering._squared_distance

    def recorded(*given):
        found = distance(*given)
        held.append(found.numel())
        return found

    monkeypatch.setattr(clustering, "_squared_distance", recorded)
    # Seeds come several a round as long as their distances are no more than those of `chunk_size` rows to all centres.
    assignment, _, _ = kmeans(x, k, chunk_size=300)
    assert len(held) < k and max(held) == 300 * k
    held.clear()
    assert len(kmeans(x, k, chunk_size=100)[0].unique()) == k
    assert len(held) > k and max(held) == 100 * k
    # The same rounds, compared in other chunks, find the same clusters.
    assert torch.equal(kmeans(x, k, chunk_size=310)[0], assignment)


def test_converged_centres_are_means():
    x = DATA["wine"][0]
    assignment, centres, _ = kmeans(x, 4, tolerance=0.0)
    for cluster, centre in enumerate(centres):
        torch.testing.assert_close(centre, torch.from_numpy(x)[assignment == cluster].mean(dim=0))


def test_restarts_keep_the_best_run():
    x, k = DATA["wine"]
    inertias = [kmeans(x, k, seed=1, restarts=restarts)[2] for restarts in (1, 3, 10)]
    assert inertias == sorted(inertias, reverse=True) and inertias[0] > inertias[-1]


def test_an_empty_cluster_takes_the_farthest_row(monkeypatch):
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0], [51.0]])
    monkeypatch.setattr(clustering, "_seed_centres", lambda *_: torch.tensor([[-20.0], [900.0]]))
    _, centres, _ = kmeans(x, 2, max_iterations=1)
    assert centres.flatten().tolist() == pytest.approx([72 / 5, 51], abs=1e-5)


@pytest.mark.parametrize("rounds", [2, 512])
@pytest.mark.parametrize(("distinct", "copies", "k"), [(2, 5, 7), (30, 1, 30), (3, 20, 3)])
def test_as_many_clusters_as_distinct_rows_or_more(distinct, copies, k, rounds, monkeypatch):
    monkeypatch.setattr(clustering, "SEEDING_ROUNDS", rounds)
    x = 10 * torch.randn(distinct, 64, generator=torch.Generator().manual_seed(0)).repeat(copies, 1)
    assignment, centres, inertia = kmeans(x, k)
    assert 0 <= inertia < 0.1 and centres.isfinite().all()
    torch.testing.assert_close(centres[assignment], x)


def test_a_shared_offset_costs_no_digits():
    # spread 1 around 1e4: the squares of the rows alone use up float32
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(25)
    x = 1e4 + torch.eye(4)[labels] + 0.05 * torch.randn(100, 4, generator=g)
    assert mutual_information(labels, kmeans(x, 4, restarts=3)[0])["NMI"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0: must be a whole number, 1 or more"),
        ({"k": 7}, "k=7: must be at most 6, the number of rows"),
        ({"k": 2, "restarts": 0}, "restarts=0: must be a whole number"),
        ({"k": 2, "max_iterations": -1}, "max_iterations=-1: must be a whole number"),
        ({"k": 2, "tolerance": 1.0}, r"tolerance=1.0: must be in \[0, 1\)"),
        ({"k": 2, "chunk_size": 0}, "chunk_size=0: must be a whole number, 1 or more"),
        ({"k": 2, "x": torch.full((6, 1), torch.nan)}, r"x\[0, 0\]=nan: must be finite"),
        ({"k": 2, "x": torch.tensor([[0.0], [1e20], [0.0]])}, "x: row 0 is too long for torch.float32"),
        ({"k": 2, "x": torch.zeros(6)}, r"x has shape \(6,\) .*: must be a matrix"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(**({"x": torch.arange(6.0)[:, None]} | arguments))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31 - 1))
def test_information_agrees_with_scikit_learn(n, num_classes, num_clusters, seed):
    rng = np.random.default_rng(seed)
    u, v = rng.integers(0, num_classes, n), rng.integers(0, num_clusters, n)
    v = np.where(rng.random(n) < 0.5, u, v)
    found = mutual_information(torch.from_numpy(u), torch.from_numpy(v))
    assert found["NMI"] == pytest.approx(normalized_mutual_info_score(u, v), abs=1e-9)
    if len(np.unique(u)) < n or len(np.unique(v)) < n:  # where both are single items, AMI is 0/0 there
        assert found["AMI"] == pytest.approx(adjusted_mutual_info_score(u, v), abs=1e-7)
    assert mutual_information(torch.from_numpy(v), torch.from_numpy(u)) == pytest.approx(found, abs=1e-9)
    renamed = mutual_information(torch.from_numpy(100 - 7 * u), torch.from_numpy(v))
    assert renamed == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("u", "v", "nmi", "ami"),
    [
        ([0, 0, 0, 0], [5, 5, 5, 5], 1, 1),
        (range(59), range(59, 0, -1), 1, 1),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0, -0.5),  # I = 0; E[I] = log(2) / 3, M = log(2): (0 - 1/3) / (1 - 1/3)
        ([0, 0, 1, 1], [0, 0, 0, 0], 0, 0),
        ([0, 0, 1, 1], [0, 1, 2, 3], 2 / 3, 0),  # single items know every class, as any single items would
    ],
)
def test_information_by_hand(u, v, nmi, ami):
    found = mutual_information(torch.tensor(u), torch.tensor(v))
    assert found == pytest.approx({"NMI": nmi, "AMI": ami}, abs=1e-12)
