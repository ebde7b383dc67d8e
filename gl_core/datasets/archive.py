"""Images in a folder, a tar or a zip, read in place: nothing is ever unpacked onto the disk.

Names are paths inside the folder or archive, with "/" between their parts. Hidden files, what macOS adds to archives,
and files that are not called like images are passed over; images that cannot be had are noted in `left_out`.
"""

import hashlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gl_core._files import printable
from gl_core.datasets.decoding import is_image, open_image, read_file, readable
from gl_core.datasets.version import file_state, remembered

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Folder", "ImageFiles", "open_files"]


class ImageFiles(ABC):
    """Named images under `root`, which holds no open file: it can be pickled, forked and shared by threads.

    Attributes:
        names: of the images.
        part: which of several images of the same name are meant, where a file holds such.
        left_out: what looks like an image, or may hold some, and is not among the names; and why.
    """

    def __init__(self, root: Path, part: str = "") -> None:
        self.root, self.part = root, part
        self.names: list[str] = []
        self.left_out: dict[str, str] = {}

    @abstractmethod
    def read(self, name: str) -> bytes:
        """What an image is stored as. May raise anything."""

    def state(self, name: str) -> list[int]:
        """What tells that an image may have changed: the state of the file it is in (see `file_state`)."""
        return file_state(self.root)

    def open(self, path: str) -> "Image.Image":
        return open_image(self.read(path))

    def where(self, path: str) -> str:
        return printable(f"{self.root}: {path}")

    def digests(self, paths: Sequence[str]) -> list[str]:
        """The SHA-256 of each image as stored; "unreadable" for one that cannot be read."""
        return remembered(f"sha256 {self.part}", self.root, paths, self.state, self._digest)

    def undecodable(self, progress: bool = False) -> dict[str, str]:
        """The images that cannot be decoded, and why. All are decoded, unless what they are is known already."""
        reasons = remembered("decodes", self.root, self.names, self.state, self._fault, progress=progress)
        return {name: reason for name, reason in zip(self.names, reasons, strict=True) if reason}

    def _digest(self, name: str) -> str:
        try:
            return hashlib.sha256(self.read(name)).hexdigest()
        except Exception:
            return "unreadable"

    def _fault(self, name: str) -> str:
        try:
            open_image(self.read(name), smallest=True)
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    def _note(self, name: str, fault: str | None) -> bool:
        """Whether the image of that name is to be had; if not, it is noted."""
        if fault is None and not readable(name):
            fault = "its format cannot be decoded here"
        if fault is not None:
            self.left_out[name] = fault
        return fault is None


class Folder(ImageFiles):
    """Images below a folder. Linked folders are followed, and each is looked at once, under its own name if it has one.

    With `search=False` no names are looked for: they are known from elsewhere.
    """

    def __init__(self, root: Path, *, search: bool = True) -> None:
        super().__init__(root)
        waiting, seen = [root] if search else [], set()
        while waiting:
            for path, folders, files in os.walk(waiting.pop(0), onerror=self._unreadable):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((found.st_dev, found.st_ino))
                folders[:] = sorted(filter(_wanted, folders))
                # `walk` itself passes links over: they come after all folders that are no links.
                waiting += [link for link in (Path(path, name) for name in folders) if link.is_symlink()]
                for file in sorted(name for name in files if _wanted(name) and is_image(name)):
                    name = self._name(Path(path, file))
                    if self._note(name, None if os.path.isfile(Path(path, file)) else "it is no regular file"):
                        self.names.append(name)
        self.names.sort()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _unreadable(self, error: OSError) -> None:
        self.left_out[f"{self._name(Path(error.filename))}/"] = f"the folder cannot be read: {error.strerror}"

    def read(self, name: str) -> bytes:
        return read_file(self.root / name)

    def where(self, path: str) -> str:
        return printable(str(self.root / path))

    def state(self, name: str) -> list[int]:
        return file_state(self.root / name)


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
                self._index(tar, lambda member: (tar.extractfile(member) or io.BytesIO()).read())
        self.names = sorted(self._members)

    def _index(self, tar: tarfile.TarFile, content: Callable[[tarfile.TarInfo], tuple[int, int] | bytes]) -> None:
        for member in tar:
            if member.isdir() or not _is_wanted_image(member.name):
                continue
            name, fault = _inside(member.name)
            linked = self._members.get(_inside(member.linkname)[0]) if member.islnk() else None
            if linked is None and (not member.isreg() or member.issparse()):
                fault = "it is a link or no regular file"
            if self._note(name, fault):
                self._members[name] = content(member) if linked is None else linked

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
        # A zip that replaces this one is another to `_opened`.
        self._opened_as = (root, tuple(file_state(root)))
        with zipfile.ZipFile(root) as archive:
            for member in archive.infolist():
                if member.is_dir() or not _is_wanted_image(member.filename):
                    continue
                name, fault = _inside(member.filename)
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                    fault = "it is a link or no regular file"
                if self._note(name, fault):
                    self._members[name] = member.filename
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        return _opened(*self._opened_as, os.getpid()).read(self._members[name])


@lru_cache(maxsize=4)
def _opened(root: Path, state: tuple[int, ...], process: int) -> zipfile.ZipFile:
    """An open zip, which threads may share. A forked process opens its own: they would share the place in the file."""
    return zipfile.ZipFile(root)


def open_files(root: Path) -> ImageFiles:
    """The images under a folder, or in a tar (plain or compressed) or zip.

    Raises:
        ValueError: it is neither, or a damaged archive; names it.
    """
    if root.is_dir():
        return Folder(root)
    try:
        if root.is_file() and tarfile.is_tarfile(root):
            return _Tar(root)
        if root.is_file() and zipfile.is_zipfile(root):
            return _Zip(root)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
        raise ValueError(f"root={root}: the archive is damaged or cut off ({error})") from error
    raise ValueError(f"root={root}: must be a folder, a tar or a zip")


def _wanted(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _is_wanted_image(member: str) -> bool:
    return is_image(member) and all(part == ".." or _wanted(part) for part in PurePosixPath(member).parts)


def _inside(member: str) -> tuple[str, str | None]:
    """The name of an archive's member, and what is wrong with it."""
    path = PurePosixPath(member)
    return str(path), "its name leads out of the archive" if path.is_absolute() or ".." in path.parts else None
