"""The commands of `glbook`, by subject. Each is a function of its options that returns the exit status."""

import os
from pathlib import Path

__all__ = ["short"]


def short(path: Path | str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
