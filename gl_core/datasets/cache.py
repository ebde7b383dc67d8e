"""Files that are kept: where the user's cache is, writing that is whole or not at all, and one process at a time."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gl_core._extras import require

__all__ = ["atomic_write", "cache_folder", "locked"]


def cache_folder() -> Path | None:
    """The folder in which this user's programs keep what they can make again; None for a user without a home."""
    folder = Path(require("platformdirs", extra="train").user_cache_dir("glbook", appauthor=False))
    return folder if folder.is_absolute() else None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole; until then, and if writing fails, what had the name stays.

    Makes the folder if need be.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            yield file
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time holds the lock file `path`; another one calls `waiting`, and waits.

    The lock is freed with its process, however that ends.
    """
    filelock = require("filelock", extra="train")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
