"""From files to batches: images decoded once to uint8, augmented a batch at a time on the device that trains."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gl_core import _checks, devices
from gl_core.models import IMAGENET_MEAN

if TYPE_CHECKING:
    from PIL import Image

    from gl_core.datasets import RetrievalDataset

__all__ = ["AUGMENTATIONS", "ImageStore", "augment"]

CPU = torch.device("cpu")
# More processes than this wait for the disk, or for each other.
MOST_WORKERS = 16


class ImageStore:
    """The images of a data set as uint8 tensors of one size, (n, 3, height, width).

    Each image is scaled until it just covers `resize`, keeping its aspect, and its centre of `size` is kept; or, without
    `keep_aspect`, it is stretched to `resize` first. The set is decoded once and held: on the device if it fits there, otherwise
    in the memory of the host if it fits there. What fits nowhere is decoded by batches, by worker processes that are ahead
    of their use.

    Args:
        dataset: where the images come from.
        size: pixels of a side, or (height, width).
        resize: pixels of the shorter side before the centre is cut out; `size` if not given.
        keep_aspect: cut off what does not fit the shape of `size`; otherwise squeeze it in, as re-identification does.
        device: where batches are used.
        memory: bytes that the decoded images may take, on the device and on the host; `devices.memory_budget` if not given.
        workers: processes that decode; None: one a processor core, at most 16; 0: threads of this process.
        progress: show a bar while decoding.

    A program that trains from worker processes must be safe to import: `if __name__ == "__main__":` around what it does.
    """

    def __init__(
        self,
        dataset: "RetrievalDataset",
        size: int | tuple[int, int],
        *,
        resize: int | None = None,
        keep_aspect: bool = True,
        device: torch.device = CPU,
        memory: int | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> None:
        self.dataset = dataset
        self.size = _height_and_width(size)
        shorter = min(self.size)
        self.resize = shorter if resize is None else resize
        if self.resize < shorter:
            raise ValueError(f"resize={resize}: must be at least size={shorter}")
        if workers is not None:
            _checks.count("workers", workers, least=0)
        self.keep_aspect = keep_aspect
        self.device = device
        self.workers = min(devices.cpu_count(), MOST_WORKERS) if workers is None else workers
        self.labels = torch.as_tensor(dataset.labels).to(device)
        self._pictures = _Pictures(dataset, self.size, self.resize / shorter, keep_aspect)
        self._loader: tuple[DataLoader, _Batches] | None = None
        self._held = None
        need = len(dataset) * 3 * math.prod(self.size)
        for home in dict.fromkeys([device, CPU]):
            if need <= (devices.memory_budget(home) if memory is None else memory):
                self._held = self._decode_all(home, progress)
                break

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device) -> "ImageStore":
        """Move images that are held in memory to the device that uses them. Returns itself."""
        self.device = device
        if self._held is not None:
            self._held = self._held.to(device)
        self.labels = self.labels.to(device)
        return self

    def batches(self, indices: Iterable[list[int]]) -> Iterator[tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, "n"]]]:
        """Images and labels of each list of indices, in turn, on the device; the next are made ready while these are used.

        Where worker processes decode, one pass over batches ends before the next begins.
        """
        if self._held is not None:
            for batch in indices:
                index = torch.as_tensor(batch)
                there = devices.send(index, self.labels.device)
                images = self._held[there if self._held.device == self.labels.device else index]
                yield devices.send(images, self.labels.device), self.labels[there]
            return
        indices = [list(batch) for batch in indices]
        decoded = self._loaded(indices) if self.workers else _threaded(self._pictures, indices)
        for batch, images in zip(indices, decoded, strict=True):
            index = devices.send(torch.as_tensor(batch), self.labels.device)
            yield devices.send(images, self.labels.device), self.labels[index]

    def _decode_all(self, device: torch.device, progress: bool) -> UInt8[Tensor, "n 3 h w"]:
        from tqdm import tqdm

        n = len(self.dataset)
        held = torch.empty(n, 3, *self.size, dtype=torch.uint8, device=device)
        parts = [range(start, min(start + 64, n)) for start in range(0, n, 64)]
        with tqdm(total=n, desc="reading images", unit=" images", disable=not progress, leave=False) as bar:
            for part, images in zip(parts, _threaded(self._pictures, parts), strict=True):
                held[part.start : part.stop] = images
                bar.update(len(part))
        return held

    def _loaded(self, indices: list[list[int]]) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Batches from worker processes, which stay for the next pass."""
        if self._loader is None:
            order = _Batches()
            loader = DataLoader(
                self._pictures,
                batch_sampler=order,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                pin_memory=self.device.type == "cuda",
                persistent_workers=True,
                # Its workers' seeds, which nothing uses, would otherwise be drawn from the global state.
                generator=torch.Generator(),
                # Forks of a process that already runs threads may hang.
                multiprocessing_context="forkserver" if os.name == "posix" else "spawn",
            )
            self._loader = loader, order
        loader, order = self._loader
        order.lists = indices
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images


class _Pictures(Dataset):
    """A data set's images as arrays of one size; read by threads and by processes."""

    def __init__(self, dataset: "RetrievalDataset", size: tuple[int, int], margin: float, keep_aspect: bool) -> None:
        self.dataset = dataset
        self.size = size
        self.box = (round(size[0] * margin), round(size[1] * margin))
        self.keep_aspect = keep_aspect

    def array(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        from PIL import Image

        packed = self.dataset.packed.get(self.box) if self.keep_aspect == (self.box[0] == self.box[1]) else None
        if packed is None:
            image, _ = self.dataset[int(index)]
        else:
            image = Image.fromarray(packed.array[self.dataset.rows[int(index)]])
        return np.asarray(_fitted(image, self.box, self.size, self.keep_aspect))

    def __getitems__(self, indices: list[int]) -> UInt8[Tensor, "n 3 h w"] | ValueError:
        """A batch, or the error of an image that cannot be read: raised here it would reach the user as two tracebacks."""
        try:
            return _stack([self.array(index) for index in indices])
        except ValueError as error:
            return error


class _Batches:
    """A batch sampler whose lists of indices are set anew for each pass, so that worker processes can stay."""

    lists: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


def _as_it_is(batch):
    return batch


def _stack(arrays: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "n 3 h w"]:
    # In the layout of images that are held, so that both give the same numbers to the last bit.
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _threaded(pictures: _Pictures, indices: list) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
    """Decoded batches; while one is used the next is decoded. Threads suffice to read once: PIL decodes outside the GIL."""
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(pictures.array, i) for i in indices[0]] if len(indices) else []
        for following in [*indices[1:], []] if len(indices) else []:
            arrays = [future.result() for future in waiting]
            waiting = [threads.submit(pictures.array, i) for i in following]
            yield _stack(arrays)


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        _checks.count("size", side, least=1)
    return height, width


def _fitted(image: "Image.Image", box: tuple[int, int], size: tuple[int, int], keep_aspect: bool) -> "Image.Image":
    """The centre of `size` of an image that was scaled to cover `box`, or stretched to it; both (height, width)."""
    from PIL import Image

    scale_y, scale_x = box[0] / image.height, box[1] / image.width
    if keep_aspect:
        scale_y = scale_x = max(scale_y, scale_x)
    # The part of the original that is kept; resizing just that is one step and reads no pixel too many.
    height, width = min(size[0] / scale_y, image.height), min(size[1] / scale_x, image.width)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    if scale_y == scale_x == 1:
        # Nothing is scaled: keep to whole pixels, as half a pixel would blur.
        left, top = math.floor(left), math.floor(top)
    part = (left, top, left + width, top + height)
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=part)


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
        kind: "photo" cuts out a random part (its area 0.5 to 1 of the whole, its sides 3:4 to 4:3) and mirrors every second
            image; "crop" does so with areas from 0.08 on, as torchvision's RandomResizedCrop does for the authors (who cut
            from the whole picture, not from its central square); "person" mirrors every second image and shifts it by up to 10
            px of 256, black coming in (Luo et al., CVPRW 2019); "drawing" turns by up to 10 degrees, scales by up to 10 and
            shifts by up to 5 percent, and never mirrors, as the mirror image of a letter is another letter; "none" only resizes.
        size: pixels of a side of the result, or (height, width).
        erasing: probability that a random rectangle of an image is replaced by ImageNet's mean colour, its area 0.02 to 0.4 of
            the whole, its height 0.3 to 1/0.3 of its width (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020).
        generator: source of randomness, on the CPU.
    """
    _checks.choice("augmentation", kind, AUGMENTATIONS)
    height, width = _height_and_width(size)
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


def _uniform(n: int, low: float, high: float, generator: torch.Generator | None) -> Float[Tensor, "n"]:
    return low + (high - low) * torch.rand(n, generator=generator)


def _mirrored(n: int, generator: torch.Generator | None) -> Float[Tensor, "n"]:
    """-1 for about every second image, 1 for the others."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _part(smallest: float, n: int, generator: torch.Generator | None, *_: int) -> Float[Tensor, "n 2 3"]:
    """Output to input coordinates, both from -1 to 1: the part's half sides, and its centre inside the image."""
    area = _uniform(n, smallest, 1.0, generator)
    aspect = _uniform(n, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x = (1 - width) * _uniform(n, -1, 1, generator)
    y = (1 - height) * _uniform(n, -1, 1, generator)
    zero = torch.zeros(n)
    rows = torch.stack([width * _mirrored(n, generator), zero, x], 1), torch.stack([zero, height, y], 1)
    return torch.stack(rows, 1)


def _photo(n: int, generator: torch.Generator | None, *_: int) -> Float[Tensor, "n 2 3"]:
    return _part(0.5, n, generator)


def _crop(n: int, generator: torch.Generator | None, *_: int) -> Float[Tensor, "n 2 3"]:
    return _part(0.08, n, generator)


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


AUGMENTATIONS = {"none": None, "photo": _photo, "crop": _crop, "person": _person, "drawing": _drawing}


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
