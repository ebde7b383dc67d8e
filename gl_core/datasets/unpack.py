"""Archives of data sets onto the disk: nothing outside the folder, no links, no more than was announced."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

__all__ = ["unpack"]


def unpack(archive: Path, folder: Path, most_bytes: int) -> None:
    """The files of a tar or zip below `folder`, which they reach only when all are unpacked.

    `tarfile`'s own filters would let links through, and neither tarfile nor zipfile counts what it writes.

    Args:
        archive: the tar or zip.
        folder: what is unpacked goes here; made if need be.
        most_bytes: the size of all files together at most.

    Raises:
        ValueError: a name leads out of the folder, a member is a link or a device, or the archive is damaged or larger
            than `most_bytes` once unpacked.
        FileExistsError: what is in the archive is in the folder already.
        OSError: it cannot be written.
    """
    aside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was cut off
    aside.mkdir(parents=True)
    left = most_bytes
    try:
        for name, content in (_zipped if zipfile.is_zipfile(archive) else _tarred)(archive):
            path = PurePosixPath(name.replace("\\", "/"))
            if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise ValueError(f"{archive}: {name!r} leads out of the folder: the archive is refused")
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            # The announced size may lie, so what is written is counted.
            with content, target.open("wb") as file:
                while block := content.read(min(2**20, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise ValueError(f"{archive}: unpacks to more than {most_bytes} bytes: is refused")
                    file.write(block)
        unpacked = sorted(path.name for path in aside.iterdir())
        for name in unpacked:
            if os.path.lexists(folder / name):
                raise FileExistsError(f"{folder / name}: is there already, and in {archive} too: move it away")
        for name in unpacked:
            os.rename(aside / name, folder / name)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive}: the archive is damaged or cut off ({error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _zipped(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{archive}: {member.filename!r} is a link or device: the archive is refused")
            if not member.is_dir():
                yield member.filename, opened.open(member)


def _tarred(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            if not (member.isreg() or member.isdir()):
                raise ValueError(f"{archive}: {member.name!r} is a link or device: the archive is refused")
            if member.isreg():
                yield member.name, opened.extractfile(member) or io.BytesIO()
