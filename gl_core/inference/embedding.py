"""Embedding images with a trained network, and searching with them: plainly, or with the strategies of Group Loss++."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.datasets.protocol import judge, query_and_gallery
from gl_core.datasets.store import ImageStore
from gl_core.evaluation import retrieval_metrics
from gl_core.evaluation.arrays import unit_rows
from gl_core.inference.strategies import Strategies, beta_normalize, mixed_pooling, query_expansion
from gl_core.models import EmbeddingNet
from gl_core.models.last_activation import leaky_last_activation

if TYPE_CHECKING:
    from gl_core.datasets import RetrievalDataset

__all__ = ["Strategies", "beta_normalize", "embed", "evaluate", "mixed_pooling", "query_expansion", "search_and_judge"]


@torch.inference_mode()
def embed(
    model: EmbeddingNet,
    images: ImageStore | Tensor,
    strategies: Strategies | None = None,
    *,
    batch_size: int = 256,
) -> Float[Tensor, "n d"]:
    """The embedding of every image, in order, in float32 on the model's device.

    `images` is an `ImageStore` or a tensor (n, 1 or 3, h, w), uint8 or floats in [0, 1]. Of the strategies those take effect
    that concern a single image: the last activation, the pooling, the mirror image and the normalisation, in this order. The
    model runs in evaluation mode and is left as it came.

    Raises ValueError for a slope where the backbone has no last activation.
    """
    strategies = Strategies() if strategies is None else strategies
    training = model.training
    device = next(model.parameters()).device
    model.eval()

    def one(batch: Tensor) -> Tensor:
        batch = batch.contiguous(memory_format=torch.channels_last)
        return model.embedding(mixed_pooling(model.feature_map(batch), strategies.mixed_pooling)).float()

    try:
        if isinstance(images, Tensor):
            batches = images.split(batch_size)
        else:
            numbers = list(range(len(images)))
            chunks = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
            batches = (batch for batch, _ in images.batches(chunks))
        embedded = []
        with leaky_last_activation(model, strategies.leaky_slope):
            for batch in batches:
                batch = batch.to(device)
                found = one(batch)
                embedded.append((found + one(batch.flip(3))) / 2 if strategies.mirror else found)
        features = torch.cat(embedded)
        return beta_normalize(features, strategies.beta) if strategies.beta else features
    finally:
        model.train(training)


def evaluate(
    model: EmbeddingNet, images: ImageStore, strategies: Strategies | None = None, *, cluster: bool = False
) -> dict[str, float | int]:
    """The metrics of the data set's own protocol (see `gl_core.datasets.protocol.judge`), with strategies if any are given."""
    return search_and_judge(embed(model, images, strategies), images.dataset, strategies, cluster=cluster)


def search_and_judge(
    embeddings: Float[Tensor, "n d"],
    dataset: "RetrievalDataset",
    strategies: Strategies | None = None,
    *,
    cluster: bool = False,
) -> dict[str, float | int]:
    """The metrics of embeddings that `embed` has made with these strategies: what is left of them is expansion and re-ranking.

    Where all images search each other, re-ranking works on one set, which is then expanded on both sides. Re-ranking holds the
    distances of all queries to the gallery at once. Clusters, if asked for, are those of the embeddings.
    """
    strategies = Strategies() if strategies is None else strategies
    if strategies.expansion == 0 and strategies.lambda_value == 1:
        return judge(embeddings, dataset, metric=strategies.metric, cluster=cluster)
    parts = query_and_gallery(dataset)
    one_set = parts is None
    query, gallery = (embeddings, embeddings) if one_set else (embeddings[part] for part in parts)
    metric = strategies.metric
    if strategies.expansion:
        # Expanded vectors have length 1, and are compared by their directions.
        metric, settings = "cosine", {"k": strategies.expansion, "alpha": strategies.alpha}
        query, gallery = (
            query_expansion(query, None if one_set else gallery, **settings),
            query_expansion(gallery, **settings) if strategies.database_side else gallery,
        )
    if strategies.lambda_value < 1:
        # It loads a compiler, which who only embeds need not wait for.
        from gl_core.rerank import k_reciprocal

        if metric == "cosine":
            # Squared distances of unit vectors, 2 - 2 cos, rank as the cosine does.
            query, gallery = unit_rows(query), unit_rows(gallery)
        everyone = len(query) if one_set else len(query) + len(gallery)
        k1 = min(strategies.k1, everyone - 1)
        settings = {"k1": k1, "k2": min(strategies.k2, k1), "lambda_value": strategies.lambda_value}
        distances = k_reciprocal(query, None if one_set else gallery, **settings)
        found = judge(embeddings, dataset, distances=distances)
    elif one_set:
        labels = torch.from_numpy(dataset.labels)
        found = retrieval_metrics(query, labels, gallery, labels, same_images=True)
    else:
        placed = torch.empty_like(embeddings)
        for part, vectors in zip(parts, (query, gallery), strict=True):
            placed[part] = vectors.to(placed.dtype)
        found = judge(placed, dataset, metric=metric)
    if cluster:
        plain = judge(embeddings, dataset, metric=strategies.metric, cluster=True)
        found |= {name: plain[name] for name in ("NMI", "AMI") if name in plain}
    return found
