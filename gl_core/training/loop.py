"""Training: one readable loop, from a configuration to a network, its metrics and its record."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gl_core import devices, distributed, models
from gl_core.datasets.augmentation import augment
from gl_core.datasets.protocol import judge
from gl_core.datasets.store import ImageStore
from gl_core.inference import embed
from gl_core.loss import CrossEntropyLoss
from gl_core.sampling import GroupSampler
from gl_core.training import resume
from gl_core.training.baselines import MetricLoss
from gl_core.training.components import (
    Learner,
    build_loss,
    build_optimizer,
    build_schedule,
)
from gl_core.training.config import Config
from gl_core.training.progress import training_bar

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric

__all__ = ["evaluate", "fit", "held_out_metrics", "sampler_of", "score", "train_step"]

# How many epochs without a better score on held-out classes end the search for the number of epochs.
PATIENCE = 4


def fit(
    config: Config,
    model: models.EmbeddingNet,
    images: ImageStore,
    *,
    device: torch.device,
    loss: CrossEntropyLoss | MetricLoss | None = None,
    stop_after: int | None = None,
    held_out: ImageStore | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place on `images`; the loop that everything else is around. `loss` is `build_loss`'s if not given.

    The learning rate follows a schedule of `config.epochs` epochs, of which the first `stop_after` are run. With `held_out`
    classes the network is evaluated on them after every epoch, and training ends early once they have not been retrieved
    better for a few epochs. With a `checkpoint` file the state is saved after every epoch, and training goes on from it.

    Returns one dict an epoch: epoch (from 1), loss (mean), batch R@1, images_per_s, learning_rate, and the held-out metrics.
    """
    stop_after = config.epochs if stop_after is None else stop_after
    sampler = sampler_of(config, images.labels.cpu())
    if loss is None:
        loss = build_loss(config, int(images.labels.max()) + 1, model.embedding_size)
    learner = Learner(model, loss, freeze_batch_norm=config.freeze_batch_norm).to(device)
    optimizer = build_optimizer(config, learner)
    schedule = build_schedule(config, optimizer, len(sampler))
    fabric = devices.fabric(device, config.precision)
    averaged = None
    if config.average_weights:
        averaged = AveragedModel(learner, multi_avg_fn=_running_mean(config.average_weights))
    state = {"learner": learner, "optimizer": optimizer, "schedule": schedule, "averaged": averaged}
    history = resume.load(checkpoint, state)
    fabric.launch()
    fabric_learner, fabric_optimizer = fabric.setup(learner, optimizer)

    generator = torch.Generator()
    total = stop_after * len(sampler)
    what = "training" if held_out is None else "choosing epochs"
    with (
        distributed.whole_batch_norm(learner),
        training_bar(total, len(history) * len(sampler), what, progress) as bar,
    ):
        for epoch in range(len(history), stop_after):
            if held_out is not None and _stalled(history):
                break
            learner.train()
            sampler.set_epoch(epoch)
            # Processes vary their images independently of each other.
            generator.manual_seed((distributed.rank() << 52) + (config.seed << 20) + epoch)
            rate = optimizer.param_groups[0]["lr"]
            losses, hits, seen, began = [], [], 0, time.monotonic()
            for pixels, labels in images.batches(sampler):
                value, hit = train_step(
                    config, fabric, fabric_learner, fabric_optimizer, pixels, labels, generator=generator
                )
                schedule.step()
                if averaged is not None:
                    averaged.update_parameters(learner)
                losses.append(value)
                hits.append(hit)
                seen += distributed.num_processes() * len(labels)
                bar.update()
                # Reading a loss makes the host wait for the device, so it is read only as often as the bar is drawn.
                if bar.due():
                    bar.show(loss=losses[-1].item(), recall=hits[-1].item(), speed=seen / (time.monotonic() - began))
            seconds = time.monotonic() - began
            entry = {
                "epoch": epoch + 1,
                "loss": torch.stack(losses).mean().item(),
                "batch R@1": torch.stack(hits).mean().item(),
                "images_per_s": seen / seconds,
                "learning_rate": rate,
            }
            if held_out is not None:
                with _weights_of(averaged, learner):
                    entry |= held_out_metrics(evaluate(model, held_out))
            history.append(entry)
            if distributed.is_main():
                resume.save(checkpoint, state, history)
    if averaged is not None and history:
        learner.load_state_dict(averaged.module.state_dict())
    return history


def train_step(
    config: Config,
    fabric: "Fabric",
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: UInt8[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    *,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """One step: augmentation, loss, gradient, update. `learner` and `optimizer` are those that `fabric.setup` returned.

    Returns the loss and R@1 inside the batch, as tensors on the device: the host does not wait for them.
    """
    varied = augment(pixels, config.augmentation, config.input_size, erasing=config.random_erasing, generator=generator)
    loss, embeddings = learner(varied.contiguous(memory_format=torch.channels_last), labels)
    optimizer.zero_grad()
    fabric.backward(loss)
    optimizer.step()
    return loss.detach(), _batch_recall(embeddings, distributed.gather(labels))


def evaluate(model: models.EmbeddingNet, images: ImageStore, *, cluster: bool = False) -> dict[str, float]:
    """The metrics of the data set's own protocol (see `gl_core.datasets.protocol.judge`), and of clusters if asked for."""
    embeddings = distributed.join(embed(model, distributed.Share(images)), len(images))
    return judge(embeddings, images.dataset, cluster=cluster, shared=True)


def sampler_of(config: Config, labels: "Tensor | np.ndarray") -> GroupSampler:
    """This process's part of the batches."""
    return GroupSampler(
        labels,
        config.classes_per_batch,
        config.samples_per_class,
        seed=config.seed,
        num_replicas=distributed.num_processes(),
        rank=distributed.rank(),
    )


def _running_mean(decay: float):
    """Averaging with a decay that starts small: the first steps must not keep the first weights for long."""

    def update(averages: list[Tensor], currents: list[Tensor], steps: Tensor) -> None:
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))

    return update


@contextlib.contextmanager
def _weights_of(averaged: AveragedModel | None, learner: Learner) -> Iterator[None]:
    """Lend the learner the averaged weights for an evaluation."""
    if averaged is None:
        yield
        return
    current = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.load_state_dict(averaged.module.state_dict())
    try:
        yield
    finally:
        learner.load_state_dict(current)


@torch.no_grad()
def _batch_recall(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """R@1 inside the batch: cheap, optimistic, and good enough to watch training by."""
    directions = F.normalize(embeddings.float())
    nearest = (directions @ directions.T).fill_diagonal_(-2).argmax(dim=1)
    return (labels[nearest] == labels).float().mean()


def held_out_metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {f"held-out {name}": metrics[name] for name in ("R@1", "MAP@R")}


def score(entry: dict[str, float]) -> float:
    """What epochs are chosen by: R@1 is what is reported, MAP@R says more of each query; their mean is the steadiest."""
    return (entry["held-out R@1"] + entry["held-out MAP@R"]) / 2


def _stalled(history: list[dict[str, float]]) -> bool:
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: score(history[i]))
    return len(history) - 1 - best >= PATIENCE
