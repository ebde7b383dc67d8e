"""The linear probe: classifies what is separable, and is the same every time."""

import pytest
import torch
import torch.nn.functional as F

from gl_core.models.probe import linear_probe


def clouds(n=30, C=4, d=6, spread=0.3):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(C).repeat_interleave(n)
    centres = 5 * torch.randn(C, d, generator=random)
    return centres[labels] + spread * torch.randn(n * C, d, generator=random) + 100, labels


def test_it_separates_what_is_separable_and_takes_features_as_they_are():
    features, labels = clouds()
    features.requires_grad_()
    before = torch.random.get_rng_state()
    probe, again = linear_probe(features, labels), linear_probe(features, labels.tolist())
    assert probe.weight.shape == (4, 6) and not probe.weight.requires_grad and features.grad is None
    assert (probe(features).argmax(dim=1) == labels).all()
    assert F.cross_entropy(probe(features), labels) < 0.1
    assert torch.equal(probe.weight, again.weight) and torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(linear_probe(features, labels).weight, probe.weight)


def test_it_finds_the_minimum():
    features, labels = (t.double() if t.is_floating_point() else t for t in clouds(spread=4.0))
    probe = linear_probe(features, labels, weight_decay=0.1, max_iter=200)
    mean, scale = features.mean(dim=0), features.std()
    A = (probe.weight * scale).requires_grad_()
    b = (probe.bias + probe.weight @ mean).requires_grad_()
    objective = F.cross_entropy((features - mean) / scale @ A.T + b, labels) + 0.1 * A.square().sum()
    for gradient in torch.autograd.grad(objective, [A, b]):
        assert gradient.abs().max() < 1e-5


def test_features_that_say_nothing():
    labels = torch.tensor([0, 0, 0, 1])
    logits = linear_probe(torch.ones(4, 3), labels, max_iter=100)(torch.ones(4, 3))
    assert torch.allclose(logits.softmax(dim=1), torch.tensor([0.75, 0.25]), atol=1e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, y: linear_probe(f, y[:-1]), "labels has 119 entries: must have 120"),
        (lambda f, y: linear_probe(f * torch.inf, y), "must be finite"),
        (lambda f, y: linear_probe(f, y, max_iter=0), "max_iter=0"),
        (lambda f, y: linear_probe(f, y, weight_decay=-1.0), "weight_decay=-1.0: must be a finite number, 0 or more"),
        (lambda f, y: linear_probe(f, y - 1), "labels holds -1: must be 0 or more"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*clouds())
