"""The last activation of a network, given another slope for a while."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gl_core.models.network import EmbeddingNet

__all__ = ["leaky_last_activation"]

RECTIFIERS = (nn.ReLU, nn.ReLU6)


@contextlib.contextmanager
def leaky_last_activation(model: EmbeddingNet, slope: float) -> Iterator[None]:
    """Within the context the rectifier that ends the feature map lets negative inputs through, times `slope`.

        a(x) = slope x   for x < 0,   as it was for x >= 0

    So the upper bound of a ReLU6 stays. Networks use one rectifier in many places: only its last use in a pass changes.
    That the map is its output is seen from the values: they are max(x, 0) of its input x.

    Args:
        model: nothing of it is replaced, and it is afterwards as it was.
        slope: for negative inputs; 0 changes nothing.

    Raises:
        ValueError: in the first pass, if the feature map is not the output of a ReLU or ReLU6.
    """
    if slope == 0:
        yield
        return
    last: tuple[nn.Module, Tensor] | None = None  # the rectifier that ran last, and its input

    def enter(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal last
        last = module, inputs[0].clone()  # a rectifier may work in place: its input is gone when it has run

    def end(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        if last is not None:
            module, before = last
            rectified = before.clamp(min=0, max=6 if isinstance(module, nn.ReLU6) else None)
            if rectified.shape == output.shape and rectified.equal(output):
                return torch.where(before < 0, slope * before, output)
        raise ValueError(f"leaky_slope={slope}: must be 0, as this backbone does not end in a ReLU or ReLU6")

    hooks = [model.body.register_forward_hook(end)]
    for module in model.body.modules():
        if isinstance(module, RECTIFIERS):
            hooks.append(module.register_forward_pre_hook(enter))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
