"""Images in a folder, a tar or a zip, read in place: nothing is ever unpacked onto the disk.

Names are paths inside the folder or archive, with "/" between their parts. Hidden files, what macOS adds to archives,
links and members with names that lead out of the archive are passed over.
"""

import io
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageFiles", "open_files", "to_rgb"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# More levels of folders than any layout has: where links lead in a circle, the search ends here.
DEEPEST = 6


class ImageFiles(ABC):
    """Named images under `root`; how their bytes are found is up to the kind of root.

    Holds no open file, so that it can be pickled, forked and shared by threads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: list[str] = []

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    def open(self, path: str) -> "Image.Image":
        from PIL import Image

        with Image.open(io.BytesIO(self.read(path))) as image:
            return to_rgb(image)

    def where(self, path: str) -> str:
        return f"{self.root}: {path}"


class _Folder(ImageFiles):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for folder, subfolders, files in os.walk(root, followlinks=True):
            inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
            subfolders[:] = [name for name in subfolders if len(inside.parts) < DEEPEST and _wanted(name)]
            above = f"{inside}/" if inside.parts else ""
            self.names += [above + name for name in files if _wanted(name) and _is_image(name)]
        self.names.sort()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def where(self, path: str) -> str:
        return str(self.root / path)


class _Tar(ImageFiles):
    """A plain tar is read at the offsets of its members. One that is compressed has none, and is held in memory."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._members: dict[str, tuple[int, int] | bytes] = {}
        try:
            with tarfile.open(root, "r:") as tar:
                self._index(tar, lambda member: (member.offset_data, member.size))
        except tarfile.ReadError:
            with tarfile.open(root, "r:*") as tar:
                self._index(tar, lambda member: tar.extractfile(member).read())
        self.names = sorted(self._members)

    def _index(self, tar: tarfile.TarFile, content: Callable[[tarfile.TarInfo], tuple[int, int] | bytes]) -> None:
        for member in tar:
            name = _inside(member.name)
            if name is not None and member.isreg() and not member.issparse():
                self._members[name] = content(member)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        if isinstance(member, bytes):
            return member
        offset, size = member
        with open(self.root, "rb") as file:
            file.seek(offset)
            return file.read(size)


class _Zip(ImageFiles):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._members: dict[str, str] = {}
        with zipfile.ZipFile(root) as archive:
            for member in archive.infolist():
                name = _inside(member.filename)
                if name is not None and not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16):
                    self._members[name] = member.filename
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        return _opened(self.root, os.getpid()).read(self._members[name])


@lru_cache(maxsize=4)
def _opened(root: Path, process: int) -> zipfile.ZipFile:
    """An open zip, which threads may share. A forked process opens its own: they would share the place in the file."""
    return zipfile.ZipFile(root)


def open_files(root: Path) -> ImageFiles:
    """The images under a folder, or in a tar (plain or compressed) or zip.

    Raises ValueError, naming it, for a file that is neither or is damaged.
    """
    if root.is_dir():
        return _Folder(root)
    try:
        if tarfile.is_tarfile(root):
            return _Tar(root)
        if zipfile.is_zipfile(root):
            return _Zip(root)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
        raise ValueError(f"root={root}: the archive is damaged or cut off ({error})") from error
    raise ValueError(f"root={root}: must be a folder, a tar or a zip")


def _wanted(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _inside(member: str) -> str | None:
    """The name of an archive's member that is an image, None for all others."""
    path = PurePosixPath(member)
    if path.is_absolute() or not all(map(_wanted, path.parts)) or not _is_image(member):
        return None
    return str(path)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """The image as it is meant to be seen, in mode RGB: upright, what is transparent white, 16 bits brought to 8.

    Raises ValueError for pixels that have no agreed range, such as floats.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()}: must lie in 0..65535")
        # 257 * 255 = 65535
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floats, which have no agreed range: must be integers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
