"""Training: one readable loop, from a configuration to a network, its metrics and its record."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gl_core import checkpoints, datasets, devices, distributed, models, resume, runs
from gl_core.baselines import MetricLoss
from gl_core.building import Learner, build_loss, build_model, build_optimizer, build_schedule, image_store
from gl_core.config import Config
from gl_core.images import ImageStore, augment
from gl_core.inference import embed
from gl_core.loss import CrossEntropyLoss
from gl_core.progress import training_bar
from gl_core.protocols import headline, judge
from gl_core.sampling import GroupSampler

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric

__all__ = ["Learner", "Run", "build_loss", "build_model", "evaluate", "fit", "image_store", "run", "train_step"]

# How many epochs without a better score on held-out classes end the search for the number of epochs.
PATIENCE = 4


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
    model_path: Path | None = None

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
        lower = [name for name in headline(self.metrics) if self.metrics[name] < self.untrained[name]]
        if not self.history:
            lines.append("No epoch of training helped on held-out training classes: the untrained network was kept.")
        elif lower:
            lines.append(
                f"Training made retrieval of these classes WORSE: {' and '.join(lower)} fell below the untrained network. "
                "A lower learning_rate, fewer epochs or more classes may help."
            )
        if self.model_path is not None:
            lines.append(f"network: {os.path.relpath(self.model_path)}")
        return "\n".join(lines)


def run(config: Config, *, chapter: str = "training", keep: str | None = None, progress: bool = True) -> Run:
    """Train and evaluate as `config` says, keep the network, and write the record.

    1. Evaluate the untrained network. With `finetune_epochs`, training below is preceded by that many epochs of plain
       classification, from which the network and the classifier are taken over.
    2. With `choose_epochs`: train on part of the training classes, and find the number of epochs, 0 included, after which
       the held-out classes are retrieved best.
    3. Train on all training classes for that number of epochs (on the part, if `evaluate_on` is "held_out").
    4. Evaluate, once. The network goes to `_build/models/<run_id>` (see `gl_core.checkpoints`).

    A run that was interrupted goes on from its last finished epoch when it is called again with the same configuration and
    code. `keep` is None, "final" or "tuning" (see `gl_core.runs`).

    Several processes (see `gl_core.distributed`) train on groups that they share and evaluate together. All return the same
    metrics; the main one shows progress, and writes checkpoints, network and record.

    Raises ValueError for a configuration that does not fit the data or the machine, and whatever `datasets.load` raises.
    """
    started = time.monotonic()
    device = devices.choose_device(config.device)
    progress = progress and distributed.is_main()
    record = runs.new_record(chapter=chapter, config=config.as_dict(), device=_device_names(device), keep=keep)
    train, evaluated, (fit_part, held_out) = _load(config)

    with devices.seeded(config.seed, device):
        store = _Stores(config, device, progress)
        model = build_model(config).to(device, memory_format=torch.channels_last)
        # The state lives on the CPU so that the same start serves the search and the final training.
        start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        untrained = evaluate(model, store(evaluated, training=False))

        checkpoint = runs.project_root() / "_build" / "checkpoints" / _key(config)
        selection: list[dict[str, float]] = []
        epochs = config.epochs
        if config.choose_epochs:
            baseline = evaluate(model, store(held_out, training=False))
            history = _tuned_and_fit(
                config, model, store(fit_part, training=True), device=device, held_out=store(held_out, training=False),
                checkpoint=checkpoint / "choose.pt", progress=progress,
            )  # fmt: skip
            selection = [{"epoch": 0} | _held_out(baseline), *history]
            epochs = int(max(selection, key=_score)["epoch"])
            model.load_state_dict(start)
        part = train if config.evaluate_on == "test" else fit_part
        history = _tuned_and_fit(
            config, model, store(part, training=True), device=device, stop_after=epochs,
            checkpoint=checkpoint / "final.pt", progress=progress,
        )  # fmt: skip
        metrics = evaluate(model, store(evaluated, training=False), cluster=True)

    record |= {"wall_time_s": round(time.monotonic() - started, 1), "metrics": metrics, "untrained": untrained}
    record |= {"history": history, "selection": selection}
    path, model_path = None, None
    if distributed.is_main():
        card = checkpoints.new_card(config, model, record, part, evaluated)
        # The record first: where it cannot be written, no network without one is left behind.
        path = runs.write_record(record)
        model_path = checkpoints.save(runs.models_folder() / record["run_id"], model, card)
        for file in ("choose.pt", "final.pt"):
            (checkpoint / file).unlink(missing_ok=True)
            _before(checkpoint / file).unlink(missing_ok=True)
    return Run(config, model, metrics, untrained, history, selection, record, path, model_path)


def _before(checkpoint: Path) -> Path:
    """The checkpoint of the classification that precedes training."""
    return checkpoint.with_stem(f"{checkpoint.stem}-finetune")


def _tuned_and_fit(
    config: Config, model: models.EmbeddingNet, images: ImageStore, *, stop_after: int | None = None, checkpoint: Path,
    **settings: Any,
) -> list[dict[str, float]]:  # fmt: skip
    """`fit`, after fine-tuning for classification where it is asked for: by the authors' train_finetune.py, RAdam at a constant
    rate, no weight decay; but with the same batches as later, in place of 32 images drawn from all."""
    loss = build_loss(config, int(images.labels.max()) + 1, model.embedding_size)
    # The search chose 0: the network as it was before any training.
    keep_untrained = config.choose_epochs and stop_after == 0
    if config.finetune_epochs and not keep_untrained:
        classifier = CrossEntropyLoss(loss.num_classes, model.embedding_size)
        first = dataclasses.replace(
            config, method="cross_entropy", epochs=config.finetune_epochs, learning_rate=config.finetune_learning_rate,
            classifier_learning_rate=None, weight_decay=0.0, schedule="constant", optimizer="radam", loss_options=None,
            average_weights=0.0,
        )  # fmt: skip
        tuning = {**settings, "held_out": None}
        fit(first, model, images, loss=classifier, checkpoint=_before(checkpoint), **tuning)
        if isinstance(loss, CrossEntropyLoss):
            loss.load_state_dict(classifier.state_dict())
    return fit(config, model, images, loss=loss, stop_after=stop_after, checkpoint=checkpoint, **settings)


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
    sampler = _sampler(config, images.labels.cpu())
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
                    entry |= _held_out(evaluate(model, held_out))
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
    labels: Int[Tensor, "n"],
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
    """The metrics of the data set's own protocol (see `gl_core.protocols.judge`), and of clusters if asked for."""
    embeddings = distributed.join(embed(model, distributed.Share(images)), len(images))
    return judge(embeddings, images.dataset, cluster=cluster, shared=True)


class _Stores:
    """The decoded images of each part of the data, read when first needed and read once."""

    def __init__(self, config: Config, device: torch.device, progress: bool) -> None:
        self.config, self.device, self.progress = config, device, progress
        self._stores: dict[tuple[int, bool], ImageStore] = {}

    def __call__(self, dataset: "datasets.RetrievalDataset", *, training: bool) -> ImageStore:
        key = (id(dataset), training)
        if key not in self._stores:
            self._stores[key] = image_store(
                dataset, self.config, self.device, training=training, progress=self.progress
            )
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
            _sampler(config, part.labels)
    held_out = config.evaluate_on == "held_out"
    return train, parted[1] if held_out else datasets.load(config.dataset, config.data_root, "test"), parted


def _sampler(config: Config, labels: "Tensor | np.ndarray") -> GroupSampler:
    """This process's part of the batches."""
    return GroupSampler(
        labels,
        config.classes_per_batch,
        config.samples_per_class,
        seed=config.seed,
        num_replicas=distributed.num_processes(),
        rank=distributed.rank(),
    )


def _device_names(device: torch.device) -> str:
    count = distributed.num_processes()
    return f"{count} x {devices.device_name(device)}" if count > 1 else devices.device_name(device)


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
