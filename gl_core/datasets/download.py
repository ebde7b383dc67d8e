"""Files from the network: whole and verified, or not at all."""

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["fetch", "written_aside"]

TIMEOUT = 30.0  # seconds without any answer


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


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download a file, with a progress bar.

    Raises ConnectionError if it cannot be had, or not to its end, and ValueError if it is not the file of that
    checksum. Both say what to do; neither leaves anything behind.
    """
    from tqdm import tqdm

    instead = f"download {url} by other means and put it at {path}"
    digest = hashlib.sha256()
    with written_aside(path) as file:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
                with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
                    while block := answer.read(2**16):
                        file.write(block)
                        digest.update(block)
                        bar.update(len(block))
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{url}: could not be downloaded ({error}); {instead}") from error
        if file.tell() < size:
            raise ConnectionError(
                f"{url}: the connection ended after {file.tell()} of {size} bytes; try again, or {instead}"
            )
        if digest.hexdigest() != sha256:
            raise ValueError(
                f"{url}: has sha256 {digest.hexdigest()}, but {sha256} is expected: not the published file; {instead}"
            )
