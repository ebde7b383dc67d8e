"""The Group Loss: classify each image after it has consulted the other images of its batch.

Source: Elezi et al., "The Group Loss for Deep Metric Learning", ECCV 2020; settings from the authors' released code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gl_core import _checks
from gl_core.propagation import (
    at_least_float32,
    cosine_similarity,
    initial_assignments,
    pearson_similarity,
    replicator_dynamics,
    select_anchors,
    without_autocast,
)

__all__ = ["SIMILARITIES", "CrossEntropyLoss", "GroupLoss", "group_loss"]

SIMILARITIES: dict[str, Callable[[Tensor], Tensor]] = {"pearson": pearson_similarity, "cosine": cosine_similarity}


def group_loss(
    features: Float[Tensor, "n d"],
    logits: Float[Tensor, "n C"],
    labels: Int[Tensor, "n"],
    *,
    num_anchors: int = 2,
    num_iterations: int = 1,
    temperature: float = 10.0,
    similarity: str | Callable[[Float[Tensor, "n d"]], Float[Tensor, "n n"]] = "pearson",
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
        similarity: "pearson", "cosine", or a function of the features that returns an (n, n) matrix without negative entries.

    Returns a scalar, 0 or more, in float32 or wider whatever autocast says. It is finite for any finite input: probabilities
    that underflow count as the smallest positive number.

    Raises ValueError if shapes disagree, features or logits are not finite, a label is not in 0..C-1, or a setting is out of
    its range.
    """
    return _group_losses(
        features,
        logits,
        labels,
        num_anchors=num_anchors,
        num_iterations=num_iterations,
        temperature=temperature,
        similarity=similarity,
    ).mean()


def _group_losses(
    features, logits, labels, *, num_anchors, num_iterations, temperature, similarity
) -> Float[Tensor, "n"]:
    """The terms of `group_loss`, one an image."""
    _checks.matrix("features", features)
    _checks.matrix("logits", logits, rows=len(features))
    labels = torch.as_tensor(labels, device=logits.device)
    with without_autocast(logits):
        features, logits = at_least_float32(features, logits)
        W = similarity_function(similarity)(features)
        X = initial_assignments(logits, labels, select_anchors(labels, num_anchors), temperature)
        X = replicator_dynamics(W, X, num_iterations)
        own = X.gather(1, labels[:, None].long()).squeeze(1)
        return -own.clamp_min(torch.finfo(own.dtype).tiny).log()


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

    def logits(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n C"]:
        """The classifier's outputs for embeddings and labels that have been checked."""
        _checks.matrix("embeddings", embeddings)
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings has {embeddings.shape[1]} columns: must have embedding_size={self.embedding_size}"
            )
        _checks.labels("labels", labels, length=len(embeddings), num_classes=self.num_classes)
        return self.classifier(embeddings.to(self.classifier.weight.dtype))

    def forward(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, "n"],
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

    def losses(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
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
        similarity: "pearson", "cosine", or a function of the embeddings.
        cross_entropy_weight: 0 or more. Without this term the authors lose about one point of R@1.

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
    ) -> None:
        super().__init__(num_classes, embedding_size)
        _checks.count("num_anchors", num_anchors, least=0)
        _checks.count("num_iterations", num_iterations, least=0)
        _checks.temperature(temperature)
        similarity_function(similarity)
        if not 0 <= cross_entropy_weight < float("inf"):
            raise ValueError(f"cross_entropy_weight={cross_entropy_weight}: must be a finite number, 0 or more")
        self.num_anchors = num_anchors
        self.num_iterations = num_iterations
        self.temperature = temperature
        self.similarity = similarity
        self.cross_entropy_weight = cross_entropy_weight

    def losses(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The terms of the loss, one an image."""
        (logits,) = at_least_float32(self.logits(embeddings, labels))
        losses = _group_losses(
            embeddings,
            logits,
            labels,
            num_anchors=self.num_anchors,
            num_iterations=self.num_iterations,
            temperature=self.temperature,
            similarity=self.similarity,
        )
        if self.cross_entropy_weight:
            losses = losses + self.cross_entropy_weight * F.cross_entropy(logits, labels.long(), reduction="none")
        return losses

    def extra_repr(self) -> str:
        similarity = self.similarity if isinstance(self.similarity, str) else self.similarity.__name__
        return (
            f"num_anchors={self.num_anchors}, num_iterations={self.num_iterations}, temperature={self.temperature}, "
            f"similarity={similarity}, cross_entropy_weight={self.cross_entropy_weight}"
        )


def _weights(indices_tuple: tuple[Tensor, ...], losses: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """How often each image occurs among the mined indices, divided by the largest of these counts."""
    counts = torch.zeros_like(losses, requires_grad=False)
    for indices in indices_tuple:
        counts = counts.index_add(0, indices, torch.ones_like(indices, dtype=counts.dtype))
    return counts / counts.max().clamp_min(1)
