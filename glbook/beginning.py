"""How every chapter begins."""

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
    plots.use_book_style()
