"""BN-Inception, which the authors of the Group Loss start from.

Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, appendix, in the variant of the weights that circulate for
it. Its parameters are named as in that file, so that the file loads as it is.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gl_core._extras import require
from gl_core.models.network import mismatch

__all__ = ["WEIGHTS", "BNInception", "load_weights"]

WEIGHTS = "bn_inception-52deb4733.pth"
FROM = f"{WEIGHTS}, the ImageNet weights (45 MB) that Cadene's pretrained-models.pytorch names for bninception"

# Channels of each block's branches: 1x1 | reduce, 3x3 | reduce, 3x3, 3x3 | projection of the pooled input.
# Blocks without a first branch halve the map: their last 3x3 convolutions and their pooling have stride 2.
_BLOCKS = {
    "3a": (64, (64, 64), (64, 96), 32),
    "3b": (64, (64, 96), (64, 96), 64),
    "3c": (None, (128, 160), (64, 96), None),
    "4a": (224, (64, 96), (96, 128), 128),
    "4b": (192, (96, 128), (96, 128), 128),
    "4c": (160, (128, 160), (128, 160), 128),
    "4d": (96, (128, 192), (160, 192), 128),
    "4e": (None, (128, 192), (192, 256), None),
    "5a": (352, (192, 320), (160, 224), 128),
    "5b": (352, (192, 320), (192, 224), 128),
}


class BNInception(nn.Module):
    """Images to a map of 1024 channels, 1/32 of the size: (n, 3, h, w) -> (n, 1024, ~h/32, ~w/32).

    Images are RGB; the channels are turned to the order BGR in which the weights were trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._convolution("conv1_7x7_s2", 3, 64, kernel=7, stride=2)
        self._convolution("conv2_3x3_reduce", 64, 64)
        self._convolution("conv2_3x3", 64, 192, kernel=3)
        channels = 192
        for block, (single, (reduce, triple), (double_reduce, double), projection) in _BLOCKS.items():
            name, stride = f"inception_{block}", 1 if single else 2
            if single:
                self._convolution(f"{name}_1x1", channels, single)
            self._convolution(f"{name}_3x3_reduce", channels, reduce)
            self._convolution(f"{name}_3x3", reduce, triple, kernel=3, stride=stride)
            self._convolution(f"{name}_double_3x3_reduce", channels, double_reduce)
            self._convolution(f"{name}_double_3x3_1", double_reduce, double, kernel=3)
            self._convolution(f"{name}_double_3x3_2", double, double, kernel=3, stride=stride)
            if projection:
                self._convolution(f"{name}_pool_proj", channels, projection)
            channels = (single or 0) + triple + double + (projection or channels)
        self.shrink = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.mean_pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.max_pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.relu = nn.ReLU(inplace=True)
        # The four branches of the last block end in an activation of their own; this one stands for all of them.
        self.last_relu = nn.ReLU()

    def _convolution(self, name: str, before: int, after: int, *, kernel: int = 1, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2))
        # PyTorch's own momentum: code in circulation writes 0.9, by which here the last batch would set the statistics.
        self.add_module(f"{name}_bn", nn.BatchNorm2d(after))

    def _step(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, f"{name}_bn")(getattr(self, name)(x))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1024 h' w'"]:
        x = self.relu(self._step("conv1_7x7_s2", images.flip(1)))
        x = self.relu(self._step("conv2_3x3_reduce", self.shrink(x)))
        x = self.shrink(self.relu(self._step("conv2_3x3", x)))
        for block in _BLOCKS:
            x = self._block(block, x)
        return x

    def _block(self, block: str, x: Tensor) -> Tensor:
        single, _, _, projection = _BLOCKS[block]
        name = f"inception_{block}"
        branches = [self._step(f"{name}_1x1", x)] if single else []
        reduced = self.relu(self._step(f"{name}_3x3_reduce", x))
        branches.append(self._step(f"{name}_3x3", reduced))
        reduced = self.relu(self._step(f"{name}_double_3x3_reduce", x))
        reduced = self.relu(self._step(f"{name}_double_3x3_1", reduced))
        branches.append(self._step(f"{name}_double_3x3_2", reduced))
        if projection:
            pool = self.max_pool if block == "5b" else self.mean_pool
            branches.append(self._step(f"{name}_pool_proj", pool(x)))
            return (self.last_relu if block == "5b" else self.relu)(torch.cat(branches, dim=1))
        # What is only pooled has been through an activation already. A last row or column that no window would begin in
        # is completed by zeros, as convolutions give a map of odd size one value more than pooling does.
        whole = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return torch.cat([self.relu(torch.cat(branches, dim=1)), self.shrink(whole)], dim=1)


def load_weights(network: BNInception, path: str | Path) -> None:
    """Load a file of weights (.pth or .safetensors) into the network; its classifier, if it holds one, is passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights or holds other parameters.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file; it must be {FROM}, or fine-tuned from it")
    state = {name: value for name, value in _read(path).items() if name.split(".")[0] not in ("last_linear", "fc")}
    expected = network.state_dict()
    # An older file keeps batch-norm parameters as (1, C), and does not count batches.
    for name in expected:
        if name in state and state[name].ndim == 2 and expected[name].ndim == 1 and len(state[name]) == 1:
            state[name] = state[name][0]
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, expected[name])
    if wrong := mismatch(expected, state):
        raise ValueError(f"weights={path}: are not those of BN-Inception: {wrong}; expected {FROM}")
    network.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        read = require("safetensors.torch", extra="train").load_file
    else:
        read = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        state = read(path)
    # Each format, and each way in which a file can be damaged, raises an error of its own.
    except Exception as error:
        raise ValueError(f"weights={path}: is no readable file of weights; expected {FROM}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={path}: holds no parameters by name; expected {FROM}")
    return state
