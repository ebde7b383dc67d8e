"""Embedding images with a trained network, and the formulas that change an embedding at test time."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation import nearest_neighbours
from gl_core.images import ImageStore
from gl_core.models import EmbeddingNet

__all__ = ["beta_normalize", "embed", "mixed_pooling", "query_expansion"]


@torch.inference_mode()
def embed(model: EmbeddingNet, images: ImageStore | Tensor, *, batch_size: int = 256) -> Float[Tensor, "n d"]:
    """The embedding of every image, in order, in float32 on the model's device.

    `images` is an `ImageStore` or a tensor (n, 1 or 3, h, w), uint8 or floats in [0, 1]. The model runs in evaluation mode and
    is left in the mode in which it came.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        if isinstance(images, Tensor):
            batches = images.split(batch_size)
        else:
            numbers = list(range(len(images)))
            chunks = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
            batches = (batch for batch, _ in images.batches(chunks))
        layout = torch.channels_last
        return torch.cat([model(batch.to(device).contiguous(memory_format=layout)).float() for batch in batches])
    finally:
        model.train(training)


def mixed_pooling(feature_map: Float[Tensor, "n d h w"], weight: float) -> Float[Tensor, "n d"]:
    """weight * max + (1 - weight) * mean, both over the places of each channel.

    `weight` lies in [0, 1]; 0 is the mean exactly, 1 the maximum. Raises ValueError for another weight, or if `feature_map` has
    not four dimensions or no place. Source: the released code of a co-author of Group Loss++, with weights of 0.5 to 0.6.

    >>> mixed_pooling(torch.tensor([[[[0., 4.]]]]), 0.5)
    tensor([[3.]])
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: must lie in [0, 1]")
    if feature_map.ndim != 4 or 0 in feature_map.shape[2:]:
        raise ValueError(f"feature_map has shape {tuple(feature_map.shape)}: must be (n, d, h, w), h and w 1 or more")
    mean = feature_map.mean(dim=(2, 3))
    return mean if weight == 0 else weight * feature_map.amax(dim=(2, 3)) + (1 - weight) * mean


def beta_normalize(features: Float[Tensor, "n d"], beta: float) -> Float[Tensor, "n d"]:
    """f / |f| + beta f: the direction of each row, made longer by `beta` times its length.

    Rows have length 1 + beta |f|, and `beta` 0 gives `torch.nn.functional.normalize` exactly. A row of zeros stays one. It matters
    under metric "euclidean" only: the cosine does not see lengths. Raises ValueError if `beta` is negative or not finite, or
    `features` is not a matrix of finite numbers. Source: the released code of a co-author of Group Loss++.

    >>> beta_normalize(torch.tensor([[0., 5.]]), 0.2)
    tensor([[0., 2.]])
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta={beta}: must be 0 or more, and finite")
    _checks.matrix("features", features)
    directions = F.normalize(features)
    return directions if beta == 0 else directions + beta * features


def query_expansion(
    query: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"] | None = None, *, k: int, alpha: float
) -> Float[Tensor, "q d"]:
    """Each query moved towards its k nearest images of the gallery, and normalised.

        q' = q + sum_i max(s_i, 0)^alpha g_i,    q'/|q'| is returned

    with q and g_i of length 1 and s_i = <q, g_i>. `k` 0 returns `query` itself. Without a `gallery` the queries are each other's,
    and none is its own neighbour: that is database-side expansion.

    Raises ValueError if `alpha` is negative or not finite, `k` is not in 0..images that a query is compared with, or the vectors
    are not matrices of finite numbers with equally many columns. Source: Radenovic et al., "Fine-tuning CNN Image Retrieval
    with No Human Annotation", TPAMI 2019.

    >>> query_expansion(torch.tensor([[1., 0.]]), torch.tensor([[3., 4.], [0., -1.]]), k=1, alpha=0)
    tensor([[0.8944, 0.4472]])
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be 0 or more, and finite")
    _checks.count("k", k, least=0)
    _checks.matrix("query", query)
    if k == 0:
        return query
    similarity, index = nearest_neighbours(query, gallery, k)
    others = F.normalize(query if gallery is None else gallery)
    expanded = F.normalize(query)
    # One neighbour at a time: all k of all queries at once would be k times the memory of the queries.
    for weight, neighbour in zip(similarity.clamp(min=0).pow(alpha).T, index.T, strict=True):
        expanded = expanded + weight[:, None].to(expanded) * others[neighbour]
    return F.normalize(expanded)
