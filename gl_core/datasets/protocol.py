"""By which protocol a data set is judged: its table says."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.evaluation import clustering_metrics, reid_metrics, retrieval_metrics

if TYPE_CHECKING:
    from gl_core.datasets import RetrievalDataset

__all__ = ["headline", "judge", "query_and_gallery"]


def query_and_gallery(dataset: "RetrievalDataset") -> tuple[np.ndarray, np.ndarray] | None:
    """Positions of the queries and of the gallery; None where all images search each other.

    Images that are neither (training images, for instance) search each other too, if no others are there.
    """
    is_query, is_gallery = (dataset.table[name].to_numpy(bool) for name in ("is_query", "is_gallery"))
    if (is_query == is_gallery).all():
        return None
    return np.flatnonzero(is_query), np.flatnonzero(is_gallery)


def judge(
    embeddings: Float[Tensor, "n d"],
    dataset: "RetrievalDataset",
    *,
    metric: str = "cosine",
    distances: Float[Tensor, "q g"] | None = None,
    cluster: bool = False,
    shared: bool = False,
) -> dict[str, float | int]:
    """The metrics of a data set's own protocol, from the embeddings of its images.

    - Queries and gallery are the same images: `retrieval_metrics` of all images among themselves.
    - They are not, and the table has cameras: `reid_metrics`.
    - They are not, and there are no cameras: `retrieval_metrics` of the queries in the gallery.

    Args:
        embeddings: row i is that of image i.
        dataset: its table says which images are queries and which are searched.
        metric: "cosine" or "euclidean".
        distances: of the queries to the gallery, in the order of the table, in place of those by `metric`.
        cluster: add `clustering_metrics` of all images that are searched or search, except in re-identification, whose
            galleries hold junk and distractors.
        shared: the processes of `gl_core.distributed` share out the queries.
    """
    labels = torch.from_numpy(dataset.labels)
    parts = query_and_gallery(dataset)
    given: dict[str, Any] = {"metric": metric, "distances": distances, "shared": shared}
    if parts is None:
        metrics = retrieval_metrics(embeddings, labels, **given)
        return metrics | clustering_metrics(embeddings, labels, metric=metric) if cluster else metrics
    query, gallery = (torch.from_numpy(part) for part in parts)
    if "camera" in dataset.table:
        cameras = torch.from_numpy(dataset.table["camera"].to_numpy(np.int64, copy=True))
        persons = [(embeddings[part.to(embeddings.device)], labels[part], cameras[part]) for part in (query, gallery)]
        return reid_metrics(*persons[0], *persons[1], **given)
    sides = [(embeddings[part.to(embeddings.device)], labels[part]) for part in (query, gallery)]
    metrics = retrieval_metrics(*sides[0], *sides[1], **given)
    if cluster:
        both = torch.cat([query, gallery])
        metrics |= clustering_metrics(embeddings[both.to(embeddings.device)], labels[both], metric=metric)
    return metrics


def headline(metrics: dict[str, float]) -> tuple[str, str]:
    """The names of the two metrics by which results are compared: of the first neighbour, and of all positives."""
    return ("Rank-1", "mAP") if "mAP" in metrics else ("R@1", "MAP@R")
