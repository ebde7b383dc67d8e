"""Checks of what a caller passes in: one line that names the argument, what it was and what it may be.

Values inside tensors are checked once, by the function that was called: what it calls itself runs within
`values_known`. In a loss on an accelerator reading them would make the host wait in every step: it notes on the device
what it found, turns itself into NaN, and raises when it is next asked (`Values`, `Deferred`).
"""

import contextlib
import math
import numbers
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

CHECKS = ("auto", "sync", "deferred")
DIVERGED = "must be finite (did the training diverge? try a lower learning rate)"


def temperature(value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"temperature={value}: must be above 0 (the published settings lie between 24 and 79)")


def weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or more")


def count(name: str, value: int, least: int) -> int:
    """`value` is a whole number, `least` or more. Returns it as an int."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r}: must be a whole number, {least} or more")
    return int(value)


def choice(name: str, value: object, choices: Collection) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")


class Deferred:
    """What deferred checks found in all batches since `check` was last called; stays on the device until then."""

    def __init__(self) -> None:
        self.found: Tensor | None = None
        self.messages: list[str] = []

    def add(self, found: Tensor, messages: list[str]) -> None:
        if self.found is None or self.found.device != found.device or self.found.shape != found.shape:
            with torch.inference_mode(False):
                self.found = torch.zeros_like(found)
        # In place, so that it also happens when a captured CUDA graph is replayed.
        self.found.logical_or_(found)
        self.messages = messages

    def check(self) -> None:
        """Raise ValueError if anything was found, and forget it. Waits for the device."""
        if self.found is not None and any(found := self.found.tolist()):
            self.found.zero_()
            raise ValueError(self.messages[found.index(True)])


class Values:
    """How the values of one batch are checked, and what was found.

    Args:
        checks: "sync" raises at once, "deferred" leaves the outcome on the device and never waits for it; "auto" is
            "sync" on the CPU and "deferred" elsewhere. Under `torch.compile` all are deferred.
        deferred: where deferred checks are noted beyond this batch.
    """

    def __init__(self, checks: str = "sync", deferred: Deferred | None = None) -> None:
        choice("checks", checks, CHECKS)
        self.checks, self.deferred = checks, deferred
        self.faults: list[Tensor] = []
        self.messages: list[str] = []

    def wait_for(self, tensor: Tensor) -> bool:
        """Whether the values of this tensor are checked at once."""
        at_once = self.checks == "sync" or (self.checks == "auto" and tensor.device.type == "cpu")
        return at_once and not torch.compiler.is_compiling()

    def note(self, fault: Tensor, message: str) -> None:
        """`message` is the error if `fault`, a boolean scalar, proves true."""
        self.faults.append(fault)
        self.messages.append(message)

    def mark(self, losses: Tensor) -> Tensor:
        """The losses, or NaN with gradient 0 if a deferred check failed."""
        if not self.faults:
            return losses
        found = torch.stack(self.faults)
        if self.deferred is not None:
            self.deferred.add(found, self.messages)
        return losses.masked_fill(found.any(), math.nan)


AT_ONCE = Values()


_known = ContextVar("the caller has checked the values", default=False)


@contextlib.contextmanager
def _values_known():
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def values_known() -> contextlib.AbstractContextManager[None]:
    """Within this context values inside tensors are not checked: the caller has done that."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _values_known()


def _skip(values: Values) -> bool:
    """Whether the caller has checked the values, or nobody can without breaking a graph of `torch.compile`."""
    return values is AT_ONCE and (torch.compiler.is_compiling() or _known.get())


def matrix(name: str, tensor: Tensor, rows: int | None = None, values: Values = AT_ONCE) -> None:
    """`tensor` is a matrix of finite floats with at least one row, `rows` of them if that is given."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: must be a tensor")
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}: must be a matrix of floats")
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must not be empty")
    if rows is not None and len(tensor) != rows:
        raise ValueError(f"{name} has {len(tensor)} rows: must have {rows}, one an image")
    if _skip(values):
        return
    tensor = tensor.detach()
    if not values.wait_for(tensor):
        # Zero times anything finite is 0, and NaN counts as true.
        values.note((tensor * 0).any(), f"{name} holds NaN or infinity: {DIVERGED}")
    # A sum is finite only if all its terms are, and costs no array of booleans. Where it is not, the terms may still be
    # finite and only the sum too large, so the exact check has the last word.
    elif not math.isfinite(tensor.sum()) and not (finite := tensor.isfinite()).all():
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(f"{name}[{row}, {column}]={tensor[row, column].item()}: {DIVERGED}")


def labels(
    name: str,
    labels: Any,
    length: int | None = None,
    num_classes: int | None = None,
    values: Values = AT_ONCE,
    device: torch.device | None = None,
) -> Tensor:
    """`labels` is a vector of integers, `length` of them, in 0..num_classes-1 where that is given.

    Returns them as int64, on `device` if that is given. Where the check is deferred, those outside are moved inside:
    whatever uses them as indices stays within bounds.
    """
    try:
        labels = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be a vector of integers, not {labels!r:.80}") from error
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        found = f"shape {tuple(labels.shape)} and dtype {labels.dtype}"
        raise ValueError(f"{name} has {found}: must be a vector of integers")
    if length is not None and len(labels) != length:
        raise ValueError(f"{name} has {len(labels)} entries: must have {length}, one an image")
    labels = labels.long()
    if num_classes is None or not len(labels) or _skip(values):
        return labels
    inside = f"must lie in 0..{num_classes - 1} ({num_classes} classes)"
    if not values.wait_for(labels):
        given, labels = labels, labels.clamp(0, num_classes - 1)
        values.note((given != labels).any(), f"{name} holds numbers outside: {inside}")
        return labels
    lowest, highest = (extreme.item() for extreme in labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        outside = labels[(labels < 0) | (labels >= num_classes)]
        raise ValueError(f"{name} holds {outside[0].item()}: {inside}")
    return labels


def batch(
    embeddings: Tensor, classes: Tensor, embedding_size: int, num_classes: int, values: Values = AT_ONCE
) -> Tensor:
    """`embeddings` is (n, embedding_size), finite, and `classes` lie in 0..num_classes-1. Returns the latter."""
    columns("embeddings", embeddings, embedding_size, values)
    return labels("labels", classes, len(embeddings), num_classes, values, embeddings.device)


def columns(name: str, tensor: Tensor, embedding_size: int, values: Values = AT_ONCE) -> None:
    """`tensor` is (n, embedding_size), finite."""
    matrix(name, tensor, values=values)
    if tensor.shape[1] != embedding_size:
        raise ValueError(f"{name} has {tensor.shape[1]} columns: must have embedding_size={embedding_size}")


def not_negative(name: str, tensor: Tensor, values: Values = AT_ONCE) -> None:
    """`tensor` is a matrix of finite floats of which none is below 0."""
    matrix(name, tensor, values=values)
    if _skip(values):
        return
    lowest = tensor.detach().amin()
    if not values.wait_for(tensor):
        values.note(lowest < 0, f"{name} holds numbers below 0: must not be negative")
    elif lowest < 0:
        raise ValueError(f"{name} holds {lowest.item()}: must not be negative")


def square(name: str, tensor: Tensor, of: str, n: int, values: Values = AT_ONCE) -> None:
    """`tensor` is (n, n), finite and nowhere negative; n is the number of rows of the argument `of`."""
    not_negative(name, tensor, values)
    if tensor.shape != (n, n):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must be ({n}, {n}), as {of} has {n} rows")
