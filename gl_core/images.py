"""From files to batches: images decoded once to uint8, augmented a batch at a time on the device that trains."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gl_core import _checks

if TYPE_CHECKING:
    from PIL import Image

    from gl_core.datasets import RetrievalDataset

__all__ = ["AUGMENTATIONS", "ImageStore", "augment"]

# Decoded images up to this many bytes are kept in memory; a larger set is decoded anew for each batch.
MEMORY = 4 * 2**30


class ImageStore:
    """The images of a data set as square uint8 tensors, (n, 3, size, size).

    Each image is resized so that its shorter side has `resize` pixels, and its centre of `size` x `size` is kept. The set is
    decoded once and held in memory where it fits into `memory` bytes, otherwise decoded by batches as they are asked for.

    Args:
        dataset: where the images come from.
        size: pixels of a side.
        resize: pixels of the shorter side before the centre is cut out; `size` if not given.
        memory: bytes that the decoded images may take.
        progress: show a bar while decoding.
    """

    def __init__(
        self,
        dataset: "RetrievalDataset",
        size: int,
        *,
        resize: int | None = None,
        memory: int = MEMORY,
        progress: bool = False,
    ) -> None:
        _checks.count("size", size, least=1)
        self.dataset = dataset
        self.size = size
        self.resize = size if resize is None else resize
        if self.resize < size:
            raise ValueError(f"resize={resize}: must be at least size={size}")
        self.labels = torch.as_tensor(dataset.labels)
        self._held = None
        if len(dataset) * 3 * size * size <= memory:
            held = torch.empty(len(dataset), 3, size, size, dtype=torch.uint8)
            for start, batch in self._decode(
                np.array_split(np.arange(len(dataset)), max(1, len(dataset) // 64)), progress
            ):
                held[start : start + len(batch)] = batch
            self._held = held

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device) -> "ImageStore":
        """Move images that are held in memory to the device that uses them. Returns itself."""
        if self._held is not None:
            self._held = self._held.to(device)
        self.labels = self.labels.to(device)
        return self

    def batches(self, indices: Iterable[list[int]]) -> Iterator[tuple[UInt8[Tensor, "n 3 s s"], Int[Tensor, "n"]]]:
        """Images and labels of each list of indices, in turn; the next batch is decoded while this one is used."""
        if self._held is not None:
            for batch in indices:
                index = torch.as_tensor(batch, device=self._held.device)
                yield self._held[index], self.labels[index]
            return
        indices = [list(batch) for batch in indices]
        for batch, (_, images) in zip(indices, self._decode(indices, progress=False), strict=True):
            index = torch.as_tensor(batch, device=self.labels.device)
            yield images.to(self.labels.device, non_blocking=True), self.labels[index]

    def _decode(self, indices: list, progress: bool) -> Iterator[tuple[int, UInt8[Tensor, "n 3 s s"]]]:
        """Decoded batches, each with the position of its first image. Threads suffice: PIL decodes outside the GIL."""
        from tqdm import tqdm

        def one(index: int) -> np.ndarray:
            image, _ = self.dataset[int(index)]
            return np.asarray(_square(image, self.resize, self.size))

        position = 0
        with (
            ThreadPoolExecutor() as threads,
            tqdm(
                total=sum(map(len, indices)), desc="reading images", unit=" images", disable=not progress, leave=False
            ) as bar,
        ):
            waiting = [threads.submit(one, i) for i in indices[0]] if len(indices) else []
            for batch, following in zip(indices, [*indices[1:], []], strict=True):
                arrays = [future.result() for future in waiting]
                waiting = [threads.submit(one, i) for i in following]
                yield position, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
                position += len(batch)
                bar.update(len(batch))


def _square(image: "Image.Image", resize: int, size: int) -> "Image.Image":
    """The central square of an image whose shorter side is first brought to `resize`."""
    from PIL import Image

    scale = resize / min(image.size)
    # The part of the original that ends up in the square; resizing just that is one step and reads no pixel too many.
    side = size / scale
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def augment(
    images: UInt8[Tensor, "n 3 h w"], kind: str, size: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "n 3 size size"]:
    """Random variations of a batch in training, as floats in [0, 1]; each image is varied on its own.

    Args:
        images: as an `ImageStore` gives them, at `size` px or somewhat more.
        kind: "photo" cuts out a random part (its area 0.5 to 1 of the whole, its sides 3:4 to 4:3) and mirrors every second
            image; "drawing" turns by up to 10 degrees, scales by up to 10 and shifts by up to 5 percent, and never mirrors, as
            the mirror image of a letter is another letter; "none" only resizes.
        size: pixels of a side of the result.
        generator: source of randomness, on the CPU.
    """
    _checks.choice("augmentation", kind, AUGMENTATIONS)
    pixels = images.float() / 255
    if kind == "none":
        return pixels if pixels.shape[-1] == size else F.interpolate(pixels, size, mode="bilinear", antialias=True)
    # The few random numbers of a batch are drawn on the CPU, so that one seed gives the same run on every device.
    affine = AUGMENTATIONS[kind](len(images), generator).to(images.device, non_blocking=True)
    grid = F.affine_grid(affine, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _uniform(n: int, low: float, high: float, generator: torch.Generator | None) -> Float[Tensor, "n"]:
    return low + (high - low) * torch.rand(n, generator=generator)


def _photo(n: int, generator: torch.Generator | None) -> Float[Tensor, "n 2 3"]:
    """Output to input coordinates, both from -1 to 1: the part's half sides, and its centre inside the image."""
    area = _uniform(n, 0.5, 1.0, generator)
    aspect = _uniform(n, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x = (1 - width) * _uniform(n, -1, 1, generator)
    y = (1 - height) * _uniform(n, -1, 1, generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    return torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)


def _drawing(n: int, generator: torch.Generator | None) -> Float[Tensor, "n 2 3"]:
    angle = _uniform(n, -math.pi / 18, math.pi / 18, generator)
    scale = _uniform(n, 0.9, 1.1, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = _uniform(n, -0.1, 0.1, generator), _uniform(n, -0.1, 0.1, generator)
    return torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)


AUGMENTATIONS = {"none": None, "photo": _photo, "drawing": _drawing}
