"""What `glbook tune` has found: studies, and the settings that did best in them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gl_core.training import records

__all__ = ["Study", "best_settings", "folder", "studies"]


@dataclass(frozen=True)
class Study:
    """The trials of a method and the settings that did best; written to `data/results/tuning`.

    `best` are parameters of a chapter; each trial has its parameters, its record's id and its score, None if it failed.
    """

    study: str
    created: str
    commit: str | None
    method: str
    dataset: str
    backbone: str
    image_size: int
    epochs: int
    seed: int
    score: str
    space: dict[str, dict[str, Any]]
    trials: list[dict[str, Any]]
    best: dict[str, Any]
    versions: dict[str, str]


def studies(dataset: str, backbone: str, image_size: int) -> dict[str, Study]:
    """The newest study of each method on this data set with this network, in the order of `METHODS`."""
    from gl_core.training.config import METHODS

    made = [Study(**json.loads(path.read_text(encoding="utf-8"))) for path in folder().glob("*.json")]
    made = [each for each in made if (each.dataset, each.backbone, each.image_size) == (dataset, backbone, image_size)]
    newest = {study.method: study for study in sorted(made, key=lambda study: study.created)}
    return {method: newest[method] for method in METHODS if method in newest}


def best_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the newest study found for these parameters' method, data set, backbone and image size.

    Raises ValueError, with the command that makes one, if there is no such study.
    """
    from gl_core.training.config import Config

    config = Config.from_parameters(given)
    found = studies(config.dataset, config.backbone, config.image_size)
    if config.method not in found:
        raise ValueError(
            f"tuned: no tuning of {config.method} on {config.dataset} ({config.backbone}, {config.image_size} px) "
            f"is recorded; make one by `glbook tune {config.method} -p dataset {config.dataset}`"
        )
    return found[config.method].best


def folder() -> Path:
    """Where studies are kept."""
    return records.project_root() / "data" / "results" / "tuning"
