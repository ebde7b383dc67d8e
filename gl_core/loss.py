"""The Group Loss: classify each image after it has consulted the other images of its batch.

Source: Elezi et al., "The Group Loss for Deep Metric Learning", ECCV 2020; settings from the authors' released code.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gl_core import _checks
from gl_core.fast_loss import ITERATIONS, fast_losses
from gl_core.propagation import (
    DYNAMICS,
    at_least_float32,
    cosine_similarity,
    initial_assignments,
    pearson_similarity,
    replicator_dynamics,
    select_anchors,
    without_autocast,
)

__all__ = ["SIMILARITIES", "CrossEntropyLoss", "GroupLoss", "group_loss"]

Similarity = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n n"]]

SIMILARITIES: dict[str, Similarity] = {
    "pearson": pearson_similarity,
    "cosine": cosine_similarity,
    "pearson_shifted": partial(pearson_similarity, negatives="shift"),
    "cosine_shifted": partial(cosine_similarity, negatives="shift"),
}
PATHS = ("auto", "plain", "fast")


def plain_losses(
    W: Float[Tensor, "n n"],
    logits: Float[Tensor, "n C"],
    labels: Int[Tensor, " n"],
    anchors: Bool[Tensor, " n"],
    num_iterations: int,
    temperature: float,
    cross_entropy_weight: float = 0.0,
    dynamics: str = "replicator",
) -> Float[Tensor, " n"]:
    """One term an image, -log X_i[y_i] + cross_entropy_weight * cross_entropy(z_i, y_i), as the formulas read."""
    X = initial_assignments(logits, labels, anchors, temperature)
    X = replicator_dynamics(W, X, num_iterations, dynamics=dynamics)
    own = X.gather(1, labels[:, None]).squeeze(1)
    losses = -own.clamp_min(torch.finfo(own.dtype).tiny).log()
    if cross_entropy_weight:
        (logits,) = at_least_float32(logits)
        losses = losses + cross_entropy_weight * F.cross_entropy(logits, labels, reduction="none")
    return losses


@dataclass
class _Settings:
    """The hyperparameters described in `GroupLoss`, and the terms of the loss that they give."""

    num_anchors: int
    num_iterations: int
    temperature: float
    similarity: str | Similarity
    dynamics: str
    path: str
    cross_entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        self.num_anchors = _checks.count("num_anchors", self.num_anchors, least=0)
        self.num_iterations = _checks.count("num_iterations", self.num_iterations, least=0)
        _checks.temperature(self.temperature)
        if not callable(self.similarity):
            _checks.choice("similarity", self.similarity, SIMILARITIES)
        _checks.choice("dynamics", self.dynamics, DYNAMICS)
        _checks.choice("path", self.path, PATHS)
        if self.path == "fast" and not self.has_fast_path:
            raise ValueError(
                f"path='fast': knows replicator dynamics of up to {ITERATIONS[-1]} iterations, "
                f"not {self.dynamics} dynamics of {self.num_iterations}"
            )
        _checks.weight("cross_entropy_weight", self.cross_entropy_weight)

    @property
    def has_fast_path(self) -> bool:
        return self.dynamics == "replicator" and self.num_iterations in ITERATIONS

    def takes_fast_path(self, n: int, C: int) -> bool:
        # Measured on two cores: the fast path has more steps, of (n, n), and pays where the (n, C) ones outweigh them.
        pays = C >= 3 * n and n * C >= 2**15
        return self.path == "fast" or (self.path == "auto" and pays and self.has_fast_path)

    def losses(
        self,
        features: Float[Tensor, "n d"],
        logits: Float[Tensor, "n C"],
        labels: Int[Tensor, " n"],
        values: _checks.Values,
    ) -> Float[Tensor, " n"]:
        """The terms of the loss, of arguments whose values have been checked."""
        similarity = SIMILARITIES[self.similarity] if isinstance(self.similarity, str) else self.similarity
        with without_autocast(logits), _checks.values_known():
            features, _ = at_least_float32(features, logits[:0])
            W = similarity(features)
            if not isinstance(self.similarity, str):
                _checks.square("similarity", W, "features", len(features), values)
            batch = W, logits, labels, select_anchors(labels, self.num_anchors)
            settings = self.num_iterations, self.temperature, self.cross_entropy_weight
            if self.takes_fast_path(*logits.shape):
                return fast_losses(*batch, *settings)
            return plain_losses(*batch, *settings, self.dynamics)


def group_loss(
    features: Float[Tensor, "n d"],
    logits: Float[Tensor, "n C"],
    labels: Int[Tensor, " n"],
    *,
    num_anchors: int = 2,
    num_iterations: int = 1,
    temperature: float = 10.0,
    similarity: str | Similarity = "pearson",
    dynamics: str = "replicator",
    path: str = "auto",
    checks: str = "auto",
) -> Float[Tensor, ""]:
    """Cross-entropy of the labels after they have been propagated through the batch.

        loss = -1/n sum_i log X_i[y_i],   X = replicator_dynamics(similarity(f), initial_assignments(z), T)

    The mean runs over all n rows; an anchor adds 0, as its row is one-hot. With T = 0 and no anchors this is the
    ordinary cross-entropy of the logits at `temperature`.

    Args:
        features: embeddings f, as they come from the backbone (no normalisation needed).
        logits: outputs z of the classifier over all C training classes.
        labels: classes y, in 0..C-1.
        num_anchors: anchors per class, 0 or more; classes with fewer images give all they have.
        num_iterations: T, 0 or more.
        temperature: above 0; divides the logits of the images that are not anchors.
        similarity: a name of `SIMILARITIES`, or a function of the features that returns an (n, n) matrix without
            negative entries.
        dynamics: "replicator" or "exponential".
        path: "plain" computes as the formula reads, for any T and any order of derivatives; "fast" gives the same loss
            and gradient of replicator dynamics for T up to 2 (see `gl_core.fast_loss`), without second derivatives;
            "auto" is the faster of the two.
        checks: when features, logits and labels are checked. "sync": at once, for which an accelerator is waited for.
            "deferred", also under `torch.compile`: never waits; where one is bad the loss is NaN, with gradient 0.
            "auto": "sync" on the CPU, else "deferred".

    Returns:
        A scalar, 0 or more, in float32 or wider whatever autocast says. For finite input it and its gradient are
        finite: probabilities that underflow count as the smallest positive number, with gradient 0; features without
        variance, or equal to 0 for "cosine", resemble nothing but themselves, with gradient 0. A batch of anchors alone
        has loss and gradient 0.

    Raises:
        ValueError: shapes disagree, a setting is out of its range, or, unless that is deferred, features or logits are
            not finite or a label is not in 0..C-1.
    """
    settings = _Settings(num_anchors, num_iterations, temperature, similarity, dynamics, path)
    values = _checks.Values(checks)
    _checks.matrix("features", features, values=values)
    _checks.matrix("logits", logits, len(features), values)
    labels = _checks.labels("labels", labels, len(logits), logits.shape[1], values, logits.device)
    return values.mark(settings.losses(features, logits, labels, values)).mean()


class CrossEntropyLoss(nn.Module):
    """Softmax cross-entropy of a linear classifier over the embeddings: what the Group Loss is measured against.

        loss = -1/n sum_i log softmax(A f_i + b)[y_i]

    Holds the classifier, whose parameters must reach the optimiser. Called like the classification losses of
    pytorch-metric-learning. Under autocast the classifier runs in half precision and the cross-entropy in float32.

    Args:
        num_classes: C, training classes.
        embedding_size: d, length of an embedding.
        checks: when embeddings and labels are checked: "auto", "sync" or "deferred"; see `group_loss` and `check`.
    """

    def __init__(self, num_classes: int, embedding_size: int, *, checks: str = "auto") -> None:
        super().__init__()
        _checks.choice("checks", checks, _checks.CHECKS)
        self.num_classes = _checks.count("num_classes", num_classes, least=1)
        self.embedding_size = _checks.count("embedding_size", embedding_size, least=1)
        self.checks = checks
        self.classifier = nn.Linear(self.embedding_size, self.num_classes)
        self._deferred = _checks.Deferred()

    def check(self) -> None:
        """Raise the ValueError of a batch that was not checked at once, if there was one: why its loss is NaN.

        Call it when the loss is read, which waits for the device anyway.
        """
        self._deferred.check()

    def logits(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n C"]:
        """The classifier's outputs."""
        _checks.columns("embeddings", embeddings, self.embedding_size, _checks.Values(self.checks))
        return self._classify(embeddings)

    def _classify(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n C"]:
        return self.classifier(embeddings.to(self.classifier.weight.dtype))

    def forward(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        indices_tuple: tuple[Tensor, ...] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            embeddings: finite, as long as `embedding_size`.
            labels: whole numbers in 0..num_classes-1, anything that `torch.as_tensor` takes.
            indices_tuple: what a miner of pytorch-metric-learning found (pairs or triplets of image indices). As in
                that library, each image is weighed by how often it occurs there, the commonest by 1; where nothing was
                found all weigh the same.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: embeddings are not finite or of another length, or labels out of range. On an accelerator the
                loss is NaN instead, and `check` raises.
        """
        losses = self.losses(embeddings, labels)
        if indices_tuple is None or not any(map(len, indices_tuple)):
            return losses.mean()
        return (losses * _weights(indices_tuple, losses)).mean()

    def losses(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The terms of the loss, one an image."""
        values = _checks.Values(self.checks, self._deferred)
        labels = _checks.batch(embeddings, labels, self.embedding_size, self.num_classes, values)
        logits = self._classify(embeddings)
        _checks.matrix("logits", logits, values=values)
        return values.mark(self._losses(embeddings, logits, labels, values))

    def _losses(self, embeddings: Tensor, logits: Tensor, labels: Tensor, values: _checks.Values) -> Tensor:
        (logits,) = at_least_float32(logits)
        return F.cross_entropy(logits, labels, reduction="none")


class GroupLoss(CrossEntropyLoss):
    """The Group Loss plus plain cross-entropy of a linear classifier over the embeddings.

        loss = group_loss(f, A f + b, y) + cross_entropy_weight * cross_entropy(A f + b, y)

    A batch should hold P classes with K images each (see `gl_core.sampling.GroupSampler`). On a GPU the host never
    waits for it: `torch.cuda.make_graphed_callables(loss, (embeddings, labels))` makes one launch of loss and gradient.

    Args:
        num_classes: C, training classes.
        embedding_size: d, length of an embedding.
        num_anchors: anchors per class, below K; published 2 to 3.
        num_iterations: T; published 1.
        temperature: above 0; published 24 to 79. The default of 10 suits small networks.
        similarity: a name of `SIMILARITIES`, or a function of the embeddings.
        cross_entropy_weight: 0 or more. Without this term the authors lose about one point of R@1.
        dynamics: "replicator" or "exponential".
        path: "auto", "plain" or "fast"; see `group_loss`.
        checks: "auto", "sync" or "deferred"; see `group_loss` and `check`.

    >>> loss = GroupLoss(num_classes=100, embedding_size=64)
    >>> embeddings, labels = torch.randn(12, 64), torch.arange(3).repeat_interleave(4)
    >>> loss(embeddings, labels).ndim
    0
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_anchors: int = 2,
        num_iterations: int = 1,
        temperature: float = 10.0,
        similarity: str | Similarity = "pearson",
        cross_entropy_weight: float = 1.0,
        dynamics: str = "replicator",
        path: str = "auto",
        checks: str = "auto",
    ) -> None:
        super().__init__(num_classes, embedding_size, checks=checks)
        self.settings = _Settings(
            num_anchors, num_iterations, temperature, similarity, dynamics, path, cross_entropy_weight
        )

    def _losses(self, embeddings: Tensor, logits: Tensor, labels: Tensor, values: _checks.Values) -> Tensor:
        return self.settings.losses(embeddings, logits, labels, values)

    def extra_repr(self) -> str:
        settings = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items())


def _weights(indices_tuple: tuple[Tensor, ...], losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How often each image occurs among the mined indices, divided by the largest of these counts."""
    mined = torch.cat(indices_tuple)
    # `bincount` would make the host wait for a GPU.
    counts = torch.zeros_like(losses).index_add(0, mined, torch.ones_like(mined, dtype=losses.dtype))
    return counts / counts.max()
