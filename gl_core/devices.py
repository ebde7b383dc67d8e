"""The processor that a run uses: which one, what it is called, in what precision, with which random state."""

import contextlib
import io
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["choose_device", "device_name", "fabric", "seeded"]


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU where there is one, else the CPU. Raises ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: must be auto, cpu, cuda, cuda:N or mps") from error
    available = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in available:
        raise ValueError(f"device={name!r}: must be auto, cpu, cuda, cuda:N or mps")
    if not available[device.type]():
        raise ValueError(f"device={name!r}: there is no such device on this machine; use device=cpu or device=auto")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def device_name(device: torch.device) -> str:
    """The processor as people call it, with the number of threads where that matters."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1].strip() if found else name
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device.type} ({name})"


def fabric(device: torch.device) -> "Fabric":
    """Device and precision: bfloat16 where the GPU has it, float16 with loss scaling on older ones, float32 on a CPU."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # Its imports warn of packages of their own that nobody here can change.
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
    precision = "32-true"
    if device.type == "cuda":
        precision = "bf16-mixed" if torch.cuda.get_device_capability(device)[0] >= 8 else "16-mixed"
    devices = [device.index] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Initial weights come from the seed, and the caller's random state is as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
