"""The processor that a run uses: which one, what it is called, in what precision, with which random state."""

import contextlib
import io
import os
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gl_core import _checks, distributed
from gl_core._extras import require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["PRECISIONS", "choose_device", "cpu_count", "device_name", "fabric", "memory_budget", "seeded", "send"]

PRECISIONS = {"auto": None, "32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# What a GPU keeps free of images, for network, activations and the workspaces of its libraries.
RESERVE = 4 * 2**30
HOST_MEMORY = 4 * 2**30


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: cpu, cuda, cuda:N, mps; "auto" is the first GPU where there is one, else the CPU. Of several processes on
            a machine each has a GPU of its own: the first, the second, ...

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"(cpu|cuda|mps)(:\d\d?)?", name):
        raise ValueError(f"device={name!r}: must be auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device.type]:
        raise ValueError(f"device={name!r}: there is no such device on this machine; use device=cpu or device=auto")
    return torch.device("cuda", device.index or distributed.local_rank()) if device.type == "cuda" else device


def device_name(device: torch.device) -> str:
    """The processor as people call it, with the number of threads where that matters."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1].strip() if found else name
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device.type} ({name})"


def memory_budget(device: torch.device) -> int:
    """Bytes that decoded images may take: 4 GiB on a CPU; on a GPU half of what is free beyond a reserve."""
    if device.type != "cuda":
        return HOST_MEMORY
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, (free - RESERVE) // 2)


def cpu_count() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without making the host wait for a GPU."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fabric(device: torch.device, precision: str = "auto") -> "Fabric":
    """What runs a training on a device, in a precision, on one or several processes.

    TF32 is left as PyTorch has it: convolutions in float32 use it, matrix products do not.

    Args:
        device: as `choose_device` returns it.
        precision: "32" (float32), "bf16" or "fp16" (mixed: weights stay float32; fp16 scales the loss, which reads a
            flag from the GPU in every step). "auto": bfloat16 where the GPU computes in it, float16 on older ones, and
            float32 on anything else, as some CPUs compute faster in bfloat16, others many times slower.

    Raises:
        ValueError: the device does not have this precision.
        ImportError: lightning-fabric is not installed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # Its imports warn of packages of their own that nobody here can change.
        warnings.simplefilter("ignore")
        lightning_fabric = require("lightning_fabric", extra="train")
    _checks.choice("precision", precision, PRECISIONS)
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if precision == "auto":
        precision = ("bf16" if native else "fp16") if device.type == "cuda" else "32"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision='fp16': needs a GPU, this run uses {device.type}; take bf16 or 32")
    if precision == "bf16" and device.type == "cuda" and not native:
        raise ValueError("precision='bf16': this GPU does not compute in bfloat16; take fp16 or 32")
    settings: dict[str, Any] = {"accelerator": device.type, "precision": PRECISIONS[precision]}
    if (count := distributed.num_processes()) == 1:
        return lightning_fabric.Fabric(devices=[device.index] if device.type == "cuda" else 1, **settings)
    on_this_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = count // on_this_machine
    return lightning_fabric.Fabric(strategy="ddp", devices=on_this_machine, num_nodes=nodes, **settings)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Initial weights come from the seed, and the caller's random state is as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
