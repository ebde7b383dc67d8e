"""Label propagation by replicator dynamics: the idea of the Group Loss.

How alike two images of a batch are is their *similarity*; what each one is believed to be is its *assignment*, a
distribution over the C classes. Images that resemble each other pull their assignments together:

    W = similarity(features)                          (n, n), symmetric, in [0, 1]
    X = initial_assignments(logits, labels, anchors)  (n, C), rows sum to 1
    X <- X * (W X), rows divided by their sums        T times

Symbols: n images, d features, C classes, T iterations. Everything here runs in float32 or wider, whatever autocast
says: products of probabilities fall below what half precision can hold.

Source: Elezi et al., "The Group Loss for Deep Metric Learning", ECCV 2020. The dynamics are those of Hummel and
Zucker's relaxation labelling (1983); that they climb the average consistency is a theorem of Baum and Eagon (1967). The
exponential variant is that of Pelillo and Torsello, "Payoff-Monotonic Game Dynamics and the Maximum Clique Problem",
2006.
"""

import contextlib
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gl_core import _checks

__all__ = [
    "average_consistency",
    "cosine_similarity",
    "initial_assignments",
    "pearson_similarity",
    "replicator_dynamics",
    "select_anchors",
]

NEGATIVES = ("cut", "shift")
DYNAMICS = ("replicator", "exponential")
# The rate of exponential dynamics that the public library of dominant sets (S. Vascon, DominantSetLibrary) uses for
# payoffs that are, as here, means of similarities in [0, 1].
RATE = 10.0


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one floating dtype, the widest among them and float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """The context in which matrix products keep the precision of their arguments."""
    device = tensor.device.type
    # Where there is nothing to switch off, nothing is: entering the context costs as much as a small matrix product.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def pearson_similarity(features: Float[Tensor, "n d"], *, negatives: str = "cut") -> Float[Tensor, "n n"]:
    """Pearson correlation between the feature vectors of each pair of images, made nowhere negative.

        r_ij = <f_i - mean(f_i), f_j - mean(f_j)> / (|f_i - mean(f_i)| |f_j - mean(f_j)|)

        cut:    W_ij = max(0, r_ij)
        shift:  W_ij = (r_ij - m) / (1 - m),   m = min(0, min_ij r_ij)

    Cutting is what the authors do. Shifting keeps the order of the dissimilar; the gradient passes through m. A row of
    zero variance correlates with nothing: r is zero everywhere but on the diagonal.

    Args:
        features: (n, d), finite.
        negatives: "cut" or "shift".

    Returns:
        (n, n) in float32 or wider, symmetric (to rounding), in [0, 1], with ones on the diagonal (as in the authors'
        released code; their documentation says zeros).

    Raises:
        ValueError: `features` is not a matrix of finite numbers, or `negatives` is unknown.

    >>> pearson_similarity(torch.tensor([[1., 2., 3.], [2., 4., 6.], [3., 2., 1.]]))
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 1.]])
    """
    features = _rescaled(features)
    return _cosine(features - features.mean(dim=1, keepdim=True), negatives)


def cosine_similarity(features: Float[Tensor, "n d"], *, negatives: str = "cut") -> Float[Tensor, "n n"]:
    """Cosine of the angle between the feature vectors of each pair of images, made nowhere negative.

        r_ij = <f_i, f_j> / (|f_i| |f_j|)

    A zero vector resembles nothing: r is zero everywhere but on the diagonal.

    Args:
        features: (n, d), finite.
        negatives: "cut" or "shift", as in `pearson_similarity`.

    Returns:
        (n, n) in float32 or wider, symmetric (to rounding), in [0, 1], with ones on the diagonal.

    Raises:
        ValueError: `features` is not a matrix of finite numbers, or `negatives` is unknown.
    """
    return _cosine(_rescaled(features), negatives)


def _rescaled(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each row divided by its largest magnitude: no cosine or correlation changes, and no sum of squares overflows."""
    _checks.matrix("features", features)
    (features,) = at_least_float32(features)
    largest = features.detach().abs().amax(dim=1, keepdim=True)
    # Rows so small that their gradient, which grows as they shrink, might be infinite are left small.
    number = torch.finfo(features.dtype)
    return features / largest.clamp_min(number.tiny / number.eps)


def _cosine(vectors: Float[Tensor, "n d"], negatives: str) -> Float[Tensor, "n n"]:
    """Cosines of rows whose largest magnitude is around 1, cut or shifted to [0, 1]."""
    _checks.choice("negatives", negatives, NEGATIVES)
    squared = (vectors * vectors).sum(dim=1, keepdim=True)
    # What rounding leaves of a constant row after centring is noise, not a direction: divided by infinity it is 0, with
    # gradient 0.
    is_noise = squared <= vectors.shape[1] * (8 * torch.finfo(vectors.dtype).eps) ** 2
    directions = vectors / squared.masked_fill(is_noise, math.inf).sqrt()
    with without_autocast(vectors):
        cosines = directions @ directions.T
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    if negatives == "cut":
        return cosines.clamp(0, 1).masked_fill(itself, 1)
    cosines = cosines.clamp(-1, 1).masked_fill(itself, 1)
    lowest = cosines.amin().clamp_max(0)
    return (cosines - lowest) / (1 - lowest)


def select_anchors(labels: Int[Tensor, " n"], num_anchors: int) -> Bool[Tensor, " n"]:
    """Which images are anchors: the first `num_anchors` of each class, in batch order.

    Args:
        labels: (n,) integers of any kind.
        num_anchors: 0 or more; a class with fewer images gives all of them.

    Returns:
        (n,), true for anchors.

    Raises:
        ValueError: `labels` is not a vector of integers, or `num_anchors` is negative.

    >>> select_anchors(torch.tensor([7, 3, 7, 7, 3]), num_anchors=1)
    tensor([ True,  True, False, False, False])
    """
    labels = _checks.labels("labels", labels)
    num_anchors = _checks.count("num_anchors", num_anchors, least=0)
    same_class = labels[:, None] == labels
    earlier_of_the_class = same_class.tril(diagonal=-1).sum(dim=1)
    return earlier_of_the_class < num_anchors


def initial_assignments(
    logits: Float[Tensor, "n C"], labels: Int[Tensor, " n"], anchors: Bool[Tensor, " n"], temperature: float
) -> Float[Tensor, "n C"]:
    """What each image is believed to be before it has looked at the others.

        X_i = onehot(y_i) if i is an anchor, else softmax(z_i / temperature)

    Args:
        logits: outputs z of the classifier over all C classes, not only those in the batch; finite.
        labels: classes y, in 0..C-1.
        anchors: true for the images whose label is given away.
        temperature: above 0; the higher, the flatter the softmax (the published settings lie between 24 and 79).

    Returns:
        (n, C) in float32 or wider; rows sum to 1.

    Raises:
        ValueError: shapes disagree, a logit is not finite, a label is not in 0..C-1 or `temperature` is not above 0.
    """
    _checks.matrix("logits", logits)
    labels = _checks.labels("labels", labels, len(logits), num_classes=logits.shape[1])
    anchors = torch.as_tensor(anchors)
    if anchors.shape != (len(logits),) or anchors.dtype != torch.bool:
        found = f"shape {tuple(anchors.shape)} and dtype {anchors.dtype}"
        raise ValueError(f"anchors has {found}: must be {len(logits)} booleans, one an image")
    _checks.temperature(temperature)
    (logits,) = at_least_float32(logits)
    softmax = torch.softmax(logits / temperature, dim=1)
    onehot = torch.zeros_like(softmax).scatter_(1, labels[:, None], 1)
    return torch.where(anchors[:, None], onehot, softmax)


def replicator_dynamics(
    similarity: Float[Tensor, "n n"],
    assignments: Float[Tensor, "n C"],
    num_iterations: int,
    return_path: bool = False,
    *,
    dynamics: str = "replicator",
) -> Float[Tensor, "n C"] | Float[Tensor, "T+1 n C"]:
    """Refine the assignments `num_iterations` times by the assignments of similar images.

        replicator:   X_ic <- X_ic S_ic / sum_k X_ik S_ik,                       S = W X
        exponential:  X_ic <- X_ic exp(10 S_ic) / sum_k X_ik exp(10 S_ik),       S = W X, rows of W sum to 1

    An entry of 0 stays 0, so one-hot rows (the anchors) never change. A row whose support vanishes (the denominator of
    `replicator` is 0, because nothing similar believes in any class that this row believes in) keeps its assignment.
    For symmetric W with no negative entries no iteration of `replicator` lowers `average_consistency`; the exponential
    dynamics move faster where neighbours agree, and make no such promise.

    Args:
        similarity: W, (n, n), finite and nowhere negative.
        assignments: X, (n, C), finite and nowhere negative; rows sum to 1.
        num_iterations: T, 0 or more.
        return_path: return the assignments of every iteration.
        dynamics: "replicator" or "exponential" (which divides the rows of W by their sums).

    Returns:
        The refined assignments, (n, C); with `return_path` those of every iteration from the first, (T + 1, n, C).

    Raises:
        ValueError: shapes disagree, an entry is negative or not finite, `num_iterations` is negative, or `dynamics` is
            unknown.

    >>> W = torch.tensor([[1., .5], [.5, 1.]])
    >>> X = torch.tensor([[1., 0.], [.5, .5]])           # an anchor, and an image that resembles it
    >>> replicator_dynamics(W, X, num_iterations=1)
    tensor([[1.0000, 0.0000],
            [0.6667, 0.3333]])
    """
    _check(similarity, assignments)
    num_iterations = _checks.count("num_iterations", num_iterations, least=0)
    _checks.choice("dynamics", dynamics, DYNAMICS)
    W, X = at_least_float32(similarity, assignments)
    if dynamics == "exponential":
        row_sums = W.sum(dim=1, keepdim=True)
        W = W / torch.where(row_sums > 0, row_sums, 1)
    path = [X]
    with without_autocast(X):
        for _ in range(num_iterations):
            support = W @ X
            supported = X * (support if dynamics == "replicator" else (RATE * support).exp())
            total = supported.sum(dim=1, keepdim=True)
            vanished = total == 0
            X = torch.where(vanished, X, supported / total.masked_fill(vanished, 1))
            path.append(X)
    return torch.stack(path) if return_path else X


def average_consistency(similarity: Float[Tensor, "n n"], assignments: Float[Tensor, "n C"]) -> Float[Tensor, ""]:
    """How far similar images agree: the objective that the dynamics climb.

        A(X) = sum_ij W_ij <X_i, X_j> = sum_ic X_ic (W X)_ic

    Args:
        similarity: W, (n, n), finite and nowhere negative.
        assignments: X, (n, C), likewise.

    Returns:
        A scalar in [0, sum_ij W_ij].

    Raises:
        ValueError: shapes disagree, or an entry is negative or not finite.
    """
    _check(similarity, assignments)
    W, X = at_least_float32(similarity, assignments)
    with without_autocast(X):
        return (X * (W @ X)).sum()


def _check(similarity: Tensor, assignments: Tensor) -> None:
    _checks.not_negative("assignments", assignments)
    _checks.square("similarity", similarity, "assignments", len(assignments))
