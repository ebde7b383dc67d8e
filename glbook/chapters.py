"""The chapters: notebooks of the book by name."""

from pathlib import Path
from typing import Any

from gl_core.training import records
from gl_core.training.validation import did_you_mean

__all__ = ["find", "lean", "names", "sources"]


def sources() -> Path:
    """The folder that holds the notebooks."""
    return records.project_root() / "book"


def names() -> list[str]:
    """The chapters of the book, by name."""
    return sorted(path.stem for path in sources().glob("*.ipynb"))


def find(chapter: str) -> Path:
    """The notebook of a chapter. Raises ValueError, with the names there are, if it is none of them."""
    if chapter not in names():
        known = ", ".join(names()) or f"none in {sources()}"
        raise ValueError(f"chapter={chapter!r}: must be one of {known}{did_you_mean(chapter, names())}")
    return sources() / f"{chapter}.ipynb"


def lean(notebook: dict[str, Any]) -> dict[str, Any]:
    """A chapter, as its JSON, reduced to what makes its records: the cells with the tag setup, parameters or run.

    A chapter without a cell of the tag run is returned as it is.
    """
    tags = [set(cell["metadata"].get("tags", [])) for cell in notebook["cells"]]
    if not any("run" in tagged for tagged in tags):
        return notebook
    kept = {"setup", "parameters", "run"}
    return notebook | {"cells": [cell for cell, tagged in zip(notebook["cells"], tags, strict=True) if tagged & kept]}
