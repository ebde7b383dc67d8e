"""An index of a folder of images: their embeddings, kept on disk, brought up to date with the files, searched.

The index lies in the gallery itself, in `.glbook/<fingerprint of the network>`, or where that cannot be written in the user's
cache. It is made of parts, each a table of files (JSON) and their embeddings (raw float32, rows in the order of the table). A part
appears whole, its table last, and the newest part that names a file is right. So whatever was finished when a process dies is
kept, and nothing half done is seen. Once all files are known the parts are merged into one.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gl_core import approximate, checkpoints, runs
from gl_core.datasets.archive import open_files
from gl_core.datasets.download import locked
from gl_core.evaluation import nearest_neighbours
from gl_core.models import EmbeddingNet
from gl_core.pairs import unit_rows
from gl_core.photos import CHUNK, embed_files

__all__ = ["Gallery", "Update", "index_folder", "open_gallery"]

FOLDER = ".glbook"
# Beyond this many images exact search takes longer than a person likes to wait, and faiss searches.
EXACT_UP_TO = 200_000
# Rows of the gallery that are compared at a time.
BLOCK = 16384


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

    A file has changed if its size or its time of modification has. `model` and `card` are those of a checkpoint. Processes that
    index the same gallery take turns.

    Raises FileNotFoundError or NotADirectoryError if `root` is no folder, and ValueError if it holds no image that can be read.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: is no folder of images")
    present = {name: state for name in open_files(root).names if (state := _state(root / name))}
    if not present:
        raise ValueError(f"{root}: holds no images")
    folder, why = index_folder(root, card)
    if why:
        say(f"{root} cannot be written ({why}): its index is kept in {folder}")
    with locked(folder / ".lock"):
        parts = _Parts(folder, model.embedding_size)
        known = parts.known()
        wanted = [name for name, state in present.items() if known.get(name, (None,))[0] != state]
        with _bar(len(wanted), progress) as advance:
            _embed(root, {name: present[name] for name in wanted}, model, card, parts, advance)
        known = parts.known()
        unreadable = {name: known[name][1] for name in present if isinstance(known[name][1], str)}
        if len(unreadable) == len(present):
            name, reason = next(iter(unreadable.items()))
            raise ValueError(f"{root}: none of its {len(present)} images can be read; {name}: {reason}")
        removed = len(set(known) - set(present))
        parts.merge(present)
        names, embeddings = parts.single()
        metric = checkpoints.strategies(card).metric
        fast = None
        if len(names) > EXACT_UP_TO:
            fast = approximate.open_index(folder, parts.last, embeddings, metric, say=say)
    return Gallery(root, folder, names, embeddings, metric, fast), Update(len(wanted), removed, unreadable)


def _state(path: Path) -> list[int] | None:
    """Size and time of modification; None for a file that has just gone."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    return None


@contextlib.contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, desc="indexing", unit=" images", disable=not progress or not total) as bar:
        yield bar.update


def _embed(
    root: Path,
    files: dict[str, list[int]],
    model: EmbeddingNet,
    card: dict[str, Any],
    parts: "_Parts",
    advance: Callable[[int], object],
) -> None:
    """Embed files of the states that they were seen in, a part at a time: a file that changes meanwhile is new next time."""
    config, strategies = checkpoints.configuration(card), checkpoints.strategies(card)
    names = list(files)
    for start in range(0, len(names), CHUNK):
        some = names[start : start + CHUNK]
        found = embed_files(model, config, [root / name for name in some], strategies, progress=advance)
        vectors = unit_rows(found.embeddings) if strategies.metric == "cosine" else found.embeddings
        readable = [name for name in some if root / name not in found.unreadable]
        reasons = {name: found.unreadable[root / name] for name in some if root / name in found.unreadable}
        parts.add(readable, {name: files[name] for name in some}, reasons, vectors.numpy())


class _Parts:
    """The parts of an index, by number; only who holds the lock may have one of these."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self.tables: dict[int, dict[str, Any]] = {}
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
            rows, width = len(table["names"]), table["width"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return table if path.stem.isdigit() and size == rows * width * 4 and width == self.width else None

    def known(self) -> dict[str, tuple[list[int], tuple[int, int] | str]]:
        """For each file its state, and where its embedding is: (part, row), or why there is none."""
        found = {}
        for number in sorted(self.tables):
            table = self.tables[number]
            for row, name in enumerate(table["names"]):
                found[name] = (table["states"][name], (number, row))
            for name, reason in table["unreadable"].items():
                found[name] = (table["states"][name], reason)
        return found

    def add(
        self, names: Sequence[str], states: dict[str, list[int]], unreadable: dict[str, str],
        vectors: Float[np.ndarray, "n d"],
    ) -> None:  # fmt: skip
        number = self.last + 1
        table = {"width": self.width, "names": list(names), "states": states, "unreadable": unreadable}
        path = self.folder / f"{number:06}.json"
        content = np.ascontiguousarray(vectors, dtype=np.float32)
        runs.write_atomically(path.with_suffix(".f32"), content.tobytes())
        runs.write_atomically(path, json.dumps(table).encode())
        self.tables[number] = table

    def vectors(self, number: int) -> Float[np.ndarray, "n d"]:
        shape = (len(self.tables[number]["names"]), self.width)
        if not shape[0]:
            return np.empty(shape, np.float32)
        # Copied when written to, which nobody does; read-only memory is what PyTorch warns of.
        return np.memmap(self.folder / f"{number:06}.f32", np.float32, "c", shape=shape)

    def merge(self, present: dict[str, list[int]]) -> None:
        """Leave one part, of the files that are present; nothing is done if that is so already."""
        if len(self.tables) == 1 and next(iter(self.tables.values()))["states"].keys() == present.keys():
            return
        known = self.known()
        places = [(name, known[name][1]) for name in sorted(present)]
        names = [name for name, place in places if not isinstance(place, str)]
        merged = np.empty((len(names), self.width), np.float32)
        rows = np.array([place for _, place in places if not isinstance(place, str)]).reshape(-1, 2)
        for number in self.tables:
            mine = rows[:, 0] == number
            merged[mine] = self.vectors(number)[rows[mine, 1]]
        unreadable = {name: place for name, place in places if isinstance(place, str)}
        old = list(self.tables)
        self.add(names, {name: known[name][0] for name in present}, unreadable, merged)
        for number in old:
            del self.tables[number]
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
