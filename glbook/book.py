"""Building the book: execute the chapters that have changed, and make pages of all."""

import filecmp
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from gl_core._files import write_atomically
from gl_core.training import records
from glbook import chapters, fingerprint, notebooks, processes

__all__ = ["PageError", "build", "jupyter_book", "only_one"]

# More chapters at a time than this would need more memory than many machines have: each takes 1.5 GB.
MOST_AT_A_TIME = 4


class PageError(RuntimeError):
    """The pages could not be made, or not without warnings."""


def build() -> Path:
    """Build the book: execute every chapter in the `quick` profile and make pages of them. Returns the first page.

    Works on a copy of `book/` in `_build/book` and leaves every other file as it is. What has not changed since the
    last build is not made again: a chapter is executed when what its outputs depend on has changed (see `fingerprint`),
    and keeps its outputs where only its prose has; pages are made when a chapter, the source of the library or
    `_config.yml` has changed. Chapters are executed side by side, one a processor core. A second build waits for the
    first.

    Raises:
        ChapterError: a chapter fails.
        PageError: the pages come with warnings.
    """
    root = records.project_root()
    pages, html = root / "_build" / "book", root / "_build" / "html"
    with only_one(root):
        _mirror(chapters.sources(), pages)
        _execute(_changed(root, pages), pages)
        sources = [*fingerprint.files(pages), root / "_config.yml", *fingerprint.source_files()]
        contents = [f"{path.name}\n{fingerprint.hashed(path.read_bytes())}" for path in sources]
        state = fingerprint.hashed(*contents, *fingerprint.package_versions())
        mark = html / ".built-from"
        if not mark.is_file() or mark.read_text() != state:
            _make_pages(root, html)
            mark.write_text(state)
    return html / "index.html"


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """While one process makes the book's pages, others that would make them wait."""
    from filelock import FileLock, Timeout

    (root / "_build").mkdir(exist_ok=True)
    lock = FileLock(root / "_build" / ".book.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("another process is building the book; this one waits for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _changed(root: Path, pages: Path) -> dict[str, str]:
    """The chapters that must be executed, and their keys; the others are brought up to date in their prose."""
    changed, around = {}, fingerprint.surroundings(root)
    for chapter in chapters.names():
        source, executed = json.loads(chapters.find(chapter).read_text("utf-8")), pages / f"{chapter}.ipynb"
        key = fingerprint.chapter_key(source, around)
        if _key(executed) == key:
            _say(f"{chapter}: unchanged")
            _take_prose(chapter, executed)
        else:
            executed.unlink(missing_ok=True)
            changed[chapter] = key
    return changed


def _key(executed: Path) -> str | None:
    """The key that a chapter was executed with."""
    try:
        return json.loads(executed.read_text("utf-8"))["metadata"]["glbook"]["key"]
    except (OSError, ValueError, KeyError):
        return None


def _take_prose(chapter: str, executed: Path) -> None:
    """Give an executed chapter the present prose of its source; its code cells are the same, and keep their outputs."""
    before = executed.read_text("utf-8")
    made, source = json.loads(before), json.loads(chapters.find(chapter).read_text("utf-8"))
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    outputs = iter(cell["outputs"] for cell in code if "injected-parameters" not in cell["metadata"].get("tags", []))
    for cell in source["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = next(outputs)
    after = json.dumps(made | {"cells": source["cells"]}, indent=1)
    if after != before:
        write_atomically(executed, after.encode())


def _execute(keys: dict[str, str], pages: Path) -> None:
    """Execute chapters, several at a time; the first that fails ends all."""
    if not keys:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(keys), MOST_AT_A_TIME)
    _say(f"executing {len(keys)} chapters, {workers} at a time")
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(), cores // workers)
    )
    with pool:
        # The long ones first, so that none is left to run alone at the end.
        longest = sorted(keys, key=lambda chapter: -chapters.find(chapter).stat().st_size)
        jobs = [pool.submit(_execute_one, chapter, keys[chapter], pages) for chapter in longest]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                chapter, seconds = job.result()
                _say(f"{chapter}: {seconds:.0f} s ({done} of {len(jobs)})")
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _begin(parent: int, threads: int) -> None:
    """A process that executes chapters: it ends with the one that started it, which alone hears Ctrl-C."""
    processes.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _execute_one(chapter: str, key: str, pages: Path) -> tuple[str, float]:
    started, executed = time.monotonic(), pages / f"{chapter}.ipynb"
    notebooks.execute(chapter, {"profile": "quick"}, executed, stamp={"key": key}, progress=False)
    _take_prose(chapter, executed)
    return chapter, time.monotonic() - started


def jupyter_book(root: Path, aside: Path, *options: str) -> int:
    """Make pages of the executed chapters in the folder `aside`; the exit status. Warnings come on standard error."""
    shutil.rmtree(aside, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [root / "_build" / "book", "--path-output", aside, "--config", root / "_config.yml", "-q", *options]
    # What it says besides is where the pages lie before they are moved.
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def _make_pages(root: Path, html: Path) -> None:
    """Pages from executed chapters, all of them anew: a page's navigation depends on the others' titles."""
    _say("making pages")
    aside = root / "_build" / "jupyter-book"
    if jupyter_book(root, aside, "-W", "-n", "--keep-going"):
        raise PageError("the pages could not be made without warnings; they are listed above")
    shutil.rmtree(html, ignore_errors=True)
    (aside / "_build" / "html").rename(html)


def _mirror(source: Path, target: Path) -> None:
    """Make `target` hold the files of `source`, apart from the notebooks, which are written as they are executed."""
    wanted = {path.relative_to(source) for path in fingerprint.files(source)}
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


def _say(line: str) -> None:
    print(f"glbook: {line}", file=sys.stderr, flush=True)
