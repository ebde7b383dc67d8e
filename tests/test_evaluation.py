"""Retrieval and clustering metrics against a slow version that sorts every query's gallery in exact arithmetic."""

import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gl_core.evaluation import clustering_metrics, nearest_neighbours, retrieval_metrics, similarities

METRICS = ("cosine", "euclidean")
RECALL_AT = (1, 2, 4, 8)


def exact_similarity(q, g, metric):
    """A rational number that orders pairs as the similarity does: floats are fractions."""
    q, g = [Fraction(value) for value in q], [Fraction(value) for value in g]
    if metric == "euclidean":
        return -sum((a - b) ** 2 for a, b in zip(q, g, strict=True))
    dot = sum(a * b for a, b in zip(q, g, strict=True))
    lengths = sum(a * a for a in q) * sum(b * b for b in g)
    return dot * abs(dot) / lengths if lengths else Fraction(0)


def slow_metrics(query, query_labels, gallery=None, gallery_labels=None, *, recall_at=RECALL_AT, metric="cosine"):
    itself = gallery is None
    gallery, gallery_labels = (query, query_labels) if itself else (gallery, gallery_labels)
    per_query = []
    for i, (q, label) in enumerate(zip(query.tolist(), query_labels.tolist(), strict=True)):
        candidates = [
            (-exact_similarity(q, g, metric), other == label)
            for k, (g, other) in enumerate(zip(gallery.tolist(), gallery_labels.tolist(), strict=True))
            if not (itself and k == i)
        ]
        relevant = [is_positive for _, is_positive in sorted(candidates)]  # False before True: ties go to negatives
        num_positives = sum(relevant)
        if num_positives == 0:
            continue
        hits = {f"R@{k}": float(any(relevant[:k])) for k in recall_at}
        precision_at = [sum(relevant[:k]) / k for k in range(1, num_positives + 1)]
        weighted = sum(p for p, is_positive in zip(precision_at, relevant, strict=False) if is_positive)
        per_query.append(hits | {"MAP@R": weighted / num_positives, "R-Precision": precision_at[-1]})
    means = {name: sum(values[name] for values in per_query) / len(per_query) for name in per_query[0]}
    return means | {"excluded_queries": len(query) - len(per_query)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("on_a_grid", [True, False])
@pytest.mark.parametrize("num_classes", [2, 6, 22])
def test_agrees_with_the_slow_version(metric, dtype, on_a_grid, num_classes):
    g = generator(num_classes)
    # 60 rows on a grid of 27 points: copies, parallel vectors, zero vectors and ties at every rank
    x = torch.randint(-1, 2, (60, 3), generator=g) if on_a_grid else torch.randn(60, 6, generator=g)
    x, labels = x.to(dtype), torch.randint(num_classes, (60,), generator=g)
    for given_sets in ((x, labels), (x[:20], labels[:20], x[20:], labels[20:])):
        slow = slow_metrics(*given_sets, metric=metric)
        assert retrieval_metrics(*given_sets, metric=metric) == pytest.approx(slow, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_queries", [1, 333])
def test_a_collapsed_gallery_scores_zero_whatever_the_order_of_summation(metric, dtype, num_queries):
    g = generator(num_queries)
    point = torch.randn(1, 2048, generator=g, dtype=torch.float64).to(dtype)
    query = torch.randn(num_queries, 2048, generator=g).to(dtype) + 3 * point
    labels, gallery, gallery_labels = torch.arange(num_queries) % 9, point.repeat(999, 1), torch.arange(999) % 9
    found = retrieval_metrics(query, labels, gallery, gallery_labels, recall_at=(888,), metric=metric)
    assert found["R@888"] == found["MAP@R"] == 0
    found = retrieval_metrics(gallery, gallery_labels, recall_at=(888, 889), metric=metric, chunk_size=17 * num_queries)
    assert found == {"R@888": 0, "R@889": 1, "MAP@R": 0, "R-Precision": 0, "excluded_queries": 0}


def test_euclidean_ties_far_away():
    # Two points mirrored across the line from the query to the origin. Both lie 1e3 away, where squared distances in
    # float32 come in steps of 0.06: rounding alone must not choose between them.
    g = generator(0)
    for _ in range(50):
        basis = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.float64)).Q
        query, mirrored = (1e3 * basis[:1]).float(), torch.stack([basis[1], -basis[1]]).float()
        for labels in ([1, 0], [0, 1]):
            assert retrieval_metrics(query, [1], mirrored, labels, recall_at=(1,), metric="euclidean")["R@1"] == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("farther", "tie"), [(25, False), (2, True)])
def test_only_differences_within_rounding_are_ties(metric, dtype, farther, tie):
    angle = torch.tensor([0.0, 1.0, 1.0 + farther * torch.finfo(dtype).eps], dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=1).to(dtype)
    found = retrieval_metrics(x[:1], [0], x[1:], [0, 1], recall_at=(1,), metric=metric)
    assert found["R@1"] == (0 if tie else 1)


@pytest.mark.parametrize("metric", METRICS)
def test_self_is_left_out_by_index(metric):
    x = torch.tensor([[1.0, 2.0], [5.0, 1.0], [1.0, 2.0], [5.0, 1.0]])
    similarity, index = nearest_neighbours(x, k=3, metric=metric)
    assert index[:, 0].tolist() == [2, 3, 0, 1]
    assert all(row not in found for row, found in enumerate(index.tolist()))
    torch.testing.assert_close(similarity[:, 0], torch.full((4,), 1.0 if metric == "cosine" else 0.0))
    assert retrieval_metrics(x, [0, 1, 0, 1], metric=metric)["R@1"] == 1
    assert retrieval_metrics(x, [0, 0, 1, 1], metric=metric)["R@1"] == 0
    # the same rows given as a gallery are not the queries themselves
    assert nearest_neighbours(x, x, metric=metric)[1].flatten().tolist() == [0, 1, 0, 1]


def noise(n=60, classes=30):
    """Vectors and labels that have nothing to do with each other; two images a class."""
    return torch.randn(n, 8, generator=generator(3)), torch.arange(classes).repeat(n // classes)


def test_the_queries_as_their_own_gallery_do_not_find_themselves():
    x, labels = noise()
    alone = retrieval_metrics(x, labels)
    assert alone["R@1"] < 0.2
    assert retrieval_metrics(x, labels, x, labels) == alone
    copy = {"gallery": x.clone(), "gallery_labels": labels.clone(), "same_images": True}
    assert retrieval_metrics(x, labels, **copy) == pytest.approx(alone)
    for gallery in ({}, copy):
        found = retrieval_metrics(x, labels, **gallery, distances=torch.cdist(x, x))
        assert found == pytest.approx(retrieval_metrics(x, labels, metric="euclidean"))
    # Equal vectors elsewhere may be other images, and probably are not.
    with pytest.warns(UserWarning, match="each query finds itself: pass gallery=None"):
        assert retrieval_metrics(x, labels, x.clone(), labels)["R@1"] == 1


@pytest.mark.parametrize("offset", [1e3, 1e5, -3e4])
@pytest.mark.parametrize("crossed", [False, True])
def test_a_shared_offset_changes_no_neighbour(offset, crossed):
    labels = torch.arange(8).repeat_interleave(6)
    x = torch.eye(8)[labels] + 0.1 * torch.randn(48, 8, generator=generator(0))
    far = x + offset  # float32: its last digits are gone
    sets = (far[::2], labels[::2], far[1::2], labels[1::2]) if crossed else (far, labels)
    exact = retrieval_metrics(
        *(part.double() if part.is_floating_point() else part for part in sets), metric="euclidean"
    )
    assert retrieval_metrics(*sets, metric="euclidean") == pytest.approx(exact, abs=1e-12) and exact["R@1"] == 1
    # The subtraction is exact: so are distances between numbers that have few digits.
    whole = torch.tensor([[0.0, 3.0], [4.0, 0.0], [4.0, 1.0]]) + offset
    assert nearest_neighbours(whole, k=2, metric="euclidean")[0].tolist() == [[-20, -25], [-1, -25], [-1, -20]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_agree_with_sorting_all_similarities(metric, dtype):
    g = generator(1)
    query, gallery = torch.randn(9, 5, generator=g, dtype=dtype), torch.randn(30, 5, generator=g, dtype=dtype)
    if metric == "cosine":
        full = torch.cosine_similarity(query[:, None], gallery[None], dim=2)
    else:
        full = -(query[:, None] - gallery[None]).square().sum(dim=2)
    for k in (1, 4, 30):
        similarity, index = nearest_neighbours(query, gallery, k, metric=metric)
        expected = full.sort(dim=1, descending=True)
        torch.testing.assert_close(similarity, expected.values[:, :k])
        assert torch.equal(index, expected.indices[:, :k])
        assert similarity.dtype == dtype and index.dtype == torch.int64


@pytest.mark.parametrize(("metric", "best"), [("cosine", 1.0), ("euclidean", 0.0)])
def test_rounding_makes_nothing_more_similar_than_itself(metric, best):
    x = 100 * torch.randn(300, 33, generator=generator(0))
    similarity, index = nearest_neighbours(x, x, metric=metric)
    assert torch.equal(index.squeeze(1), torch.arange(300))
    assert similarity.max() == best


def test_equal_similarities_come_in_the_order_of_the_gallery():
    gallery = torch.tensor([[2.0], [1.0], [-1.0], [1.0], [-1.0], [3.0]])
    _, index = nearest_neighbours(torch.zeros(1, 1), gallery, 6, metric="euclidean")
    assert index.tolist() == [[1, 2, 3, 4, 0, 5]]


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_chunk_size_changes_nothing(metric, monkeypatch):
    g = generator(2)
    x, labels = torch.randint(-2, 3, (40, 4), generator=g).float(), torch.randint(6, (40,), generator=g)
    neighbours, metrics = nearest_neighbours(x, k=39, metric=metric), retrieval_metrics(x, labels, metric=metric)
    for chunk_size in (1, 7, 40, 1000):
        similarity, _ = nearest_neighbours(x, k=39, metric=metric, chunk_size=chunk_size)
        torch.testing.assert_close(similarity, neighbours[0])
        assert retrieval_metrics(x, labels, metric=metric, chunk_size=chunk_size) == pytest.approx(metrics, abs=1e-12)
    for chunk_bytes in (1, 5_000):  # one row at a time; a few
        monkeypatch.setattr(similarities, "CHUNK_BYTES", chunk_bytes)
        assert retrieval_metrics(x, labels, metric=metric) == pytest.approx(metrics, abs=1e-12)
        torch.testing.assert_close(nearest_neighbours(x, k=39, metric=metric)[0], neighbours[0])


def test_memory_does_not_grow_with_the_queries(monkeypatch):
    # 2,000 queries against 2,000 rows, 50 queries at a time: nothing as large as a tenth of all similarities is made
    monkeypatch.setattr(similarities, "CHUNK_BYTES", 50 * (2_000 * 4 + 10 * similarities.WORKSPACE_BYTES))
    x, labels = torch.randn(2_000, 8, generator=generator(0)), torch.arange(200).repeat(10)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        retrieval_metrics(x, labels)
    assert max(event.cpu_memory_usage for event in profile.events()) < 2_000 * 2_000 * 4 / 10


def test_queries_without_a_positive_are_left_out_and_counted():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0]])
    alone = retrieval_metrics(x, [0, 0, 1, 1, 2], metric="euclidean")
    assert alone["excluded_queries"] == 1
    assert alone["R@1"] == alone["MAP@R"] == 1
    found = retrieval_metrics(x[:3], [0, 7, -3], x[3:], [1, 0], recall_at=(1, 2), metric="euclidean")
    assert found == {"R@1": 0, "R@2": 1, "MAP@R": 0, "R-Precision": 0, "excluded_queries": 2}
    with pytest.raises(ValueError, match="query_labels: none of the 5 queries has a positive"):
        retrieval_metrics(x, [0, 1, 2, 3, 4])


def test_values_of_each_query():
    x, labels = noise()
    labels[:3] = torch.tensor([100, 101, 102])
    found = retrieval_metrics(x, labels, recall_at=(1, 5), per_query=True)
    means = retrieval_metrics(x, labels, recall_at=(1, 5))
    assert list(found) == ["R@1", "R@5", "MAP@R", "R-Precision"]
    for name, values in found.items():
        assert values.shape == (60,) and values.isnan().sum() == means["excluded_queries"] == 6
        assert values.nanmean().item() == pytest.approx(means[name])


def test_without_threadpoolctl_the_products_are_the_same(monkeypatch):
    x, labels = noise()
    expected = retrieval_metrics(x, labels)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert retrieval_metrics(x, labels) == pytest.approx(expected)


def test_zero_vectors_resemble_nothing():
    similarity, index = nearest_neighbours(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), k=3)
    assert similarity.tolist() == [[0, 0, 0], [0, 0, -1], [0, 0, -1], [0, 0, 0]]
    assert index[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
def test_cosine_holds_for_lengths_whose_squares_do_not(scale):
    x = torch.randn(10, 4, generator=generator(0))
    torch.testing.assert_close(nearest_neighbours(x * scale, k=3), nearest_neighbours(x, k=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_narrow_types_are_compared_in_float32(dtype):
    x = torch.randint(-50, 50, (20, 100), generator=generator(0)).to(dtype)
    similarity, index = nearest_neighbours(x, k=2)
    expected = nearest_neighbours(x.float(), k=2)
    assert similarity.dtype == torch.float32
    assert torch.equal(similarity, expected[0]) and torch.equal(index, expected[1])


def test_autocast_does_not_reach_the_products():
    x, labels = torch.randn(60, 32, generator=generator(0)), torch.arange(10).repeat(6)
    with torch.autocast("cpu", torch.bfloat16):
        similarity, _ = nearest_neighbours(x, k=3)
        metrics = retrieval_metrics(x, labels), clustering_metrics(x, labels)
    assert torch.equal(similarity, nearest_neighbours(x, k=3)[0])
    assert metrics == (retrieval_metrics(x, labels), clustering_metrics(x, labels))


def test_all_usual_containers_are_taken():
    array = np.random.default_rng(0).normal(size=(12, 3))
    labels = np.repeat(np.arange(4), 3)
    expected = retrieval_metrics(torch.from_numpy(array), torch.from_numpy(labels))
    read_only = array.copy()
    read_only.flags.writeable = False
    trained = torch.from_numpy(array).requires_grad_()
    for x in (array, read_only, np.asfortranarray(array), trained):
        assert retrieval_metrics(x, labels) == expected
    of_types = [labels.astype(dtype) for dtype in ("uint8", "int16", "uint16", "uint32", "uint64")]
    for y in (*of_types, *map(torch.from_numpy, of_types), labels.tolist(), list(labels), pd.Series(labels)):
        assert retrieval_metrics(array, y) == expected
        assert clustering_metrics(array, y) == clustering_metrics(array, labels)
    assert retrieval_metrics(array[::-1], labels[::-1]) == pytest.approx(expected, abs=1e-12)
    mixed = nearest_neighbours(array, array.astype(np.float32), k=2)[0]
    assert mixed.dtype == torch.float64 and not nearest_neighbours(trained)[0].requires_grad
    for cutoffs in (1, np.int64(1), [np.int32(1)], np.array([1]), range(1, 2)):
        assert retrieval_metrics(array, labels, recall_at=cutoffs)["R@1"] == expected["R@1"]


grids = st.integers(0, 2**31 - 1).map(
    lambda seed: (
        torch.randint(-2, 3, (24, 3), generator=generator(seed)).double(),
        torch.randint(2 + seed % 8, (24,), generator=generator(seed)),
    )
)


@settings(max_examples=40, deadline=None)
@given(grids, st.sampled_from(METRICS), st.randoms(use_true_random=False))
def test_properties(data, metric, random):
    x, labels = data
    found = retrieval_metrics(x, labels, recall_at=range(1, 25), metric=metric)
    recalls = [found[f"R@{k}"] for k in range(1, 25)]
    assert recalls == sorted(recalls) and recalls[22] == 1
    assert 0 <= found["MAP@R"] <= found["R-Precision"] <= 1

    order = list(range(24))
    random.shuffle(order)
    shuffled = retrieval_metrics(x[order], labels[order], recall_at=range(1, 25), metric=metric)
    renamed = retrieval_metrics(x, 5 - 3 * labels, recall_at=range(1, 25), metric=metric)
    lengths = torch.tensor([[random.uniform(0.1, 10.0) if metric == "cosine" else 3.7] for _ in order]).double()
    scaled = retrieval_metrics(lengths * x, labels, recall_at=range(1, 25), metric=metric)
    for other in (shuffled, renamed, scaled):
        assert other == pytest.approx(found, abs=1e-12)


X, L = torch.arange(8.0).reshape(4, 2), [0, 0, 1, 1]


def with_entry(value):
    x = X.clone()
    x[2, 1] = value
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_neighbours(X[0]), r"query has shape \(2,\) .*: must be a matrix"),
        (lambda: nearest_neighbours(X, X[:, :1]), "gallery has 1 columns: must have 2"),
        (lambda: nearest_neighbours(with_entry(np.nan)), r"query\[2, 1\]=nan: must be finite"),
        (lambda: nearest_neighbours(X, with_entry(1e20), metric="euclidean"), "gallery: row 2 is too long"),
        (lambda: nearest_neighbours(X, k=0), "k=0: must be a whole number, 1 or more"),
        (lambda: nearest_neighbours(X, k=4), "k=4: must be at most 3"),
        (lambda: nearest_neighbours(X, chunk_size=0), "chunk_size=0: must be a whole number, 1 or more"),
        (lambda: nearest_neighbours(X, metric="dot"), "metric='dot': must be one of cosine, euclidean"),
        (lambda: retrieval_metrics(X, [0, 1]), "query_labels has 2 entries: must have 4"),
        (lambda: retrieval_metrics(X, L, X, [0, 1]), "gallery_labels has 2 entries: must have 4"),
        (lambda: retrieval_metrics(X, [0.0, 0.0, 1.0, 1.0]), "query_labels has .*: must be a vector of"),
        (lambda: retrieval_metrics(X, torch.zeros(4)), "query_labels has .* dtype torch.float32: must be a vector of"),
        (lambda: retrieval_metrics(X, L, X, [1, 1, 0, 0]), "gallery_labels: must be equal to query_labels"),
        (lambda: retrieval_metrics(X, L, X[:3], L[:3], same_images=True), "gallery has 3 rows: must have 4"),
        (lambda: retrieval_metrics(X, L, X), "gallery and gallery_labels: must be given together"),
        (lambda: retrieval_metrics(X, L, recall_at=(1, 0)), "recall_at=0: must be a whole number"),
        (lambda: retrieval_metrics(X, L, chunk_size=0), "chunk_size=0: must be a whole number"),
        (lambda: clustering_metrics(X, [3, 3, 3, 3]), "labels holds a single class, 3"),
        (lambda: clustering_metrics(X, L, metric="dot"), "metric='dot': must be one of"),
        (lambda: clustering_metrics(X, L, chunk_size=0), "chunk_size=0: must be a whole number"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_separated_blobs_are_found():
    g = generator(0)
    labels = torch.arange(8).repeat(15)
    x = 10 * torch.eye(8)[labels] + 0.1 * torch.randn(120, 8, generator=g)
    for metric in METRICS:
        for seed in range(3):
            found = clustering_metrics(x, labels, seed=seed, metric=metric)
            assert found == pytest.approx({"NMI": 1, "AMI": 1}, abs=1e-12)
    # names of classes mean nothing: k is the number of classes that occur
    assert clustering_metrics(x[:45], 100 * labels[:45] - 7)["NMI"] == pytest.approx(1, abs=1e-12)


def test_random_embeddings_have_no_adjusted_information():
    x = torch.randn(400, 16, generator=generator(0))
    found = clustering_metrics(x, torch.arange(40).repeat(10))
    assert abs(found["AMI"]) < 0.05 < found["NMI"]


def test_clustering_follows_the_metric():
    # two directions, three lengths: lengths are the larger difference
    labels = np.repeat([0, 1], 30)
    length = np.tile([1.0, 10.0, 100.0], 20)
    x = length[:, None] * np.where(labels[:, None] == 0, [1.0, 0.2], [0.2, 1.0])
    assert clustering_metrics(x, labels)["NMI"] == pytest.approx(1, abs=1e-12)
    assert clustering_metrics(x, labels, metric="euclidean")["NMI"] < 0.9


def test_clustering_depends_on_its_seed_alone():
    x, labels = torch.randn(300, 8, generator=generator(0)), torch.arange(30).repeat(10)
    state = torch.get_rng_state()
    found = clustering_metrics(x, labels, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert clustering_metrics(x, labels, seed=3) == found
    assert clustering_metrics(x, labels, seed=4) != found
