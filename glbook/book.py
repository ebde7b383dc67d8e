"""Building the book: execute what has changed, make pages of it."""

import filecmp
import hashlib
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gl_core.training import records
from glbook.notebooks import execute, find, names, sources

__all__ = ["PageError", "build"]


class PageError(RuntimeError):
    """The pages could not be made, or not without warnings."""


def build(*, progress: bool = True) -> Path:
    """Build the book: execute every chapter in the `quick` profile and make pages of them. Returns the first page.

    Works on a copy of `book/` in `_build/book` and leaves every other file as it is. What has not changed since the
    last build is not made again: a chapter is executed when its notebook, the library, the recorded results or an
    installed package changed; pages are made when any of them, or `_config.yml`, changed.

    Raises ChapterError if a chapter fails, PageError if the pages come with warnings.
    """
    root = records.project_root()
    folder = root / "_build"
    pages = folder / "book"
    _mirror(sources(), pages)
    surroundings = _surroundings(root)
    for chapter in names():
        executed = pages / f"{chapter}.ipynb"
        key = _hash(surroundings, find(chapter).read_bytes())
        if _stamp(executed) == {"key": key}:
            _say(f"{chapter}: unchanged")
            continue
        executed.unlink(missing_ok=True)
        execute(chapter, {"profile": "quick"}, executed, stamp={"key": key}, progress=progress)
    html = folder / "html"
    contents = (f"{path.relative_to(root)}\0".encode() + path.read_bytes() for path in _files(pages))
    state = _hash(*contents, (root / "_config.yml").read_bytes(), surroundings)
    mark = html / ".built-from"
    if not mark.is_file() or mark.read_text() != state:
        _make_pages(root, pages, html)
        mark.write_text(state)
    return html / "index.html"


def _make_pages(root: Path, pages: Path, html: Path) -> None:
    """Pages from executed chapters, all of them anew: a page's navigation depends on the others' titles."""
    _say("making pages")
    aside = root / "_build" / "jupyter-book"
    shutil.rmtree(aside, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", pages]
    command += ["--path-output", aside, "--config", root / "_config.yml", "-q", "-W", "-n", "--keep-going"]
    # Warnings come on standard error; the rest tells where the pages lie before they are moved.
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PageError("the pages could not be made without warnings; they are listed above")
    shutil.rmtree(html, ignore_errors=True)
    (aside / "_build" / "html").rename(html)


def _mirror(source: Path, target: Path) -> None:
    """Make `target` hold the files of `source`, apart from the notebooks, which are written as they are executed."""
    wanted = {path.relative_to(source) for path in _files(source)}
    # Hidden files too: a build that was killed leaves the notebook it was at.
    for path in target.rglob("*"):
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()
    for name in sorted(wanted):
        old, new = target / name, source / name
        if name.suffix == ".ipynb" or (old.is_file() and filecmp.cmp(old, new, shallow=False)):
            continue
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new, old)


def _files(folder: Path) -> list[Path]:
    """All files under a folder in a fixed order; hidden ones, such as an editor's copies, are passed over."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _surroundings(root: Path) -> bytes:
    """What a chapter's output depends on besides its own cells: the library, the recorded results, the packages."""
    packages = sorted({(found.name, found.version) for found in metadata.distributions()})
    results = (path.name.encode() + path.read_bytes() for path in _files(root / "data" / "results"))
    return _hash(records.code_hash().encode(), repr(packages).encode(), sys.version.encode(), *results).encode()


def _stamp(notebook: Path) -> Any:
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("glbook")
    except (OSError, ValueError, KeyError):
        return None


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _say(line: str) -> None:
    print(f"glbook: {line}", file=sys.stderr, flush=True)
