"""Files from the network: whole and verified, or not at all; what broke off goes on where it ended."""

import contextlib
import errno
import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["fetch", "locked", "written_aside"]

TIMEOUT = 30.0  # seconds without any answer
ATTEMPTS = 5  # without a byte in between
BLOCK = 2**16
# Answers that will be the same the next time.
FINAL = range(400, 500)
# Errors of this machine, which no other answer would cure.
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PAUSE = 1.0  # seconds before another attempt, more after each failure


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole; until then, and if writing fails, what had the name stays.

    Makes the folder if need be. Raises OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # A temporary file is its owner's alone; a data set is as readable as any new file.
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time, by a file that is there as long as it is held; others call `waiting`, and wait. It is freed with
    its process, however that ends; where the system has no such locks (Windows), nothing is held."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before has removed the file: whoever comes now would lock another one.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def fetch(url: str, path: Path, checksum: str | None, *, algorithm: str = "sha256") -> str:
    """Download a file, with a progress bar and the time left; returns its checksum.

    What arrived of a download that breaks off stays beside `path`, ending in ".part", and the next call goes on from there.
    A file that is whole but not the one of the `checksum` is put aside, ending in ".wrong". Processes that want the same file
    wait for the first.

    Raises ConnectionError if it cannot be had, or not to its end, ValueError if it is not the file of that checksum, and OSError
    where it cannot be written. All say what to do.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and (checksum is None or _digest(path, algorithm) == checksum):
            return checksum or _digest(path, algorithm)
        part = path.with_name(f"{path.name}.part")
        instead = f"download {url} by other means and put it at {path}"
        try:
            _download(url, part, instead)
        except OSError as error:
            if error.errno in LOCAL:
                raise OSError(error.errno, f"{part}: {os.strerror(error.errno)}; what arrived is kept") from error
            raise
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
        found = _digest(part, algorithm)
        if checksum is not None and found != checksum:
            wrong = path.with_name(f"{path.name}.wrong")
            os.replace(part, wrong)
            raise ValueError(
                f"{url}: has {algorithm} {found}, but {checksum} is expected: not the published file, put aside as {wrong}; "
                f"{instead}"
            )
        os.replace(part, path)
        return found


def _download(url: str, part: Path, instead: str) -> None:
    """Fill up `part`; an answer that ends too early is asked to go on, until several in a row bring nothing."""
    from tqdm import tqdm

    failures = 0
    with tqdm(desc=part.stem, unit="B", unit_scale=True) as bar, open(part, "ab") as file:
        while True:
            before = file.tell()
            try:
                if _whole(url, file, bar):
                    return
                error: object = f"the connection ended after {file.tell()} bytes"
            except urllib.error.HTTPError as answer:
                error = answer
                answer.close()
                if answer.code in FINAL:
                    raise ConnectionError(f"{url}: could not be downloaded ({answer}); {instead}") from answer
            except (OSError, http.client.HTTPException) as problem:
                if getattr(problem, "errno", None) in LOCAL:
                    raise
                error = problem
            file.flush()
            failures = 0 if file.tell() > before else failures + 1
            if failures == ATTEMPTS:
                kept = f"; {part} holds what arrived, try again to go on" if file.tell() else ""
                raise ConnectionError(f"{url}: could not be downloaded ({error}){kept}, or {instead}")
            time.sleep(min(failures, 3) * PAUSE)


def _whole(url: str, file: BinaryIO, bar) -> bool:
    """One request, for what is missing. Returns whether the file is whole now."""
    start = file.tell()
    headers = {"User-Agent": "gl_core", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        # Nothing lies beyond the end: whole, if the end is where the server says.
        if error.code == 416 and start:
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return True
            file.seek(0)
            file.truncate()
            return False
        raise
    with answer:
        if start and answer.status != 206:  # the server sends it all again
            file.seek(0)
            file.truncate()
            start = 0
        length = answer.headers.get("Content-Length")
        bar.total, bar.n = (start + int(length) if length else None), start
        bar.last_print_n = bar.initial = start
        bar.refresh()
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
        file.flush()
        return length is None or file.tell() == start + int(length)


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
