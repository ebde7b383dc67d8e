"""The constants of the strategies at test time, chosen on held-out training classes: a coarse grid, then a finer one."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.datasets.protocol import headline
from gl_core.datasets.store import ImageStore
from gl_core.inference import search_and_judge
from gl_core.inference.strategies import Strategies, beta_normalize
from gl_core.models import EmbeddingNet
from gl_core.models.last_activation import leaky_last_activation

__all__ = ["AXES", "Measurement", "best_of_each", "choose_constants", "score"]

# Coarse values of each strategy's constants, the strategies in their order. The first value of the first one is "off"; around
# the published constants, and beyond them on either side.
AXES: dict[str, dict[str, tuple]] = {
    "leaky activation": {"leaky_slope": (0.0, 0.25, 0.5, 1.0)},
    "mixed pooling": {"mixed_pooling": (0.0, 0.25, 0.5, 1.0)},
    "mirror averaging": {"mirror": (False, True)},
    "beta-normalisation": {"beta": (0.0, 0.0005, 0.004, 0.03)},
    "query expansion": {"expansion": (0, 1, 3, 8), "alpha": (1.0, 3.0), "database_side": (False, True)},
    "re-ranking": {"lambda_value": (1.0, 0.9, 0.6, 0.3), "k1": (6, 20, 50), "k2": (2, 6)},
}


@dataclass(frozen=True)
class Pooled:
    """Three numbers for each channel of an image's last map, of which every slope and every pooling is made.

    The map is the activation, max(x, 0), plus the slope times what it cut off, min(x, 0). So its mean follows from two means, and,
    as it grows with x, its largest entry follows from the largest x. Where the backbone does not end in a rectifier nothing
    is cut off, and `cut` is None.
    """

    active: Float[Tensor, "n d"]  # mean of max(x, 0) over the places
    cut: Float[Tensor, "n d"] | None  # mean of min(x, 0)
    largest: Float[Tensor, "n d"]  # of x
    seconds: float  # that it took to make them

    def mixed(self, slope: float, weight: float) -> Float[Tensor, "n d"]:
        """What `gl_core.inference.strategies.mixed_pooling` makes of the map with this slope."""
        if slope and self.cut is None:
            raise ValueError(
                f"leaky_slope={slope}: this backbone does not end in a rectifier, so there is no slope to set; use 0"
            )
        mean = self.active + slope * self.cut if slope else self.active
        if weight == 0:
            return mean
        largest = (
            self.largest if self.cut is None else torch.where(self.largest < 0, slope * self.largest, self.largest)
        )
        return weight * largest + (1 - weight) * mean


class Measurement:
    """Measures strategies on one network and one set of images.

    The network sees every image once, and its mirror image once where that is asked for, however many slopes and poolings
    are measured. What several settings share is computed once, and its time counted in each.
    """

    def __init__(self, model: EmbeddingNet, images: ImageStore, *, batch_size: int = 256) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self._pooled: dict[bool, Pooled] = {}  # by whether the images are mirrored

    def __call__(self, strategies: Strategies) -> tuple[dict[str, float | int], float]:
        """The metrics of the data set's own protocol, and the seconds from images to metrics.

        Raises ValueError for a slope where the backbone has no last activation.
        """
        seen = [self.pooled(mirrored) for mirrored in ((False, True) if strategies.mirror else (False,))]
        started = time.perf_counter()
        embeddings = self._embedding(seen, strategies)
        if strategies.beta:
            embeddings = beta_normalize(embeddings, strategies.beta)
        metrics = search_and_judge(embeddings, self.images.dataset, strategies)
        return metrics, sum(each.seconds for each in seen) + time.perf_counter() - started

    def pooled(self, mirrored: bool = False) -> Pooled:
        """What the network's last map holds of every image, in order, on the CPU."""
        if mirrored not in self._pooled:
            try:
                self._pooled[mirrored] = self._see(mirrored, rectified=True)
            except ValueError:  # the backbone does not end in a rectifier
                self._pooled[mirrored] = self._see(mirrored, rectified=False)
        return self._pooled[mirrored]

    @torch.inference_mode()
    def _see(self, mirrored: bool, rectified: bool) -> Pooled:
        started, training = time.perf_counter(), self.model.training
        device = next(self.model.parameters()).device
        numbers = list(range(len(self.images)))
        chunks = [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]
        parts = []
        self.model.eval()
        try:
            # With slope 1 the last activation lets everything through.
            with leaky_last_activation(self.model, float(rectified)):
                for batch, _ in self.images.batches(chunks):
                    batch = batch.to(device).contiguous(memory_format=torch.channels_last)
                    x = self.model.feature_map(batch.flip(3) if mirrored else batch)
                    means = [x.clamp_min(0), x.clamp_max(0)] if rectified else [x]
                    parts.append([*(part.mean(dim=(2, 3)) for part in means), x.amax(dim=(2, 3))])
        finally:
            self.model.train(training)
        active, *cut, largest = (torch.cat(column).float().cpu() for column in zip(*parts, strict=True))
        return Pooled(active, cut[0] if cut else None, largest, time.perf_counter() - started)

    @torch.inference_mode()
    def _embedding(self, seen: list[Pooled], strategies: Strategies) -> Float[Tensor, "n d"]:
        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        try:
            found = [
                self.model.embedding(each.mixed(strategies.leaky_slope, strategies.mixed_pooling).to(device)).cpu()
                for each in seen
            ]
        finally:
            self.model.train(training)
        return found[0] if len(found) == 1 else (found[0] + found[1]) / 2


def score(metrics: dict[str, float | int]) -> float:
    """What constants are chosen by, as epochs are: the mean of the two metrics by which results are compared."""
    first, mean = headline(metrics)
    return (metrics[first] + metrics[mean]) / 2


def choose_constants(model: EmbeddingNet, held_out: ImageStore) -> tuple[Strategies, list[dict[str, Any]]]:
    """The strategies, with their constants, by which `held_out` is retrieved best, and the table of all that were tried.

    Strategies are decided one after the other in their order, each on top of those before it:

    1. coarse: every combination of the values in `AXES`;
    2. fine: around the best of them, one constant at a time, half way to its neighbours;
    3. the strategy stays off unless that is better than without it.

    At last each that is on is left out once, and dropped if it is not missed. Equal scores are settled for what was tried first.

    `model` must not have been trained on the classes of `held_out`, and these must not be test classes: classes that judge the
    result have no part in the choice. Each row of the table has "strategy", "step" ("start", "coarse", "fine", "left out"),
    "settings" (of all strategies), "score", the two metrics and "seconds".
    """
    measure, tried = Measurement(model, held_out), []

    def attempt(strategy: str, step: str, strategies: Strategies) -> float:
        metrics, seconds = measure(strategies)
        found = score(metrics)
        row = {"strategy": strategy, "step": step, "settings": strategies.as_dict(), "score": found, "seconds": seconds}
        tried.append(row | {name: metrics[name] for name in headline(metrics)})
        return found

    best, best_score = Strategies(), attempt("none", "start", Strategies())
    for strategy, axes in AXES.items():
        try:
            coarse = [(attempt(strategy, "coarse", each), each) for each in _coarse(best, axes)]
        except ValueError:
            if strategy != "leaky activation":
                raise
            continue  # a backbone that does not end in a rectifier has no slope to choose
        around = max(coarse, key=_score)
        fine = [(attempt(strategy, "fine", each), each) for each in _fine(around[1], axes)]
        found, candidate = max([around, *fine], key=_score)
        if found > best_score:
            best, best_score = candidate, found
    for strategy in best.parts():
        without = best.only(name for name in best.parts() if name != strategy)
        found = attempt(strategy, "left out", without)
        if found >= best_score:
            best, best_score = without, found
    return best, tried


def best_of_each(tried: list[dict[str, Any]]) -> Strategies:
    """Every strategy on, with its best constants in a table of `choose_constants`, whether it was kept or not.

    What the table does not hold stays off.
    """
    chosen = Strategies()
    for strategy, axes in AXES.items():
        rows = [row for row in tried if row["strategy"] == strategy and row["step"] in ("coarse", "fine")]
        if rows:
            settings = max(rows, key=lambda row: row["score"])["settings"]
            chosen = dataclasses.replace(chosen, **{name: settings[name] for name in axes})
    return chosen


def _score(candidate: tuple[float, Strategies]) -> float:
    return candidate[0]


def _coarse(best: Strategies, axes: dict[str, tuple]) -> Iterator[Strategies]:
    """Every combination of a strategy's values in which it is on, on top of `best`."""
    (switch, (_, *on)), *others = axes.items()
    for values in itertools.product(on, *(values for _, values in others)):
        yield dataclasses.replace(best, **dict(zip([switch, *dict(others)], values, strict=True)))


def _fine(around: Strategies, axes: dict[str, tuple]) -> Iterator[Strategies]:
    """Each constant of a strategy half way to its neighbours among the coarse values, the others as they are."""
    for name, values in axes.items():
        if isinstance(values[0], bool):
            continue
        ordered = sorted(values)
        value = getattr(around, name)
        place = ordered.index(value)
        for neighbour in ordered[max(place - 1, 0) : place] + ordered[place + 1 : place + 2]:
            middle = (value + neighbour) / 2
            if isinstance(value, int):
                middle = round(middle)
            if middle not in (value, neighbour):
                yield dataclasses.replace(around, **{name: middle})
