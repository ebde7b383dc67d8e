"""The ablation of the strategies at test time: none, each alone, cumulative, each left out, all; and its record."""

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gl_core import datasets, training
from gl_core.datasets.store import ImageStore
from gl_core.inference.selection import Measurement, best_of_each, choose_hyperparameters
from gl_core.inference.strategies import Strategies
from gl_core.models import EmbeddingNet
from gl_core.training import records
from gl_core.training.config import Config

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ablation", "ablate", "as_table", "cases", "run"]


@dataclass
class Ablation:
    """What `run` left behind: the chosen strategies, the network trained on all training classes, and the record."""

    strategies: Strategies
    model: EmbeddingNet
    record: dict[str, Any]
    record_path: Path


def cases(strategies: Strategies, candidates: Strategies | None = None) -> list[tuple[str, str, Strategies]]:
    """The cases of an ablation: kind, name of the strategy, settings.

    Args:
        strategies: those that are on take part: in the kinds "cumulative" (all in their order up to this one), "left
            out" (all but this one) and "all".
        candidates: those that are on are measured "alone"; `strategies` if not given.

    >>> [(kind, name) for kind, name, _ in cases(Strategies(mirror=True))]  # doctest: +NORMALIZE_WHITESPACE
    [('none', 'none'), ('alone', 'mirror averaging'), ('cumulative', 'mirror averaging'),
     ('left out', 'mirror averaging'), ('all', 'all')]
    """
    names = list(strategies.parts())
    alone = (strategies if candidates is None else candidates).parts()
    return [
        ("none", "none", Strategies()),
        *(("alone", name, each) for name, each in alone.items()),
        *(("cumulative", name, strategies.only(names[: place + 1])) for place, name in enumerate(names)),
        *(("left out", name, strategies.only(other for other in names if other != name)) for name in names),
        ("all", "all", strategies),
    ]


def ablate(
    model: EmbeddingNet, images: ImageStore, strategies: Strategies, candidates: Strategies | None = None
) -> list[dict[str, Any]]:
    """The metrics of every case on these images, and the time it takes.

    Args:
        model: the trained network.
        images: those of the classes to measure.
        strategies: see `cases`, like `candidates`.
        candidates: see there.

    Returns:
        One row a case: "kind" and "strategy" (see `cases`), "settings", "metrics" and "seconds", from decoded images to
        metrics. What is the same in several cases is computed once, and its time counted in each.

    Raises:
        ValueError: for a slope where the backbone has no last activation.
    """
    measure, known = Measurement(model, images), {}
    rows = []
    for kind, name, each in cases(strategies, candidates):
        if each not in known:
            known[each] = dict(zip(("metrics", "seconds"), measure(each), strict=True))
        rows.append({"kind": kind, "strategy": name, "settings": each.as_dict()} | known[each])
    return rows


def run(
    config: Config, *, strategies: Strategies | None = None, keep: str | None = None, progress: bool = True
) -> Ablation:
    """Choose the hyperparameters on held-out training classes, then ablate the strategies on the test classes, once.

    1. Train on part of the training classes, and choose the hyperparameters on the others
    (`gl_core.inference.selection`). 2. Train on all training classes, as `gl_core.training.run` does.
    3. Measure every case on the test classes.

    The record is that of the second training, with two parts more: "ablation", the rows of `ablate`; and "search", with
    the chosen settings ("strategies"), the best of every strategy, kept or not, which are measured alone
    ("candidates"), the rows that led to them ("tried") and the plain metrics on the held-out classes ("metrics").

    Args:
        config: that of both trainings; must evaluate on the test classes.
        strategies: settings to measure; nothing is chosen then, and the first step is left out.
        keep: None, "final" or "tuning": where the record goes (see `gl_core.training.records`).
        progress: whether to show progress bars.

    Raises:
        ValueError: if `config` evaluates on held-out classes, which choose the hyperparameters here.
    """
    if config.evaluate_on != "test":
        raise ValueError(
            f"evaluate_on={config.evaluate_on!r}: must be 'test'; the held-out classes choose the hyperparameters here"
        )
    records.results_folder(keep)  # a word that is none is better refused before anything is trained
    started = time.monotonic()
    if strategies is None:
        held_out = dataclasses.replace(config, evaluate_on="held_out")
        fitted = training.run(held_out, chapter="inference", progress=progress)
        strategies, tried = choose_hyperparameters(fitted.model, _evaluated(fitted.config, fitted.model, progress))
        candidates = best_of_each(tried)
        search = {"tried": tried, "metrics": fitted.metrics}
    else:
        candidates, search = strategies, {"tried": [], "metrics": {}}
    search |= {"strategies": strategies.as_dict(), "candidates": candidates.as_dict()}
    trained = training.run(config, chapter="inference", progress=progress)
    rows = ablate(trained.model, _evaluated(config, trained.model, progress), strategies, candidates)

    device = trained.record["device"]
    record = records.new_record(chapter="inference", config=config.as_dict(), device=device, keep=keep)
    record |= {name: trained.record[name] for name in ("metrics", "untrained", "history", "selection")}
    record |= {"search": search, "ablation": rows, "wall_time_s": round(time.monotonic() - started, 1)}
    return Ablation(strategies, trained.model, record, records.write_record(record))


def as_table(records: Iterable[dict[str, Any] | str | Path]) -> "pd.DataFrame":
    """The rows of the ablations in these records, or in these files of records, with data set, seed and metrics."""
    import pandas as pd

    columns, rows = ["kind", "strategy", "seconds"], []
    for record in records:
        if not isinstance(record, dict):
            record = json.loads(Path(record).read_text(encoding="utf-8"))
        own = {"dataset": record["dataset"], "seed": record["seed"]}
        rows += [own | {name: row[name] for name in columns} | row["metrics"] for row in record.get("ablation", [])]
    return pd.DataFrame(rows, columns=None if rows else ["dataset", "seed", *columns])


def _evaluated(config: Config, model: EmbeddingNet, progress: bool) -> ImageStore:
    """The images on which a run with this configuration is evaluated, where its network is."""
    device = next(model.parameters()).device
    if config.evaluate_on == "test":
        part = datasets.load(config.dataset, config.data_root, "test")
    else:
        part = datasets.load(config.dataset, config.data_root, "train").hold_out(config.held_out, seed=config.seed)[1]
    return training.image_store(part, config, device, training=False, progress=progress)
