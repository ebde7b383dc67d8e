"""The Group Loss, forward and backward, against its plain path and against cross-entropy alone."""

import torch
import torch.nn.functional as F

from benchmarks.measure import OURS, Case
from gl_core.loss import group_loss
from gl_core.propagation import pearson_similarity

PLAIN, ALONE = "plain path", "cross-entropy alone"
# The floor of both paths: what is left when the assignments cost nothing.
SHARED = "similarity and cross-entropy alone"


def cases(quick: bool) -> list[Case]:
    sizes = [(54, 100, 1), (60, 11_318, 1), (512, 11_318, 1), (512, 11_318, 2)]
    targets = {
        # At this size it is the plain path; what is left is the noise of the clock.
        (54, 100, 1): {"target": "not slower than the plain path (within 3 %)", "bounds": {PLAIN: 0.97}},
        (60, 11_318, 1): {
            "target": "3 times as fast as the plain path, at most 40 % of its extra memory",
            "bounds": {PLAIN: 3.0},
            "memory_share": {PLAIN: 0.4},
        },
        (512, 11_318, 1): {"target": "3 times as fast as the plain path", "bounds": {PLAIN: 3.0}},
        (512, 11_318, 2): {"target": "twice as fast as the plain path", "bounds": {PLAIN: 2.0}},
    }
    if quick:
        sizes, targets = [(20, 50, 1)], {}
    return [
        Case(
            name=f"{n} images x {C:,} classes, T = {T}",
            prepare=lambda n=n, C=C, T=T: _sides(n, C, T),
            agree=_agree,
            # Small cases take under a millisecond: many repeats cost nothing and calm the median.
            repeats=201 if n * C < 1e5 else 41 if n < 100 else 15,
            **targets.get((n, C, T), {}),
        )
        for n, C, T in sizes
    ]


def _sides(n: int, C: int, T: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, 512, generator=generator).requires_grad_()
    logits = (3 * torch.randn(n, C, generator=generator)).requires_grad_()
    labels = (torch.arange(n) // 6) % C

    def step(loss):
        value = loss()
        return value.item(), torch.autograd.grad(value, [features, logits], allow_unused=True)

    def ours(path):
        return group_loss(
            features, logits, labels, num_anchors=2, num_iterations=T, temperature=10.0, path=path
        ) + F.cross_entropy(logits, labels)

    return {
        OURS: lambda: step(lambda: ours("auto")),
        PLAIN: lambda: step(lambda: ours("plain")),
        SHARED: lambda: step(lambda: pearson_similarity(features).mean() + F.cross_entropy(logits, labels)),
        ALONE: lambda: step(lambda: F.cross_entropy(logits, labels)),
    }


def _agree(results: dict) -> None:
    (value, gradients), (plain, plain_gradients) = results[OURS], results[PLAIN]
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-6)
