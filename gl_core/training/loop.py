"""The training loop: epochs over batches of P classes x K images, evaluated on held-out classes if asked for."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gl_core import devices, distributed, models
from gl_core._extras import require
from gl_core.datasets.augmentation import augment
from gl_core.datasets.store import ImageStore
from gl_core.inference import evaluate
from gl_core.loss import CrossEntropyLoss
from gl_core.sampling import GroupSampler
from gl_core.training import resume
from gl_core.training.baselines import MetricLoss
from gl_core.training.components import Learner, build_loss, build_optimizer, build_schedule
from gl_core.training.config import Config

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric
    from tqdm import tqdm

__all__ = ["evaluate", "fit", "held_out_metrics", "sampler_of", "score", "train_step"]

# How many epochs without a better score on held-out classes end the search for the number of epochs.
PATIENCE = 4
# Seconds between two drawings of the progress bar.
INTERVAL = 1.0


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
    """Train a network in place.

    Args:
        config: settings; the learning rate follows a schedule of `config.epochs` epochs.
        model: the network, on the device.
        images: those to train on.
        device: where.
        loss: None: `build_loss`'s.
        stop_after: how many epochs of the schedule are run; None: all.
        held_out: images of other classes, on which the network is evaluated after every epoch. Training ends early once
            they have not been retrieved better for a few epochs.
        checkpoint: a file in which the state is saved after every epoch, and from which training goes on.
        progress: show a bar.

    Returns:
        One dict an epoch: epoch (from 1), loss (mean), batch R@1, images_per_s, learning_rate, and the held-out
        metrics.

    Raises:
        ValueError: the training diverged. On a GPU this shows when the loss is next read.
    """
    tqdm = require("tqdm", extra="train").tqdm
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
    history, earlier = resume.load(checkpoint, state)
    began = time.monotonic() - earlier
    fabric.launch()
    fabric_learner, fabric_optimizer = fabric.setup(learner, optimizer)

    generator = torch.Generator()

    def step(pixels: UInt8[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        found = train_step(config, fabric, fabric_learner, fabric_optimizer, pixels, labels, generator=generator)
        schedule.step()
        if averaged is not None:
            averaged.update_parameters(learner)
        return found

    bar = tqdm(
        total=stop_after * len(sampler), initial=len(history) * len(sampler), unit=" batches", mininterval=INTERVAL,
        desc="training" if held_out is None else "choosing epochs", disable=not progress,
    )  # fmt: skip
    with distributed.whole_batch_norm(learner), bar:
        for epoch in range(len(history), stop_after):
            if held_out is not None and _stalled(history):
                break
            learner.train()
            sampler.set_epoch(epoch)
            # Processes vary their images independently of each other.
            generator.manual_seed((distributed.rank() << 52) + (config.seed << 20) + epoch)
            rate = optimizer.param_groups[0]["lr"]
            entry = {"epoch": epoch + 1} | _epoch(step, images.batches(sampler), bar, loss.check)
            entry["learning_rate"] = rate
            if held_out is not None:
                with _weights_of(averaged, learner):
                    entry |= held_out_metrics(evaluate(model, held_out, shared=True))
            history.append(entry)
            if distributed.is_main():
                resume.save(checkpoint, state, history, time.monotonic() - began)
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
    """One step: augmentation, loss, gradient, update.

    Args:
        config: its augmentation is used.
        fabric: as `gl_core.devices.fabric` returns it.
        learner: as `fabric.setup` returned it.
        optimizer: as `fabric.setup` returned it.
        pixels: images as an `ImageStore` gives them.
        labels: of these images.
        generator: of the augmentation.

    Returns:
        The loss and R@1 inside the batch, as tensors on the device: the host does not wait for them.
    """
    varied = augment(pixels, config.augmentation, config.input_size, erasing=config.random_erasing, generator=generator)
    loss, embeddings = learner(varied.contiguous(memory_format=torch.channels_last), labels)
    optimizer.zero_grad()
    fabric.backward(loss)
    optimizer.step()
    return loss.detach(), _batch_recall(embeddings, distributed.gather(labels))


def _epoch(
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    bar: "tqdm",
    check: Callable[[], None],
) -> dict[str, float]:
    """Take a step with every batch: mean loss, mean R@1 inside the batches, images per second.

    `check` raises what the loss found on a GPU; it makes the host wait, and is called where the loss is read.
    """
    losses, recalls, seen, began = [], [], 0, time.monotonic()
    for pixels, labels in batches:
        loss, recall = step(pixels, labels)
        losses.append(loss)
        recalls.append(recall)
        seen += distributed.num_processes() * len(labels)
        # Reading a loss makes the host wait for the device, so it is read only as often as the bar is drawn.
        if bar.update():
            check()
            speed = seen / (time.monotonic() - began)
            bar.set_postfix_str(f"loss {loss.item():.3f}, R@1 {recall.item():.2f}, {speed:.0f} images/s", refresh=False)
    seconds = time.monotonic() - began
    check()
    return {
        "loss": torch.stack(losses).mean().item(),
        "batch R@1": torch.stack(recalls).mean().item(),
        "images_per_s": seen / seconds,
    }


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


def _running_mean(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Averaging with a decay that starts small: the first steps must not keep the first weights for long."""

    def update(averages: Any, currents: Any, steps: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, currents, weight)  # pyright: ignore[reportPrivateImportUsage]

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
    """The metrics of held-out classes by which epochs are chosen, as they stand in a history."""
    return {f"held-out {name}": metrics[name] for name in ("R@1", "MAP@R")}


def score(entry: dict[str, float]) -> float:
    """What epochs are chosen by: R@1 is what is reported, MAP@R says more of each query; their mean is steadiest."""
    return (entry["held-out R@1"] + entry["held-out MAP@R"]) / 2


def _stalled(history: list[dict[str, float]]) -> bool:
    """Whether the best epoch is `PATIENCE` epochs or more ago."""
    scores = [score(entry) for entry in history]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= PATIENCE
