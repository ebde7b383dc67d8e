"""From files to batches: images decoded once to uint8, augmented a batch at a time on the device that trains."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gl_core import _checks, devices
from gl_core.datasets.augmentation import height_and_width

if TYPE_CHECKING:
    from PIL import Image

    from gl_core.datasets import RetrievalDataset

__all__ = ["ImageStore"]

CPU = torch.device("cpu")
# More processes than this wait for the disk, or for each other.
MOST_WORKERS = 16


class ImageStore:
    """The images of a data set as uint8 tensors of one size, (n, 3, height, width).

    Each image is scaled until it just covers `resize`, keeping its aspect, and its centre of `size` is kept; or,
    without `keep_aspect`, it is stretched to `resize` first. The set is decoded once and held: on the device if it fits
    there, otherwise in the memory of the host if it fits there. What fits nowhere is decoded by batches, by worker
    processes that are ahead of their use.

    Args:
        dataset: where the images come from.
        size: pixels of a side, or (height, width).
        resize: pixels of the shorter side before the centre is cut out; `size` if not given.
        keep_aspect: cut off what does not fit the shape of `size`; otherwise squeeze it in, as re-identification does.
        device: where batches are used.
        memory: bytes that the decoded images may take, on the device and on the host; `devices.memory_budget` if not
            given.
        workers: processes that decode; None: one a processor core, at most 16; 0: threads of this process.
        progress: show a bar while decoding.

    A program that trains from worker processes must be safe to import: `if __name__ == "__main__":` around what it
    does.
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
        self.size = height_and_width(size)
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
        self._loader: tuple[DataLoader, list[list[int]]] | None = None
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

    def batches(self, indices: Iterable[list[int]]) -> Iterator[tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]]:
        """Images and labels of each list of indices, on the device; the next are made ready while these are used.

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
            there = devices.send(torch.as_tensor(batch), self.labels.device)
            yield devices.send(images, self.labels.device), self.labels[there]

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
            order: list[list[int]] = []
            loader = DataLoader(
                self._pictures,
                sampler=order,  # filled anew for each pass, so that the workers can stay
                batch_size=None,  # each item of the sampler is a batch
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                persistent_workers=True,
                # Its workers' seeds, which nothing uses, would otherwise be drawn from the global state.
                generator=torch.Generator(),
                # Forks of a process that already runs threads may hang.
                multiprocessing_context="forkserver" if os.name == "posix" else "spawn",
            )
            self._loader = loader, order
        loader, order = self._loader
        order[:] = indices
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

    def __getitem__(self, indices: list[int]) -> UInt8[Tensor, "n 3 h w"] | ValueError:
        """A batch, or the error of an image that cannot be read: raised here, users would see two tracebacks."""
        try:
            return _stack([self.array(index) for index in indices])
        except ValueError as error:
            return error


def _stack(arrays: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "n 3 h w"]:
    # In the layout of images that are held, so that both give the same numbers to the last bit.
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _threaded(pictures: _Pictures, indices: list) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
    """Decoded batches; while one is used the next is decoded. Threads suffice, as PIL decodes outside the GIL."""
    with ThreadPoolExecutor() as threads:
        waiting = threads.map(pictures.array, indices[0] if indices else [])
        for following in [*indices[1:], []] if indices else []:
            arrays = list(waiting)
            waiting = threads.map(pictures.array, following)
            yield _stack(arrays)


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
