"""The settings of a run, each with the reason for its default."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gl_core import _checks
from gl_core.baselines import BASELINES, check_options

__all__ = ["METHODS", "OPTIMIZERS", "PROFILES", "Config"]

METHODS = ("group_loss", "cross_entropy", *BASELINES)
OPTIMIZERS = ("radam", "adamw", "sgd")
PROFILES = ("quick", "full")
EVALUATE_ON = ("test", "held_out")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training run.

    Build one with `Config.resolve`, which fills in what suits the data set, the backbone and the profile; the defaults written
    here are the last resort. Raises ValueError, naming field and value, if a value is not of its type or out of its range.
    """

    # What is learned from what.
    dataset: str = "glyphs"
    data_root: str | None = None  # folder or archive that holds the data set; not needed for glyphs
    method: str = "group_loss"  # group_loss, cross_entropy, or one of gl_core.baselines
    backbone: str = "conv4"
    pretrained: bool = True  # start from the backbone's own weights, where it has any
    image_size: int = 32  # pixels of a side that the network sees

    # The group: P classes x K images. With fewer images a class has too few neighbours to be consulted.
    classes_per_batch: int = 12
    samples_per_class: int = 8

    # The loss. T = 1 is what the authors use; a higher T saturates the assignments, which starves the gradient.
    num_anchors: int = 2
    num_iterations: int = 1
    temperature: float = 10.0
    similarity: str = "pearson"
    dynamics: str = "replicator"
    cross_entropy_weight: float = 1.0
    # The other losses have options of their own (see gl_core.baselines); what is left out is as their papers have it.
    loss_options: dict | None = None

    # Optimisation. RAdam as in the paper: its rectified first steps need no warm-up.
    epochs: int = 10  # an upper bound where choose_epochs is set
    optimizer: str = "radam"
    learning_rate: float = 2e-3
    classifier_learning_rate: float | None = None  # for the classifier or proxies alone; None: as the rest
    weight_decay: float = 1e-4
    schedule: str = "cosine"  # "cosine" falls to 0 over the epochs, "constant" stays
    augmentation: str = "drawing"  # see gl_core.images.augment
    center_crop: float = 1.0  # part of the shorter side that evaluation looks at

    # Gentleness, for pretrained backbones: few images must not overwrite what millions taught.
    freeze_batch_norm: bool = False  # keep the statistics and affine parameters of the pretraining
    average_weights: float = 0.0  # decay of the running mean of weights that is evaluated; 0: the last weights

    # Selection happens on held-out training classes. The test classes are read once, at the end.
    choose_epochs: bool = False  # find the number of epochs (0 included) on held-out classes, then train on all
    held_out: float = 0.2  # share of the training classes that is held out for choosing
    evaluate_on: str = "test"  # "held_out" for tuning: the test classes are never read

    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    profile: str = "quick"  # quick or full; only sets defaults

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        self._validate()

    def _validate(self) -> None:
        from gl_core import datasets
        from gl_core.images import AUGMENTATIONS
        from gl_core.loss import SIMILARITIES
        from gl_core.models import BACKBONES
        from gl_core.propagation import DYNAMICS

        for name, choices in {
            "dataset": datasets.names(),
            "method": METHODS,
            "backbone": BACKBONES,
            "similarity": SIMILARITIES,
            "dynamics": DYNAMICS,
            "optimizer": OPTIMIZERS,
            "schedule": ("cosine", "constant"),
            "augmentation": AUGMENTATIONS,
            "evaluate_on": EVALUATE_ON,
            "profile": PROFILES,
        }.items():
            _checks.choice(name, getattr(self, name), choices)
        least = {
            "image_size": BACKBONES[self.backbone].smallest,
            "classes_per_batch": 2,
            "samples_per_class": 2,
            "num_anchors": 0,
            "num_iterations": 0,
            "epochs": 0,
            "seed": 0,
        }
        for name, bound in least.items():
            _checks.count(name, getattr(self, name), least=bound)
        _checks.temperature(self.temperature)
        if self.method in BASELINES:
            object.__setattr__(self, "loss_options", check_options(self.method, self.loss_options))
        elif self.loss_options is not None:
            raise ValueError(
                f"loss_options={self.loss_options!r}: must be None for {self.method}, whose settings have names of their own"
            )
        positive = ["learning_rate"] + ["classifier_learning_rate"] * (self.classifier_learning_rate is not None)
        for name in positive:
            _between(name, getattr(self, name), 0, math.inf, open_below=True)
        for name in ("weight_decay", "cross_entropy_weight"):
            _between(name, getattr(self, name), 0, math.inf)
        _between("average_weights", self.average_weights, 0, 1)
        _between("center_crop", self.center_crop, 0, 1, open_below=True, closed_above=True)
        _between("held_out", self.held_out, 0, 1, open_below=True)

    @classmethod
    def resolve(cls, profile: str | None = "quick", **given: Any) -> "Config":
        """Settings for a data set and a backbone; what is given wins, None means "what suits".

        What suits is looked up from the general to the particular: the defaults of `Config`, the data set, whether the
        backbone is pretrained, the profile. No profile makes a named data set smaller.

        >>> Config.resolve("quick", dataset="omniglot", epochs=None).epochs
        30
        """
        from gl_core.models import BACKBONES

        unknown = set(given) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown setting {min(unknown)!r}: must be one of {', '.join(cls.names())}")
        profile = "quick" if profile is None else profile
        _checks.choice("profile", profile, PROFILES)
        given = {name: value for name, value in given.items() if value is not None}
        dataset = given.get("dataset", cls.dataset)
        # A data set without settings of its own is taken for photographs.
        settings = dict(_DATASETS.get(dataset, _PHOTOGRAPHS))
        backbone = given.get("backbone", settings.get("backbone", cls.backbone))
        known = BACKBONES.get(backbone)
        if known is not None and known.has_weights and given.get("pretrained", True):
            settings |= _PRETRAINED
        settings |= _PROFILES.get((dataset, profile), {})
        return cls(**(settings | given | {"profile": profile}))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "Config":
        """Settings from a chapter's parameters, as `Config.resolve(**parameters)`; other names in the mapping are passed over."""
        return cls.resolve(**{name: parameters[name] for name in cls.names() if name in parameters})

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return dataclasses.asdict(self)


# What suits which data set.
_DRAWINGS = {"backbone": "conv4", "augmentation": "drawing"}
_PHOTOGRAPHS = {
    "backbone": "efficientnet_lite0",
    "augmentation": "photo",
    "image_size": 128,
    "center_crop": 0.875,
    "classes_per_batch": 8,
    "samples_per_class": 5,
}
_DATASETS = {
    "glyphs": _DRAWINGS | {"image_size": 32, "epochs": 12},
    "omniglot": _DRAWINGS | {"image_size": 28, "epochs": 30},
    # The crops show the car from edge to edge: nothing to cut off.
    "cars196_half": _PHOTOGRAPHS | {"image_size": 96, "center_crop": 1.0},
}
# What suits a pretrained backbone.
_PRETRAINED = {
    "learning_rate": 5e-4,
    "classifier_learning_rate": 2e-3,
    "freeze_batch_norm": True,
    "average_weights": 0.98,
    "choose_epochs": True,
    "epochs": 10,
}
_PROFILES = {
    ("glyphs", "quick"): {"epochs": 3},
}


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """The value as the type that the field declares; a whole number may stand for a float, nothing else is converted."""
    types = get_args(field.type) or (field.type,)
    if float in types and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in types:
        expected = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        raise ValueError(f"{field.name}={value!r}: must be {expected}, not {type(value).__name__}")
    return value


def _between(
    name: str, value: float, low: float, high: float, *, open_below: bool = False, closed_above: bool = False
) -> None:
    above_low = value > low if open_below else value >= low
    below_high = value <= high if closed_above else value < high
    if not (above_low and below_high):
        raise ValueError(
            f"{name}={value}: must lie in {'(' if open_below else '['}{low}, {high}{']' if closed_above else ')'}"
        )
