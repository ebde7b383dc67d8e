"""The commands of `glbook`, by subject. Each is a function of its options that returns the exit status."""

import argparse
import os
from pathlib import Path

__all__ = ["a_path", "short"]


def a_path(text: str) -> Path:
    """The type of an argument that names a file or folder; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def short(place: Path | str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(place)
    return str(place) if relative.startswith("..") else relative
