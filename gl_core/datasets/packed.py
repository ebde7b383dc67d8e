"""A data set decoded once: one file of uint8 images that training maps into memory and reads in place.

The file begins with a header of `HEADER` bytes: one line of JSON with format, version, sizes and a checksum. The images follow,
(n, height, width, 3), then the table as parquet. It is written aside and gets its name, and its header, when it is whole.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.cache import atomic_write as written_aside

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PackedImages", "find_packs", "open_pack", "pack", "pack_bytes", "verify"]

FORMAT, VERSION = "gl_core pack", 1
HEADER = 4096
CHUNK = 64


@dataclass(frozen=True)
class PackedImages:
    """`array` maps the file: nothing is read until it is used. Its rows are those of `table`, of all splits."""

    path: Path
    array: UInt8[np.ndarray, "n height width 3"]
    table: "pd.DataFrame"
    class_names: list[str]
    name: str
    sha256: str

    def __reduce__(self):
        # To worker processes goes the name of the file, not what is in it.
        return open_pack, (self.path,)


def find_packs(root: Path, dataset: RetrievalDataset) -> dict[tuple[int, int], PackedImages]:
    """The packs `NAME-HEIGHTxWIDTH.pack` in the folder of a data set, by (height, width).

    Raises ValueError, naming it, for a pack of other images.
    """
    packs = {}
    for path in sorted(root.glob(f"{dataset.name}-*x*.pack")):
        opened = open_pack(path)
        if not opened.table["path"].equals(dataset.table["path"]):
            raise ValueError(f"{path}: holds other images than the data set: write it again by `glbook data pack`")
        packs[opened.array.shape[1:3]] = opened
    return packs


def pack_bytes(dataset: RetrievalDataset, height: int, width: int) -> int:
    """The bytes that the images of a pack take."""
    return len(dataset) * height * width * 3


def pack(
    dataset: RetrievalDataset,
    path: Path,
    height: int,
    width: int,
    decode: Callable[[RetrievalDataset, range], UInt8[np.ndarray, "n height width 3"]],
    *,
    progress: bool = False,
) -> None:
    """Write all images of a data set, as `decode` makes them, to `path`.

    Raises ValueError, naming it, for an image that cannot be read, and OSError where the file cannot be written.
    """
    from tqdm import tqdm

    digest = hashlib.sha256()
    n = len(dataset)
    parquet = io.BytesIO()
    dataset.table.to_parquet(parquet)
    with written_aside(path) as file, tqdm(total=n, desc=path.name, unit=" images", disable=not progress) as bar:
        file.write(b" " * HEADER)
        for start in range(0, n, CHUNK):
            rows = range(start, min(start + CHUNK, n))
            block = np.ascontiguousarray(decode(dataset, rows)).tobytes()
            digest.update(block)
            file.write(block)
            bar.update(len(rows))
        digest.update(parquet.getvalue())
        file.write(parquet.getvalue())
        names = json.dumps(dataset.class_names).encode()
        digest.update(names)
        file.write(names)
        header = {"format": FORMAT, "version": VERSION, "name": dataset.name, "shape": [n, height, width, 3]}
        header |= {"table": parquet.tell(), "class_names": len(names), "sha256": digest.hexdigest()}
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(HEADER - 1) + b"\n")


def open_pack(path: Path) -> PackedImages:
    """A pack, its images mapped into memory.

    Raises ValueError, naming it, for a file that is no pack, is of another version or is cut off; `verify` reads all of it.
    """
    import pandas as pd

    header = _header(path)
    shape = tuple(header["shape"])
    with path.open("rb") as file:
        file.seek(HEADER + int(np.prod(shape)))
        table = pd.read_parquet(io.BytesIO(file.read(header["table"])))
        class_names = json.loads(file.read(header["class_names"]))
    array = np.memmap(path, np.uint8, "r", HEADER, shape)
    return PackedImages(path, array, table, class_names, header["name"], header["sha256"])


def verify(path: Path) -> None:
    """Raises ValueError if the content of a pack is not what was written."""
    header, digest = _header(path), hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER)
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != header["sha256"]:
        raise ValueError(f"{path}: is damaged (its checksum is another): write it again by `glbook data pack`")


def _header(path: Path) -> dict:
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(HEADER))
        except ValueError:
            header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path}: is no pack of images: write one by `glbook data pack`")
    if header["version"] != VERSION:
        raise ValueError(f"{path}: is a pack of version {header['version']}, must be {VERSION}: write it again")
    size = HEADER + int(np.prod(header["shape"])) + header["table"] + header["class_names"]
    if path.stat().st_size != size:
        raise ValueError(f"{path}: holds {path.stat().st_size} of {size} bytes: write it again by `glbook data pack`")
    return header
