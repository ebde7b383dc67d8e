"""Runs a function in two processes that talk through gloo, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run(function: Callable[[], Any], folder: Path) -> list[Any]:
    """What `function` returns in each of the two processes. It must be importable from a module."""
    torch.multiprocessing.spawn(_work, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank: int, function: Callable[[], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(function(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
