"""From a configuration to the parts of a run: network, loss, learner, stored images, optimiser, schedule."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gl_core import distributed, models
from gl_core.datasets import RetrievalDataset
from gl_core.datasets.store import ImageStore
from gl_core.loss import CrossEntropyLoss, GroupLoss
from gl_core.training.baselines import BASELINES, MetricLoss
from gl_core.training.config import OF_GROUP_LOSS, Config

__all__ = ["Learner", "build_loss", "build_model", "build_optimizer", "build_schedule", "image_store", "place"]

# Stored images are this much larger than the network's input, so that a random part of one need not be blown up much.
MARGIN = 8 / 7


def build_loss(config: Config, num_classes: int, embedding_size: int) -> CrossEntropyLoss | MetricLoss:
    """The loss that `config.method` names, with its classifier or proxies."""
    if config.method in BASELINES:
        return MetricLoss(config.method, num_classes, embedding_size, config.loss_options)
    if config.method == "cross_entropy":
        return CrossEntropyLoss(num_classes, embedding_size)
    return GroupLoss(num_classes, embedding_size, **{name: getattr(config, name) for name in OF_GROUP_LOSS})


def build_model(config: Config) -> models.EmbeddingNet:
    """The network that `config` names, with its weights and options."""
    known = models.backbone(config.backbone)
    # What else the backbone's own function takes of a configuration.
    options: dict[str, dict[str, Any]] = {
        "bn_inception": {"weights": config.weights},
        "resnet50": {"last_stride": config.last_stride},
        "timm": {"image_size": config.input_size},
    }
    own = options.get(config.backbone.partition(":")[0], {})
    model = models.build(config.backbone, pretrained=config.pretrained and known.has_weights, **own)
    return model.add_neck(retrieve_after=config.retrieve_after_neck) if config.bn_neck else model


def place(model: models.EmbeddingNet, device: torch.device | str) -> models.EmbeddingNet:
    """The network on a device, with its channels last, which convolutions compute faster."""
    module: Any = model  # PyTorch does not declare this argument
    return module.to(device, memory_format=torch.channels_last)


class Learner(nn.Module):
    """What is trained: a backbone, and a loss that holds the classifier or proxies.

    Where the backbone has a neck, the loss compares the embeddings before it and classifies them after it. With several
    processes images and labels are this one's part of the batch; loss and embeddings are those of the whole batch.

    Args:
        backbone: the embedding network.
        loss: from embeddings and labels to a scalar.
        freeze_batch_norm: keep the statistics and the affine parameters of the backbone's batch normalisations as they
            are.

    Raises:
        ValueError: the backbone has a neck, and the loss has no classifier.
    """

    backbone: models.EmbeddingNet
    loss: CrossEntropyLoss | MetricLoss

    def __init__(
        self, backbone: models.EmbeddingNet, loss: CrossEntropyLoss | MetricLoss, *, freeze_batch_norm: bool
    ) -> None:
        super().__init__()
        if backbone.neck is not None and not isinstance(loss, CrossEntropyLoss):
            raise ValueError(f"loss={loss!r}: must have a classifier, as the backbone has a neck in front of it")
        self.backbone = backbone
        self.loss = loss
        self.frozen = [m for m in backbone.modules() if freeze_batch_norm and isinstance(m, nn.BatchNorm2d)]
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Learner":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"]]:
        embeddings, labels = distributed.whole_batch(self.backbone(images), labels)
        neck = self.backbone.neck
        if neck is None:
            return self.loss(embeddings, labels), embeddings.detach()
        # For this pass alone: whoever uses the loss elsewhere gets it as it is.
        classifier: Any = self.loss.classifier
        hook = classifier.register_forward_pre_hook(lambda _, inputs: (neck(*inputs),))
        try:
            return self.loss(embeddings, labels), embeddings.detach()
        finally:
            hook.remove()


def image_store(
    dataset: RetrievalDataset,
    config: Config,
    device: torch.device,
    *,
    training: bool = False,
    progress: bool = False,
) -> ImageStore:
    """Images as a run stores them: at the network's size, or with a margin where training cuts parts out."""
    size, shorter, crop = config.input_size, min(config.input_size), config.center_crop
    if training and config.augmentation in ("photo", "crop"):
        # What "crop" cuts from is what evaluation resizes to, as in the authors' 227 of 256.
        margin = MARGIN if config.augmentation == "photo" else 1 / crop
        size, shorter, crop = (round(size[0] * margin), round(size[1] * margin)), round(shorter * margin), 1.0
    return ImageStore(
        dataset,
        size,
        resize=round(shorter / crop),
        keep_aspect=config.keep_aspect,
        device=device,
        workers=config.workers,
        progress=progress,
    )


def build_optimizer(config: Config, learner: Learner) -> torch.optim.Optimizer:
    """One group for the backbone and one for the classifier or proxies, which may want larger steps."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learner.backbone.parameters() if p.requires_grad]},
        {"params": list(learner.loss.parameters()), "lr": config.classifier_learning_rate or config.learning_rate},
    ]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    return torch.optim.RAdam(groups, lr=rate, weight_decay=decay)


def build_schedule(
    config: Config, optimizer: torch.optim.Optimizer, batches: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate by steps, of which an epoch has `batches`."""
    schedules = torch.optim.lr_scheduler
    if config.schedule == "constant":
        return schedules.ConstantLR(optimizer, factor=1.0)
    if config.schedule == "step":
        return schedules.MultiStepLR(optimizer, [(config.step_at - 1) * batches], gamma=0.1)
    return schedules.CosineAnnealingLR(optimizer, max(1, config.epochs * batches))
