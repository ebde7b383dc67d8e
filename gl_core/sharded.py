r"""Very many classes: the Group Loss with its classifier dealt out over processes by class, exactly.

The logits of C classes, and the weights they come from, are what grows with C. For T = 1 the loss needs little of them (see
`gl_core.fast_loss`). With the classes parted into sets K_1, ..., K_p, one a process, and S_i = softmax(z_i / tau):

    max_c z_ic        = max_r  max_{c in K_r} z_ic
    sum_c exp(z_ic)   = sum_r  sum_{c in K_r} exp(z_ic)             the normalisers, at tau and at 1
    <S_i, S_j>        = sum_r  sum_{c in K_r} S_ic S_jc             the Gram matrix
    S_i[y_j], z_i[y_i]  known to the process that holds y_j, y_i;   for the others they are 0 in the sum

So one maximum over n numbers, and one sum over n x n + n x n + 3 n, give every process all that the loss is made of, and the
gradients with respect to it. The rest is local: the gradient of process r's logits,

    dL/dz_ic = S_ic ((A S)_ic - a_i) / tau + w (softmax(z_i)_c - [c = y_i]) / n + (label columns),     c in K_r,

needs from the other processes only A, (n, n), and a, (n,), which each has worked out for itself, and gives the exact gradient of
its classes' weights. Embeddings are exchanged before the classifier and their gradients summed after it: 2 n x d.

Messages hold (n d + 2 n^2 + 4 n) numbers forward and n d backward, whatever C is. A process holds (d + 1) C / p weights, n C / p
gradients of logits, and n x n matrices.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gl_core import _checks, distributed
from gl_core.fast_loss import (
    add_at_labels,
    chunks,
    exponentials,
    free_rows,
    gram_matrix,
    own_gradients,
    own_probability,
    refuse_second_derivative,
    row_sums,
    spread,
    square,
    take,
    with_anchors,
)
from gl_core.loss import similarity_function
from gl_core.propagation import at_least_float32, select_anchors, without_autocast

__all__ = ["ShardedGroupLoss"]


class ShardedGroupLoss(nn.Module):
    """`gl_core.loss.GroupLoss` with T = 1, each of p processes holding the classifier of its C / p classes.

        loss = group_loss(f, A f + b, y) + cross_entropy_weight * cross_entropy(A f + b, y)

    Every process calls it with its part of the batch, as dealt by `GroupSampler(..., num_replicas=, rank=)`; all get the loss
    of the whole batch. The gradients of this module's parameters are complete. Those of the embeddings are p times those of
    the loss, so that the backbone's are right after their average over processes: wrap the backbone in
    `DistributedDataParallel`, and leave this module out of it. In one process it is the ordinary loss.

    Args:
        num_classes: C, over all processes.
        embedding_size: d, length of an embedding.
        num_anchors: anchors per class of the whole batch.
        temperature: above 0.
        similarity: a name of `gl_core.loss.SIMILARITIES`, or a function of the embeddings of the whole batch.
        cross_entropy_weight: 0 or more.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_anchors: int = 2,
        temperature: float = 10.0,
        similarity: str | Callable[[Tensor], Tensor] = "pearson",
        cross_entropy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _checks.count("num_classes", num_classes, least=distributed.num_processes())
        _checks.count("embedding_size", embedding_size, least=1)
        _checks.count("num_anchors", num_anchors, least=0)
        _checks.temperature(temperature)
        similarity_function(similarity)
        _checks.weight("cross_entropy_weight", cross_entropy_weight)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.num_anchors = num_anchors
        self.temperature = temperature
        self.similarity = similarity
        self.cross_entropy_weight = cross_entropy_weight
        self.classes = distributed.share(num_classes)  # those that this process holds
        self.classifier = nn.Linear(embedding_size, self.classes.stop - self.classes.start)

    def forward(self, embeddings: Float[Tensor, "m d"], labels: Int[Tensor, "m"]) -> Float[Tensor, ""]:
        """The loss of the whole batch, of which this process gives m images.

        Raises ValueError for embeddings that are not finite, of another length than `embedding_size`, or labels outside
        0..num_classes-1.
        """
        labels = torch.as_tensor(labels, device=embeddings.device)
        _checks.batch(embeddings, labels, self.embedding_size, self.num_classes)
        features, labels = distributed.whole_batch(embeddings, labels.long())
        weight, bias = (_OncePerProcess.apply(parameter) for parameter in self.classifier.parameters())
        logits = F.linear(features.to(weight.dtype), weight, bias)
        with without_autocast(logits):
            features, _ = at_least_float32(features, logits[:0])
            W = similarity_function(self.similarity)(features)
            losses = _ShardedLosses.apply(
                W,
                logits,
                labels,
                select_anchors(labels, self.num_anchors),
                self.temperature,
                self.cross_entropy_weight,
                self.classes.start,
            )
        return losses.mean()


class _OncePerProcess(torch.autograd.Function):
    """A parameter that one process alone holds: its gradient, which comes as that of the p equal losses, is divided by p."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / distributed.num_processes()


class _ShardedLosses(torch.autograd.Function):
    """The terms of the loss from this process's logits. The gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx, W, logits, labels, anchors, temperature, cross_entropy_weight, first_class):
        rows = free_rows(anchors)
        largest = _over_processes(logits.amax(dim=1, keepdim=True).to(W.dtype), dist.ReduceOp.MAX)
        shift = take(largest, rows) / -temperature
        total, total_at_one, gram = 0, 0, 0
        for columns in chunks(logits):
            z = logits[:, columns]
            unscaled = exponentials(z, rows, shift, temperature)
            total = total + unscaled.sum(dim=1, keepdim=True)
            total_at_one = total_at_one + torch.sub(z, largest).exp_().sum(dim=1, keepdim=True)
            gram = gram + gram_matrix(unscaled)
        # Labels of other processes' classes are looked up anywhere, and count as 0.
        here = (labels >= first_class) & (labels < first_class + logits.shape[1])
        local = torch.where(here, labels - first_class, 0)
        at_labels = exponentials(logits.index_select(1, local), rows, shift, temperature) * here
        own_logits = torch.where(here, logits.gather(1, local[:, None]).squeeze(1).to(W.dtype), 0)
        total, total_at_one, gram, at_labels, own_logits = _sum_over_processes(
            total, total_at_one, gram, at_labels, own_logits
        )
        L, G = with_anchors(at_labels / total, gram / (total * total.T), labels, anchors, rows)
        log_total = largest + total_at_one.log()
        losses = -own_probability(W, L, G, anchors).log()
        losses = losses + cross_entropy_weight * (log_total.squeeze(1) - own_logits)
        ctx.temperature, ctx.cross_entropy_weight, ctx.rows = temperature, cross_entropy_weight, rows
        ctx.save_for_backward(W, logits, local, here, anchors, L, G, shift - total.log(), log_total)
        return losses

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        W, logits, local, here, anchors, L, G, shift, log_total = ctx.saved_tensors
        rows, temperature = ctx.rows, ctx.temperature
        dW, dL, direct, A = own_gradients(grad, W, L, G, anchors)
        by_log = dL * L - direct.diag()
        # The logits enter the losses of all processes.
        count = distributed.num_processes()
        offset = take(-row_sums(by_log, A, G) * count / temperature, rows)
        A = square(A * count / temperature, rows)
        weight = ctx.cross_entropy_weight * count * grad[:, None]
        dlogits = torch.empty_like(logits)
        for columns in chunks(logits):
            z = logits[:, columns]
            S = exponentials(z, rows, shift, temperature)
            entropy = torch.sub(z, log_total).exp_().mul_(weight)
            dlogits[:, columns] = entropy.add_(spread(torch.addmm(offset, A, S).mul_(S), rows, len(z)))
        at_labels = by_log * count / temperature - weight.squeeze(1).diag()
        add_at_labels(dlogits, local, at_labels * here)
        return dW, dlogits, None, None, None, None, None


def _over_processes(x: Tensor, operation: dist.ReduceOp) -> Tensor:
    if distributed.num_processes() > 1:
        dist.all_reduce(x, op=operation)
    return x


def _sum_over_processes(*tensors: Tensor) -> list[Tensor]:
    """The sums over processes, in one message."""
    message = _over_processes(torch.cat([tensor.flatten() for tensor in tensors]), dist.ReduceOp.SUM)
    parts = message.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
