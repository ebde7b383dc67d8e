"""One run at a time on each GPU of a machine, whoever started them."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["count", "reserved"]

PAUSE = 1.0  # seconds between two looks for a free one


def count(device: str | None) -> int:
    """How many GPUs this machine has for runs on that device: 0 if there are none, or the device is another."""
    if device not in (None, "auto") and not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if device in (None, "auto", "cuda") else 1


@contextlib.contextmanager
def reserved(device: str | None) -> Iterator[str | None]:
    """Hold a GPU for this process and show it, and no other, to those that it starts. Waits until one is free.

    Yields which one, as in CUDA_VISIBLE_DEVICES; None where the run computes on something else. The reservation is a lock on a
    file, which the system releases however the process ends.
    """
    found = _candidates(device)
    if not found:
        yield None
        return
    import fcntl

    while True:
        for name in found:
            path = Path(tempfile.gettempdir()) / f"glbook-gpu-{os.getuid()}-{name.replace('/', '-')}.lock"
            with open(path, "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if device in (None, "auto", "cuda"):  # one that is named, as cuda:1, keeps its number
                    os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield name
                return
        time.sleep(PAUSE)


def _candidates(device: str | None) -> list[str]:
    """The GPUs that a run may have, by the names that CUDA_VISIBLE_DEVICES knows."""
    available = count(device)
    if not available:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(available)]
    if device in (None, "auto", "cuda"):
        return visible[:available]
    index = int(device.partition(":")[2] or 0)
    return [visible[index] if named and index < len(visible) else str(index)]
