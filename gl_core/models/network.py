"""An embedding network: what surrounds a backbone."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EmbeddingNet", "evaluation_mode", "mismatch"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EmbeddingNet(nn.Module):
    """A backbone with its input convention, its pooling, and a neck where it has one (see `add_neck`).

        embedding = mean over space of body((image - mean) / std)

    Args:
        body: (n, c, h, w) normalised images -> (n, d, h', w') feature map.
        embedding_size: d.
        mean: per channel, for pixels in [0, 1]; one value (grey) or three (colour). A grey network shown colour images
            sees their luminance, a colour network shown grey images sees the same value three times.
        std: per channel.
        smallest: the least height and width in pixels that leave a feature map.
    """

    mean: Tensor
    std: Tensor

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
        self.neck: nn.BatchNorm1d | None = None
        self.retrieve_after_neck = True
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def feature_map(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d h' w'"]:
        """What `forward` pools. Images are uint8 in 0..255 or floats in [0, 1], with one channel or three (RGB)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images has shape {tuple(images.shape)}: must be (n, 1 or 3, height, width)")
        height, width = images.shape[2:]
        if min(height, width) < self.smallest:
            raise ValueError(f"images are {height} x {width} px: this backbone needs {self.smallest} px")
        if images.dtype == torch.uint8:
            images = images / 255
        channels = self.mean.shape[1]
        if images.shape[1] != channels:
            images = images.expand(-1, 3, -1, -1) if channels == 3 else _luminance(images)
        return self.body((images - self.mean) / self.std)

    def forward(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The embedding, as it enters losses in training and (normalised) comparisons in evaluation mode."""
        return self.embedding(self.feature_map(images).mean(dim=(2, 3)))

    def embedding(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What follows the pooling: nothing, but in evaluation mode the neck where there is one."""
        if self.neck is None or self.training or not self.retrieve_after_neck:
            return pooled
        return self.neck(pooled)

    def add_neck(self, *, retrieve_after: bool = True) -> "EmbeddingNet":
        """Add a batch normalisation between the embedding and the classifier; returns the network itself.

        In training the network gives the features before it, for the metric part of a loss, and whoever holds the
        classifier sends them through `neck` first. Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep
        Person Re-identification", CVPRW 2019, whose neck does not shift either.

        Args:
            retrieve_after: images are compared after the normalisation; False: before it.
        """
        self.neck = nn.BatchNorm1d(self.embedding_size)
        self.neck.bias.requires_grad_(False)
        self.retrieve_after_neck = retrieve_after
        return self


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode; afterwards each of its modules is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Where weights by name differ from those that a network has, in words; empty if they fit."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of the network" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {tuple(found[name].shape)} in place of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _luminance(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The grey value of RGB pixels by the weights of ITU-R BT.601, which PIL uses too."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
