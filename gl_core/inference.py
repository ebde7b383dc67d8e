"""Embedding images with a trained network."""

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.images import ImageStore
from gl_core.models import EmbeddingNet

__all__ = ["embed"]


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
