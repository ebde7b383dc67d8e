"""The version of a data set: a short text that changes when any image, name, label or split of it does.

Images are compared by the digests of their bytes as stored. These are kept in the user's cache, by each file's size,
times and inode, so that only what changed is read again.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import __version__ as pillow

from gl_core._files import atomic_write
from gl_core.datasets.cache import cache_folder

if TYPE_CHECKING:
    from gl_core.datasets.base import RetrievalDataset

__all__ = ["data_version", "file_state", "in_threads", "remembered"]

# Nanoseconds within which a file system may give two writes the same time; FAT counts in twos of seconds.
TICK = 2_000_000_000
CHUNK = 256


def data_version(dataset: "RetrievalDataset") -> str:
    """A hash of the table of a data set and of the bytes of its images, 16 hexadecimal digits.

    It is the same on every machine, and for a folder, a tar or a zip of the same files. Images that are drawn count
    with the version of what draws them.
    """
    digest = hashlib.sha256()
    for name in sorted(dataset.table.columns):
        digest.update(json.dumps([name, dataset.table[name].tolist()]).encode())
    for image in dataset.images.digests(dataset.table["path"].tolist()):
        digest.update(image.encode() + b"\n")
    return digest.hexdigest()[:16]


def file_state(path: Path) -> list[int]:
    """What tells without reading it that a file has changed: size, times of modification and of any change, inode."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def remembered(
    topic: str,
    root: Path,
    names: Sequence[str],
    state: Callable[[str], list[int]],
    compute: Callable[[str], str],
    *,
    progress: bool = False,
) -> list[str]:
    """`compute(name)` of each file below `root`: of those whose state is new, a few at a time; of the others as it was.

    Each `topic` is remembered by itself. A file whose `state` cannot be had (OSError) is always computed, and `compute`
    must not raise. A bar shows `progress` if it takes more than a moment.
    """
    folder = cache_folder()
    key = hashlib.sha256(json.dumps([os.fsdecode(root.resolve()), topic, pillow]).encode()).hexdigest()[:32]
    store = None if folder is None else folder / "files" / f"{key}.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = {} if store is None else dict(json.loads(store.read_bytes()))
    states: dict[str, list[int] | None] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(OSError):
            states[name] = state(name)
    new = [name for name, found in states.items() if found is None or known.get(name, [None])[0] != found]
    if not new:
        return [known[name][1] for name in names]
    # A file that was written a moment ago may change once more without its times telling so.
    latest = time.time_ns() - TICK
    for name, result in zip(new, in_threads(compute, new, progress), strict=True):
        found = states[name]
        known[name] = [found if found is not None and max(found[1:3]) < latest else None, result]
    answer = [known[name][1] for name in names]
    if store is not None:
        kept = {name: entry for name, entry in known.items() if entry[0] is not None}
        with contextlib.suppress(OSError), atomic_write(store) as file:
            file.write(json.dumps(kept).encode())
    return answer


def in_threads(function: Callable[[str], Any], names: Sequence[str], progress: bool) -> Iterator[Any]:
    """`function(name)` of each name. They are begun by chunks, so that an interrupt need not wait for all of them."""
    from tqdm import tqdm

    with ThreadPoolExecutor() as threads, tqdm(total=len(names), unit=" images", delay=1, disable=not progress) as bar:
        for start in range(0, len(names), CHUNK):
            for result in threads.map(function, names[start : start + CHUNK]):
                yield result
                bar.update()
