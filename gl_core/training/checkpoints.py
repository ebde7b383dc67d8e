"""A trained network as two files for others: NAME.safetensors, its weights, and NAME.json, its card.

The card says what the network is, how it was trained and evaluated, and on what. Nothing in either file is executed
when it is read.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from gl_core._extras import require
from gl_core._files import write_atomically
from gl_core.datasets import RetrievalDataset
from gl_core.datasets.catalogue import CATALOGUE
from gl_core.datasets.protocol import query_and_gallery
from gl_core.inference.strategies import Strategies
from gl_core.models import EmbeddingNet
from gl_core.models.network import mismatch
from gl_core.training import records
from gl_core.training.components import build_model, place
from gl_core.training.config import Config

__all__ = ["FORMAT", "configuration", "fingerprint", "load", "new_card", "read_card", "save", "strategies"]

# Of the card; a reader refuses what is newer than itself.
FORMAT = 1
WEIGHTS, CARD = ".safetensors", ".json"
# Settings that say what the network is.
ARCHITECTURE = ("backbone", "last_stride", "bn_neck", "retrieve_after_neck")


def new_card(
    config: Config,
    model: EmbeddingNet,
    record: dict[str, Any],
    train: RetrievalDataset,
    evaluated: RetrievalDataset,
) -> dict[str, Any]:
    """The card of a network that was trained on one set of images and evaluated on another."""
    height, width = config.input_size
    known = CATALOGUE.get(train.name)
    classes = dict.fromkeys(train.class_names[label] for label in sorted(set(train.labels.tolist())) if label >= 0)
    return {
        **{name: record[name] for name in ("run_id", "created", "commit", "code")},
        "architecture": {name: getattr(config, name) for name in ARCHITECTURE}
        | {"embedding_size": model.embedding_size},
        # For readers of other programs; this library derives it from the configuration, as it does in training.
        "preprocessing": {
            "height": height,
            "width": width,
            "resize_shorter_side": round(min(height, width) / config.center_crop),
            "keep_aspect": config.keep_aspect,
            "interpolation": "bicubic",
            "scale": "divide by 255",
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
        },
        "config": record["config"],
        "metrics": record["metrics"],
        "evaluation": {
            "dataset": evaluated.name,
            "classes": "unseen test classes" if config.evaluate_on == "test" else "held-out training classes",
            "images": len(evaluated),
            "protocol": _protocol(evaluated),
        },
        "data_licence": known.licence if known else "unknown",
        "trained_on": list(classes),
        "strategies": None,
        "versions": record["versions"],
    }


def _protocol(dataset: RetrievalDataset) -> str:
    if query_and_gallery(dataset) is None:
        return "all images search each other"
    return "re-identification" if "camera" in dataset.table else "queries search a gallery"


def save(path: str | os.PathLike, model: EmbeddingNet, card: dict[str, Any]) -> Path:
    """Write NAME.safetensors and NAME.json, the card, which holds the checksum of its weights.

    Each file is written whole or not at all, the card last. Raises OSError if they cannot be written.

    Args:
        path: NAME, or either of the two.
        model: its weights are written.
        card: see `new_card`.

    Returns:
        The path of the weights.
    """
    serialise = require("safetensors.torch", extra="train").save
    weights, described = _files(path)
    content = serialise({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    card = card | {"format": FORMAT, "weights": weights.name, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(records.rounded(card), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(weights, content)
    write_atomically(described, text.encode())
    return weights


def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> tuple[EmbeddingNet, dict[str, Any]]:
    """The network, in evaluation mode on the device, and its card.

    Args:
        path: NAME, NAME.safetensors or NAME.json.
        device: where the network goes.

    Raises:
        FileNotFoundError: either file is missing.
        ValueError: the card is broken or of a newer format, or the weights are cut off, of another architecture, or not
            those that the card was written for; the message names the file.
    """
    safetensors = require("safetensors.torch", extra="train")
    weights, _ = _files(path)
    card = read_card(path)
    content = weights.read_bytes()
    try:
        values = safetensors.load(content)
    except require("safetensors", extra="train").SafetensorError as error:
        raise ValueError(f"{weights}: cut off or damaged, its weights cannot be read ({error})") from error
    config = configuration(card, path)
    model = build_model(config)
    if wrong := mismatch(model.state_dict(), values):
        raise ValueError(f"{weights}: weights of another architecture than backbone={config.backbone}: {wrong}")
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ValueError(f"{weights}: not the weights that {_files(path)[1].name} was written for")
    model.load_state_dict(values)
    return place(model, device).eval(), card


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card alone, without the weights; the errors are those of `load`."""
    weights, described = _files(path)
    for file, what in ((weights, "weights"), (described, "card")):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file ({what} missing of {WEIGHTS} and {CARD})")
    try:
        card = json.loads(described.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{described}: not a card, it holds no valid JSON ({error})") from error
    version = card.get("format") if isinstance(card, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{described}: not the card of a checkpoint, it names no format")
    if version > FORMAT:
        raise ValueError(f"{described}: format={version}: must be at most {FORMAT}; a newer gl_core reads it")
    for name, kind in (("config", dict), ("sha256", str)):
        if not isinstance(card.get(name), kind):
            raise ValueError(f"{described}: the card is broken, it has no {name}")
    return card


def configuration(card: dict[str, Any], path: str | os.PathLike = "card") -> Config:
    """The training configuration of a card, without what the weights replace. Raises ValueError where it is none."""
    unknown = sorted(set(card["config"]) - set(Config.names()))
    if unknown:
        raise ValueError(f"{path}: config names {unknown[0]!r}, which is no setting of this version of gl_core")
    try:
        return Config(**(card["config"] | {"pretrained": False, "weights": None, "data_root": None}))
    except ValueError as error:
        raise ValueError(f"{path}: the card is broken: {error}") from error


def strategies(card: dict[str, Any]) -> Strategies:
    """The strategies at test time that were chosen for the network; none if its card names none."""
    return Strategies.from_settings(card.get("strategies") or {})


def fingerprint(card: dict[str, Any]) -> str:
    """The same for two cards only if their networks embed an image alike: weights, preprocessing and strategies."""
    settings = dataclasses.asdict(configuration(card))
    shaping = (*ARCHITECTURE, "keep_aspect", "center_crop")
    parts = [card["sha256"], configuration(card).input_size, *(settings[name] for name in shaping)]
    return hashlib.sha256(json.dumps([*parts, strategies(card).as_dict()]).encode()).hexdigest()[:16]


def _files(path: str | os.PathLike) -> tuple[Path, Path]:
    name = os.fspath(Path(path).expanduser()).removesuffix(WEIGHTS).removesuffix(CARD)
    return Path(name + WEIGHTS), Path(name + CARD)
