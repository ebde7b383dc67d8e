"""A data set decoded once: one file of uint8 images that training maps into memory and reads in place.

The file begins with a header of `HEADER` bytes, one line of JSON; the images follow, (n, height, width, 3). It knows
the version of the data that it was made from, and gets its name when it is whole.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from gl_core._files import atomic_write
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.version import data_version

__all__ = ["PackedImages", "find_packs", "open_pack", "pack", "verify"]

FORMAT = "gl_core pack 2"
HEADER = 4096
CHUNK = 64
AGAIN = "write it again by `glbook data pack`"


@dataclass(frozen=True)
class PackedImages:
    """`array` maps the file: nothing is read until it is used. Its rows are those of the data set, of all splits."""

    path: Path
    array: UInt8[np.ndarray, "n height width 3"]
    data_version: str

    def __reduce__(self):
        # To worker processes goes the name of the file, not what is in it.
        return open_pack, (self.path,)


def find_packs(root: Path, dataset: RetrievalDataset) -> tuple[dict[tuple[int, int], PackedImages], dict[str, str]]:
    """The packs `NAME-HEIGHTxWIDTH.pack` in the folder of a data set: those made from what it holds now, by (height,
    width), and why the others are not used, by name."""
    packs, unused = {}, {}
    for path in sorted(root.glob(f"{dataset.name}-*x*.pack")):
        try:
            opened = open_pack(path)
            if opened.data_version != data_version(dataset):
                raise ValueError(f"it was made from other images or labels: {AGAIN}")
        except (OSError, ValueError) as error:
            unused[path.name] = f"is not used: {error}"
        else:
            packs[opened.array.shape[1:3]] = opened
    return packs, unused


def pack(
    dataset: RetrievalDataset,
    path: Path,
    height: int,
    width: int,
    decode: Callable[[RetrievalDataset, range], UInt8[np.ndarray, "n height width 3"]],
    *,
    progress: bool = False,
) -> None:
    """Write all images of a data set, as `decode` makes them, to `path`."""
    from tqdm import tqdm

    version, digest, n = data_version(dataset), hashlib.sha256(), len(dataset)
    with atomic_write(path) as file, tqdm(total=n, desc=path.name, unit=" images", disable=not progress) as bar:
        file.write(b" " * HEADER)
        for start in range(0, n, CHUNK):
            rows = range(start, min(start + CHUNK, n))
            block = np.ascontiguousarray(decode(dataset, rows)).tobytes()
            digest.update(block)
            file.write(block)
            bar.update(len(rows))
        if data_version(dataset) != version:
            raise ValueError(f"{dataset!r} changed while it was packed: {AGAIN}")
        shape = [n, height, width, 3]
        header = {"format": FORMAT, "data_version": version, "shape": shape, "sha256": digest.hexdigest()}
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(HEADER - 1) + b"\n")


def open_pack(path: Path) -> PackedImages:
    """A pack, its images mapped into memory; ValueError if it is none, of another version or cut off."""
    header = _header(path)
    return PackedImages(path, np.memmap(path, np.uint8, "r", HEADER, tuple(header["shape"])), header["data_version"])


def verify(path: Path) -> None:
    """Read all of a pack; ValueError if its content is not what was written."""
    header = _header(path)
    with path.open("rb") as file:
        file.seek(HEADER)
        digest = hashlib.file_digest(file, "sha256")
    if digest.hexdigest() != header["sha256"]:
        raise ValueError(f"{path}: is damaged (its checksum is another): {AGAIN}")


def _header(path: Path) -> dict:
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(HEADER))
        except ValueError:
            header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path}: is no pack of images, or of another version: {AGAIN}")
    size = HEADER + math.prod(header["shape"])
    if path.stat().st_size != size:
        raise ValueError(f"{path}: holds {path.stat().st_size} of {size} bytes: {AGAIN}")
    return header
