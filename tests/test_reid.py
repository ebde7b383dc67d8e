"""Re-identification by hand, by brute force, and at its edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gl_core.evaluation import reid_metrics, similarities


def on_a_line(query_place, places, query=(7, 1), gallery=((7, 2),), **given):
    """One query and gallery images on a line: (identity, camera) of each."""
    ids, cameras = zip(*gallery, strict=True)
    return reid_metrics(
        torch.tensor([[float(query_place)]]), [query[0]], [query[1]],
        torch.tensor([[float(place)] for place in places]), ids, cameras, metric="euclidean", **given,
    )  # fmt: skip


def test_the_same_person_by_the_same_camera_counts_neither_way():
    with_twin = on_a_line(0, [0, 1, 2], gallery=[(7, 1), (7, 2), (5, 1)])
    assert with_twin["mAP"] == with_twin["Rank-1"] == 1.0
    # Another person by that camera is a negative like any other.
    assert on_a_line(0, [0, 1, 2], gallery=[(5, 1), (7, 2), (5, 1)])["mAP"] == 0.5


def test_junk_is_removed_and_distractors_stay():
    assert on_a_line(0, [1, 2], gallery=[(-1, 2), (7, 2)])["mAP"] == 1.0
    assert on_a_line(0, [1, 2], gallery=[(0, 2), (7, 2)])["mAP"] == 0.5
    # Zero is an identity, and junk is none.
    assert on_a_line(0, [1, 2], query=(0, 1), gallery=[(0, 2), (5, 2)])["mAP"] == 1.0
    with pytest.raises(ValueError, match="none of the 1 queries has a positive"):
        on_a_line(0, [1, 2], query=(-1, 1), gallery=[(-1, 2), (5, 2)])


def brute_force(D, query_ids, query_cameras, gallery_ids, gallery_cameras, ranks):
    precisions, firsts, excluded = [], [], 0
    for i in range(len(D)):
        kept = [
            g for g in range(D.shape[1])
            if gallery_ids[g] != -1 and (gallery_ids[g], gallery_cameras[g]) != (query_ids[i], query_cameras[i])
        ]  # fmt: skip
        # Of equals the wrong ones come first.
        ranked = sorted(kept, key=lambda g, i=i: (D[i, g], gallery_ids[g] == query_ids[i]))
        hits = [place for place, g in enumerate(ranked, 1) if gallery_ids[g] == query_ids[i]]
        if not hits or query_ids[i] == -1:
            excluded += 1
            continue
        precisions.append(np.mean([(number + 1) / place for number, place in enumerate(hits)]))
        firsts.append(hits[0])
    if not precisions:
        return {"excluded_queries": excluded}
    return {
        "mAP": np.mean(precisions),
        **{f"Rank-{rank}": np.mean([first <= rank for first in firsts]) for rank in ranks},
        "excluded_queries": excluded,
    }


@st.composite
def problems(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, g = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    # Small whole numbers: exact distances, many ties.
    query, gallery = random.integers(0, 4, (q, 2)).astype(float), random.integers(0, 4, (g, 2)).astype(float)
    people, cameras = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    ids = random.integers(0, people, q), random.integers(-1, people, g)
    return query, ids[0], random.integers(0, cameras, q), gallery, ids[1], random.integers(0, cameras, g)


@settings(max_examples=150)
@given(problems(), st.booleans())
def test_equals_brute_force(problem, by_distances):
    query, query_ids, query_cameras, gallery, gallery_ids, gallery_cameras = problem
    D = ((query[:, None] - gallery[None]) ** 2).sum(-1)
    expected = brute_force(D, query_ids, query_cameras, gallery_ids, gallery_cameras, (1, 3))
    given = {"distances": D} if by_distances else {"metric": "euclidean"}
    if expected["excluded_queries"] == len(query):
        with pytest.raises(ValueError, match="has a positive"):
            reid_metrics(*problem, ranks=(1, 3), **given)
        return
    assert reid_metrics(*problem, ranks=(1, 3), **given) == pytest.approx(expected)


def test_values_of_each_query_and_a_single_rank():
    query, gallery = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[1.0], [5.0], [8.0], [9.0]])
    problem = (query, [1, 2, 3], [1, 1, 1], gallery, [1, 2, 1, 3], [2, 1, 2, 2])
    found = reid_metrics(*problem, ranks=1, metric="euclidean", per_query=True)
    assert found["mAP"].tolist() == pytest.approx([(1 + 2 / 3) / 2, np.nan, 1], nan_ok=True)
    assert found["Rank-1"].tolist() == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert reid_metrics(*problem, ranks=np.int64(1), metric="euclidean")["mAP"] == pytest.approx(11 / 12)


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    problem = (
        random.normal(size=(40, 8)), random.integers(0, 6, 40), random.integers(0, 3, 40),
        random.normal(size=(200, 8)), random.integers(-1, 6, 200), random.integers(0, 3, 200),
    )  # fmt: skip
    whole = reid_metrics(*problem)
    assert reid_metrics(*problem, chunk_size=7) == pytest.approx(whole)
    sizes = []
    chunks = similarities.Pairs.chunks
    monkeypatch.setattr(similarities, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(
        similarities.Pairs, "chunks",
        lambda *a, **k: ((sizes.append(rows.stop - rows.start), (rows, s))[1] for rows, s in chunks(*a, **k)),
    )  # fmt: skip
    assert reid_metrics(*problem) == pytest.approx(whole) and max(sizes) < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_cameras": None}, "query_cameras is missing"),
        ({"gallery": None}, "gallery is missing"),
        ({"query_cameras": [1]}, "query_cameras has 1 entries: must have 2"),
        ({"gallery_ids": [1.0, 2.0, 3.0]}, "gallery_ids has .*: must be a vector of integers"),
        ({"gallery": np.ones((3, 5))}, "gallery has 5 columns: must have 2"),
        ({"distances": np.ones((3, 2))}, r"distances has shape \(3, 2\): must be \(2, 3\)"),
    ],
)
def test_errors(change, message):
    problem = {"query": np.ones((2, 2)), "query_ids": [1, 2], "query_cameras": [1, 1]}
    problem |= {"gallery": np.ones((3, 2)), "gallery_ids": [1, 2, 3], "gallery_cameras": [2, 2, 2]}
    with pytest.raises(ValueError, match=message):
        reid_metrics(**problem | change)
