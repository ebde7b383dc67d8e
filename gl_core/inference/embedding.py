"""Embedding images with a trained network, and searching with them: plainly, or with the strategies of Group Loss++."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core import distributed
from gl_core.datasets import RetrievalDataset
from gl_core.datasets.protocol import judge, query_and_gallery
from gl_core.datasets.store import ImageStore
from gl_core.evaluation import retrieval_metrics
from gl_core.evaluation.arrays import unit_rows
from gl_core.inference.strategies import Strategies, beta_normalize, mixed_pooling, query_expansion
from gl_core.models import EmbeddingNet, evaluation_mode
from gl_core.models.last_activation import leaky_last_activation
from gl_core.rerank import k_reciprocal

__all__ = ["batches_of", "embed", "evaluate", "search_and_judge"]


@torch.inference_mode()
def embed(
    model: EmbeddingNet,
    images: ImageStore | Tensor,
    strategies: Strategies | None = None,
    *,
    batch_size: int = 256,
    shared: bool = False,
) -> Float[Tensor, "n d"]:
    """The embedding of every image, in order, in float32 on the model's device.

    Args:
        model: it runs in evaluation mode, and is left as it came.
        images: an `ImageStore`, or a tensor (n, 1 or 3, h, w), uint8 or floats in [0, 1].
        strategies: those that concern a single image take effect: the last activation, the pooling, the mirror image
            and the normalisation, in this order. None: none of them.
        batch_size: images at a time.
        shared: the processes of `gl_core.distributed` share out the images; all return the embeddings of all images.

    Raises:
        ValueError: a slope is given and the backbone has no last activation, or an embedding is not finite.
    """
    strategies = strategies or Strategies()
    device = next(model.parameters()).device
    rows = range(len(images))[distributed.share(len(images))] if shared else range(len(images))

    def pooled(batch: Tensor) -> Tensor:
        feature_map = model.feature_map(batch.contiguous(memory_format=torch.channels_last))
        return model.embedding(mixed_pooling(feature_map, strategies.mixed_pooling)).float()

    parts = []
    with evaluation_mode(model), leaky_last_activation(model, strategies.leaky_slope):
        for batch in batches_of(images, rows, batch_size):
            batch = batch.to(device)
            part = pooled(batch)
            parts.append((part + pooled(batch.flip(3))) / 2 if strategies.mirror else part)
    embeddings = torch.cat(parts)
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"model: the embedding of image {rows[int((~finite).nonzero()[0])]} is not finite; its weights or "
            "statistics hold NaN, infinity or a negative variance"
        )
    embeddings = beta_normalize(embeddings, strategies.beta) if strategies.beta else embeddings
    return distributed.join(embeddings, len(images)) if shared else embeddings


def batches_of(images: ImageStore | Tensor, rows: range, batch_size: int) -> Iterator[Tensor]:
    """These rows of the images, a batch at a time."""
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if isinstance(images, Tensor):
        yield from (images[chunk.start : chunk.stop] for chunk in chunks)
    else:
        yield from (batch for batch, _ in images.batches([list(chunk) for chunk in chunks]))


def evaluate(
    model: EmbeddingNet,
    images: ImageStore,
    strategies: Strategies | None = None,
    *,
    cluster: bool = False,
    shared: bool = False,
) -> dict[str, Any]:
    """The metrics of the data set's own protocol (see `gl_core.datasets.protocol.judge`).

    Args:
        model: embeds the images.
        images: those of a data set.
        strategies: at test time; None: none.
        cluster: add clustering metrics of the embeddings.
        shared: the processes of `gl_core.distributed`, which all call this, share out the images and the queries.
    """
    embeddings = embed(model, images, strategies, shared=shared)
    return search_and_judge(embeddings, images.dataset, strategies, cluster=cluster, shared=shared)


def search_and_judge(
    embeddings: Float[Tensor, "n d"],
    dataset: RetrievalDataset,
    strategies: Strategies | None = None,
    *,
    cluster: bool = False,
    shared: bool = False,
) -> dict[str, Any]:
    """The metrics of embeddings that `embed` has made with these strategies, after expansion and re-ranking.

    Where all images search each other, re-ranking works on one set, which is then expanded on both sides. Re-ranking
    holds the distances of all queries to the gallery at once.

    Args:
        embeddings: one row an image of the data set.
        dataset: its protocol is followed.
        strategies: as in `evaluate`, and so are `cluster` and `shared`.
    """
    strategies = strategies or Strategies()
    if strategies.expansion == 0 and strategies.lambda_value == 1:
        return judge(embeddings, dataset, metric=strategies.metric, cluster=cluster, shared=shared)
    parts = query_and_gallery(dataset)
    query, gallery = (embeddings, embeddings) if parts is None else (embeddings[part] for part in parts)
    metric = strategies.metric
    if strategies.expansion:
        # Expanded vectors have length 1, and are compared by their directions.
        metric = "cosine"
        expand = partial(query_expansion, k=strategies.expansion, alpha=strategies.alpha)
        query = expand(query, None if parts is None else gallery)
        gallery = expand(gallery) if strategies.database_side else gallery
    if strategies.lambda_value < 1:
        if metric == "cosine":
            # Squared distances of unit vectors, 2 - 2 cos, rank as the cosine does.
            query, gallery = unit_rows(query), unit_rows(gallery)
        searched = None if parts is None else gallery
        everyone = len(query) + (0 if searched is None else len(searched))
        k1 = min(strategies.k1, everyone - 1)
        k2 = min(strategies.k2, k1)
        distances = k_reciprocal(query, searched, k1=k1, k2=k2, lambda_value=strategies.lambda_value)
        found = judge(embeddings, dataset, distances=distances, shared=shared)
    elif parts is None:
        labels = torch.from_numpy(dataset.labels)
        found = retrieval_metrics(query, labels, gallery, labels, same_images=True, shared=shared)
    else:
        placed = torch.empty_like(embeddings)
        for part, vectors in zip(parts, (query, gallery), strict=True):
            placed[part] = vectors.to(placed.dtype)
        found = judge(placed, dataset, metric=metric, shared=shared)
    if cluster:
        plain = judge(embeddings, dataset, metric=strategies.metric, cluster=True)
        found |= {name: plain[name] for name in ("NMI", "AMI") if name in plain}
    return found
