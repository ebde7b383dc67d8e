"""Choosing the hyperparameters of the strategies at test time on held-out training classes: coarse grid, finer grid."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.datasets.protocol import headline
from gl_core.datasets.store import ImageStore
from gl_core.inference.embedding import batches_of, search_and_judge
from gl_core.inference.strategies import Strategies, beta_normalize
from gl_core.models import EmbeddingNet, evaluation_mode
from gl_core.models.last_activation import leaky_last_activation

__all__ = ["GRID", "Measurement", "best_of_each", "choose_hyperparameters", "score"]

# Coarse values of each strategy's hyperparameters, the strategies in their order. The first value of the first one is
# "off"; around the published values, and beyond them on either side.
GRID: dict[str, dict[str, tuple]] = {
    "leaky activation": {"leaky_slope": (0.0, 0.25, 0.5, 1.0)},
    "mixed pooling": {"mixed_pooling": (0.0, 0.25, 0.5, 1.0)},
    "mirror averaging": {"mirror": (False, True)},
    "beta-normalisation": {"beta": (0.0, 0.0005, 0.004, 0.03)},
    "query expansion": {"expansion": (0, 1, 3, 8), "alpha": (1.0, 3.0), "database_side": (False, True)},
    "re-ranking": {"lambda_value": (1.0, 0.9, 0.6, 0.3), "k1": (6, 20, 50), "k2": (2, 6)},
}


class Measurement:
    """Measures strategies on one network, which passes once over the images and once over their mirror images.

    Let x be the last map before its activation a, which multiplies what is below 0 by the slope. Every slope and every
    pooling follows from three numbers for each channel:

        mean a(x) = mean max(x, 0) + slope mean min(x, 0)        max a(x) = a(max x)
    """

    def __init__(self, model: EmbeddingNet, images: ImageStore, *, batch_size: int = 256) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self.ends_in_rectifier = True  # until a pass finds that it does not
        self._passes: dict[bool, tuple[list[Tensor], float]] = {}  # by whether the images are mirrored

    def __call__(self, strategies: Strategies) -> tuple[dict[str, Any], float]:
        """The metrics of the data set's own protocol, and the seconds from images to metrics.

        What several settings share is computed once, and its time counted in each.

        Raises:
            ValueError: a slope is given and the backbone has no last activation.
        """
        seen = [self._pass(mirrored) for mirrored in ((False, True) if strategies.mirror else (False,))]
        started = time.perf_counter()
        embeddings = torch.stack([self._embedding(parts, strategies) for parts, _ in seen]).mean(dim=0)
        if strategies.beta:
            embeddings = beta_normalize(embeddings, strategies.beta)
        metrics = search_and_judge(embeddings, self.images.dataset, strategies)
        return metrics, sum(seconds for _, seconds in seen) + time.perf_counter() - started

    def _pass(self, mirrored: bool) -> tuple[list[Tensor], float]:
        """For each image and channel mean max(x, 0), mean min(x, 0) and max x, on the CPU; and the seconds taken."""
        if mirrored not in self._passes:
            started = time.perf_counter()
            try:
                parts = self._pooled(mirrored)
            except ValueError:
                if not self.ends_in_rectifier:
                    raise
                self.ends_in_rectifier = False
                parts = self._pooled(mirrored)
            self._passes[mirrored] = parts, time.perf_counter() - started
        return self._passes[mirrored]

    @torch.inference_mode()
    def _pooled(self, mirrored: bool) -> list[Tensor]:
        device = next(self.model.parameters()).device
        parts = []
        # With slope 1 the last activation lets everything through.
        with evaluation_mode(self.model), leaky_last_activation(self.model, float(self.ends_in_rectifier)):
            for batch in batches_of(self.images, range(len(self.images)), self.batch_size):
                batch = batch.to(device).contiguous(memory_format=torch.channels_last)
                x = self.model.feature_map(batch.flip(3) if mirrored else batch)
                parts.append([x.clamp_min(0).mean((2, 3)), x.clamp_max(0).mean((2, 3)), x.amax((2, 3))])
        return [torch.cat(column).float().cpu() for column in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _embedding(self, parts: list[Tensor], strategies: Strategies) -> Float[Tensor, "n d"]:
        positive, negative, largest = parts
        slope, weight = strategies.leaky_slope, strategies.mixed_pooling
        if not self.ends_in_rectifier:
            if slope:
                raise ValueError(f"leaky_slope={slope}: must be 0, as this backbone does not end in a rectifier")
            slope = 1.0  # its map is pooled as it is
        largest = torch.where(largest < 0, slope * largest, largest)
        pooled = weight * largest + (1 - weight) * (positive + slope * negative)
        with evaluation_mode(self.model):
            return self.model.embedding(pooled.to(next(self.model.parameters()).device)).cpu()


def score(metrics: dict[str, Any]) -> float:
    """What hyperparameters are chosen by, as epochs are: the mean of the two metrics by which results are compared."""
    first, mean = headline(metrics)
    return (metrics[first] + metrics[mean]) / 2


def choose_hyperparameters(model: EmbeddingNet, held_out: ImageStore) -> tuple[Strategies, list[dict[str, Any]]]:
    """The strategies, with their hyperparameters, by which held-out classes are retrieved best.

    Strategies are decided one after the other in their order, each on top of those before it:

    1. coarse: every combination of the values in `GRID`;
    2. fine: around the best of them, one hyperparameter at a time, half way to its neighbours;
    3. the strategy stays off unless that is better than without it.

    At last each that is on is left out once, and dropped if it is not missed. Of equal scores the one tried first
    counts.

    Args:
        model: must not have been trained on the classes of `held_out`.
        held_out: images of training classes; test classes, which judge the result, have no part in the choice.

    Returns:
        The strategies, and the table of all that were tried. Each of its rows has "strategy", "step" ("start",
        "coarse", "fine", "left out"), "settings" (of all strategies), "score", the two metrics and "seconds".
    """
    measure, tried = Measurement(model, held_out), []

    def attempt(strategy: str, step: str, strategies: Strategies) -> float:
        metrics, seconds = measure(strategies)
        found = score(metrics)
        row = {"strategy": strategy, "step": step, "settings": strategies.as_dict(), "score": found, "seconds": seconds}
        tried.append(row | {name: metrics[name] for name in headline(metrics)})
        return found

    best = Strategies()
    best_score = attempt("none", "start", best)
    for strategy, values in GRID.items():
        try:
            coarse = {each: attempt(strategy, "coarse", each) for each in _coarse(best, values)}
        except ValueError:
            if strategy != "leaky activation":
                raise
            continue  # a backbone that does not end in a rectifier has no slope to choose
        around = max(coarse, key=coarse.__getitem__)
        scores = {around: coarse[around]}
        scores |= {each: attempt(strategy, "fine", each) for each in _fine(around, values)}
        candidate = max(scores, key=scores.__getitem__)
        if scores[candidate] > best_score:
            best, best_score = candidate, scores[candidate]
    for strategy in best.parts():
        without = best.only(name for name in best.parts() if name != strategy)
        found = attempt(strategy, "left out", without)
        if found >= best_score:
            best, best_score = without, found
    return best, tried


def best_of_each(tried: list[dict[str, Any]]) -> Strategies:
    """Every strategy on, kept or not, with its best hyperparameters in a table of `choose_hyperparameters`.

    What the table does not hold stays off.
    """
    chosen = Strategies()
    for strategy, values in GRID.items():
        rows = [row for row in tried if row["strategy"] == strategy and row["step"] in ("coarse", "fine")]
        if rows:
            settings = max(rows, key=lambda row: row["score"])["settings"]
            chosen = dataclasses.replace(chosen, **{name: settings[name] for name in values})
    return chosen


def _coarse(best: Strategies, values: dict[str, tuple]) -> Iterator[Strategies]:
    """Every combination of a strategy's values in which it is on, on top of `best`."""
    (_, *on), *others = values.values()
    for combination in itertools.product(on, *others):
        yield dataclasses.replace(best, **dict(zip(values, combination, strict=True)))


def _fine(around: Strategies, values: dict[str, tuple]) -> Iterator[Strategies]:
    """Each hyperparameter of a strategy half way to its neighbours among the coarse values, the others as they are."""
    for name, coarse in values.items():
        if isinstance(coarse[0], bool):
            continue
        ordered = sorted(coarse)
        value = getattr(around, name)
        place = ordered.index(value)
        for neighbour in ordered[max(place - 1, 0) : place] + ordered[place + 1 : place + 2]:
            middle = (value + neighbour) / 2
            if isinstance(value, int):
                middle = round(middle)
            if middle not in (value, neighbour):
                yield dataclasses.replace(around, **{name: middle})
