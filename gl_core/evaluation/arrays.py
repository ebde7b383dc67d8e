"""Vectors and labels as callers have them, checked and brought into one form."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core import _checks

__all__ = ["Labels", "Rows", "as_labels", "as_rows", "squared_norms", "unit_rows"]

Rows = Float[Tensor, "n d"] | np.ndarray
Labels = Int[Tensor, " n"] | np.ndarray | Sequence[int]


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length 1; zero rows stay zero. Dividing by the largest entry first keeps all squares within range."""
    largest = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1)


def as_labels(name: str, labels: Labels, length: int) -> Int[Tensor, " n"]:
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {labels.dtype}: must be whole numbers")
        labels = torch.from_numpy(labels.astype(np.int64))
    _checks.labels(name, labels, length=length)
    return labels.to(torch.int64)


def as_rows(name: str, x: Float[Tensor, "n d"] | np.ndarray) -> Float[Tensor, "n d"]:
    """The vectors as a detached tensor in float32 or float64: other types become float32.

    Those on Apple's `mps`, which knows neither float64 nor sums of segments, move to the CPU.

    Raises ValueError if `x` is not a matrix of finite numbers with at least one row and one column.
    """
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch takes no reversed or read-only array
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: must be a matrix with at least one row and one column")
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    finite = x.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: row {row} holds NaN or infinity: must be finite (did the training diverge?)")
    return x


def squared_norms(name: str, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Squared lengths of the rows. Raises ValueError where the squared distance of two such rows could overflow."""
    squared = x.square().sum(dim=1)
    too_long = ~(4 * squared).isfinite()
    if too_long.any():
        row = int(too_long.nonzero()[0])
        raise ValueError(f"{name}: row {row} is too long for {x.dtype}: its squared distances must be finite")
    return squared
