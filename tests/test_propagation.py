"""Properties of similarity, anchors and replicator dynamics."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gl_core.propagation import (
    DYNAMICS,
    average_consistency,
    cosine_similarity,
    initial_assignments,
    pearson_similarity,
    replicator_dynamics,
    select_anchors,
)

SIMILARITIES = [
    pearson_similarity,
    cosine_similarity,
    partial(pearson_similarity, negatives="shift"),
    partial(cosine_similarity, negatives="shift"),
]


@st.composite
def problems(draw, symmetric: bool = True):
    """A similarity with some zeros, assignments with some one-hot rows, in float64."""
    n, C = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = random.random((n, n)) * (random.random((n, n)) < draw(st.sampled_from([0.2, 0.6, 1.0])))
    if symmetric:
        W = np.triu(W) + np.triu(W, 1).T
    X = random.dirichlet(np.full(C, draw(st.sampled_from([0.1, 1.0]))), n)
    anchors = random.random(n) < 0.3
    X[anchors] = np.eye(C)[random.integers(0, C, anchors.sum())]
    return torch.tensor(W), torch.tensor(X), torch.tensor(anchors)


@given(problems(symmetric=False), st.integers(0, 20), st.sampled_from(DYNAMICS))
def test_rows_stay_on_the_simplex_and_anchors_one_hot(problem, T, dynamics):
    W, X, anchors = problem
    refined = replicator_dynamics(W, X, T, dynamics=dynamics)
    assert (refined >= 0).all() and refined[anchors].equal(X[anchors])
    torch.testing.assert_close(refined.sum(1), torch.ones(len(X), dtype=torch.float64), rtol=0, atol=1e-12)


@given(problems(symmetric=False), st.integers(1, 6), st.sampled_from(DYNAMICS), st.randoms(use_true_random=False))
def test_equivariant_to_permutations_of_images_and_classes(problem, T, dynamics, random):
    W, X, _ = problem
    order = list(range(len(X)))
    random.shuffle(order)
    permuted = replicator_dynamics(W[order][:, order], X[order].flip(1), T, dynamics=dynamics)
    expected = replicator_dynamics(W, X, T, dynamics=dynamics)[order].flip(1)
    torch.testing.assert_close(permuted, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=300)
@given(problems())
def test_average_consistency_never_falls_for_symmetric_similarity(problem):
    W, X, _ = problem
    path = replicator_dynamics(W, X, 12, return_path=True)
    heights = torch.stack([average_consistency(W, step) for step in path])
    assert (heights.diff() >= -1e-12 * heights[:-1].abs().clamp_min(1)).all()


@given(problems(symmetric=False), st.integers(0, 5), st.sampled_from(DYNAMICS))
def test_agrees_with_a_plain_loop(problem, T, dynamics):
    W, X, _ = (part.tolist() for part in problem)
    for _ in range(T):
        before = [row[:] for row in X]
        for i, row in enumerate(before):
            support = [sum(w * x for w, x in zip(W[i], column, strict=True)) for column in zip(*before, strict=True)]
            if dynamics == "exponential":
                support = [math.exp(10 * s / (sum(W[i]) or 1)) for s in support]
            weights = [x * s for x, s in zip(row, support, strict=True)]
            if sum(weights) > 0:
                X[i] = [weight / sum(weights) for weight in weights]
    actual = replicator_dynamics(*problem[:2], T, dynamics=dynamics)
    torch.testing.assert_close(actual, torch.tensor(X, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_path_holds_every_step():
    W, X = torch.rand(4, 4), torch.rand(4, 3).softmax(1)
    path = replicator_dynamics(W, X, 3, return_path=True)
    assert path.shape == (4, 4, 3)
    assert path[0].equal(X)
    for t in range(4):
        assert path[t].equal(replicator_dynamics(W, X, t))


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck(similarity, dynamics):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def refined(features, logits):
        X = initial_assignments(logits, labels, select_anchors(labels, 1), 2.0)
        return replicator_dynamics(similarity(features), X, 3, dynamics=dynamics)

    assert torch.autograd.gradcheck(refined, (features, logits))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 12))
def test_pearson_is_the_correlation_cut_or_shifted(seed, n):
    features = np.random.default_rng(seed).normal(size=(n, 4))
    r = np.corrcoef(features)
    lowest = min(0, r.min())
    for negatives, expected in (("cut", r.clip(0)), ("shift", (r - lowest) / (1 - lowest))):
        W = pearson_similarity(torch.tensor(features), negatives=negatives).numpy()
        np.testing.assert_allclose(W, expected, rtol=1e-9, atol=1e-12)
    # Nothing is negative: nothing to shift, and shifting is cutting.
    positive = torch.tensor(np.abs(features))
    torch.testing.assert_close(cosine_similarity(positive, negatives="shift"), cosine_similarity(positive))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), d=st.integers(2, 9))
def test_similarity_is_symmetric_in_range_with_ones_on_the_diagonal(similarity, seed, n, d):
    W = similarity(torch.tensor(np.random.default_rng(seed).normal(size=(n, d))))
    torch.testing.assert_close(W, W.T, rtol=0, atol=1e-14)
    assert ((W >= 0) & (W <= 1)).all()
    assert (W.diagonal() == 1).all()


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_pearson_ignores_scale_and_offset_of_a_row(seed, scale, shift):
    features = torch.tensor(np.random.default_rng(seed).normal(size=(5, 12)))
    torch.testing.assert_close(
        pearson_similarity(features * scale + shift), pearson_similarity(features), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_similarity_of_hard_features_is_finite_with_finite_gradients(similarity, dtype):
    largest = torch.finfo(dtype).max / 4
    rows = [[0.0] * 4, [3.0] * 4, [1.0, 2, 3, 4], [1.0, 2, 3, 4], [largest, 0, 0, largest], [-largest, largest, 0, 0]]
    features = torch.tensor(rows, dtype=dtype, requires_grad=True)
    W = similarity(features)
    assert W.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert W.isfinite().all()
    assert W[2, 3].item() == pytest.approx(1)
    if similarity in (pearson_similarity, cosine_similarity):
        assert W[0].sum() == 1  # a row of zeros resembles only itself
    W.sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e20, -7.3])
def test_a_constant_row_correlates_with_nothing_whatever_rounding_leaves(value):
    features = torch.full((2, 1000), value)
    features[1] = torch.linspace(0, 1, 1000)
    assert pearson_similarity(features).equal(torch.eye(2))


def test_dynamics_run_in_float32_under_autocast():
    W, X = torch.rand(8, 8), torch.rand(8, 5).softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        refined = replicator_dynamics(W, X, 2)
        assert refined.dtype == torch.float32
    assert refined.equal(replicator_dynamics(W, X, 2))
    assert replicator_dynamics(W.bfloat16(), X.bfloat16(), 1).dtype == torch.float32


@given(st.lists(st.integers(-3, 5), min_size=1, max_size=30), st.integers(0, 4))
def test_anchors_are_the_first_of_each_class(labels, num_anchors):
    anchors = select_anchors(torch.tensor(labels), num_anchors)
    for position, label in enumerate(labels):
        assert anchors[position] == (labels[:position].count(label) < num_anchors)


def test_anchors_are_one_hot_and_others_softmax():
    logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(3, 1)
    X = initial_assignments(logits, torch.tensor([1, 1, 2]), torch.tensor([True, False, False]), 2.0)
    assert X[0].tolist() == [0, 1, 0]
    torch.testing.assert_close(X[1:], (logits[1:] / 2).softmax(1))


GOOD_W, GOOD_X = torch.eye(2), torch.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pearson_similarity(torch.ones(3)), r"features has shape \(3,\)"),
        (lambda: pearson_similarity(torch.ones(0, 2)), "must not be empty"),
        (lambda: pearson_similarity(torch.tensor([[1.0, float("nan")]])), r"features\[0, 1\]=nan: must be finite"),
        (lambda: replicator_dynamics(torch.eye(3), GOOD_X, 1), r"similarity has shape \(3, 3\): must be \(2, 2\)"),
        (lambda: replicator_dynamics(-GOOD_W, GOOD_X, 1), "similarity holds -1.0: must not be negative"),
        (lambda: replicator_dynamics(GOOD_W, GOOD_X, -1), "num_iterations=-1: must be a whole number, 0 or more"),
        (lambda: replicator_dynamics(GOOD_W, GOOD_X, 1, dynamics="best"), "dynamics='best': must be one of repl"),
        (lambda: cosine_similarity(GOOD_W, negatives="keep"), "negatives='keep': must be one of cut, shift"),
        (lambda: select_anchors(torch.tensor([0, 1]), -1), "num_anchors=-1"),
        (lambda: select_anchors(torch.tensor([0.5, 1]), 1), "labels has shape .* must be a vector of integers"),
        (lambda: initial_assignments(torch.ones(1, 2), [2], [True], 1.0), r"labels holds 2: must lie in 0\.\.1"),
        (lambda: initial_assignments(torch.ones(1, 2), [0], [True], 0), "temperature=0: must be above 0"),
        (lambda: initial_assignments(torch.ones(1, 2), [0], [1], 1.0), "anchors has shape .* must be 1 booleans"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
