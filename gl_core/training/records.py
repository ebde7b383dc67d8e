"""The record of a run: what was done, by which code, where and when, and what came out.

A record is one small JSON file, never changed. It goes to `_build/results`, which git ignores, unless the run is to be
kept: then to `data/results`, with its purpose: `final`, a result that pages may cite, or `tuning`, a step on the way to
one. One file a run, so that git merges the records of two people without conflict.
"""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gl_core._files import write_atomically
from gl_core.training.version import RESULTS_VERSION

__all__ = ["PURPOSES", "models_folder", "new_record", "project_root", "read_records", "results_folder", "write_record"]

PURPOSES = ("final", "tuning")
PACKAGE = Path(__file__).resolve().parents[1]


def project_root() -> Path:
    """The folder of the book: the nearest one, from the working directory upwards, that holds `_config.yml` and `book`.

    Without one the folder around the package if that is the book, else the working directory.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        # A built copy of the book lies inside the book; its folder has no configuration.
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return folder
    return here


def results_folder(keep: str | None = None) -> Path:
    """Where records go: `data/results` for those kept as "final" or "tuning", `_build/results` for all others."""
    if keep is None:
        return project_root() / "_build" / "results"
    from gl_core import _checks

    _checks.choice("keep", keep, PURPOSES)
    return project_root() / "data" / "results"


def models_folder() -> Path:
    """Where trained networks go; git ignores it."""
    return project_root() / "_build" / "models"


def new_record(*, chapter: str, config: dict[str, Any], device: str, keep: str | None = None) -> dict[str, Any]:
    """A record's first half: what is known before the run. `device` is the name of the processor that will train."""
    results_folder(keep)
    created = datetime.now(UTC).replace(microsecond=0)
    dataset, method, seed = (config.get(name) for name in ("dataset", "method", "seed"))
    # Paths say where files lay on one machine; they are no part of what was done.
    config = {name: value for name, value in config.items() if name not in ("data_root", "weights")}
    sweep = json.loads(os.environ.get("GLBOOK_SWEEP", "{}"))
    return {
        "run_id": f"{created:%Y%m%d-%H%M%S}-{dataset}-{method}-{seed}-{os.urandom(3).hex()}",
        "created": created.isoformat(),
        "commit": commit(),
        "code": code_hash(),
        "chapter": chapter,
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "device": device,
        "purpose": keep,
        # Which command started the run, where one did: it finds the record by this among those of others.
        "session": os.environ.get("GLBOOK_RUN"),
        # Of a run of a sweep, what it is known by (see `glbook.sweeps.keys`).
        "key": sweep.get("key"),
        "data_version": sweep.get("data_version"),
        "results_version": RESULTS_VERSION,
        "config": config,
        "versions": versions(),
    }


def write_record(record: dict[str, Any], folder: Path | None = None, name: str | None = None) -> Path:
    """Write a record, whole or not at all.

    Args:
        record: see `new_record`.
        folder: `results_folder(record["purpose"])` if not given; in a run of a sweep the sweep's own.
        name: of the file, `<run_id>.json` if not given.

    Returns:
        Its path.

    Raises:
        FileExistsError: there is such a file.
        OSError: it cannot be written; nothing is left behind.
    """
    if folder is None:
        folder = Path(os.environ.get("GLBOOK_RECORDS") or results_folder(record.get("purpose")))
    path = folder / (f"{record['run_id']}.json" if name is None else name)
    text = json.dumps(rounded(record), indent=1, allow_nan=False) + "\n"
    try:
        write_atomically(path, text.encode(), overwrite=False)
    except OSError as error:
        raise type(error)(error.errno, f"the record could not be written ({error.strerror})", str(path)) from error
    return path


def read_records(root: str | os.PathLike | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The records under a folder as they were written, with their paths; a broken one is passed over with a warning."""
    root = results_folder("final") if root is None else Path(root)
    for path in sorted(root.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: passed over, as the record is broken ({error})", stacklevel=2)
            continue
        if isinstance(record, dict) and "run_id" in record:
            yield path, record


@cache
def commit() -> str | None:
    """The commit of the code, with "-dirty" behind it if library or chapters were changed since; None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", PACKAGE, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(top)book")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def code_hash() -> str:
    """A hash of the library's source: two runs with the same one ran the same code, whatever their commits."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions of what a result may depend on."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("gl_core", "numpy", "lightning-fabric", "torchvision"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def rounded(value: Any) -> Any:
    """Floats to seven significant digits, which is what float32 holds; a record stays small and readable."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value
