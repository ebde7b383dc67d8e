"""Checkpoints of a training in progress, so that an interrupted run goes on where it was."""

import contextlib
import copy
import hashlib
import io
import json
import pickle
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gl_core import distributed
from gl_core._files import write_atomically
from gl_core.training import records
from gl_core.training.config import Config
from gl_core.training.version import RESULTS_VERSION

__all__ = ["folder", "load", "save", "seconds_spent"]

# What `torch.load` and the parts of a state raise for a file that is cut off, damaged, or of another network.
DAMAGE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, pickle.UnpicklingError)


def folder(config: Config, data_versions: Iterable[str]) -> Path:
    """Where the checkpoints of a run lie: one folder for the same settings, data and version of the results."""
    key = config.as_dict() | {"data": list(data_versions), "results": RESULTS_VERSION}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return records.project_root() / "_build" / "checkpoints" / name


def save(checkpoint: Path | None, state: dict[str, Any], history: list[dict[str, float]], seconds: float) -> None:
    """Write the state after an epoch, whole or not at all; `seconds` of training led to it."""
    if checkpoint is None:
        return
    content = io.BytesIO()
    parts = {name: part.state_dict() for name, part in state.items() if part is not None}
    torch.save(parts | {"history": history, "seconds": seconds}, content)
    write_atomically(checkpoint, content.getvalue())


def load(checkpoint: Path | None, state: dict[str, Any]) -> tuple[list[dict[str, float]], float]:
    """Load a checkpoint into the parts of the training state.

    A file that is damaged or does not fit is set aside with one line on stderr, and training starts anew.

    Returns:
        The history and the seconds of training so far; empty and 0 if there is no checkpoint.
    """
    if checkpoint is None or not checkpoint.is_file():
        return [], 0.0
    parts = {name: part for name, part in state.items() if part is not None}
    untouched = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        saved = _read(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return list(saved["history"]), float(saved["seconds"])
    except DAMAGE as error:
        for name, part in parts.items():
            part.load_state_dict(untouched[name])
        if distributed.is_main():
            aside = checkpoint.replace(checkpoint.with_suffix(".damaged"))
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            print(f"{aside}: this checkpoint cannot be used ({reason}); training starts anew", file=sys.stderr)
        return [], 0.0


def seconds_spent(folder: Path) -> float:
    """The seconds of training that the checkpoints in a folder stand for."""
    spent = 0.0
    for checkpoint in folder.glob("*.pt"):
        with contextlib.suppress(*DAMAGE):  # `load` will say so
            spent += float(_read(checkpoint)["seconds"])
    return spent


def _read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)
