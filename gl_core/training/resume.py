"""Checkpoints of a training in progress, so that an interrupted run goes on where it was."""

import io
from pathlib import Path
from typing import Any

import torch

from gl_core.training import records

__all__ = ["load", "save"]


def save(checkpoint: Path | None, state: dict[str, Any], history: list[dict[str, float]]) -> None:
    if checkpoint is None:
        return
    content = io.BytesIO()
    torch.save(
        {name: part.state_dict() for name, part in state.items() if part is not None} | {"history": history}, content
    )
    records.write_atomically(checkpoint, content.getvalue())


def load(checkpoint: Path | None, state: dict[str, Any]) -> list[dict[str, float]]:
    """Load a checkpoint into the parts of the training state; the history so far, empty if there is none."""
    if checkpoint is None or not checkpoint.is_file():
        return []
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in state.items():
        if part is not None:
            part.load_state_dict(saved[name])
    return saved["history"]
