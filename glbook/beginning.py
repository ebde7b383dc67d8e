"""How every chapter begins."""

import warnings

from gl_core.training import records
from glbook import plots

__all__ = ["begin"]


def begin() -> None:
    """What every chapter calls first: figures get the book's style.

    Raises:
        ValueError: there is no book here, so a chapter would stop where it reads recorded results, after its trainings.
    """
    root = records.project_root()
    if not (root / "_config.yml").is_file():
        raise ValueError(f"{root}: is not in the book's folder; go there, or give papermill --cwd FOLDER")
    # A reader wants to know what was left out, not which line of the library said so.
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    plots.use_book_style()
