"""Files that other processes see whole or not at all, and their names as a terminal may show them."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write", "printable", "write_atomically"]


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole; until then, and if writing fails, what had the name stays.

    Makes the folder if need be.

    Raises:
        FileExistsError: there is such a file, and it is not to be overwritten.
        OSError: it cannot be written; names it, and leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(aside, path)
        else:
            _move_to_new(aside, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Write a whole file; raises as `atomic_write`."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(content)


def _move_to_new(source: Path, path: Path) -> None:
    """Give a file another name. Raises FileExistsError if there is a file of that name."""
    try:
        os.link(source, path)
    except OSError as error:
        # exFAT and some file systems of FUSE and SMB have no hard links.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(source, path)


def printable(name: str) -> str:
    """A file's name as it can be shown: without control characters, and whatever bytes it is made of."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
