"""The Group Loss: classify each image after it has consulted the other images of its batch.

Source: Elezi et al., "The Group Loss for Deep Metric Learning", ECCV 2020; settings from the authors' released code.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gl_core import _checks
from gl_core.fast_loss import ITERATIONS, fast_losses
from gl_core.propagation import (
    DYNAMICS,
    assign,
    at_least_float32,
    cosine_similarity,
    pearson_similarity,
    propagate,
    select_anchors,
    without_autocast,
)

__all__ = ["SIMILARITIES", "CrossEntropyLoss", "GroupLoss", "group_loss"]

SIMILARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "pearson": pearson_similarity,
    "cosine": cosine_similarity,
    "pearson_shifted": partial(pearson_similarity, negatives="shift"),
    "cosine_shifted": partial(cosine_similarity, negatives="shift"),
}
PATHS = ("auto", "plain", "fast")


def group_loss(
    features: Float[Tensor, "n d"],
    logits: Float[Tensor, "n C"],
    labels: Int[Tensor, " n"],
    *,
    num_anchors: int = 2,
    num_iterations: int = 1,
    temperature: float = 10.0,
    similarity: str | Callable[[Float[Tensor, "n d"]], Float[Tensor, "n n"]] = "pearson",
    dynamics: str = "replicator",
    path: str = "auto",
) -> Float[Tensor, ""]:
    """Cross-entropy of the labels after they have been propagated through the batch.

        loss = -1/n sum_i log X_i[y_i],   X = replicator_dynamics(similarity(f), initial_assignments(z), T)

    The mean runs over all n rows; an anchor adds 0, as its row is one-hot. With T = 0 and no anchors this is the ordinary
    cross-entropy of the logits at `temperature`.

    Args:
        features: embeddings f, as they come from the backbone (no normalisation needed).
        logits: outputs z of the classifier over all C training classes.
        labels: classes y, in 0..C-1.
        num_anchors: anchors per class, 0 or more; classes with fewer images give all they have.
        num_iterations: T, 0 or more.
        temperature: above 0; divides the logits of the images that are not anchors.
        similarity: a name of `SIMILARITIES`, or a function of the features that returns an (n, n) matrix without negative
            entries.
        dynamics: "replicator" or "exponential".
        path: "plain" computes as the formula reads, for any T and any order of derivatives; "fast" gives the same loss and
            gradient of replicator dynamics for T up to 2 (see `gl_core.fast_loss`), without second derivatives; "auto" is the faster of the two. Under
            `torch.compile` the path is plain.

    Returns a scalar, 0 or more, in float32 or wider whatever autocast says. For finite input it is finite, and so is its
    gradient:

    - probabilities that underflow count as the smallest positive number, with gradient 0;
    - a row whose support vanishes keeps its assignment (see `gl_core.propagation.replicator_dynamics`);
    - features without variance, or equal to 0 for "cosine", resemble nothing but themselves, with gradient 0; equal features
      are fully alike;
    - a batch of one class is a batch like any other; one of anchors alone has loss and gradient 0.

    Raises ValueError if shapes disagree, features or logits are not finite, a label is not in 0..C-1, or a setting is out of
    its range. On a GPU values are checked without waiting for them, and a bad one surfaces as a device-side assertion.
    """
    return _group_losses(
        features,
        logits,
        labels,
        num_anchors=num_anchors,
        num_iterations=num_iterations,
        temperature=temperature,
        similarity=similarity,
        dynamics=dynamics,
        path=path,
    ).mean()


def _group_losses(
    features,
    logits,
    labels,
    *,
    num_anchors,
    num_iterations,
    temperature,
    similarity,
    dynamics,
    path,
    cross_entropy_weight=0.0,
) -> Float[Tensor, " n"]:
    """The terms of `group_loss`, one an image, plus `cross_entropy_weight` times those of cross-entropy."""
    _checks.matrix("features", features)
    _checks.matrix("logits", logits, rows=len(features))
    labels = torch.as_tensor(labels, device=logits.device)
    _checks.labels("labels", labels, length=len(logits), num_classes=logits.shape[1])
    _checks.count("num_iterations", num_iterations, least=0)
    _checks.temperature(temperature)
    with without_autocast(logits):
        features, _ = at_least_float32(features, logits[:0])
        W = similarity_function(similarity)(features)
        if callable(similarity):
            _checks.weights("similarity", W, "features", len(features))
        fast = _takes_fast_path(path, num_iterations, dynamics, *logits.shape)
        losses = fast_losses if fast else partial(_plain_losses, dynamics=dynamics)
        return losses(
            W,
            logits,
            labels,
            select_anchors(labels, num_anchors),
            num_iterations=num_iterations,
            temperature=temperature,
            cross_entropy_weight=cross_entropy_weight,
        )


def _plain_losses(
    W, logits, labels, anchors, *, num_iterations, temperature, cross_entropy_weight, dynamics="replicator"
) -> Float[Tensor, " n"]:
    X = propagate(W, assign(logits, labels, anchors, temperature), num_iterations, dynamics)[-1]
    own = X.gather(1, labels[:, None].long()).squeeze(1)
    losses = -own.clamp_min(torch.finfo(own.dtype).tiny).log()
    if cross_entropy_weight:
        (logits,) = at_least_float32(logits)
        losses = losses + cross_entropy_weight * F.cross_entropy(logits, labels.long(), reduction="none")
    return losses


def _takes_fast_path(path: str, num_iterations: int, dynamics: str, n: int, C: int) -> bool:
    _checks.choice("path", path, PATHS)
    _checks.choice("dynamics", dynamics, DYNAMICS)
    known = num_iterations in ITERATIONS and dynamics == "replicator"
    if path == "fast" and not known:
        raise ValueError(
            f"path='fast': knows replicator dynamics of up to {ITERATIONS[-1]} iterations, "
            f"not {dynamics} dynamics of {num_iterations}"
        )
    if torch.compiler.is_compiling():
        return False
    # Measured on two cores: the fast path has more steps, of (n, n), and pays where the (n, C) ones outweigh them.
    pays = C >= 3 * n and n * C >= 2**15
    return path == "fast" or (path == "auto" and known and pays)


def similarity_function(similarity: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function behind a name of `SIMILARITIES`; a function is passed through."""
    if callable(similarity):
        return similarity
    _checks.choice("similarity", similarity, SIMILARITIES)
    return SIMILARITIES[similarity]


class CrossEntropyLoss(nn.Module):
    """Softmax cross-entropy of a linear classifier over the embeddings: what the Group Loss is measured against.

        loss = -1/n sum_i log softmax(A f_i + b)[y_i]

    Holds the classifier, which is needed in training only: its parameters must reach the optimiser. The calling convention is
    that of pytorch-metric-learning's classification losses. Under autocast the classifier runs in half precision and the
    cross-entropy in float32.

    Args:
        num_classes: C, training classes.
        embedding_size: d, length of an embedding.
    """

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        _checks.count("num_classes", num_classes, least=1)
        _checks.count("embedding_size", embedding_size, least=1)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.classifier = nn.Linear(embedding_size, num_classes)

    def logits(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
        """The classifier's outputs for embeddings and labels that have been checked."""
        _checks.batch(embeddings, labels, self.embedding_size, self.num_classes)
        return self.classifier(embeddings.to(self.classifier.weight.dtype))

    def forward(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        indices_tuple: tuple[Tensor, ...] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, a scalar in float32 or wider.

        `indices_tuple` is what a miner of pytorch-metric-learning found (pairs or triplets of image indices). As in that
        library's classification losses, it weighs each image by how often it occurs there, the commonest by 1.

        Raises ValueError for embeddings that are not finite, of another length than `embedding_size`, or labels outside
        0..num_classes-1.
        """
        labels = torch.as_tensor(labels, device=embeddings.device)
        losses = self.losses(embeddings, labels)
        return losses.mean() if indices_tuple is None else (losses * _weights(indices_tuple, losses)).mean()

    def losses(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The terms of the loss, one an image."""
        (logits,) = at_least_float32(self.logits(embeddings, labels))
        return F.cross_entropy(logits, labels.long(), reduction="none")


class GroupLoss(CrossEntropyLoss):
    """The Group Loss plus plain cross-entropy of a linear classifier over the embeddings.

        loss = group_loss(f, A f + b, y) + cross_entropy_weight * cross_entropy(A f + b, y)

    A batch should hold P classes with K images each (see `gl_core.sampling.GroupSampler`): with one image a class the others
    have nothing to say about it.

    Args:
        num_classes: C, training classes.
        embedding_size: d, length of an embedding.
        num_anchors: anchors per class, below K so that there is something left to learn from; published 2 to 3.
        num_iterations: T; published 1.
        temperature: above 0; published 24 to 79. The default of 10 suits small networks.
        similarity: a name of `SIMILARITIES`, or a function of the embeddings.
        cross_entropy_weight: 0 or more. Without this term the authors lose about one point of R@1.
        dynamics: "replicator" or "exponential".
        path: "auto", "plain" or "fast"; see `group_loss`.

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
        similarity: str | Callable[[Tensor], Tensor] = "pearson",
        cross_entropy_weight: float = 1.0,
        dynamics: str = "replicator",
        path: str = "auto",
    ) -> None:
        super().__init__(num_classes, embedding_size)
        _checks.count("num_anchors", num_anchors, least=0)
        _checks.count("num_iterations", num_iterations, least=0)
        _checks.temperature(temperature)
        similarity_function(similarity)
        _takes_fast_path(path, num_iterations, dynamics, 1, 1)
        _checks.weight("cross_entropy_weight", cross_entropy_weight)
        self.num_anchors = num_anchors
        self.num_iterations = num_iterations
        self.temperature = temperature
        self.similarity = similarity
        self.cross_entropy_weight = cross_entropy_weight
        self.dynamics = dynamics
        self.path = path

    def losses(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The terms of the loss, one an image."""
        return _group_losses(
            embeddings,
            self.logits(embeddings, labels),
            labels,
            num_anchors=self.num_anchors,
            num_iterations=self.num_iterations,
            temperature=self.temperature,
            similarity=self.similarity,
            dynamics=self.dynamics,
            path=self.path,
            cross_entropy_weight=self.cross_entropy_weight,
        )

    def extra_repr(self) -> str:
        similarity = getattr(self.similarity, "__name__", self.similarity)
        return (
            f"num_anchors={self.num_anchors}, num_iterations={self.num_iterations}, temperature={self.temperature}, "
            f"similarity={similarity}, cross_entropy_weight={self.cross_entropy_weight}, dynamics={self.dynamics}"
        )


def _weights(indices_tuple: tuple[Tensor, ...], losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How often each image occurs among the mined indices, divided by the largest of these counts."""
    counts = torch.zeros_like(losses, requires_grad=False)
    for indices in indices_tuple:
        counts = counts.index_add(0, indices, torch.ones_like(indices, dtype=counts.dtype))
    return counts / counts.max().clamp_min(1)
