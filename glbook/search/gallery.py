"""An index of a folder of images: their embeddings, kept on disk, brought up to date with the files, searched.

The index lies in the gallery itself, in `.glbook/<fingerprint of the network>`, or where that cannot be written in the user's
cache. It is made of parts, each a table of files (JSON) and their embeddings (raw float32, rows in the order of the table). A part
appears whole, its table last, and the newest part that names a file is right. So whatever was finished when a process dies is
kept, and nothing half done is seen. Once all files are known the parts are merged into one.

A file is known again by its size and its times. Where these have changed, or may not tell, its content decides, by a hash: what was
only touched, moved or copied is not embedded again, and what was replaced by a file of the same size and time is.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core.datasets.archive import open_files
from gl_core.datasets.download import locked
from gl_core.evaluation import nearest_neighbours
from gl_core.evaluation.arrays import unit_rows
from gl_core.models import EmbeddingNet
from gl_core.training import checkpoints, records
from glbook.search import approximate
from glbook.search.image_files import CHUNK, embed_files

__all__ = ["Gallery", "Update", "index_folder", "open_gallery"]

FOLDER = ".glbook"
# Beyond this many images exact search takes longer than a person likes to wait, and faiss searches.
EXACT_UP_TO = 200_000
# Rows of the gallery that are compared at a time.
BLOCK = 16384
# Nanoseconds within which a file system may give two writes the same time; FAT counts in twos of seconds.
TICK = 2_000_000_000


@dataclass
class Update:
    """What it took to bring an index up to date: numbers of images."""

    embedded: int
    removed: int
    unreadable: dict[str, str]


@dataclass
class Gallery:
    """Images that can be searched: names relative to `root`, and their embeddings, row by row."""

    root: Path
    index: Path
    names: list[str]
    embeddings: Float[np.ndarray, "n d"]
    metric: str
    fast: "approximate.Approximate | None" = None

    def search(self, queries: Float[Tensor, "q d"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """The k most similar images of each query, best first, as `gl_core.evaluation.nearest_neighbours`; all if there are
        fewer than k."""
        k = min(k, len(self.names))
        queries = unit_rows(queries) if self.metric == "cosine" else queries
        if self.fast is not None:
            return self.fast.search(queries, k)
        similarity, index = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        # A block at a time: the embeddings stay on the disk, and what is read of them is soon given back.
        for start in range(0, len(self.names), BLOCK):
            block = torch.from_numpy(self.embeddings[start : start + BLOCK])
            found = nearest_neighbours(queries, block, min(k, len(block)), metric=self.metric)
            similarity, order = torch.cat([similarity, found[0]], 1).sort(dim=1, descending=True, stable=True)
            similarity, order = similarity[:, :k], order[:, :k]
            index = torch.cat([index, found[1] + start], 1).gather(1, order)
        return similarity, index


def index_folder(root: Path, card: dict[str, Any]) -> tuple[Path, str | None]:
    """Where the index of a gallery lies for a network, and, if it is not in the gallery, why not.

    Raises OSError if neither the gallery nor the user's cache can be written.
    """
    name = checkpoints.fingerprint(card)
    beside = root / FOLDER / name
    try:
        _try_to_write(beside)
        return beside, None
    except OSError as error:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glbook"
        aside = cache / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16] / name
        try:
            _try_to_write(aside)
        except OSError as too:
            raise OSError(too.errno, f"neither {root} nor {cache} can be written, one must hold the index") from too
        return aside, error.strerror


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


def open_gallery(
    root: str | os.PathLike,
    model: EmbeddingNet,
    card: dict[str, Any],
    *,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
    progress: bool = False,
) -> tuple[Gallery, Update]:
    """The gallery in a folder, its index brought up to date: new and changed files embedded, removed ones forgotten.

    `model` and `card` are those of a checkpoint. Of the strategies that its card names those take effect that concern a single
    image. Processes that index the same gallery take turns.

    Raises FileNotFoundError or NotADirectoryError if `root` is no folder, and ValueError if it holds no image that can be read.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: is no folder of images")
    present = {name: seen for name in open_files(root).names if (seen := _look(os.path.join(root, name)))}
    if not present:
        raise ValueError(f"{root}: holds no images")
    folder, why = index_folder(root, card)
    if why:
        say(f"{root} cannot be written ({why}): its index is kept in {folder}")
    with locked(folder / ".lock", waiting=lambda: say(f"{root}: another process is indexing it; waiting for that")):
        parts = _Parts(folder, model.embedding_size)
        removed = len(parts.known().keys() - present.keys())
        embedded = _bring_up_to_date(root, present, model, card, parts, progress)
        known = parts.known()
        unreadable = {name: known[name].place for name in present if isinstance(known[name].place, str)}
        if len(unreadable) == len(present):
            name, reason = next(iter(unreadable.items()))
            raise ValueError(f"{root}: none of its {len(present)} images can be read; {name}: {reason}")
        names, embeddings = parts.single()
        metric = checkpoints.strategies(card).metric
        fast = None
        if len(names) > EXACT_UP_TO:
            fast = approximate.open_index(folder, parts.last, embeddings, metric, say=say)
    return Gallery(root, folder, names, embeddings, metric, fast), Update(embedded, removed, unreadable)


class _Look(NamedTuple):
    """What a look at a file tells without reading it, and whether a later change is sure to show in it."""

    state: list[int]  # size, times of modification and of any change, in nanoseconds
    settled: bool


def _look(path: str | os.PathLike) -> _Look | None:
    """None for a file that has just gone."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return _Look([found.st_size, found.st_mtime_ns, found.st_ctime_ns], now - found.st_ctime_ns > TICK)
    return None


def _digest(path: Path) -> str:
    """A hash of a file's content; empty if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _bring_up_to_date(
    root: Path, present: dict[str, _Look], model: EmbeddingNet, card: dict[str, Any], parts: "_Parts", progress: bool
) -> int:
    """Learn the files whose states are new, a part at a time, and merge the parts. Returns how many images were embedded."""
    from tqdm import tqdm

    config, strategies = checkpoints.configuration(card), checkpoints.strategies(card)
    known = parts.known()
    places = {found.digest: found.place for found in known.values() if found.digest}
    names = [name for name, seen in present.items() if name not in known or known[name].state != seen.state]
    embedded, confirmed = 0, {}
    with (
        # Within a second of work, such as looking again at files that were new a moment ago, there is no bar.
        tqdm(total=len(names), desc="indexing", unit=" images", disable=not progress or not names, delay=1) as bar,
        ThreadPoolExecutor() as threads,
    ):
        for start in range(0, len(names), CHUNK):
            some = names[start : start + CHUNK]
            digests = dict(zip(some, threads.map(_digest, [root / name for name in some]), strict=True))
            same = [name for name in some if name in known and known[name].digest == digests[name] != ""]
            confirmed |= {name: present[name].state for name in same if present[name].settled}
            old = {name: places[digests[name]] for name in some if digests[name] in places and name not in same}
            new = [name for name in some if name not in old and name not in same]
            found = embed_files(model, config, [root / name for name in new], strategies, progress=bar.update)
            vectors = unit_rows(found.embeddings) if strategies.metric == "cosine" else found.embeddings
            embedded += len(new)
            bar.update(len(some) - len(new))

            moved = {name: place for name, place in old.items() if not isinstance(place, str)}
            reasons = {name: place for name, place in old.items() if isinstance(place, str)}
            reasons |= {str(path.relative_to(root)): reason for path, reason in found.unreadable.items()}
            readable = [str(path.relative_to(root)) for path in found.files]
            added = [*readable, *moved, *reasons]
            if not added:
                continue
            states, hashes = {}, {}
            for name in added:
                seen, again = present[name], _look(root / name)
                unchanged = again is not None and again.state == seen.state
                # What a later change may not show in, or what has changed while it was read, is looked into next time.
                states[name] = seen.state if unchanged and seen.settled else None
                hashes[name] = digests[name] if unchanged else ""
            both = np.concatenate([parts.rows(list(moved.values())), vectors.numpy()])
            parts.add([*moved, *readable], both, reasons, states, hashes)
    parts.merge(present)
    parts.confirm(confirmed)
    return embedded


class _Known(NamedTuple):
    """What an index says of a file. Without a `state` its content has to be looked into; `place` is the (part, row) of its
    embedding, or why there is none."""

    state: list[int] | None
    digest: str
    place: tuple[int, int] | str


class _Parts:
    """The parts of an index, by number; only who holds the lock may have one of these."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self.tables: dict[int, dict[str, Any]] = {}
        self._known: dict[str, _Known] | None = None  # what `known` gives, until a table changes
        for path in sorted(folder.glob("*.json")):
            table = self._read(path)
            if table is not None:
                self.tables[int(path.stem)] = table
        self._tidy()

    @property
    def last(self) -> int:
        return max(self.tables, default=0)

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A table; None for what is no part, or one whose embeddings are not there in full: its images are embedded again."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            size = path.with_suffix(".f32").stat().st_size
            rows, width, _ = len(table["names"]), table["width"], table["digests"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return table if path.stem.isdigit() and size == rows * width * 4 and width == self.width else None

    def known(self) -> dict[str, _Known]:
        """What the index says of each file; not to be changed."""
        if self._known is None:
            self._known = {}
            for number in sorted(self.tables):
                table = self.tables[number]
                places = {name: (number, row) for row, name in enumerate(table["names"])} | table["unreadable"]
                for name, place in places.items():
                    self._known[name] = _Known(table["states"][name], table["digests"][name], place)
        return self._known

    def add(
        self,
        names: Sequence[str],
        vectors: Float[np.ndarray, "n d"],
        unreadable: dict[str, str],
        states: dict[str, list[int] | None],
        digests: dict[str, str],
    ) -> None:
        number = self.last + 1
        content = np.ascontiguousarray(vectors, dtype=np.float32)
        records.write_atomically(self.folder / f"{number:06}.f32", content.tobytes())
        self._write(
            number,
            {
                "width": self.width,
                "names": list(names),
                "unreadable": unreadable,
                "states": states,
                "digests": digests,
            },
        )

    def confirm(self, states: dict[str, list[int]]) -> None:
        """Files whose content has not changed have these states now; for an index of one part."""
        if states:
            table = self.tables[self.last]
            self._write(self.last, table | {"states": table["states"] | states})

    def _write(self, number: int, table: dict[str, Any]) -> None:
        records.write_atomically(self.folder / f"{number:06}.json", json.dumps(table).encode())
        self.tables[number], self._known = table, None

    def rows(self, places: list[tuple[int, int]]) -> Float[np.ndarray, "n d"]:
        """The embeddings at these places."""
        found = np.empty((len(places), self.width), np.float32)
        where = np.array(places, dtype=np.int64).reshape(-1, 2)
        for number in self.tables:
            mine = where[:, 0] == number
            found[mine] = self.vectors(number)[where[mine, 1]]
        return found

    def vectors(self, number: int) -> Float[np.ndarray, "n d"]:
        shape = (len(self.tables[number]["names"]), self.width)
        if not shape[0]:
            return np.empty(shape, np.float32)
        # Copied when written to, which nobody does; read-only memory is what PyTorch warns of.
        return np.memmap(self.folder / f"{number:06}.f32", np.float32, "c", shape=shape)

    def merge(self, present: Collection[str]) -> None:
        """Leave one part, of the files that are present; nothing is done if that is so already."""
        if len(self.tables) == 1 and next(iter(self.tables.values()))["states"].keys() == set(present):
            return
        known = self.known()
        places = {name: known[name].place for name in sorted(present)}
        where = {name: place for name, place in places.items() if not isinstance(place, str)}
        unreadable = {name: place for name, place in places.items() if isinstance(place, str)}
        vectors = self.rows(list(where.values()))
        old = list(self.tables)
        states, digests = ({name: getattr(known[name], part) for name in places} for part in ("state", "digest"))
        self.add(list(where), vectors, unreadable, states, digests)
        for number in old:
            del self.tables[number]
        self._known = None
        self._tidy()

    def single(self) -> tuple[list[str], Float[np.ndarray, "n d"]]:
        return self.tables[self.last]["names"], self.vectors(self.last)

    def _tidy(self) -> None:
        """Remove what belongs to no part: merged ones, and what a process that was killed left."""
        keep = {f"{number:06}" for number in self.tables}
        for path in self.folder.iterdir():
            if path.name != ".lock" and path.name.split(".")[0] not in keep:
                with contextlib.suppress(OSError):
                    path.unlink()
