"""Re-ranking: the authors' results, the definition written out as loops, and the limits of its settings."""

import importlib
import sys
from pathlib import Path
from unittest import mock

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gl_core import _rerank_loops, rerank
from gl_core.rerank import k_reciprocal


@pytest.mark.parametrize("case", ["rerank_inshop", "rerank_query_gallery", "rerank_self"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_reference(case, dtype):
    with np.load(Path(__file__).parent / "reference" / f"{case}.npz") as arrays:
        case = {name: array if array.ndim else array.item() for name, array in arrays.items()}
    sets = [case[name].astype(dtype) for name in ("features", "query", "gallery") if name in case]
    result = k_reciprocal(*sets, k1=case["k1"], k2=case["k2"], lambda_value=case["lambda_value"])
    np.testing.assert_allclose(result.numpy(), case["reranked"], rtol=0, atol=1e-5)


def written_out(query, gallery, k1, k2, lambda_value):
    """The formulas of the module, one image at a time, with sets."""
    everyone = np.concatenate([query, gallery]) if gallery is not None else query
    first = len(query) if gallery is not None else 0
    n = len(everyone)
    D = ((everyone[:, None] - everyone[None]) ** 2).sum(-1)
    largest = D.max(1, keepdims=True)
    near = [sorted(range(n), key=lambda j: (j != i, D[i, j])) for i in range(n)]
    D = D / np.where(largest > 0, largest, 1)

    def reciprocal(i, k):
        return {j for j in near[i][: k + 1] if i in near[j][: k + 1]}

    V = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        members = set(own)
        for j in own:
            theirs = reciprocal(j, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            V[i, j] = np.exp(-D[i, j])
        V[i] /= V[i].sum()
    V = np.stack([V[near[i][:k2]].mean(0) for i in range(n)])
    smaller, larger = (of(V[: len(query), None], V[None, first:]).sum(-1) for of in (np.minimum, np.maximum))
    jaccard = 1 - smaller / larger
    return (1 - lambda_value) * jaccard + lambda_value * D[: len(query), first:]


@st.composite
def problems(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    query = random.normal(size=(draw(st.integers(2, 12)), 5))
    gallery = random.normal(size=(draw(st.integers(1, 25)), 5)) if draw(st.booleans()) else None
    k1 = draw(st.integers(1, 9))
    return query, gallery, k1, draw(st.integers(1, k1)), draw(st.sampled_from([0.0, 0.3, 1.0]))


@pytest.mark.parametrize("dense", [0.0, 1.0])
@settings(max_examples=60)
@given(problem=problems())
def test_equals_the_definition_written_out(dense, problem):
    query, gallery, k1, k2, lambda_value = problem
    n = len(query) + (0 if gallery is None else len(gallery))
    k1 = min(k1, n - 1)
    k2 = min(k2, k1)
    expected = written_out(query, gallery, k1, k2, lambda_value)
    # Rows in blocks, and one by one.
    with mock.patch.object(rerank, "DENSE", dense):
        result = k_reciprocal(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("with_gallery", [True, False])
@pytest.mark.parametrize("lambda_value", [0.0, 0.3, 1.0])
def test_the_best_are_the_best_of_the_dense_result(with_gallery, lambda_value):
    random = np.random.default_rng(0)
    query, gallery = random.normal(size=(30, 8)), random.normal(size=(80, 8))
    sets = (query, gallery) if with_gallery else (gallery,)
    dense = k_reciprocal(*sets, k1=10, k2=4, lambda_value=lambda_value).numpy().copy()
    if not with_gallery:
        np.fill_diagonal(dense, np.inf)
    best, index = k_reciprocal(*sets, k1=10, k2=4, lambda_value=lambda_value, top_k=60)
    np.testing.assert_allclose(best.numpy(), np.sort(dense, axis=1)[:, :60], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(dense, index.numpy(), 1), best.numpy(), rtol=0, atol=1e-12)
    assert all(len(set(row)) == 60 for row in index.tolist())


@pytest.mark.parametrize("top_k", [None, 12])
def test_chunk_size_changes_nothing(top_k):
    query, gallery = np.random.default_rng(1).normal(size=(2, 40, 8))
    whole = k_reciprocal(query, gallery, k1=10, k2=4, top_k=top_k)
    for chunk_size in (1, 7, 1000):
        parts = k_reciprocal(query, gallery, k1=10, k2=4, top_k=top_k, chunk_size=chunk_size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("top_k", [None, 12])
def test_a_gpu_gives_the_same(top_k):
    query, gallery = np.random.default_rng(1).normal(size=(2, 40, 8))
    expected = k_reciprocal(query, gallery, k1=10, k2=4, top_k=top_k)
    found = k_reciprocal(torch.from_numpy(query).cuda(), gallery, k1=10, k2=4, top_k=top_k)
    for on_gpu, on_cpu in zip(*((found, expected) if top_k else ([found], [expected])), strict=True):
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-9)


@pytest.mark.parametrize("missing", ["numba", "scipy.sparse"])
def test_a_missing_package_is_named_when_it_is_needed(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    importlib.reload(rerank)
    with pytest.raises(ImportError, match=r'pip install "gl_core\[rerank\]"'):
        rerank.k_reciprocal(np.eye(4), k1=2, k2=1)


@pytest.mark.slow
def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    monkeypatch.delitem(sys.modules, "gl_core._rerank_loops")
    anew = importlib.import_module("gl_core._rerank_loops")
    assert anew is not _rerank_loops
    _, sizes = anew.reciprocal(np.array([[0, 1], [1, 0], [2, 1]], np.int32), 2)
    assert sizes.tolist() == [2, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("images", [np.ones((6, 3)), np.zeros((2, 3))])
def test_identical_images(images):
    neighbours = len(images) - 1
    assert k_reciprocal(images, k1=neighbours, k2=1).abs().max() < 1e-12
    # Which of equal images are nearest is arbitrary, but the result is a distance all the same.
    result = k_reciprocal(images, k1=1, k2=1)
    assert ((result >= 0) & (result <= 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 0}, "k1=0"),
        ({"k2": 0}, "k2=0"),
        ({"k1": 3, "k2": 4}, "k2=4: must be at most k1=3"),
        ({"lambda_value": 1.1}, r"lambda_value=1.1: must lie in \[0, 1\]"),
        ({"lambda_value": float("nan")}, "lambda_value=nan"),
        ({"top_k": 5}, "top_k=5: must be at most 4"),
        ({"top_k": 0}, "top_k=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"gallery": np.ones((3, 9))}, "gallery has 9 columns: must have 2"),
        ({"query": np.full((3, 2), np.nan)}, r"query\[0, 0\]=nan"),
        ({"query": np.ones((1, 2))}, "query holds a single image"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        k_reciprocal(**({"query": np.random.default_rng(0).normal(size=(5, 2))} | arguments))
