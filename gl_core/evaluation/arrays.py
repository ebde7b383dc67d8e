"""Vectors and labels as callers have them (tensors, arrays, lists, columns), checked and brought into one form."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core import _checks

__all__ = ["Labels", "Rows", "as_cutoffs", "as_labels", "as_rows", "common_offset", "squared_norms", "unit_rows"]

Rows = Float[Tensor, "n d"] | np.ndarray
Labels = Int[Tensor, " n"] | np.ndarray | Sequence[int]


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length 1; zero rows stay zero. Dividing by the largest entry first keeps all squares within range."""
    largest = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1)


def as_cutoffs(name: str, cutoffs: int | Iterable[int]) -> tuple[int, ...]:
    """The K of R@K or Rank-K as a tuple of whole numbers; a single one is taken too."""
    several = cutoffs if isinstance(cutoffs, Iterable) else (cutoffs,)
    return tuple(_checks.count(name, cutoff, least=1) for cutoff in several)


def as_labels(name: str, labels: Labels, length: int, device: torch.device) -> Int[Tensor, " n"]:
    """One label a row, of any whole-number type, as int64."""
    # Copied, as torch takes no reversed or read-only array.
    labels = labels if isinstance(labels, Tensor) else np.array(labels)
    return _checks.labels(name, labels, length, device=device).contiguous()


def as_rows(name: str, x: Rows) -> Float[Tensor, "n d"]:
    """The vectors as a detached tensor in float32 or float64: other types become float32.

    Those on Apple's `mps`, which knows neither float64 nor sums of segments, move to the CPU.

    Raises:
        ValueError: `x` is not a matrix of finite numbers with at least one row and one column.
    """
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch takes no reversed or read-only array
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    _checks.matrix(name, x)
    return x


def squared_norms(name: str, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Squared lengths of the rows. Raises ValueError where the squared distance of two such rows could overflow."""
    squared = x.square().sum(dim=1)
    too_long = ~(4 * squared).isfinite()
    if too_long.any():
        row = int(too_long.nonzero()[0])
        raise ValueError(f"{name}: row {row} is too long for {x.dtype}: its squared distances must be finite")
    return squared


def common_offset(*sets: Float[Tensor, "n d"]) -> Float[Tensor, " d"] | None:
    """A vector near all rows of these sets: subtracted, it leaves |q|^2 - 2 <q, g> + |g|^2 more digits of |q - g|^2.

    It is a multiple of a power of two above the spread of the rows, so that subtracting it is exact; None for rows
    around zero.
    """
    low = torch.stack([x.amin(dim=0) for x in sets]).amin(dim=0).double()
    high = torch.stack([x.amax(dim=0) for x in sets]).amax(dim=0).double()
    spread = float((high - low).amax())
    if not math.isfinite(spread):
        return None
    if spread == 0:
        return low.to(sets[0].dtype)
    unit = 2.0 ** math.ceil(math.log2(spread))
    offset = ((low + high) / 2 / unit).trunc() * unit
    return offset.to(sets[0].dtype) if offset.any() else None
