"""The Group Loss at the cost of what it needs: the fast path beside `gl_core.loss.plain_losses`.

The plain path refines all n x C assignments and then reads n numbers from them. Those n numbers need much less. Let y
be the labels, X the assignments before the last iteration, and

    L_ij = X_i[y_j]        the label columns of the assignments,   (n, n)
    G_ij = <X_i, X_j>      their Gram matrix,                      (n, n)

The last iteration gives image i its own label with probability

    p_i = X_i[y_i] (W X)_i[y_i] / sum_c X_ic (W X)_ic  =  L_ii s_i / t_i

    s_i = sum_j W_ij L_ji,    t_i = sum_j W_ij G_ij

so it costs one symmetric product, X X^T, where the plain path multiplies by W over all classes. For T = 1 that is the
only iteration, and X the softmax S of the logits, or one-hot for anchors. For T = 2 there is one before it:

    X = S * R,    R = U / <S, U>,    U = W X_0       (X_0: S, or one-hot; R = 1 where <S, U> = 0)

Anchors keep their one-hot rows. Their entries of G are entries of L, so (n, C) work is done for the other rows alone.

Gradients are written out by hand: `_own_gradients` for the last iteration, `_Losses.backward` for what lies below it.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gl_core.propagation import at_least_float32, without_autocast

__all__ = ["ITERATIONS", "fast_losses"]

Vector = Float[Tensor, " n"]
Square = Float[Tensor, "n n"]
Labels = Int[Tensor, " n"]
Anchors = Bool[Tensor, " n"]
Rows = Int[Tensor, " m"] | None  # of the m ordinary images, which are not anchors; None: all

ITERATIONS = (0, 1, 2)  # that the fast path knows
# Rows of a block of the Gram matrix, of which blocks above the diagonal are mirrored.
GRAM_BLOCK = 128


def fast_losses(
    W: Square,
    logits: Float[Tensor, "n C"],
    labels: Labels,
    anchors: Anchors,
    num_iterations: int,
    temperature: float,
    cross_entropy_weight: float = 0.0,
) -> Vector:
    """The same numbers as `gl_core.loss.plain_losses`, of arguments that were checked.

    `num_iterations` is one of `ITERATIONS`. There is no second derivative: asking for it raises RuntimeError.
    """
    W, _ = at_least_float32(W, logits[:0])
    if num_iterations > 0:
        return _Losses.apply(W, logits, labels, anchors, num_iterations, temperature, cross_entropy_weight)
    logits = logits.to(W.dtype)
    losses = F.cross_entropy(logits / temperature, labels, reduction="none")
    losses = losses.clamp_max(-math.log(torch.finfo(losses.dtype).tiny)).masked_fill(anchors, 0)
    if cross_entropy_weight:
        losses = losses + cross_entropy_weight * F.cross_entropy(logits, labels, reduction="none")
    return losses


class _Losses(torch.autograd.Function):
    """One or two iterations. A name with d is the gradient with respect to what follows; m rows are not of anchors."""

    @staticmethod
    def forward(ctx, W, logits, labels, anchors, num_iterations, temperature, cross_entropy_weight):
        rows = _ordinary(anchors)
        z = logits.to(W.dtype)
        S = _take(z, rows)
        # In place where it is a copy: memory that is newly mapped costs more than the arithmetic.
        S = torch.softmax(S / temperature if rows is None else S.div_(temperature), dim=1)
        if num_iterations == 1:
            X, R, h = S, None, None
        else:
            U = _square(W.masked_fill(anchors, 0), rows) @ S
            # W X: an anchor supports its own class alone.
            U.scatter_add_(1, labels.expand(len(U), -1), _take(W.masked_fill(~anchors, 0), rows))
            total = torch.linalg.vecdot(S, U)[:, None]
            unsupported = total == 0
            h = total.masked_fill(unsupported, math.inf).reciprocal()  # 0 where nothing supports the row
            R = torch.addcmul(unsupported.to(U.dtype), U, h)
            X = S * R
        L, G = _label_columns_and_gram(X, labels, anchors, rows)
        p, _, _ = _own_probability(W, L, G)
        losses = p.masked_fill(anchors, 1).clamp_min(torch.finfo(p.dtype).tiny).log().neg()
        logsumexp = None
        if cross_entropy_weight:
            own = labels[:, None]
            entropy = -torch.log_softmax(z, dim=1).gather(1, own)
            losses.add_(entropy.squeeze(1), alpha=cross_entropy_weight)
            logsumexp = z.gather(1, own) + entropy
        ctx.rows, ctx.temperature, ctx.cross_entropy_weight = rows, temperature, cross_entropy_weight
        ctx.save_for_backward(W, logits, labels, anchors, S, L, G, R, h, logsumexp)
        return losses

    @staticmethod
    def backward(ctx, grad):
        """From dL, A and g of `_own_gradients` to dW and to that of the logits, dz. Rows of anchors are 0 throughout.

        Row i of X receives dX_i = sum_j A_ij X_j, plus dL_ij at each class y_j, less g_i / L_ii at y_i. The softmax, as
        every division of a row by its sum, takes from this its mean under X:

            r_i = <X_i, dX_i> = sum_j (A_ij G_ij + dL_ij L_ij) - g_i
            D = S * (dX - r)

        For T = 1, X is S, and dz = D / temperature. For T = 2, X = S * U / <S, U>: U receives D / <S, U>, and S, times
        itself, R * D. With U = W X_0, and h for the inverse of <S, U>:

            dW += E,                     E_ij = h_i <D_i, X_0j>
            D <- R * D + S * (V - q),    V = W^T (h * D),    q_j = <S_j, V_j> = sum_i W_ij E_ij
        """
        # PyTorch's own guard, once_differentiable, lets a gradient pass for a constant where the incoming one is a
        # constant.
        if torch.is_grad_enabled():
            raise RuntimeError("the fast path of the Group Loss has no second derivative: pass path='plain'")
        W, logits, labels, anchors, S, L, G, R, h, logsumexp = ctx.saved_tensors
        rows = ctx.rows
        with without_autocast(grad):
            dW, dL, A, g = _own_gradients(grad, W, L, G, anchors)
            r = (A * G + dL * L).sum(dim=1) - g
            X, own_R = S, 1
            if R is not None:
                X, own_R = S * R, _spread(R.index_select(1, labels), rows, len(W)).diagonal()
                own_R = torch.where(g == 0, 1, own_R)
            D = (_square(A, rows) @ X).sub_(_take(r[:, None], rows)).mul_(S)
            at_labels = _take(dL, rows) * S.index_select(1, labels) - _take((g / own_R).diag(), rows)
            D.scatter_add_(1, labels.expand(len(D), -1), at_labels)
            if R is not None:
                E = _join(h * (D @ S.T), h * D.index_select(1, labels), anchors, rows)
                W_free = _square(W.masked_fill(anchors, 0), rows)
                q = (W_free * _square(E, rows)).sum(dim=0)[:, None]
                D = ((h * W_free).T @ D).sub_(q).mul_(S).addcmul_(R, D)
                dW = dW + E
            dz = _logit_gradient(
                D.div_(ctx.temperature), grad * ctx.cross_entropy_weight, logits, labels, logsumexp, rows
            )
        return dW, dz.to(logits.dtype), None, None, None, None, None


def _own_probability(W: Square, L: Square, G: Square) -> tuple[Vector, Vector, Vector]:
    """p, s and t. Where t_i is 0 nothing supports the row, which keeps its assignment: p_i = L_ii."""
    own, s, t = L.diagonal(), (W * L.T).sum(dim=1), (W * G).sum(dim=1)
    unsupported = t == 0
    return torch.where(unsupported, own, own * s / t.masked_fill(unsupported, 1)), s, t


def _own_gradients(
    grad: Vector, W: Square, L: Square, G: Square, anchors: Anchors
) -> tuple[Square, Square, Square, Vector]:
    """Gradients of sum_i g_i * (-log p_i), g being `grad`, but 0 for anchors and where p is cut off at the smallest
    number.

        -log p_i = -log L_ii - log sum_j W_ij L_ji + log sum_j W_ij G_ij

    With a_i = g_i / s_i and b_i = g_i / t_i (both 0 where t_i is 0, as p_i is L_ii there):

        dW_ij = b_i G_ij - a_i L_ji           dG_ij = b_i W_ij
        dL_ij = -a_j W_ji                     + dG_ij where j is an anchor, as G_ij = L_ij there

    and L_ii alone adds -g_i / L_ii. Of dG remains, with G = X X^T, what reaches X from ordinary images, A X:

        A = dG + dG^T                         0 in rows and columns of anchors

    Returns dW, dL without the part of L_ii alone, A, and g. Rows of anchors are 0.
    """
    p, s, t = _own_probability(W, L, G)
    g = grad.masked_fill(anchors | (p < torch.finfo(p.dtype).tiny), 0)
    supported = g.masked_fill(t == 0, 0)[:, None]
    a, b = (supported / total.masked_fill(total == 0, 1)[:, None] for total in (s, t))
    dW = b * G - a * L.T
    dG = b * W
    dL = (dG * anchors - (a * W).T).masked_fill(anchors[:, None], 0)
    dG = dG.masked_fill(anchors, 0)
    return dW, dL, dG + dG.T, g


def _label_columns_and_gram(
    X: Float[Tensor, "m C"], labels: Labels, anchors: Anchors, rows: Rows
) -> tuple[Square, Square]:
    """L and G of all images, from the assignments of the ordinary ones; rows of G of anchors mean nothing."""
    to_labels = X.index_select(1, labels)
    same_class = (labels[:, None] == labels).to(X.dtype)
    L = torch.where(anchors[:, None], same_class, _spread(to_labels, rows, len(labels)))
    return L, _join(_gram(X), to_labels, anchors, rows)


def _gram(X: Float[Tensor, "m C"]) -> Float[Tensor, "m m"]:
    """X X^T; on a CPU nearly half of the entries of a large one are mirrored."""
    m = len(X)
    if m <= GRAM_BLOCK or X.device.type != "cpu":
        return X @ X.T
    gram = X.new_zeros(m, m)
    for start in range(0, m, GRAM_BLOCK):
        block = slice(start, start + GRAM_BLOCK)
        gram[block, : start + GRAM_BLOCK] = X[block] @ X[: start + GRAM_BLOCK].T
    lower = gram.tril()
    return lower + gram.tril(-1).T


def _logit_gradient(
    D: Float[Tensor, "m C"],
    weight: Vector,
    logits: Float[Tensor, "n C"],
    labels: Labels,
    logsumexp: Float[Tensor, "n 1"] | None,
    rows: Rows,
) -> Float[Tensor, "n C"]:
    """D in the rows of ordinary images, plus that of cross-entropy, weight * (softmax(z) - onehot(y))."""
    if logsumexp is None:
        return _spread(D, rows, len(logits))
    weight = weight[:, None]
    dz = torch.sub(logits, logsumexp).exp_().mul_(weight).scatter_add_(1, labels[:, None], -weight)
    return dz.add_(D) if rows is None else dz.index_add_(0, rows, D)


def _ordinary(anchors: Anchors) -> Rows:
    """None where picking them out would make the host wait for their number, or break a graph of `torch.compile`."""
    if anchors.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return (~anchors).nonzero().squeeze(1)


def _take(x: Float[Tensor, "n c"], rows: Rows) -> Float[Tensor, "m c"]:
    return x if rows is None else x.index_select(0, rows)


def _square(x: Square, rows: Rows) -> Float[Tensor, "m m"]:
    return x if rows is None else x.index_select(0, rows).index_select(1, rows)


def _spread(x: Float[Tensor, "m c"], rows: Rows, n: int) -> Float[Tensor, "n c"]:
    """The rows at their places, and zeros between them."""
    return x if rows is None else x.new_zeros(n, x.shape[1]).index_copy_(0, rows, x)


def _join(free: Float[Tensor, "m m"], to_labels: Float[Tensor, "m n"], anchors: Anchors, rows: Rows) -> Square:
    """Entries of ordinary images: `free` where the other image is ordinary too, `to_labels` where it is an anchor."""
    if rows is None:
        return torch.where(anchors, to_labels, free)
    return _spread(to_labels.index_copy(1, rows, free), rows, len(anchors))
