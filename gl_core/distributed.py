"""Several processes, one batch: labels are propagated among the images of all processes together.

With p processes each embeds its own n / p images, then all exchange embeddings and labels (`whole_batch`), and every
one computes the same loss of all n. Gradients come back through that exchange added up over processes: they are those
of p times the loss. `DistributedDataParallel`, and so Fabric, averages them, after which they are those of one process.

In one process every function here does nothing, so that a training loop needs no second version.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "gather",
    "is_main",
    "join",
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
    """Within the context, be one of the processes that `torchrun` started; in a process started alone do nothing."""
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
    """The parts of all processes, one below the other; gradients are added up, and each process takes its part."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(num_processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grad_outputs):
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)
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
    def backward(ctx, *grad_outputs):
        return _Sum.apply(*grad_outputs)


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes joined in the first dimension, in the order of their ranks.

    The gradient is the sum over processes. All processes must call it with tensors of one shape.
    """
    return _Gather.apply(x) if num_processes() > 1 else x


def whole_batch(*parts: Tensor) -> tuple[Tensor, ...]:
    """The whole batch of each of the tensors of which this process has a part: features, logits, labels, ...

    The sampler that gives each process its part is `GroupSampler(..., num_replicas=, rank=)`.

    >>> features, labels = torch.rand(4, 2), torch.tensor([0, 0, 1, 1])
    >>> whole_batch(features, labels)[0].shape           # in one process: as they are
    torch.Size([4, 2])
    """
    return tuple(gather(part) for part in parts)


class _WholeBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' images; torch.nn.SyncBatchNorm does it on GPUs only."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            return super().forward(input)
        x, count = input, num_processes()
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _Sum.apply(values.mean(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().mean(dim=(0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
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


class _WholeBatchNormAct(_WholeBatchNorm):
    """The same for timm's layer of batch normalisation and activation in one."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.act(self.drop(super().forward(input)))


@contextlib.contextmanager
def whole_batch_norm(module: nn.Module) -> Iterator[None]:
    """Within the context, batch normalisation in `module` takes its statistics from the images of all processes.

    Raises:
        ValueError: `module` holds a kind of batch normalisation that is neither PyTorch's nor timm's.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)] if num_processes() > 1 else []
    kinds = [type(layer) for layer in layers]
    # The layers stay the objects that they are, as optimisers and owners of the module know them.
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = _whole(kind)
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def _whole(kind: type[nn.BatchNorm2d]) -> type[_WholeBatchNorm]:
    """The class that computes what `kind` does, by the statistics of all processes."""
    if kind.forward is nn.BatchNorm2d.forward:
        return _WholeBatchNorm
    if kind.__module__.startswith("timm.") and kind.__name__ == "BatchNormAct2d":
        return _WholeBatchNormAct
    name = f"{kind.__module__}.{kind.__name__}"
    raise ValueError(f"{name}: several processes cannot share the statistics of this layer; train with one")


def share(n: int) -> slice:
    """This process's part of n items: parts follow each other in the order of ranks, and differ by one item at most."""
    count, number = num_processes(), rank()
    return slice(n * number // count, n * (number + 1) // count)


def join(part: Float[Tensor, "m d"], n: int) -> Float[Tensor, "n d"]:
    """All n rows, of which each process has its `share`."""
    if num_processes() == 1:
        return part
    longest = -(-n // num_processes())
    padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
    rows = gather(padded).view(num_processes(), longest, *part.shape[1:])
    bounds = [n * number // num_processes() for number in range(num_processes() + 1)]
    return torch.cat([rows[i, : end - start] for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))])
