"""Training: one readable loop, from a configuration to a network, its metrics and its record."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gl_core import checkpoints, datasets, devices, models, runs
from gl_core.baselines import BASELINES, MetricLoss
from gl_core.config import Config
from gl_core.evaluation import clustering_metrics, retrieval_metrics
from gl_core.images import ImageStore, augment
from gl_core.inference import embed
from gl_core.loss import CrossEntropyLoss, GroupLoss
from gl_core.progress import training_bar
from gl_core.sampling import GroupSampler

__all__ = ["Learner", "Run", "build_loss", "evaluate", "fit", "run"]

# Stored images are this much larger than the network's input, so that a random part of one need not be blown up much.
MARGIN = 8 / 7
# How many epochs without a better score on held-out classes end the search for the number of epochs.
PATIENCE = 4


def build_loss(config: Config, num_classes: int, embedding_size: int) -> CrossEntropyLoss | MetricLoss:
    """The loss that `config.method` names, with its classifier or proxies."""
    if config.method in BASELINES:
        return MetricLoss(config.method, num_classes, embedding_size, config.loss_options)
    if config.method == "cross_entropy":
        return CrossEntropyLoss(num_classes, embedding_size)
    return GroupLoss(
        num_classes,
        embedding_size,
        num_anchors=config.num_anchors,
        num_iterations=config.num_iterations,
        temperature=config.temperature,
        similarity=config.similarity,
        dynamics=config.dynamics,
        cross_entropy_weight=config.cross_entropy_weight,
    )


class Learner(nn.Module):
    """What is trained: a backbone, and a loss that holds the classifier or proxies."""

    def __init__(
        self, backbone: models.EmbeddingNet, loss: CrossEntropyLoss | MetricLoss, *, freeze_batch_norm: bool
    ) -> None:
        super().__init__()
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
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"]]:
        embeddings = self.backbone(images)
        return self.loss(embeddings, labels), embeddings.detach()


@dataclass
class Run:
    """What a training run left behind.

    `metrics` and `untrained` are those of the evaluated classes (the test classes, unless the configuration says held-out),
    after and before training; fractions in [0, 1]. `history` has one dict an epoch of the final training, `selection` one an
    epoch on held-out classes (empty if the number of epochs was given).
    """

    config: Config
    model: models.EmbeddingNet
    metrics: dict[str, float]
    untrained: dict[str, float]
    history: list[dict[str, float]]
    selection: list[dict[str, float]]
    record: dict[str, Any] = field(repr=False)
    record_path: Path | None = None

    def report(self) -> str:
        """The result in a few lines, with a plain word where training made retrieval worse."""
        evaluated = "unseen test" if self.config.evaluate_on == "test" else "held-out training"
        names = [name for name in self.metrics if name in self.untrained and not name.startswith("excluded")]
        lines = [
            f"{self.config.dataset}, {self.config.method}, {self.config.backbone}: {evaluated} classes, "
            f"{len(self.history)} epochs, {self.record['wall_time_s']:.0f} s on {self.record['device']}",
            f"{'':12}{'untrained':>10}{'trained':>10}",
            *(f"{name:12}{self.untrained[name]:>10.3f}{self.metrics[name]:>10.3f}" for name in names),
            *(f"{name:12}{'':10}{self.metrics[name]:>10.3f}" for name in ("NMI", "AMI") if name in self.metrics),
        ]
        lower = [name for name in ("R@1", "MAP@R") if self.metrics[name] < self.untrained[name]]
        if not self.history:
            lines.append("No epoch of training helped on held-out training classes: the untrained network was kept.")
        elif lower:
            lines.append(
                f"Training made retrieval of these classes WORSE: {' and '.join(lower)} fell below the untrained network. "
                "A lower learning_rate, fewer epochs or more classes may help."
            )
        return "\n".join(lines)


def run(config: Config, *, chapter: str = "training", keep: str | None = None, progress: bool = True) -> Run:
    """Train and evaluate as `config` says, and write the record.

    1. Evaluate the untrained network.
    2. With `choose_epochs`: train on part of the training classes, and find the number of epochs, 0 included, after which
       the held-out classes are retrieved best.
    3. Train on all training classes for that number of epochs (on the part, if `evaluate_on` is "held_out").
    4. Evaluate, once.

    A run that was interrupted goes on from its last finished epoch when it is called again with the same configuration and
    code. `keep` is None, "final" or "tuning" (see `gl_core.runs`).

    Raises ValueError for a configuration that does not fit the data or the machine, and whatever `datasets.load` raises.
    """
    started = time.monotonic()
    device = devices.choose_device(config.device)
    record = runs.new_record(chapter=chapter, config=config.as_dict(), device=devices.device_name(device), keep=keep)
    train, evaluated, (fit_part, held_out) = _load(config)

    with devices.seeded(config.seed, device):
        store = _Stores(config, device, progress)
        model = models.build(config.backbone, **_pretrained(config)).to(device, memory_format=torch.channels_last)
        # The state lives on the CPU so that the same start serves the search and the final training.
        start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        untrained = evaluate(model, store(evaluated, training=False))

        checkpoint = runs.project_root() / "_build" / "checkpoints" / _key(config)
        selection: list[dict[str, float]] = []
        epochs = config.epochs
        if config.choose_epochs:
            baseline = evaluate(model, store(held_out, training=False))
            history = fit(
                config, model, store(fit_part, training=True), device=device, held_out=store(held_out, training=False),
                checkpoint=checkpoint / "choose.pt", progress=progress,
            )  # fmt: skip
            selection = [{"epoch": 0} | _held_out(baseline), *history]
            epochs = int(max(selection, key=_score)["epoch"])
            model.load_state_dict(start)
        part = train if config.evaluate_on == "test" else fit_part
        history = fit(
            config, model, store(part, training=True), device=device, stop_after=epochs,
            checkpoint=checkpoint / "final.pt", progress=progress,
        )  # fmt: skip
        metrics = evaluate(model, store(evaluated, training=False), cluster=True)

    record |= {"wall_time_s": round(time.monotonic() - started, 1), "metrics": metrics, "untrained": untrained}
    record |= {"history": history, "selection": selection}
    path = runs.write_record(record)
    for file in ("choose.pt", "final.pt"):
        (checkpoint / file).unlink(missing_ok=True)
    return Run(config, model, metrics, untrained, history, selection, record, path)


def fit(
    config: Config,
    model: models.EmbeddingNet,
    images: ImageStore,
    *,
    device: torch.device,
    stop_after: int | None = None,
    held_out: ImageStore | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place on `images`; the loop that everything else is around.

    The learning rate follows a schedule of `config.epochs` epochs, of which the first `stop_after` are run. With `held_out`
    classes the network is evaluated on them after every epoch, and training ends early once they have not been retrieved
    better for a few epochs. With a `checkpoint` file the state is saved after every epoch, and training goes on from it.

    Returns one dict an epoch: epoch (from 1), loss (mean), batch R@1, images_per_s, learning_rate, and the held-out metrics.
    """
    stop_after = config.epochs if stop_after is None else stop_after
    sampler = GroupSampler(images.labels.cpu(), config.classes_per_batch, config.samples_per_class, seed=config.seed)
    loss = build_loss(config, int(images.labels.max()) + 1, model.embedding_size)
    learner = Learner(model, loss, freeze_batch_norm=config.freeze_batch_norm)
    optimizer = _optimizer(config, learner)
    schedule = _schedule(config, optimizer, steps=max(1, config.epochs * len(sampler)))
    fabric = devices.fabric(device)
    averaged = None
    if config.average_weights:
        averaged = AveragedModel(learner, multi_avg_fn=_running_mean(config.average_weights))
    state = {"learner": learner, "optimizer": optimizer, "schedule": schedule, "averaged": averaged}
    history = checkpoints.load(checkpoint, state)
    fabric_learner, fabric_optimizer = fabric.setup(learner, optimizer)

    generator = torch.Generator()
    total = stop_after * len(sampler)
    what = "training" if held_out is None else "choosing epochs"
    with training_bar(total, len(history) * len(sampler), what, progress) as bar:
        for epoch in range(len(history), stop_after):
            if held_out is not None and _stalled(history):
                break
            learner.train()
            sampler.set_epoch(epoch)
            generator.manual_seed((config.seed << 20) + epoch)
            rate = optimizer.param_groups[0]["lr"]
            losses, hits, seen, began = [], [], 0, time.monotonic()
            for pixels, labels in images.batches(sampler):
                varied = augment(pixels, config.augmentation, config.image_size, generator=generator)
                loss, embeddings = fabric_learner(varied.contiguous(memory_format=torch.channels_last), labels)
                fabric_optimizer.zero_grad()
                fabric.backward(loss)
                fabric_optimizer.step()
                schedule.step()
                if averaged is not None:
                    averaged.update_parameters(learner)
                losses.append(loss.detach())
                hits.append(_batch_recall(embeddings, labels))
                seen += len(labels)
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
                    entry |= _held_out(evaluate(model, held_out))
            history.append(entry)
            checkpoints.save(checkpoint, state, history)
    if averaged is not None and history:
        learner.load_state_dict(averaged.module.state_dict())
    return history


def evaluate(model: models.EmbeddingNet, images: ImageStore, *, cluster: bool = False) -> dict[str, float]:
    """Retrieval metrics of the images among themselves, and clustering metrics if asked for."""
    embeddings = embed(model, images)
    metrics = retrieval_metrics(embeddings, images.labels)
    return metrics | clustering_metrics(embeddings, images.labels) if cluster else metrics


class _Stores:
    """The decoded images of each part of the data, read when first needed and read once."""

    def __init__(self, config: Config, device: torch.device, progress: bool) -> None:
        self.config, self.device, self.progress = config, device, progress
        self._stores: dict[tuple[int, bool], ImageStore] = {}

    def __call__(self, dataset: "datasets.RetrievalDataset", *, training: bool) -> ImageStore:
        key = (id(dataset), training)
        if key not in self._stores:
            size, crop = self.config.image_size, self.config.center_crop
            if training and self.config.augmentation == "photo":
                size, crop = round(size * MARGIN), 1.0
            store = ImageStore(dataset, size, resize=round(size / crop), progress=self.progress)
            self._stores[key] = store.to(self.device)
        return self._stores[key]


def _load(config: Config) -> tuple:
    """Training data, evaluated data, and the training data parted into (fit, held out); only what the run will use."""
    train = datasets.load(config.dataset, config.data_root, "train")
    parted = (None, None)
    if config.choose_epochs or config.evaluate_on == "held_out":
        parted = train.hold_out(config.held_out, seed=config.seed)
    # A batch that cannot be dealt is better refused before anything is read or trained.
    for part in (train, parted[0]):
        if part is not None:
            GroupSampler(part.labels, config.classes_per_batch, config.samples_per_class)
    held_out = config.evaluate_on == "held_out"
    return train, parted[1] if held_out else datasets.load(config.dataset, config.data_root, "test"), parted


def _pretrained(config: Config) -> dict[str, bool]:
    return {"pretrained": config.pretrained} if models.BACKBONES[config.backbone].has_weights else {}


def _optimizer(config: Config, learner: Learner) -> torch.optim.Optimizer:
    """One group for the backbone and one for the classifier or proxies, which start from nothing and may want larger steps."""
    groups = [
        {"params": [p for p in learner.backbone.parameters() if p.requires_grad]},
        {"params": list(learner.loss.parameters()), "lr": config.classifier_learning_rate or config.learning_rate},
    ]
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **settings)
    return {"radam": torch.optim.RAdam, "adamw": torch.optim.AdamW}[config.optimizer](groups, **settings)


def _schedule(config: Config, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


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
def _batch_recall(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """R@1 inside the batch: cheap, optimistic, and good enough to watch training by."""
    directions = F.normalize(embeddings.float())
    nearest = (directions @ directions.T).fill_diagonal_(-2).argmax(dim=1)
    return (labels[nearest] == labels).float().mean()


def _held_out(metrics: dict[str, float]) -> dict[str, float]:
    return {f"held-out {name}": metrics[name] for name in ("R@1", "MAP@R")}


def _score(entry: dict[str, float]) -> float:
    """What epochs are chosen by: R@1 is what is reported, MAP@R says more of each query; their mean is the steadiest."""
    return (entry["held-out R@1"] + entry["held-out MAP@R"]) / 2


def _stalled(history: list[dict[str, float]]) -> bool:
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: _score(history[i]))
    return len(history) - 1 - best >= PATIENCE


def _key(config: Config) -> str:
    """Names the folder of a run's checkpoints: same settings, same data, same code."""
    settings = json.dumps(config.as_dict() | {"code": runs.code_hash()}, sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]
