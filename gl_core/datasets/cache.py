"""Where the user's cache is, and one process at a time."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gl_core._extras import require

__all__ = ["cache_folder", "locked"]


def cache_folder() -> Path | None:
    """The folder in which this user's programs keep what they can make again; None for a user without a home."""
    folder = Path(require("platformdirs", extra="train").user_cache_dir("glbook", appauthor=False))
    return folder if folder.is_absolute() else None


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time holds the lock file `path`; another one calls `waiting`, and waits.

    The lock is freed with its process, however that ends.
    """
    filelock = require("filelock", extra="train")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        held = lock.acquire()
    with held:
        yield
