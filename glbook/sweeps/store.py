"""The runs that are made, being made, or failed: what several sweeps, also on several machines, know of each other.

Whoever makes a run holds the lock on `_build/sweeps/<key>.lock`, which ends with its process, and looks for a record
when it has the lock. Beside the lock lie `<key>.failed`, the error and traceback of the last attempt, and `<key>.done`,
for a run that leaves no records.
"""

import contextlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gl_core._files import write_atomically
from gl_core.training import records

__all__ = ["Store"]


class Store:
    """The runs of the book under `root`, by their keys. Nothing is written before a run is made."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = records.project_root() if root is None else root
        self.folder = self.root / "_build" / "sweeps"

    def state(self, key: str) -> str:
        """What is known of a run: "done", "running", "failed" or "left"."""
        if self.is_done(key):
            return "done"
        if self._is_locked(key):
            return "running"
        return "failed" if self._path(key, "failed").exists() else "left"

    def is_done(self, key: str) -> bool:
        """Whether the run has ended well, and all its records are where they belong."""
        if self._path(key, "ended").exists():
            return False
        return self._path(key, "done").exists() or any(self._records(key))

    def lock(self, key: str) -> FileLock:
        """The lock that whoever makes the run holds; raises filelock.Timeout at once where another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._path(key, "lock"), timeout=0)

    def begin(self, key: str) -> Path:
        """A new folder for the records of a run; what earlier attempts left is removed. Only with the lock."""
        self.forget_failure(key)
        self._remove_staged(key)
        # An attempt that was killed may have a kernel that writes one last record, but not into this folder.
        staged = self._path(key, f"{os.urandom(4).hex()}.staged")
        staged.mkdir()
        return staged

    def end(self, key: str, staged: Path) -> None:
        """The run has ended well: put its records where they belong. Only with the lock."""
        staged.rename(self._path(key, "ended"))
        self.finish(key)

    def finish(self, key: str) -> None:
        """Put the records of a run that has ended where they belong, if they are not there yet. Only with the lock."""
        ended = self._path(key, "ended")
        if not ended.exists():
            return
        paths = sorted(ended.glob("*.json"))
        for number, path in enumerate(paths, 1):
            self._write(key, _read(path), number)
        if not paths:
            self._path(key, "done").touch()
        shutil.rmtree(ended)

    def keep(self, key: str, purpose: str | None) -> list[dict[str, Any]]:
        """The records of a run that is done, copied for this purpose where they were made for another.

        Raises ValueError, naming the file, for a record that is broken.
        """
        found = [_read(path) for path in sorted(self._records(key), key=lambda path: path.stem)]
        by_purpose = defaultdict(list)
        for record in found:
            by_purpose[record.get("purpose")].append(record)
        made = max(by_purpose.values(), key=len, default=[])
        if purpose is None:
            return made
        if len(by_purpose[purpose]) < len(made):
            by_purpose[purpose] = [record | {"purpose": purpose} for record in made]
            for number, record in enumerate(by_purpose[purpose], 1):
                self._write(key, record, number)
        return by_purpose[purpose]

    def fail(self, key: str, error: str, trace: str) -> None:
        """Note that the run failed. Only with the lock."""
        self._remove_staged(key)
        write_atomically(self._path(key, "failed"), f"{error}\n\n{trace}\n".encode())

    def failure(self, key: str) -> str:
        """Why the last attempt failed."""
        return self._path(key, "failed").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]

    def forget_failure(self, key: str) -> None:
        self._path(key, "failed").unlink(missing_ok=True)

    def _path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def _remove_staged(self, key: str) -> None:
        for staged in self.folder.glob(f"{key}.*.staged"):
            shutil.rmtree(staged, ignore_errors=True)

    def _is_locked(self, key: str) -> bool:
        if not self._path(key, "lock").exists():
            return False
        try:
            with self.lock(key):
                return False
        except Timeout:
            return True

    def _records(self, key: str) -> Iterator[Path]:
        """The files of a run's records, kept ones first."""
        for parent in ("data", "_build"):
            yield from (self.root / parent / "results").rglob(f"*{key}*.json")

    def _write(self, key: str, record: dict[str, Any], number: int) -> None:
        folder = self.root / ("_build" if record.get("purpose") is None else "data") / "results"
        # An attempt that was killed here, or another sweep, may have put the same there.
        with contextlib.suppress(FileExistsError):
            records.write_record(record, folder, self.name(record | {"key": key}, number))

    @staticmethod
    def name(record: Mapping[str, Any], number: int) -> str:
        """The name of the file of a run's record; a run that leaves several numbers them from 1."""
        words = [record.get(word) for word in ("dataset", "method", "seed", "key")]
        words += ["tuning"] * (record.get("purpose") == "tuning") + [number] * (number > 1)
        return "-".join(str(word) for word in words if word is not None) + ".json"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: the record is broken ({error}); remove it, and the run is made again") from error
