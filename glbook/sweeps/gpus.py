"""One run at a time on each GPU of a machine, whichever sweep started it."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator

import platformdirs
from filelock import FileLock, Timeout

__all__ = ["count", "reserved"]

PAUSE = 1.0  # seconds between two looks for a free one


ANY = (None, "auto", "cuda")  # of the names of devices, those of no particular GPU


def count(device: str | None) -> int:
    """How many GPUs this machine has for runs on that device: 0 if there are none, or the device is another."""
    if device not in ANY and not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if device in ANY else 1


@contextlib.contextmanager
def reserved(device: str | None) -> Iterator[str | None]:
    """Hold a GPU for this process and show it, and no other, to those that it starts. Waits until one is free.

    Yields which one, as in CUDA_VISIBLE_DEVICES; None where the run computes on something else. The reservation is a
    lock on a file in the user's cache, which ends with the process.
    """
    found = _candidates(device)
    if not found:
        yield None
        return
    # Homes may be shared by machines, GPUs are not.
    folder = platformdirs.user_cache_path("glbook") / "gpus" / platform.node()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in found:
            try:
                with FileLock(folder / f"{name.replace('/', '-')}.lock", timeout=0):
                    if device in ANY:  # one that is named, as cuda:1, keeps its number
                        os.environ["CUDA_VISIBLE_DEVICES"] = name
                    yield name
                    return
            except Timeout:
                continue
        time.sleep(PAUSE)


def _candidates(device: str | None) -> list[str]:
    """The GPUs that a run may have, by the names that CUDA_VISIBLE_DEVICES knows."""
    available = count(device)
    if not available:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(available)]
    if device in ANY:
        return visible[:available]
    index = int(device.partition(":")[2] or 0)
    return [visible[index] if named and index < len(visible) else str(index)]
