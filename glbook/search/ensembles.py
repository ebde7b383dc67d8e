"""Several networks as one: their embeddings side by side."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core import inference
from gl_core.datasets.store import ImageStore
from gl_core.evaluation.arrays import unit_rows
from gl_core.inference.strategies import Strategies
from gl_core.models import EmbeddingNet
from gl_core.training import checkpoints
from gl_core.training.components import image_store

if TYPE_CHECKING:
    from gl_core.datasets import RetrievalDataset

__all__ = ["embed"]


def embed(
    networks: Sequence[EmbeddingNet | str | os.PathLike],
    images: "RetrievalDataset | ImageStore | Tensor",
    strategies: Strategies | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n d_all"]:
    """The embeddings of several networks, each normalised to length 1, then concatenated.

        e = (f_1 / |f_1|, ..., f_m / |f_m|),    so that <e, e'> is the sum of the m cosines

    Args:
        networks: checkpoints (see `gl_core.training.checkpoints`), which are loaded one after the other, or networks.
        images: a data set, which is prepared for each checkpoint as in its training; or images that are prepared already, as
            `gl_core.inference.embed` takes them, for all networks alike.
        strategies: at test time, for all networks; None: for a checkpoint those of its card, for a network none.
        device: of the networks that are loaded, and of the images that are prepared for them.

    Raises ValueError without networks, for a network with a data set, and whatever `gl_core.training.checkpoints.load` raises.
    """
    if not len(networks):
        raise ValueError("networks is empty: must hold at least one network or checkpoint")
    prepared = isinstance(images, (ImageStore, Tensor))
    parts = []
    for network in networks:
        chosen, shown = strategies, images
        if isinstance(network, EmbeddingNet):
            if not prepared:
                raise ValueError(
                    "images is a data set: must be an ImageStore or a tensor for a network that comes without a card"
                )
        else:
            network, card = checkpoints.load(network, device)
            chosen = checkpoints.strategies(card) if strategies is None else strategies
            if not prepared:
                shown = image_store(images, checkpoints.configuration(card), torch.device(device))
        parts.append(unit_rows(inference.embed(network, shown, chosen)))
    return torch.cat([part.to(parts[0].device) for part in parts], dim=1)
