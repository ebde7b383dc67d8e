"""Tuning: the same number of trials for every method, judged on held-out training classes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NamedTuple

from gl_core import _checks, _extras
from gl_core._files import write_atomically
from gl_core.training import records
from gl_core.training.config import Config
from glbook import studies as kept
from glbook import sweeps
from glbook.studies import Study, best_settings, studies
from glbook.sweeps.store import Store

__all__ = ["SPACES", "TRIALS", "Range", "Study", "best_settings", "studies", "tune"]

TRIALS = 12
# Trials that are made side by side before the next are drawn. The number is fixed: what is drawn depends on it.
ROUND = 4


class Range(NamedTuple):
    """Where a setting is looked for; on a logarithmic scale where its order of magnitude is in question."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


def _log(low: float, high: float) -> Range:
    return Range(low, high, log=True)


# Factors: of the learning rate that the configuration has by itself, and of the classifier's or the proxies' rate to
# that one.
_RATE = {"learning_rate": _log(0.25, 4)}
_RATES = _RATE | {"classifier_learning_rate": _log(1, 100)}
# What is tuned of each method. The first trial is always the default, which is that of the paper where it has one.
SPACES: dict[str, dict[str, Range]] = {
    "group_loss": _RATES | {"temperature": _log(2, 100), "num_anchors": Range(1, 4, whole=True)},
    "cross_entropy": _RATES,
    "normalised_softmax": _RATES | {"loss.temperature": _log(0.01, 0.2)},
    "contrastive": _RATE | {"loss.pos_margin": Range(0, 0.5), "loss.neg_margin": Range(0.4, 1.4)},
    "triplet": _RATE | {"loss.margin": _log(0.05, 0.8)},
    "multi_similarity": _RATE | {"loss.alpha": _log(0.5, 10), "loss.beta": _log(10, 100), "loss.base": Range(0.3, 1.0)},
    "proxy_anchor": _RATES | {"loss.alpha": _log(8, 64), "loss.margin": Range(0, 0.4)},
    "proxy_nca": _RATES | {"loss.softmax_scale": _log(2, 32)},
    "soft_triple": _RATES | {"loss.la": _log(5, 40), "loss.gamma": _log(0.02, 0.5), "loss.margin": Range(0, 0.1)},
    "arcface": _RATES | {"loss.margin": Range(5, 40), "loss.scale": _log(8, 64)},
    "supervised_contrastive": _RATE | {"loss.temperature": _log(0.02, 0.5)},
}


def tune(
    method: str,
    given: Mapping[str, Any],
    *,
    trials: int = TRIALS,
    seed: int = 0,
    scheduler: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Study:
    """Look for settings of a method in its `SPACES`, at half the epochs, judged by the mean of R@1 and MAP@R on
    held-out classes.

    The first trial has the defaults, the next few are drawn at random, the others by the tree-structured Parzen
    estimator of Optuna. Each is a run of a sweep with purpose "tuning": those that are recorded already are not made
    again, so a study that was interrupted goes on. The test classes are never read.

    Args:
        method: a method with a search space.
        given: parameters of the chapter that all trials share, such as the data set.
        trials: how many.
        seed: of the search; the seed of the trainings is a parameter.
        scheduler, workers, say: see `glbook.sweeps.run_plan`.

    Raises:
        ValueError: a method without a space, bad parameters, parameters that the study sets itself, or all trials
            failed.
    """
    optuna = _extras.require("optuna", extra="sweeps")
    _checks.choice("method", method, SPACES)
    for name in ("method", "evaluate_on", "choose_epochs", "keep"):
        if name in given:
            raise ValueError(f"{name}={given[name]!r}: a study sets it itself, so it cannot be given")
    given = dict(given)
    config = Config.from_parameters(given | {"method": method})
    shared = {"method": method, "epochs": max(1, config.epochs // 2), "evaluate_on": "held_out", "choose_epochs": False}
    space = SPACES[method]
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=ROUND)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(direction="maximize", sampler=sampler)
    search.enqueue_trial(_defaults(config, space))
    made: list[dict[str, Any]] = []
    for first in range(0, trials, ROUND):
        drawn = [search.ask(_distributions(space)) for _ in range(first, min(first + ROUND, trials))]
        settings = [_settings(config, space, trial.params) for trial in drawn]
        # Two draws that agree in all digits that count are one run.
        different = {json.dumps(each, sort_keys=True): each for each in settings}
        plan = sweeps.make_plan(
            f"tuning of {method}, trials {first + 1} to {first + len(drawn)}",
            [given | shared | each | {"chapter": "training"} for each in different.values()],
            varied=["learning_rate", *sorted({name for each in settings for name in each} - {"learning_rate"})],
            keep="tuning",
        )
        sweeps.run_plan(plan, scheduler=scheduler, workers=workers, say=say)
        keys = dict(zip(different, (run.key for run in plan.runs), strict=True))
        for trial, each in zip(drawn, settings, strict=True):
            record = next(iter(Store().keep(keys[json.dumps(each, sort_keys=True)], "tuning")), None)
            score = _score(record)
            search.tell(trial, score, state=None if score is not None else optuna.trial.TrialState.FAIL)
            made.append({"parameters": each, "run_id": record and record["run_id"], "score": score})
    if all(trial["score"] is None for trial in made):
        raise ValueError(f"method={method!r}: none of its {trials} trials went well; `glbook run` one to see why")
    return _keep(config, shared["epochs"], space, made, seed)


def _defaults(config: Config, space: dict[str, Range]) -> dict[str, float]:
    """The settings of the configuration as a point of the space."""
    ratio = (config.classifier_learning_rate or config.learning_rate) / config.learning_rate
    values = {"learning_rate": 1.0, "classifier_learning_rate": ratio}
    values |= {f"loss.{name}": value for name, value in (config.loss_options or {}).items()}
    return {name: values[name] if name in values else getattr(config, name) for name in space}


def _distributions(space: dict[str, Range]) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution, IntDistribution

    def distribution(where: Range) -> Any:
        if where.whole:
            return IntDistribution(int(where.low), int(where.high))
        return FloatDistribution(where.low, where.high, log=where.log)

    return {name: distribution(where) for name, where in space.items()}


def _settings(config: Config, space: dict[str, Range], point: Mapping[str, float]) -> dict[str, Any]:
    """A point of the space as parameters of a chapter, in four digits: what no one would type is of no use."""
    settings, options = {}, dict(config.loss_options or {})
    for name in space:
        value = point[name]
        if name == "learning_rate":
            value *= config.learning_rate
        elif name == "classifier_learning_rate":
            value *= point["learning_rate"] * config.learning_rate
        value = value if space[name].whole else float(f"{value:.4g}")
        if name.startswith("loss."):
            options[name.removeprefix("loss.")] = value
        else:
            settings[name] = value
    return settings | ({"loss_options": options} if options else {})


def _score(record: dict[str, Any] | None) -> float | None:
    return None if record is None else (record["metrics"]["R@1"] + record["metrics"]["MAP@R"]) / 2


def _keep(config: Config, epochs: int, space: dict[str, Range], made: list[dict[str, Any]], seed: int) -> Study:
    """Write the study of these trials, and return it."""
    best = max((trial for trial in made if trial["score"] is not None), key=lambda trial: trial["score"])
    ranges = {
        name: {word: value for word, value in range_._asdict().items() if value} for name, range_ in space.items()
    }
    name = hashlib.sha256(json.dumps([made, ranges, seed], sort_keys=True).encode()).hexdigest()[:8]
    study = Study(
        study=f"{config.dataset}-{config.method}-{name}",
        created=datetime.now(UTC).replace(microsecond=0).isoformat(),
        commit=records.commit(),
        method=config.method,
        dataset=config.dataset,
        backbone=config.backbone,
        image_size=config.image_size,
        epochs=epochs,
        seed=seed,
        score="mean of R@1 and MAP@R on held-out training classes",
        space=ranges,
        trials=made,
        best=best["parameters"],
        versions=records.versions() | {"optuna": metadata.version("optuna")},
    )
    path = kept.folder() / f"{study.study}.json"
    try:
        write_atomically(path, (json.dumps(asdict(study), indent=1) + "\n").encode(), overwrite=False)
    except FileExistsError:  # the same trials came to the same end before
        return Study(**json.loads(path.read_text(encoding="utf-8")))
    return study
