"""Who runs what: claims that several sweeps, on several machines, may make on the same runs through one folder.

Each run has a folder of entries, numbered from 1: a claim ("running"), or how a run ended ("done", "failed"). An entry is only
ever added, as the next number, and the file system lets exactly one process add it. So a claim ends either by its holder's
entry or by that of a process that takes the run over, never by both: the record of a holder that comes too late is refused.
"""

import json
import os
import platform
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gl_core.training import records

__all__ = ["Claim", "Claims", "Entry", "TakenError"]


class TakenError(RuntimeError):
    """The run belongs to another process."""


@dataclass(frozen=True)
class Entry:
    """What the last process said of a run: its state, when it last gave a sign of life, and what else it said."""

    number: int
    state: str
    content: dict[str, Any]
    sign_of_life: int
    published: bool

    def is_orphan(self) -> bool:
        """Whether the process that claimed the run is known to be gone. Of one on another machine this is never known."""
        owner = self.content.get("owner", {})
        return self.state == "running" and owner.get("machine") == _machine() and not _lives(owner)


class Claims:
    """The claims under a folder that all who take part can reach. It is made when the first is taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def last(self, key: str) -> Entry | None:
        """The last entry of a run, None if nobody has claimed it yet."""
        names = [path.stem for path in (self.folder / key).glob("[0-9]*.json")]
        if not names:
            return None
        path = self.folder / key / f"{max(names)}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        published = path.with_suffix(".published").exists()
        return Entry(int(path.stem), content["state"], content, path.stat().st_mtime_ns, published)

    def take(self, key: str, *, after: int) -> "Claim":
        """Claim a run whose last entry is `after`, 0 if there is none. Raises TakenError if another process was quicker.

        If the other is gone, and was of this machine, the run is taken over from it.
        """
        try:
            self._add(key, after + 1, {"state": "running", "owner": _self()})
            return Claim(self, key, after + 1)
        except TakenError:
            last = self.last(key)
            if last.is_orphan():
                return self.take(key, after=last.number)
            raise

    def publish(self, key: str, entry: Entry) -> None:
        """Put the records of a run that is done where records belong. May be done again, and by anyone."""
        for record in entry.content["records"]:
            try:
                records.write_record(record, records.results_folder(record.get("purpose")))
            except FileExistsError:
                pass
        records.write_atomically(self._path(key, entry.number).with_suffix(".published"), b"")

    def stage(self, key: str, number: int) -> Path:
        """The folder of the records that the holder of a claim has made and not yet handed in."""
        return self._path(key, number).with_suffix(".records")

    def _path(self, key: str, number: int) -> Path:
        return self.folder / key / f"{number:06}.json"

    def _add(self, key: str, number: int, content: dict[str, Any]) -> None:
        try:
            records.write_atomically(self._path(key, number), json.dumps(content, indent=1).encode(), overwrite=False)
        except FileExistsError as error:
            raise TakenError(f"run {key}: entry {number} is another process's") from error


@dataclass(frozen=True)
class Claim:
    """A run that this process may make: it holds until another process adds an entry behind it."""

    claims: Claims
    key: str
    number: int

    def is_mine(self) -> bool:
        return not self.claims._path(self.key, self.number + 1).exists()

    def give_sign_of_life(self) -> None:
        os.utime(self.claims._path(self.key, self.number))

    def records_folder(self) -> Path:
        """An empty folder for the records of this run."""
        folder = self.claims.stage(self.key, self.number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def hand_in(self) -> list[dict[str, Any]]:
        """End the run well: its records are put where records belong, and returned.

        Raises TakenError, with no record written, if another process has taken the run over.
        """
        folder = self.claims.stage(self.key, self.number)
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        self._end({"state": "done", "records": records})
        self.claims.publish(self.key, self.claims.last(self.key))
        return records

    def fail(self, error: str, trace: str | None = None) -> None:
        """End the run with an error. Raises TakenError if another process has taken the run over."""
        trace = traceback.format_exc() if trace is None else trace
        self._end({"state": "failed", "error": error, "traceback": trace})

    def _end(self, content: dict[str, Any]) -> None:
        self.claims._add(self.key, self.number + 1, content | {"by": self.number, "owner": _self()})
        shutil.rmtree(self.claims.stage(self.key, self.number), ignore_errors=True)


def _machine() -> str:
    """Tells machines apart on which process numbers mean something else."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if "ns" in path else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(parts)


def _self() -> dict[str, Any]:
    import psutil

    return {"machine": _machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the process is there: not only one of its number, but that one, and not merely its remains."""
    import psutil

    try:
        process = psutil.Process(owner["pid"])
        # The start of a process is computed from clock ticks and the boot time, which is known to the second.
        return abs(process.create_time() - owner["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
