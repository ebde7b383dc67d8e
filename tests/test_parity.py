"""The authors' own results, as arrays, and the faults of their code that are not to be inherited."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gl_core.loss import group_loss
from gl_core.propagation import initial_assignments, pearson_similarity, replicator_dynamics, select_anchors

REFERENCE = Path(__file__).parent / "reference"
CASES = ["cub_t1", "cub_t3", "cars_t2_anchors3", "no_anchors_t1", "deep_t10", "many_classes_t1"]


@pytest.fixture(params=CASES)
def case(request):
    with np.load(REFERENCE / f"{request.param}.npz") as arrays:
        return {name: array if array.ndim else array.item() for name, array in arrays.items()}


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Equal to 1e-9 of the largest value."""
    actual = actual.detach().numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-9 * np.abs(expected).max()


def settings(case) -> dict:
    return {name: case[name] for name in ("num_anchors", "num_iterations", "temperature")}


def test_each_step_equals_the_authors(case):
    features, logits, labels = (torch.tensor(case[name]) for name in ("features", "logits", "labels"))
    anchors = select_anchors(labels, case["num_anchors"])
    assert sorted(anchors.nonzero().squeeze(1).tolist()) == sorted(case["anchor_index"].tolist())
    W = pearson_similarity(features)
    close(W, case["similarity"])
    X = initial_assignments(logits, labels, anchors, case["temperature"])
    close(replicator_dynamics(W, X, case["num_iterations"]), case["refined"])


def test_loss_and_gradients_equal_the_authors(case):
    features, logits = (torch.tensor(case[name], requires_grad=True) for name in ("features", "logits"))
    labels = torch.tensor(case["labels"])
    loss = group_loss(features, logits, labels, **settings(case))
    cross_entropy = F.cross_entropy(logits, labels)
    close(loss, np.array(case["group_loss"]))
    close(cross_entropy, np.array(case["cross_entropy"]))
    (loss + cross_entropy).backward()
    close(features.grad, case["grad_features"])
    close(logits.grad, case["grad_logits"])


def test_a_row_whose_support_vanishes_is_kept_where_the_authors_get_nan():
    # Image 1 resembles only the anchor, which believes in class 0 alone; it itself believes in class 1 alone.
    W = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    X = torch.eye(2)
    naive = X * (W @ X)
    assert (naive / naive.sum(1, keepdim=True)).isnan().any()
    assert replicator_dynamics(W, X, 3).equal(X)
