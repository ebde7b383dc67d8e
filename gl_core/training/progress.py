"""The bar that shows how training goes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from gl_core._extras import require

# Seconds between two drawings of the bar.
INTERVAL = 1.0

__all__ = ["Progress", "training_bar"]


@contextlib.contextmanager
def training_bar(total: int, done: int, what: str, progress: bool) -> Iterator["Progress"]:
    """A bar of `total` batches, of which `done` are done; hidden unless `progress`."""
    tqdm = require("tqdm", extra="train").tqdm
    with tqdm(total=total, initial=done, desc=what, unit=" batches", disable=not progress, mininterval=INTERVAL) as bar:
        yield Progress(bar)


class Progress:
    """A progress bar with loss, R@1 of the batch, images per second, and (from tqdm) the time left."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._shown = bar, 0.0

    def update(self) -> None:
        self._bar.update()

    def due(self) -> bool:
        return not self._bar.disable and time.monotonic() - self._shown > INTERVAL

    def show(self, *, loss: float, recall: float, speed: float) -> None:
        self._shown = time.monotonic()
        self._bar.set_postfix_str(f"loss {loss:.3f}, R@1 {recall:.2f}, {speed:.0f} images/s", refresh=False)
