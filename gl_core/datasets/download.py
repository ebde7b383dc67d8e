"""Files from the network: whole and verified, or not at all; what broke off goes on where it ended."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gl_core._extras import require
from gl_core.datasets.cache import cache_folder, locked

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["downloads_folder", "fetch", "locked"]

TIMEOUT = 30.0  # seconds without any answer
ATTEMPTS = 5  # without a byte in between
PAUSE = 1.0  # seconds before another attempt, more after each failure
BLOCK = 2**16


def downloads_folder() -> Path:
    """`data` of the book that is in or around the working directory or around this package; else in the user's
    cache."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return folder / "data"
    return (cache_folder() or here) / "data"


def fetch(url: str, path: Path, checksum: str) -> None:
    """Download a file, with a progress bar and the time left.

    What arrived of a download that breaks off stays beside `path`, ending in ".part", and the next call goes on from
    there. Processes that want the same file wait for the first.

    Args:
        url: where it is published.
        path: where it goes; nothing is downloaded if the file of that checksum, "sha256:..." or "md5:...", is there.
        checksum: of the published file.

    Raises:
        ConnectionError: it cannot be had, or not to its end.
        ValueError: what is there is another file.
        OSError: it cannot be written. All say what to do.
    """
    pooch, requests = require("pooch", extra="train"), require("requests", extra="train")
    pooch.get_logger().setLevel("WARNING")  # the progress bar tells enough
    part = path.with_name(f"{path.name}.part")
    instead = f"download {url} by other means and put it at {path}"
    with locked(path.with_name(f".{path.name}.lock")):
        try:
            pooch.retrieve(url, checksum, path.name, path.parent, downloader=_Download(part))
        except ValueError as error:
            raise ValueError(f"{url}: is not the published file; {instead} ({error})") from error
        except requests.RequestException as error:
            kept = f"; {part} holds what arrived, try again to go on" if part.exists() else ""
            raise ConnectionError(f"{url}: could not be downloaded ({error}){kept}, or {instead}") from error
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, f"{os.strerror(error.errno)}; what arrived is kept", str(part)) from error


class _Download:
    """How pooch downloads: as its own way, but an answer that ends too early is asked to go on, now and at the next
    call."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        from requests import RequestException
        from tqdm import tqdm

        failures = 0
        try:
            with tqdm(desc=self.part.stem, unit="B", unit_scale=True) as bar, open(self.part, "ab") as file:
                while True:
                    before = file.tell()
                    try:
                        if self._rest(url, file, bar):
                            break
                    except RequestException as error:
                        answer = error.response
                        failures = 0 if file.tell() > before else failures + 1
                        # What the client did wrong is wrong the next time.
                        if failures == ATTEMPTS or answer is not None and 400 <= answer.status_code < 500:
                            raise
                    time.sleep(min(failures, 3) * PAUSE)
            os.replace(self.part, output_file)
        finally:
            if self.part.exists() and not self.part.stat().st_size:
                self.part.unlink()

    def _rest(self, url: str, file: BinaryIO, bar: "tqdm") -> bool:
        """Ask for what is missing, and write what comes. Returns whether the file is whole now."""
        from requests import get

        start = file.tell()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            # Nothing lies beyond the end: whole, if the end is where the server says.
            beyond = answer.status_code == 416
            if beyond and answer.headers.get("Content-Range", "").endswith(f"/{start}"):
                return True
            if not beyond:
                answer.raise_for_status()
            if answer.status_code != 206:  # too much was there, or the server sends it all again
                file.truncate(0)
                file.seek(0)
            if beyond:
                return False
            bar.reset(file.tell() + int(answer.headers.get("Content-Length", 0)) or None)
            bar.update(file.tell())
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
        return True
