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
from gl_core.datasets.decoding import is_image, open_image, read_file, readable, to_rgb
from gl_core.datasets.version import file_state, remembered

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Folder", "ImageFiles", "open_files", "to_rgb"]


class ImageFiles(ABC):
    """Named images under `root`; how their bytes are found is up to the kind of root.

    Holds no open file, so that it can be pickled, forked and shared by threads.

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
    """Images below a folder. Linked folders are followed; each folder is looked at once, under its own name if it has
    one.

    Args:
        root: the folder.
        search: find the names; otherwise they are known from elsewhere.
    """

    def __init__(self, root: Path, *, search: bool = True) -> None:
        super().__init__(root)
        own = [""] if search else []
        linked: list[str] = []
        seen: set[tuple[int, int]] = set()
        while own or linked:
            inside = own.pop() if own else linked.pop(0)
            try:
                found = os.stat(root / inside)
                if (found.st_dev, found.st_ino) in seen:
                    continue
                with os.scandir(root / inside) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self.left_out[inside or "."] = f"the folder cannot be read: {error.strerror}"
                continue
            seen.add((found.st_dev, found.st_ino))
            for entry in filter(lambda entry: _wanted(entry.name), entries):
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself, or into a folder that must not be read
                    is_folder = is_file = False
                if is_folder:
                    (linked if entry.is_symlink() else own).append(f"{inside}{entry.name}/")
                elif is_image(entry.name):
                    name = inside + entry.name
                    if self._note(name, None if is_file else "it is no regular file"):
                        self.names.append(name)
        self.names.sort()

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
    parts = [part for part in PurePosixPath(member).parts if part not in ("/", "..")]
    return is_image(member) and all(map(_wanted, parts))


def _inside(member: str) -> tuple[str, str | None]:
    """The name of an archive's member, and what is wrong with it."""
    path = PurePosixPath(member)
    return str(path), "its name leads out of the archive" if path.is_absolute() or ".." in path.parts else None
