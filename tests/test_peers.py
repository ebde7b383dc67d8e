"""Metrics that pytorch-metric-learning's AccuracyCalculator computes too are the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKNN

from gl_core.evaluation import retrieval_metrics

SHARED = {"precision_at_1": "R@1", "mean_average_precision_at_r": "MAP@R", "r_precision": "R-Precision"}


def theirs(*sets):
    """The calculator's metrics by our names, from exact neighbours."""
    calculator = AccuracyCalculator(
        include=tuple(SHARED),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=FaissKNN(reset_before=True, reset_after=True),
    )
    return {SHARED[name]: value for name, value in calculator.get_accuracy(*sets).items()}


def problem(seed, num_classes, lonely):
    """Noisy classes of 2 to 30 images, and some images that are alone in their class."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 31, (num_classes,), generator=generator)
    labels = torch.cat([torch.arange(num_classes).repeat_interleave(sizes), num_classes + torch.arange(lonely)])
    centres = torch.randn(num_classes + lonely, 24, generator=generator)
    x = centres[labels] + 1.2 * torch.randn(len(labels), 24, generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    return x[order], labels[order]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("seed", "num_classes", "lonely"), [(0, 2, 0), (1, 25, 0), (2, 25, 9), (3, 60, 40)])
@pytest.mark.parametrize("with_gallery", [False, True])
def test_retrieval(metric, seed, num_classes, lonely, with_gallery):
    x, labels = problem(seed, num_classes, lonely)
    # Its neighbours are those by Euclidean distance: of directions these are the ones by cosine.
    ours, given = ((v, labels) for v in (x, F.normalize(x) if metric == "cosine" else x))
    if with_gallery:
        half = len(x) // 2
        ours, given = ((v[:half], labels[:half], v[half:], labels[half:]) for v, _ in (ours, given))
    found = retrieval_metrics(*ours, recall_at=(1,), metric=metric)
    expected = theirs(*given)
    assert len(expected) == 3 and 0 < expected["MAP@R"] < 1
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
