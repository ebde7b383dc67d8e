"""The last activation of a network, lent another slope for a while."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gl_core.models import EmbeddingNet

__all__ = ["leaky_last_activation"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6)


@contextlib.contextmanager
def leaky_last_activation(model: EmbeddingNet, slope: float) -> Iterator[None]:
    """Within the context the rectifier that ends the feature map lets negative inputs through, times `slope`.

        a(x) = slope x   for x < 0,   as it was for x >= 0

    So the upper bound of a ReLU6 stays. Only its last use in a pass changes: networks use one module in many places. It is
    found in the first pass. Nothing of the model is replaced, and it is afterwards as it was.

    Raises ValueError, in the first pass, if the feature map is not the output of a ReLU or ReLU6.
    """
    if slope == 0:
        yield
        return
    rectifiers = [module for module in model.body.modules() if isinstance(module, ACTIVATIONS)]
    uses: list[tuple[int, tuple]] = []  # of the pass so far: where the output lies, and its shape
    last = None  # which use is the last
    before: list[Tensor] = []

    def begin(*_) -> None:
        uses.clear()

    def enter(_, inputs) -> None:
        if last is None or len(uses) == last:
            # A rectifier may work in place: its input is gone when it has run.
            before[:] = [inputs[0].clone()]

    def leave(_, __, output):
        uses.append((output.data_ptr(), tuple(output.shape)))
        return _leaky(before[0], output, slope) if len(uses) - 1 == last else None

    def end(_, __, output):
        nonlocal last
        if last is not None:
            return None
        if not uses or uses[-1] != (output.data_ptr(), tuple(output.shape)):
            raise ValueError(
                f"leaky_slope={slope}: the feature map of this backbone does not end in a ReLU or ReLU6, so there is no slope "
                "to set; use leaky_slope=0"
            )
        last = len(uses) - 1
        return _leaky(before[0], output, slope)

    hooks = [model.body.register_forward_pre_hook(begin), model.body.register_forward_hook(end)]
    for module in rectifiers:
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leaky(before: Tensor, after: Tensor, slope: float) -> Tensor:
    return torch.where(before < 0, slope * before, after)
