"""A linear probe: softmax regression on top of a fixed embedding, fitted in a second."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gl_core import _checks

__all__ = ["linear_probe"]


def linear_probe(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, weight_decay: float = 1e-3, max_iter: int = 15
) -> nn.Linear:
    """Softmax regression from embeddings to classes by a few steps of L-BFGS.

        minimise over A, b:  -1/n sum_i log softmax(A g_i + b)[y_i] + weight_decay |A|^2,   g_i = (f_i - mean) / std

    `mean` is that of each feature, `std` one number for all of them. It starts from zeros, so that nothing is random.

    Args:
        features: embeddings (n, d).
        labels: whole numbers (n,), 0 or more; C is the largest plus 1.
        weight_decay: 0 or more.
        max_iter: iterations of L-BFGS.

    Returns:
        A linear layer from d to C without gradient, which takes features as they are: the standardisation is folded in.

    Raises:
        ValueError: `features` is not a matrix of finite numbers, `labels` do not match it, or a setting is out of
            range.
    """
    labels = torch.as_tensor(labels, device=features.device)
    _checks.matrix("features", features)
    _checks.labels("labels", labels, length=len(features))
    _checks.count("max_iter", max_iter, least=1)
    _checks.weight("weight_decay", weight_decay)
    if int(labels.min()) < 0:
        raise ValueError(f"labels holds {int(labels.min())}: must be 0 or more")
    features = features.detach()
    mean, scale = features.mean(dim=0), features.std().clamp_min(torch.finfo(features.dtype).tiny)
    standardised = (features - mean) / scale
    num_classes = int(labels.max()) + 1
    # `skip_init` draws no weights, so that the random state stays as it is.
    size = features.shape[1], num_classes
    probe = nn.utils.skip_init(nn.Linear, *size, device=features.device, dtype=features.dtype)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=max_iter)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(standardised), labels) + weight_decay * probe.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        probe.weight.div_(scale)
        probe.bias.sub_(probe.weight @ mean)
    return probe.requires_grad_(False)
