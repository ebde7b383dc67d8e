"""Several processes, one group: the batch whose images are consulted is that of all processes together.

With p processes each embeds its own n / p images, then all exchange embeddings and labels (`whole_batch`), and every one
computes the same loss of all n. Gradients come back through that exchange added up over processes: they are those of p times the
loss. `DistributedDataParallel`, and so Fabric, averages the gradients of parameters over processes. After that they are those of
the loss, for the backbone and for the classifier, just as in one process.

In one process every function here does nothing, so that a training loop needs no second version.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from gl_core.datasets.store import ImageStore

__all__ = [
    "Share",
    "gather",
    "is_main",
    "local_rank",
    "num_processes",
    "processes",
    "rank",
    "share",
    "whole_batch",
    "whole_batch_norm",
]


def num_processes() -> int:
    """How many processes work together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that prints, and writes records and checkpoints."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", 0)) if num_processes() > 1 else 0


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that `torchrun` started, for as long as the context lasts; in a process started alone do nothing."""
    launched = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if not launched or dist.is_initialized():
        yield
        return
    gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=gpu)
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """The parts of all processes, one below the other; a gradient is added up over processes, and each takes its part."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(num_processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(num_processes())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over processes, and of its gradient."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _Sum.apply(grad)


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes joined in the first dimension, in the order of their ranks; the gradient is their sum.

    All processes must call it with tensors of one shape.
    """
    return _Gather.apply(x) if num_processes() > 1 else x


def whole_batch(*parts: Tensor) -> tuple[Tensor, ...]:
    """The whole batch of each of the tensors of which this process has a part: features, logits, labels, ...

    The loss of the whole batch is then the same in every process, and the gradient of a parameter, averaged over processes, that
    of one process with the whole batch. The sampler that deals such parts is `GroupSampler(..., num_replicas=, rank=)`.

    >>> features, labels = torch.rand(4, 2), torch.tensor([0, 0, 1, 1])
    >>> whole_batch(features, labels)[0].shape           # in one process: as they are
    torch.Size([4, 2])
    """
    return tuple(gather(part) for part in parts)


class _WholeBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' images, on any device (torch.nn.SyncBatchNorm needs a GPU)."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            return super().forward(x)
        count = num_processes()
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _Sum.apply(values.mean(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().mean(dim=(0, 2, 3))) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                images = count * x.numel() / x.shape[1]
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((variance * images / (images - 1)).to(self.running_var.dtype), momentum)
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)


@contextlib.contextmanager
def whole_batch_norm(module: nn.Module) -> Iterator[None]:
    """Within the context, batch normalisation in `module` takes its statistics from the images of all processes."""
    plain = [m for m in module.modules() if type(m) is nn.BatchNorm2d] if num_processes() > 1 else []
    # The layers stay the objects that they are, as optimisers and owners of the module know them.
    for layer in plain:
        layer.__class__ = _WholeBatchNorm
    try:
        yield
    finally:
        for layer in plain:
            layer.__class__ = nn.BatchNorm2d


def share(n: int) -> slice:
    """This process's part of n items: parts follow each other in the order of ranks, and differ by one item at most."""
    count, number = num_processes(), rank()
    return slice(n * number // count, n * (number + 1) // count)


class Share:
    """This process's part of the images of a store, for `gl_core.inference.embed`."""

    def __init__(self, images: "ImageStore") -> None:
        self._images, self._part = images, range(len(images))[share(len(images))]

    def __len__(self) -> int:
        return len(self._part)

    def batches(self, indices: Iterable[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        return self._images.batches([[self._part[i] for i in batch] for batch in indices])


def join(part: Float[Tensor, "m d"], n: int) -> Float[Tensor, "n d"]:
    """All n rows, of which each process has its `share`."""
    if num_processes() == 1:
        return part
    longest = -(-n // num_processes())
    padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
    rows = gather(padded).view(num_processes(), longest, *part.shape[1:])
    bounds = [n * number // num_processes() for number in range(num_processes() + 1)]
    return torch.cat([rows[i, : end - start] for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))])
