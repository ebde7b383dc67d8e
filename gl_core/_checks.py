"""Checks of what a caller passes in: one line that names the argument, what it was and what it may be.

Shapes, types and plain numbers are checked always. Values inside tensors are checked at once on the CPU; on a GPU the check
runs asynchronously, so that it never makes the training step wait, and a violation surfaces as a device-side assertion.
Under `torch.compile` values are not checked: the check would break the graph.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _values(valid: Tensor, message: Callable[[], str]) -> None:
    """Raise ValueError(message()) unless the boolean scalar `valid` is true."""
    if valid.is_cuda:
        torch._assert_async(valid)
    elif not valid:
        raise ValueError(message())


def _skip_values() -> bool:
    return torch.compiler.is_compiling()


def matrix(name: str, tensor: Tensor, rows: int | None = None) -> None:
    """`tensor` is a matrix of finite floats with at least one row, `rows` of them if that is given."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: must be a tensor")
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}: must be a matrix of floats")
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must not be empty")
    if rows is not None and len(tensor) != rows:
        raise ValueError(f"{name} has {len(tensor)} rows: must have {rows}, one an image")
    if not _skip_values():
        values = tensor.detach()
        # A sum is finite only if all its terms are, and costs no array of booleans. Where it is not, the terms may still be
        # finite and only the sum too large, so the exact check has the last word.
        if values.is_cuda or not values.sum().isfinite():
            _values(values.isfinite().all(), lambda: _first_not_finite(name, values))


def _first_not_finite(name: str, tensor: Tensor) -> str:
    row, column = (~tensor.isfinite()).nonzero()[0].tolist()
    value = tensor[row, column].item()
    return f"{name}[{row}, {column}]={value}: must be finite (did the training diverge? try a lower learning rate)"


def labels(name: str, tensor: Tensor, length: int | None = None, num_classes: int | None = None) -> None:
    """`tensor` is a vector of integers, `length` of them, in 0..num_classes-1 where that is given."""
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}: must be a vector of integers"
        )
    if length is not None and len(tensor) != length:
        raise ValueError(f"{name} has {len(tensor)} entries: must have {length}, one an image")
    if num_classes is not None and len(tensor) and not _skip_values():
        inside = (tensor >= 0) & (tensor < num_classes)
        _values(
            inside.all(),
            lambda: (
                f"{name} holds {tensor[~inside][0].item()}: must lie in 0..{num_classes - 1} ({num_classes} classes)"
            ),
        )


def batch(embeddings: Tensor, classes: Tensor, embedding_size: int, num_classes: int) -> None:
    """`embeddings` is (n, embedding_size), finite; `classes`, the labels, lie in 0..num_classes-1."""
    matrix("embeddings", embeddings)
    if embeddings.shape[1] != embedding_size:
        raise ValueError(f"embeddings has {embeddings.shape[1]} columns: must have embedding_size={embedding_size}")
    labels("labels", classes, length=len(embeddings), num_classes=num_classes)


def mask(name: str, tensor: Tensor, length: int) -> None:
    """`tensor` is a vector of `length` booleans."""
    if tensor.shape != (length,) or tensor.dtype != torch.bool:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}: must be {length} booleans, one an image"
        )


def similarity(name: str, tensor: Tensor, assignments: Tensor) -> None:
    """`tensor` is (n, n) and `assignments` is (n, C), both finite and nowhere negative."""
    matrix("assignments", assignments)
    weights(name, tensor, "assignments", len(assignments))
    _not_negative("assignments", assignments)


def weights(name: str, tensor: Tensor, of: str, n: int) -> None:
    """`tensor` is (n, n), finite and nowhere negative; n is the number of rows of the argument `of`."""
    matrix(name, tensor)
    if tensor.shape != (n, n):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must be ({n}, {n}), as {of} has {n} rows")
    _not_negative(name, tensor)


def _not_negative(name: str, tensor: Tensor) -> None:
    if not _skip_values():
        least = tensor.detach().amin()
        _values(least >= 0, lambda: f"{name} holds {least.item()}: must not be negative")


def temperature(value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"temperature={value}: must be above 0 (the published settings lie between 24 and 79)")


def weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or more")


def count(name: str, value: int, least: int) -> None:
    """`value` is a whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: must be a whole number, {least} or more")


def choice(name: str, value: object, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
