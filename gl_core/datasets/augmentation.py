"""Random variations of a batch of images in training, made on the device that trains."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from gl_core import _checks, devices

__all__ = ["AUGMENTATIONS", "augment", "height_and_width"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        _checks.count("size", side, least=1)
    return height, width


def augment(
    images: UInt8[Tensor, "n 3 h w"],
    kind: str,
    size: int | tuple[int, int],
    *,
    erasing: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n 3 height width"]:
    """Random variations of a batch in training, as floats in [0, 1]; each image is varied on its own.

    Args:
        images: as an `ImageStore` gives them, at `size` px or somewhat more.
        kind: "photo" cuts out a random part (its area 0.5 to 1 of the whole, its sides 3:4 to 4:3) and mirrors every
            second image; "crop" does so with areas from 0.08 on, as torchvision's RandomResizedCrop does for the
            authors (who cut from the whole picture, not from its central square); "person" mirrors every second image
            and shifts it by up to 10 px of 256, black coming in (Luo et al., CVPRW 2019); "drawing" turns by up to 10
            degrees, scales by up to 10 and shifts by up to 5 percent, unmirrored, as a letter's mirror image is
            another letter; "none" only resizes.
        size: pixels of a side of the result, or (height, width).
        erasing: probability that a random rectangle of an image is replaced by ImageNet's mean colour, its area 0.02 to
            0.4 of the whole, its height 0.3 to 1/0.3 of its width (Zhong et al., "Random Erasing Data Augmentation",
            AAAI 2020).
        generator: source of randomness, on the CPU.
    """
    _checks.choice("augmentation", kind, AUGMENTATIONS)
    height, width = height_and_width(size)
    pixels = images.float() / 255
    # The few random numbers of a batch are drawn on the CPU, so that one seed gives the same run on every device.
    if kind != "none":
        affine = devices.send(AUGMENTATIONS[kind](len(images), generator, height, width), images.device)
        grid = F.affine_grid(affine, [len(images), 3, height, width], align_corners=False)
        padding = "zeros" if kind == "person" else "border"
        pixels = F.grid_sample(pixels, grid, padding_mode=padding, align_corners=False)
    elif pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return _erase(pixels, erasing, generator) if erasing else pixels


def _uniform(n: int, low: float, high: float, generator: torch.Generator | None) -> Float[Tensor, " n"]:
    return low + (high - low) * torch.rand(n, generator=generator)


def _mirrored(n: int, generator: torch.Generator | None) -> Float[Tensor, " n"]:
    """-1 for about every second image, 1 for the others."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


# Affine maps of output to input coordinates, both from -1 to 1.


def _part(n: int, generator: torch.Generator | None, *_: int, smallest: float) -> Float[Tensor, "n 2 3"]:
    area = _uniform(n, smallest, 1.0, generator)
    aspect = _uniform(n, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x = (1 - width) * _uniform(n, -1, 1, generator)
    y = (1 - height) * _uniform(n, -1, 1, generator)
    zero = torch.zeros(n)
    rows = torch.stack([width * _mirrored(n, generator), zero, x], 1), torch.stack([zero, height, y], 1)
    return torch.stack(rows, 1)


def _drawing(n: int, generator: torch.Generator | None, *_: int) -> Float[Tensor, "n 2 3"]:
    angle = _uniform(n, -math.pi / 18, math.pi / 18, generator)
    scale = _uniform(n, 0.9, 1.1, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = _uniform(n, -0.1, 0.1, generator), _uniform(n, -0.1, 0.1, generator)
    return torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)


def _person(n: int, generator: torch.Generator | None, height: int, width: int) -> Float[Tensor, "n 2 3"]:
    most = round(10 * height / 256)
    x, y = torch.randint(-most, most + 1, (2, n), generator=generator)
    one, zero = torch.ones(n), torch.zeros(n)
    # A pixel is 2 / side in coordinates from -1 to 1.
    rows = torch.stack([_mirrored(n, generator), zero, 2 * x / width], 1), torch.stack([zero, one, 2 * y / height], 1)
    return torch.stack(rows, 1)


AUGMENTATIONS: dict[str, Any] = {
    "none": None,
    "photo": partial(_part, smallest=0.5),
    "crop": partial(_part, smallest=0.08),
    "person": _person,
    "drawing": _drawing,
}


def _erase(
    pixels: Float[Tensor, "n 3 h w"], probability: float, generator: torch.Generator | None
) -> Float[Tensor, "n 3 h w"]:
    n, _, height, width = pixels.shape
    chosen = torch.rand(n, generator=generator) < probability
    area = _uniform(n, 0.02, 0.4, generator)
    # Only aspects with which a rectangle of that area lies inside the image.
    low = (area * height / width).clamp(min=0.3).log()
    high = (height / width / area).clamp(max=1 / 0.3).log().maximum(low)
    aspect = (low + (high - low) * torch.rand(n, generator=generator)).exp()
    rows = (area * aspect * height * width).sqrt().round().clamp(1, height)
    columns = (area / aspect * height * width).sqrt().round().clamp(1, width)
    top = (torch.rand(n, generator=generator) * (height - rows + 1)).floor()
    left = (torch.rand(n, generator=generator) * (width - columns + 1)).floor()
    corners = torch.stack([top, torch.where(chosen, top + rows, top), left, left + columns])
    top, bottom, left, right = devices.send(corners, pixels.device)[:, :, None]
    y = torch.arange(height, device=pixels.device)
    x = torch.arange(width, device=pixels.device)
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    mean = devices.send(torch.tensor(IMAGENET_MEAN), pixels.device)[:, None, None]
    return torch.where(inside[:, None], mean, pixels)
