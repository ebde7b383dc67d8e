"""The Group Loss at the cost of what it needs: the fast path beside the plain one of `gl_core.loss`.

The plain path refines all n x C assignments and then reads n numbers from them. Those n numbers need much less. Let y be the
labels and

    L_ij = X_i[y_j]        the label columns of the assignments,   (n, n)
    G_ij = <X_i, X_j>      their Gram matrix,                      (n, n)

One iteration gives image i its own label with probability

    X_i[y_i] (W X)_i[y_i] / sum_c X_ic (W X)_ic  =  L_ii sum_j W_ij L_ji / sum_j W_ij G_ij

so T = 1 costs one symmetric product, X X^T, where the plain path multiplies by W over all classes. Anchors are one-hot: their
entries of G are entries of L, and they take no part in the product. T = 2 is the same with L and G of the assignments after
one iteration.

Gradients are written out by hand. With respect to W, G and the logarithms of L they are (n, n); the softmax below them needs
one more product, (n, n) by (n, C). For T = 1 the work is done some classes at a time, and softmax values are computed again in
the backward pass rather than kept, unless one go is enough. Cross-entropy of the same logits is taken along in the same passes.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gl_core.propagation import at_least_float32

__all__ = ["ITERATIONS", "fast_losses"]

ITERATIONS = (0, 1, 2)  # that the fast path knows
# Logits worked on at a time: on a CPU few enough to stay in its cache and many enough that waking its threads for each
# operation does not count, on a GPU so many that it is kept busy.
CPU_LOGITS, GPU_LOGITS = 2**21, 2**24
# Rows of a block of the Gram matrix, of which blocks above the diagonal are mirrored.
GRAM_BLOCK = 128


def fast_losses(
    similarity: Float[Tensor, "n n"],
    logits: Float[Tensor, "n C"],
    labels: Int[Tensor, " n"],
    anchors: Bool[Tensor, " n"],
    *,
    num_iterations: int,
    temperature: float,
    cross_entropy_weight: float = 0.0,
) -> Float[Tensor, " n"]:
    """The terms of `group_loss` plus `cross_entropy_weight` times those of cross-entropy, of arguments that were checked.

    `num_iterations` is one of `ITERATIONS`. For T = 1 logits in half precision are widened some classes at a time; their
    gradient has their dtype. There is no second derivative: asking for it raises RuntimeError.
    """
    similarity, _ = at_least_float32(similarity, logits[:0])
    labels = labels.long()
    if num_iterations == 0:
        return _losses_without_iterations(similarity, logits, labels, anchors, temperature, cross_entropy_weight)
    path = _OneIteration if num_iterations == 1 else _TwoIterations
    return path.apply(similarity, logits, labels, anchors, temperature, cross_entropy_weight)


def _losses_without_iterations(W, logits, labels, anchors, temperature, cross_entropy_weight) -> Float[Tensor, " n"]:
    logits = logits.to(W.dtype)
    losses = F.cross_entropy(logits / temperature, labels, reduction="none")
    losses = losses.clamp_max(-math.log(torch.finfo(losses.dtype).tiny)).masked_fill(anchors, 0)
    if cross_entropy_weight:
        losses = losses + cross_entropy_weight * F.cross_entropy(logits, labels, reduction="none")
    return losses


class _OneIteration(torch.autograd.Function):
    """T = 1, some classes at a time."""

    @staticmethod
    def forward(ctx, W, logits, labels, anchors, temperature, cross_entropy_weight):
        rows = free_rows(anchors)
        largest = logits.amax(dim=1, keepdim=True).to(W.dtype)
        shift = take(largest, rows) / -temperature
        total, total_at_one, gram, unscaled = 0, 0, 0, None
        for columns in chunks(logits):
            z = logits[:, columns]
            unscaled = exponentials(z, rows, shift, temperature)
            total = total + unscaled.sum(dim=1, keepdim=True)
            gram = gram + gram_matrix(unscaled)
            if cross_entropy_weight:
                total_at_one = total_at_one + torch.sub(z, largest).exp_().sum(dim=1, keepdim=True)
        own_columns = exponentials(logits.index_select(1, labels), rows, shift, temperature) / total
        L, G = with_anchors(own_columns, gram / (total * total.T), labels, anchors, rows)
        losses = -own_probability(W, L, G, anchors).log()
        log_total = None
        if cross_entropy_weight:
            log_total = largest + total_at_one.log()
            losses += cross_entropy_weight * (log_total - logits.gather(1, labels[:, None])).squeeze(1)
        ctx.temperature, ctx.cross_entropy_weight, ctx.rows = temperature, cross_entropy_weight, rows
        # What is needed again is kept where it was made in one go: the backward pass would hold it anyway.
        kept = unscaled if unscaled.shape[1] == logits.shape[1] else None
        ctx.save_for_backward(W, logits, labels, anchors, L, G, shift, total, log_total, kept)
        return losses

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        W, logits, labels, anchors, L, G, shift, total, log_total, kept = ctx.saved_tensors
        rows, temperature = ctx.rows, ctx.temperature
        dW, dL, direct, A = own_gradients(grad, W, L, G, anchors)
        by_log = dL * L - direct.diag()
        # The softmax is the exponentials over their total: (n, n) is divided instead of (n, C).
        offset = take(-row_sums(by_log, A, G) / temperature, rows) / total
        A = square(A / temperature, rows) / (total * total.T)
        weight = ctx.cross_entropy_weight * grad[:, None]
        dlogits = torch.empty_like(logits)
        for columns in chunks(logits):
            z = logits[:, columns]
            unscaled = exponentials(z, rows, shift, temperature) if kept is None else kept
            free = torch.addmm(offset, A, unscaled).mul_(unscaled)
            if log_total is None:
                put(dlogits[:, columns], free, rows, anchors)
            else:
                entropy = torch.sub(z, log_total).exp_().mul_(weight)
                dlogits[:, columns] = entropy.add_(free) if rows is None else entropy.index_add_(0, rows, free)
        at_labels = by_log / temperature
        if log_total is not None:
            at_labels.diagonal().sub_(weight.squeeze(1))
        add_at_labels(dlogits, labels, at_labels)
        return dW, dlogits, None, None, None, None


class _TwoIterations(torch.autograd.Function):
    """T = 2.

    With the softmax S and U = W X, the assignments after one iteration are S * R, where R is U over the sums of S * U (and 1 for
    a row that has heard nothing).
    """

    @staticmethod
    def forward(ctx, W, logits, labels, anchors, temperature, cross_entropy_weight):
        rows = free_rows(anchors)
        z = logits.to(W.dtype)
        shift = -torch.logsumexp(take(z, rows) / temperature, dim=1, keepdim=True)
        S = exponentials(z, rows, shift, temperature)
        U = square(W.masked_fill(anchors, 0), rows) @ S
        # An anchor speaks for its own class alone.
        U.index_add_(1, labels, take(W * anchors, rows))
        total = torch.linalg.vecdot(S, U)[:, None]
        heard = total > 0
        inverse = heard / torch.where(heard, total, 1)
        R = torch.addcmul((~heard).to(U.dtype), U, inverse)
        S *= R
        L, G = with_anchors(S.index_select(1, labels), gram_matrix(S), labels, anchors, rows)
        losses = -own_probability(W, L, G, anchors).log()
        log_total = None
        if cross_entropy_weight:
            log_total = z.logsumexp(dim=1, keepdim=True)
            losses += cross_entropy_weight * (log_total - z.gather(1, labels[:, None])).squeeze(1)
        ctx.temperature, ctx.cross_entropy_weight, ctx.rows = temperature, cross_entropy_weight, rows
        ctx.save_for_backward(W, logits, labels, anchors, L, G, shift, log_total, R, inverse)
        return losses

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        W, logits, labels, anchors, L, G, shift, log_total, R, inverse = ctx.saved_tensors
        rows, temperature = ctx.rows, ctx.temperature
        dW, dL, direct, A = own_gradients(grad, W, L, G, anchors)
        by_log = dL * L - direct.diag()
        S = exponentials(logits, rows, shift, temperature)
        # inverse * D is the gradient with respect to U, and R * D that of log(S * U), less what normalising takes away.
        D = torch.addmm(take(-row_sums(by_log, A, G), rows), square(A, rows), S * R).mul_(S)
        own_R = spread(R.index_select(1, labels), rows, len(W)).diagonal()
        at_labels = take((direct / torch.where(direct == 0, 1, own_R)).diag(), rows)
        add_at_labels(D, labels, take(dL, rows) * S.index_select(1, labels) - at_labels)
        by_U = join(inverse * (D @ S.T), inverse * D.index_select(1, labels), anchors, rows)
        to_free = square(W.masked_fill(anchors, 0), rows)
        offset = -(to_free * square(by_U, rows)).sum(dim=0)[:, None] / temperature
        free = torch.addmm(offset, (inverse * to_free).T / temperature, D).mul_(S)
        del S
        free.addcmul_(R, D, value=1 / temperature)
        if log_total is None:
            dlogits = spread(free, rows, len(logits))
        else:
            weight = ctx.cross_entropy_weight * grad[:, None]
            dlogits = torch.sub(logits, log_total).exp_().mul_(weight)
            dlogits = dlogits.add_(free) if rows is None else dlogits.index_add_(0, rows, free)
            add_at_labels(dlogits, labels, torch.diag(-weight.squeeze(1)))
        return dW + by_U, dlogits.to(logits.dtype), None, None, None, None


def refuse_second_derivative() -> None:
    # PyTorch's own guard, once_differentiable, lets a gradient pass for a constant where the incoming one is a constant.
    if torch.is_grad_enabled():
        raise RuntimeError("the fast path of the Group Loss has no second derivative: pass path='plain'")


def chunks(logits: Float[Tensor, "n C"]) -> Iterator[slice]:
    """The classes, some at a time."""
    at_once = CPU_LOGITS if logits.device.type == "cpu" else GPU_LOGITS
    width = max(1, at_once // len(logits))
    for start in range(0, logits.shape[1], width):
        yield slice(start, start + width)


def exponentials(
    z: Float[Tensor, "n c"], rows: Int[Tensor, " m"] | None, shift: Float[Tensor, "m 1"], temperature: float
) -> Float[Tensor, "m c"]:
    """exp(z / temperature + shift) of the rows, in the dtype of `shift`."""
    if rows is None:
        return torch.add(shift, z, alpha=1 / temperature).exp_()
    # In place where it can be: memory that is newly mapped costs more than the arithmetic.
    x = z.index_select(0, rows)
    return torch.add(shift, x, alpha=1 / temperature, out=x if x.dtype == shift.dtype else None).exp_()


def gram_matrix(rows: Float[Tensor, "m c"]) -> Float[Tensor, "m m"]:
    """<row_i, row_j>; on a CPU nearly half of the entries of a large one are mirrored."""
    m = len(rows)
    if m <= GRAM_BLOCK or rows.device.type != "cpu":
        return rows @ rows.T
    gram = rows.new_zeros(m, m)
    for start in range(0, m, GRAM_BLOCK):
        block = slice(start, start + GRAM_BLOCK)
        gram[block, : start + GRAM_BLOCK] = rows[block] @ rows[: start + GRAM_BLOCK].T
    lower = gram.tril()
    return lower + gram.tril(-1).T


def own_probability(
    W: Float[Tensor, "n n"], L: Float[Tensor, "n n"], G: Float[Tensor, "n n"], anchors: Bool[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The probability of each image's own label after one more iteration, 1 for an anchor; at least the smallest number."""
    own, _, _ = _refined(W, L, G)
    return own.masked_fill(anchors, 1).clamp_min(torch.finfo(own.dtype).tiny)


def _refined(
    W: Float[Tensor, "n n"], L: Float[Tensor, "n n"], G: Float[Tensor, "n n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The probability of each own label after one more iteration, (W X)_i[y_i], and what the row is divided by."""
    own, support, total = L.diagonal(), (W * L.T).sum(dim=1), (W * G).sum(dim=1)
    return torch.where(total > 0, own * support / torch.where(total > 0, total, 1), own), support, total


def own_gradients(
    grad: Float[Tensor, " n"],
    W: Float[Tensor, "n n"],
    L: Float[Tensor, "n n"],
    G: Float[Tensor, "n n"],
    anchors: Bool[Tensor, " n"],
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"], Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Gradients of sum_i grad_i * (-log own_i), own being `own_probability`.

    With respect to W; to L, but for the factor L_ii; minus that with respect to the logarithm of this factor, (n,); and the
    symmetric A for which that with respect to the rows of ordinary images, as far as it comes from G, is A X. Where own is cut
    off at the smallest number, and for anchors, all are zero.
    """
    own, support, total = _refined(W, L, G)
    grad = torch.where(anchors | (own < torch.finfo(own.dtype).tiny), 0, grad)
    of_heard = torch.where(total > 0, grad, 0)
    by_support = (of_heard / torch.where(support > 0, support, 1))[:, None]
    by_total = (of_heard / torch.where(total > 0, total, 1))[:, None]
    dW = by_total * G - by_support * L.T
    by_G = by_total * W
    dL = (torch.where(anchors, by_G, 0) - (by_support * W).T).masked_fill(anchors[:, None], 0)
    by_G = by_G.masked_fill(anchors, 0)
    return dW, dL, grad, by_G + by_G.T


def row_sums(by_log: Float[Tensor, "n n"], A: Float[Tensor, "n n"], G: Float[Tensor, "n n"]) -> Float[Tensor, "n 1"]:
    """What the gradients with respect to the logarithms of a row of assignments add up to."""
    return (by_log + A * G).sum(dim=1, keepdim=True)


# On a CPU the rows of ordinary images, which are not anchors, are picked out. On a GPU that would make the host wait, so there
# `rows` is None: all rows are worked on, and those of anchors are passed over at the end.


def free_rows(anchors: Bool[Tensor, " n"]) -> Int[Tensor, " m"] | None:
    return (~anchors).nonzero().squeeze(1) if anchors.device.type == "cpu" else None


def take(x: Float[Tensor, "n c"], rows: Int[Tensor, " m"] | None) -> Float[Tensor, "m c"]:
    return x if rows is None else x.index_select(0, rows)


def square(x: Float[Tensor, "n n"], rows: Int[Tensor, " m"] | None) -> Float[Tensor, "m m"]:
    return x if rows is None else x[rows[:, None], rows]


def spread(x: Float[Tensor, "m c"], rows: Int[Tensor, " m"] | None, n: int) -> Float[Tensor, "n c"]:
    """The rows at their places, and zeros between them."""
    return x if rows is None else x.new_zeros(n, x.shape[1]).index_copy_(0, rows, x)


def put(
    x: Float[Tensor, "n c"], free: Float[Tensor, "m c"], rows: Int[Tensor, " m"] | None, anchors: Bool[Tensor, " n"]
) -> None:
    """Write the rows at their places in x, and zeros in those of anchors."""
    if rows is None:
        x.copy_(free)
    else:
        # Only what is not written otherwise: `x` is new, and its pages are mapped as they are touched.
        x.index_copy_(0, rows, free.to(x.dtype)).index_fill_(0, anchors.nonzero().squeeze(1), 0)


def join(
    free: Float[Tensor, "m m"],
    to_labels: Float[Tensor, "m n"],
    anchors: Bool[Tensor, " n"],
    rows: Int[Tensor, " m"] | None,
) -> Float[Tensor, "n n"]:
    """Entries of ordinary images: `free` where the other image is ordinary too, `to_labels` where it is an anchor."""
    if rows is None:
        return torch.where(anchors, to_labels, free)
    joined = spread(torch.where(anchors, to_labels, 0), rows, len(anchors))
    joined[rows[:, None], rows] = free
    return joined


def with_anchors(
    to_labels: Float[Tensor, "m n"],
    gram: Float[Tensor, "m m"],
    labels: Int[Tensor, " n"],
    anchors: Bool[Tensor, " n"],
    rows: Int[Tensor, " m"] | None,
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """L and G of all images, from those of the ordinary ones."""
    same_class = (labels[:, None] == labels).to(to_labels.dtype)
    L = torch.where(anchors[:, None], same_class, spread(to_labels, rows, len(labels)))
    return L, join(gram, to_labels, anchors, rows)


def add_at_labels(x: Float[Tensor, "m C"], labels: Int[Tensor, " n"], values: Float[Tensor, "m n"]) -> None:
    """x[i, labels[j]] += values[i, j], in place."""
    x.scatter_add_(1, labels.expand(len(x), -1), values.to(x.dtype))
