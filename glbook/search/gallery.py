"""A folder of images that can be searched: their embeddings are kept on disk and brought up to date with the files.

The index of a gallery lies in the user's cache folder, one for each network: an SQLite database, to which images are
added by the chunk, in one transaction, so that what was finished when a process is killed is kept. For the search the
embeddings are copied into a file of raw float32, which is read in place.

A file is known again by its size and its times. Where these have changed, or may not tell, a hash of its content
decides: what was only touched, moved or copied is not embedded again, and what was replaced by a file of the same size
and time is.
"""

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core._files import atomic_write
from gl_core.datasets.archive import open_files
from gl_core.datasets.cache import cache_folder, locked
from gl_core.evaluation import nearest_neighbours
from gl_core.evaluation.arrays import unit_rows
from gl_core.models import EmbeddingNet
from gl_core.training import checkpoints
from glbook.search import approximate
from glbook.search.image_files import CHUNK, embed_files

__all__ = ["Gallery", "Update", "open_gallery"]

# Beyond this many images exact search takes longer than a person likes to wait, and faiss searches.
EXACT_UP_TO = 200_000
# Rows of the gallery that are compared at a time.
BLOCK = 16384
# Nanoseconds within which a file system may give two writes the same time; FAT counts in twos of seconds.
TICK = 2_000_000_000

DATABASE = "index.sqlite"
# state: size and times of a file, NULL if it is to be read again; content: hash of its bytes; fault: why it is no
# image that can be read.
SCHEMA = """
PRAGMA page_size = 16384; -- for several embeddings on a page
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, content TEXT NOT NULL, fault TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS embeddings (content TEXT PRIMARY KEY, vector BLOB NOT NULL);
"""


@dataclass
class Update:
    """What it took to bring an index up to date: numbers of images, and why images cannot be read."""

    embedded: int
    removed: int
    unreadable: dict[str, str]


@dataclass
class Gallery:
    """Images that can be searched: names relative to `root`, and their embeddings, row by row.

    The embeddings have length 1 where the metric is the cosine. They stay on the disk: memory does not grow with them.
    """

    root: Path
    index: Path
    names: list[str]
    embeddings: Float[np.ndarray, "n d"]
    metric: str
    rows: dict[tuple[int, int], int]  # of the files, by device and inode
    fast: approximate.Approximate | None = None

    def search(self, queries: Float[Tensor, "q d"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """Similarities and rows, on the CPU, of the k images most similar to each query, best first.

        As `gl_core.evaluation.nearest_neighbours`; the queries are embeddings by the same network. If there are fewer
        than k images, all are found.
        """
        k = min(k, len(self.names))
        queries = queries.cpu()
        queries = unit_rows(queries) if self.metric == "cosine" else queries
        if self.fast is not None:
            return self.fast.search(queries, k)
        similarity, index = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        # A block at a time: what is read of the disk is soon given back.
        for start in range(0, len(self.names), BLOCK):
            block = torch.from_numpy(self.embeddings[start : start + BLOCK])
            found = nearest_neighbours(queries, block, min(k, len(block)), metric=self.metric)
            similarity, order = torch.cat([similarity, found[0]], 1).sort(dim=1, descending=True, stable=True)
            similarity, order = similarity[:, :k], order[:, :k]
            index = torch.cat([index, found[1] + start], 1).gather(1, order)
        return similarity, index

    def row_of(self, path: Path) -> int | None:
        """The row of the image that is this very file, under whatever name; None if it is not in the gallery."""
        state = path.stat()
        return self.rows.get((state.st_dev, state.st_ino))


def open_gallery(
    root: str | os.PathLike,
    model: EmbeddingNet,
    card: dict[str, Any],
    *,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
    progress: bool = False,
) -> tuple[Gallery, Update]:
    """The gallery in a folder, its index brought up to date: new and changed images embedded, removed ones forgotten.

    Of an image that is there by several names, through links, one is taken. Processes that index the same gallery take
    turns.

    Args:
        root: the folder.
        model: the network.
        card: its card, as `gl_core.training.checkpoints.load` returns it. Of its strategies those that concern a single
            image take effect.
        say: called with a line for the user.
        progress: show a bar if indexing takes more than a second.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is no folder.
        ValueError: it holds no image that can be read, or an embedding is not finite.
        OSError: the index cannot be written.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: is no folder of images")
    present, unreadable = _look_around(root)
    if not present and not unreadable:
        raise ValueError(f"{root}: holds no images")
    folder = _index_folder(root, card)
    with locked(folder / "lock", waiting=lambda: say(f"{root}: another process is indexing it; waiting for that")):
        update = partial(_update, folder, root, present, model, card, progress)
        try:
            names, vectors, changes = update()
        except sqlite3.OperationalError as error:
            raise OSError(f"{folder}: the index cannot be read or written ({error})") from error
        except sqlite3.DatabaseError as error:
            say(f"{folder}: the index is damaged ({error}); it is set aside, ending in .broken, and made anew")
            os.replace(folder / DATABASE, folder / f"{DATABASE}.broken")
            # What SQLite would take for an unfinished change of the new one.
            (folder / f"{DATABASE}-journal").unlink(missing_ok=True)
            names, vectors, changes = update()
        changes.unreadable = unreadable | changes.unreadable
        if not names:
            name, fault = next(iter(changes.unreadable.items()))
            raise ValueError(f"{root}: none of its {len(changes.unreadable)} images can be read; {name}: {fault}")
        # Copied when written to, which nobody does; read-only memory is what PyTorch warns of.
        embeddings = np.memmap(vectors, np.float32, "c", shape=(len(names), model.embedding_size))
        metric, fast = checkpoints.strategies(card).metric, None
        if len(names) > EXACT_UP_TO:
            fast = approximate.open_index(vectors.with_suffix(".faiss"), embeddings, metric, say=say)
        _tidy(folder, vectors.stem)
    rows = {present[name].identity: row for row, name in enumerate(names)}
    return Gallery(root, folder, names, embeddings, metric, rows, fast), changes


class _Look(NamedTuple):
    """What is seen of a file without reading it."""

    identity: tuple[int, int]  # device and inode
    state: str  # size, times of modification and of any change, in nanoseconds
    settled: bool  # a later change is sure to show in the state


def _look(path: str | os.PathLike) -> _Look:
    now = time.time_ns()
    found = os.stat(path)
    state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    return _Look((found.st_dev, found.st_ino), state, now - found.st_ctime_ns > TICK)


def _look_around(root: Path) -> tuple[dict[str, _Look], dict[str, str]]:
    """The images of a folder, each once, and why others are left out."""
    images = open_files(root)
    seen, unreadable = {}, dict(images.left_out)
    for name in images.names:
        try:
            found = _look(os.path.join(root, name))
            seen.setdefault(found.identity, (name, found))
        except OSError as error:
            unreadable[name] = error.strerror
    return dict(seen.values()), unreadable


def _index_folder(root: Path, card: dict[str, Any]) -> Path:
    """Where the index of a gallery lies for a network. It holds no links, which could lead to files of others."""
    cache = cache_folder()
    if cache is None:
        raise OSError(f"the index of {root} has no place: set XDG_CACHE_HOME to a folder that can be written")
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    folder = cache / "galleries" / key / checkpoints.fingerprint(card)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        links = [path for path in (folder.parent, folder, *folder.iterdir()) if path.is_symlink()]
    except OSError as error:
        text = f"{folder}: the index of {root} cannot be kept there ({error.strerror})"
        raise OSError(f"{text}; set XDG_CACHE_HOME to a folder that can be written") from error
    if links:
        raise OSError(f"{links[0]}: must not be a link; remove it")
    return folder


class _File(NamedTuple):
    """What the index says of a file; see the schema."""

    state: str | None
    content: str
    fault: str | None


def _update(
    folder: Path, root: Path, present: dict[str, _Look], model: EmbeddingNet, card: dict[str, Any], progress: bool
) -> tuple[list[str], Path, Update]:
    """Bring the index up to date. Returns the names of its images, the file of their embeddings, and what it took."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database:
        database.executescript(SCHEMA)
        rows = database.execute("SELECT path, state, content, fault FROM files")
        files = {os.fsdecode(path): _File(*rest) for path, *rest in rows}
        removed = [name for name in files if name not in present]
        embedded, left_out = _learn(database, files, root, present, model, card, progress)
        gone = [*removed, *(name for name in left_out if name in files)]
        if gone or embedded:
            with database:
                database.executemany("DELETE FROM files WHERE path = ?", [(os.fsencode(name),) for name in gone])
                database.execute("DELETE FROM embeddings WHERE content NOT IN (SELECT content FROM files)")
        for name in gone:
            del files[name]
        names = sorted((name for name, file in files.items() if file.fault is None), key=os.fsencode)
        # Named by what it holds: a file of another name is out of date.
        contents = json.dumps([(name, files[name].content) for name in names])
        vectors = folder / f"{hashlib.sha256(contents.encode()).hexdigest()[:16]}.f32"
        size = len(names) * model.embedding_size * 4
        if not vectors.exists() or vectors.stat().st_size != size:
            _copy_embeddings(database, vectors, size)
    left_out |= {name: file.fault for name, file in files.items() if file.fault is not None}
    return names, vectors, Update(embedded, len(removed), left_out)


def _learn(
    database: sqlite3.Connection,
    files: dict[str, _File],
    root: Path,
    present: dict[str, _Look],
    model: EmbeddingNet,
    card: dict[str, Any],
    progress: bool,
) -> tuple[int, dict[str, str]]:
    """Bring the database, and `files`, up to date with new and changed files.

    Returns how many images were embedded, and why files could not be read, which are tried again the next time.
    """
    from tqdm import tqdm

    unit = checkpoints.strategies(card).metric == "cosine"
    faults = {file.content: file.fault for file in files.values()}
    names = [name for name, seen in present.items() if name not in files or files[name].state != seen.state]
    embedded, left_out = 0, {}
    with (
        # Within a second of work, such as looking again at files that were new a moment ago, there is no bar.
        tqdm(total=len(names), desc="indexing", unit=" images", disable=not progress or not names, delay=1) as bar,
        ThreadPoolExecutor() as threads,
    ):
        for start in range(0, len(names), CHUNK):
            some = names[start : start + CHUNK]
            contents = dict(zip(some, threads.map(_content, [root / name for name in some]), strict=True))
            new = {root / name: name for name in some if contents[name] not in faults}
            bar.update(len(some) - len(new))
            found = embed_files([(model, card)], list(new), progress=bar.update)
            vectors = unit_rows(found.embeddings) if unit else found.embeddings
            embedded += len(found.files)

            read = [name for name in some if contents[name] and _state(root / name) == present[name].state]
            for name in some:
                if name in read:
                    faults.setdefault(contents[name], found.unreadable.get(root / name))
                else:
                    left_out[name] = found.unreadable.get(root / name, "it changed while it was read")
            # Where a later change may not show in the state, the file is read again the next time.
            states = {name: present[name].state if present[name].settled else None for name in read}
            learnt = {name: _File(states[name], contents[name], faults[contents[name]]) for name in read}
            rows = [(os.fsencode(name), *file) for name, file in learnt.items()]
            by_name = zip((new[path] for path in found.files), vectors.numpy(), strict=True)
            blobs = [(contents[name], vector.tobytes()) for name, vector in by_name if name in learnt]
            with database:
                database.executemany("REPLACE INTO embeddings VALUES (?, ?)", blobs)
                database.executemany("REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
            files |= learnt
    return embedded, left_out


def _content(path: Path) -> str | None:
    """A hash of a file's content; None if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> str | None:
    """The state of a file; None if it has gone."""
    with contextlib.suppress(OSError):
        return _look(path).state


def _copy_embeddings(database: sqlite3.Connection, path: Path, size: int) -> None:
    """Copy the embeddings of all files that have one, in the order of their names, into a file of `size` bytes."""
    query = "SELECT vector FROM files JOIN embeddings USING (content) WHERE fault IS NULL ORDER BY path"
    try:
        with atomic_write(path) as file:
            file.writelines(vector for (vector,) in database.execute(query))
            if file.tell() != size:
                raise sqlite3.DatabaseError("embeddings are missing")
    except OSError as error:
        raise OSError(error.errno, f"the index cannot be written ({error.strerror})", str(path)) from error


def _tidy(folder: Path, current: str) -> None:
    """Remove copies of the embeddings, and what faiss made of them, that are out of date or were never finished."""
    for path in folder.iterdir():
        ours = r"[0-9a-f]{16}\.(f32|faiss|recall)(\.part)?|\.[0-9a-f]{16}\.tmp"
        if re.fullmatch(ours, path.name) and path.stem != current:
            with contextlib.suppress(OSError):  # Windows keeps what another process is reading
                path.unlink()
