"""A whole training run: from a configuration to a network, its metrics and its record."""

import dataclasses
import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gl_core import datasets, devices, distributed, models
from gl_core.datasets import RetrievalDataset
from gl_core.datasets.protocol import headline
from gl_core.datasets.store import ImageStore
from gl_core.datasets.version import data_version
from gl_core.loss import CrossEntropyLoss
from gl_core.training import checkpoints, records, resume
from gl_core.training.components import build_loss, build_model, image_store, place
from gl_core.training.config import Config
from gl_core.training.loop import evaluate, fit, held_out_metrics, sampler_of, score

__all__ = ["Run", "run"]


@dataclass
class Run:
    """What a training run left behind.

    `metrics` and `untrained` are those of the evaluated classes after and before training, fractions in [0, 1].
    `history` has one dict an epoch of the final training, `selection` one an epoch on held-out classes, if any.
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
        if self.selection and not self.history:
            lines.append("No epoch of training helped on held-out training classes: the untrained network was kept.")
        elif lower:
            lines.append(
                f"Training made retrieval of these classes WORSE: {' and '.join(lower)} fell below the untrained "
                "network. A lower learning_rate, fewer epochs or more classes may help."
            )
        if self.model_path is not None:
            lines.append(f"network: {os.path.relpath(self.model_path)}")
        return "\n".join(lines)


def run(config: Config, *, chapter: str = "training", keep: str | None = None, progress: bool = True) -> Run:
    """Train and evaluate as `config` says, keep the network, and write the record.

    1. Evaluate the untrained network. With `finetune_epochs`, training below is preceded by that many epochs of plain
       classification, from which the network and the classifier are taken over.
    2. With `choose_epochs`: train on part of the training classes, and find the number of epochs, 0 included, after
       which the held-out classes are retrieved best.
    3. Train on all training classes for that number of epochs (on the part, if `evaluate_on` is "held_out").
    4. Evaluate, once. The network goes to `_build/models/<run_id>` (see `gl_core.training.checkpoints`).

    A run that was interrupted goes on from its last finished epoch when it is called again with the same configuration
    on the same data. Several processes (see `gl_core.distributed`) train on batches that they share and evaluate
    together. All return the same metrics; the main one shows progress, and writes checkpoints, network and record.

    Args:
        config: the settings.
        chapter: for the record: what the run was made for.
        keep: None, "final" or "tuning" (see `gl_core.training.records`).
        progress: show bars.

    Raises:
        ValueError: the configuration does not fit the data or the machine; and whatever `gl_core.datasets.load` raises.
    """
    started = time.monotonic()
    device = devices.choose_device(config.device)
    progress = progress and distributed.is_main()
    name, count = devices.device_name(device), distributed.num_processes()
    record = records.new_record(
        chapter=chapter, config=config.as_dict(), device=f"{count} x {name}" if count > 1 else name, keep=keep
    )
    train, evaluated, fit_part, held_out = _load(config)
    unfinished = resume.folder(config, [data_version(train), data_version(evaluated)])
    started -= resume.seconds_spent(unfinished)

    @functools.cache
    def store(dataset: RetrievalDataset, *, training: bool = False) -> ImageStore:
        return image_store(dataset, config, device, training=training, progress=progress)

    with devices.seeded(config.seed, device):
        model = place(build_model(config), device)
        # The state lives on the CPU so that the same start serves the search and the final training.
        start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        untrained = evaluate(model, store(evaluated), shared=True)

        selection: list[dict[str, float]] = []
        epochs = config.epochs
        if config.choose_epochs:
            baseline = evaluate(model, store(held_out), shared=True)
            history = _finetune_and_fit(
                config, model, store(fit_part, training=True), device=device, held_out=store(held_out),
                checkpoint=unfinished / "choose.pt", progress=progress,
            )  # fmt: skip
            selection = [{"epoch": 0} | held_out_metrics(baseline), *history]
            epochs = int(max(selection, key=score)["epoch"])
            model.load_state_dict(start)
        part = train if config.evaluate_on == "test" else fit_part
        history = _finetune_and_fit(
            config, model, store(part, training=True), device=device, stop_after=epochs,
            checkpoint=unfinished / "final.pt", progress=progress,
        )  # fmt: skip
        metrics = evaluate(model, store(evaluated), cluster=True, shared=True)

    record |= {"wall_time_s": round(time.monotonic() - started, 1), "metrics": metrics, "untrained": untrained}
    record |= {"history": history, "selection": selection}
    path, model_path = None, None
    if distributed.is_main():
        card = checkpoints.new_card(config, model, record, part, evaluated)
        # The record first: where it cannot be written, no network without one is left behind.
        path = records.write_record(record)
        model_path = checkpoints.save(records.models_folder() / record["run_id"], model, card)
        for file in unfinished.glob("*.pt"):
            file.unlink()
    return Run(config, model, metrics, untrained, history, selection, record, path, model_path)


def _finetune_and_fit(
    config: Config,
    model: models.EmbeddingNet,
    images: ImageStore,
    *,
    checkpoint: Path,
    stop_after: int | None = None,
    held_out: ImageStore | None = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """`fit`, after fine-tuning for classification where it is asked for.

    Fine-tuning follows the authors' train_finetune.py: RAdam at a constant rate, no weight decay; but with the same
    batches as later, in place of 32 images drawn from all.
    """
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
        before = checkpoint.with_stem(f"{checkpoint.stem}-finetune")
        fit(first, model, images, loss=classifier, checkpoint=before, **settings)
        if isinstance(loss, CrossEntropyLoss):
            loss.load_state_dict(classifier.state_dict())
    return fit(
        config, model, images, loss=loss, stop_after=stop_after, held_out=held_out, checkpoint=checkpoint, **settings
    )


def _load(config: Config) -> tuple[RetrievalDataset, RetrievalDataset, RetrievalDataset, RetrievalDataset]:
    """Training data, evaluated data, and the training data parted into those to fit and those held out.

    Nothing is held out where the run holds out nothing: these two are then the training data.
    """
    train = datasets.load(config.dataset, config.data_root, "train")
    fit_part, held_out = train, train
    if config.choose_epochs or config.evaluate_on == "held_out":
        fit_part, held_out = train.hold_out(config.held_out, seed=config.seed)
    # A batch that cannot be drawn is better refused before anything is read or trained.
    for part in (train, fit_part):
        sampler_of(config, part.labels)
    test = config.evaluate_on == "test"
    evaluated = datasets.load(config.dataset, config.data_root, "test") if test else held_out
    return train, evaluated, fit_part, held_out
