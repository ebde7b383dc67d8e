"""The settings of a run, each with the reason for its default."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gl_core import _checks
from gl_core.training.baselines import BASELINES, check_options
from gl_core.training.presets import BY_PROFILE, DATASETS, PHOTOGRAPHS, PRESETS, PRETRAINED

__all__ = ["METHODS", "OPTIMIZERS", "PROFILES", "Config"]

METHODS = ("group_loss", "cross_entropy", *BASELINES)
OPTIMIZERS = ("radam", "adamw", "sgd")
PROFILES = ("quick", "full")
SCHEDULES = ("cosine", "constant", "step")
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
    method: str = "group_loss"  # group_loss, cross_entropy, or one of gl_core.training.baselines
    backbone: str = "conv4"
    pretrained: bool = True  # start from the backbone's own weights, where it has any
    weights: str | None = None  # file of these weights, for bn_inception, whose weights come with no package
    last_stride: int = 2  # of resnet50; 1 doubles its map, which re-identification likes and which costs a third more
    bn_neck: bool = False  # batch normalisation between embedding and classifier, see gl_core.models.EmbeddingNet
    retrieve_after_neck: bool = True  # compare images after that normalisation, as its authors found better
    image_size: int = 32  # height in pixels that the network sees, and width unless image_width is given
    image_width: int | None = None  # for images that are not square
    keep_aspect: bool = True  # cut images to that shape; False squeezes them into it, as re-identification does

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
    # The other losses have options of their own (see gl_core.training.baselines); what is left out is as their papers have it.
    loss_options: dict | None = None

    # Optimisation. RAdam as in the paper: its rectified first steps need no warm-up.
    epochs: int = 10  # an upper bound where choose_epochs is set
    optimizer: str = "radam"
    learning_rate: float = 2e-3
    classifier_learning_rate: float | None = None  # for the classifier or proxies alone; None: as the rest
    weight_decay: float = 1e-4
    # "cosine" falls to 0 over the epochs, "constant" stays, "step" falls to a tenth at the beginning of epoch step_at.
    schedule: str = "cosine"
    step_at: int = 31  # counted from 1; 31 of 70 in the authors' code
    augmentation: str = "drawing"  # see gl_core.datasets.augmentation.augment
    random_erasing: float = 0.0  # share of training images with a rectangle blotted out; 0.5 in re-identification
    center_crop: float = 1.0  # part of the shorter side that evaluation looks at

    # Gentleness, for pretrained backbones: few images must not overwrite what millions taught.
    freeze_batch_norm: bool = False  # keep the statistics and affine parameters of the pretraining
    finetune_epochs: int = 0  # epochs of plain classification before; the authors train 10, at the rate below
    finetune_learning_rate: float = 3e-4
    average_weights: float = 0.0  # decay of the running mean of weights that is evaluated; 0: the last weights

    # Selection happens on held-out training classes. The test classes are read once, at the end.
    choose_epochs: bool = False  # find the number of epochs (0 included) on held-out classes, then train on all
    held_out: float = 0.2  # share of the training classes that is held out for choosing
    evaluate_on: str = "test"  # "held_out" for tuning: the test classes are never read

    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = "auto"  # auto, 32, bf16, fp16: see gl_core.devices.fabric
    workers: int | None = None  # processes that decode images which do not fit into memory; None: one a processor core
    preset: str | None = None  # published settings by name, see gl_core.training.presets; only sets defaults
    profile: str = "quick"  # quick or full; only sets defaults

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        self._validate()

    def _validate(self) -> None:
        from gl_core import datasets
        from gl_core.datasets.augmentation import AUGMENTATIONS
        from gl_core.devices import PRECISIONS
        from gl_core.loss import SIMILARITIES
        from gl_core.models import backbone
        from gl_core.propagation import DYNAMICS

        for name, choices in {
            "dataset": datasets.names(),
            "method": METHODS,
            "similarity": SIMILARITIES,
            "dynamics": DYNAMICS,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "augmentation": AUGMENTATIONS,
            "evaluate_on": EVALUATE_ON,
            "precision": PRECISIONS,
            "preset": (None, *PRESETS),
            "profile": PROFILES,
        }.items():
            _checks.choice(name, getattr(self, name), choices)
        smallest = backbone(self.backbone).smallest
        least = {
            "image_size": smallest,
            "classes_per_batch": 2,
            "samples_per_class": 2,
            "num_anchors": 0,
            "num_iterations": 0,
            "epochs": 0,
            "finetune_epochs": 0,
            "step_at": 2,
            "seed": 0,
        }
        least |= {"image_width": smallest} if self.image_width is not None else {}
        least |= {"workers": 0} if self.workers is not None else {}
        for name, bound in least.items():
            _checks.count(name, getattr(self, name), least=bound)
        _checks.temperature(self.temperature)
        if self.method in BASELINES:
            object.__setattr__(self, "loss_options", check_options(self.method, self.loss_options))
        elif self.loss_options is not None:
            raise ValueError(
                f"loss_options={self.loss_options!r}: must be None for {self.method}, whose settings have names of their own"
            )
        positive = ["learning_rate", "finetune_learning_rate"] + ["classifier_learning_rate"] * (
            self.classifier_learning_rate is not None
        )
        for name in positive:
            _between(name, getattr(self, name), 0, math.inf, open_below=True)
        for name in ("weight_decay", "cross_entropy_weight"):
            _between(name, getattr(self, name), 0, math.inf)
        _between("average_weights", self.average_weights, 0, 1)
        _between("random_erasing", self.random_erasing, 0, 1, closed_above=True)
        _between("center_crop", self.center_crop, 0, 1, open_below=True, closed_above=True)
        _between("held_out", self.held_out, 0, 1, open_below=True)
        self._validate_network()

    def _validate_network(self) -> None:
        """What fits which backbone."""
        from gl_core.models.bn_inception import FROM

        _checks.choice("last_stride", self.last_stride, (1, 2))
        if self.last_stride == 1 and self.backbone != "resnet50":
            raise ValueError(f"last_stride=1: must be 2 for backbone={self.backbone}; resnet50 alone has this option")
        if self.bn_neck and self.method in BASELINES:
            raise ValueError(
                f"bn_neck=True: must be False for method={self.method}, which has no classifier after a neck"
            )
        if self.weights is not None and self.backbone != "bn_inception":
            raise ValueError(
                f"weights={self.weights!r}: must be None for backbone={self.backbone}, which finds its own"
            )
        if self.backbone == "bn_inception" and self.pretrained and self.weights is None:
            raise ValueError(
                f"weights=None: backbone=bn_inception needs the path of {FROM}; or choose pretrained=False"
            )

    @classmethod
    def resolve(cls, profile: str | None = "quick", **given: Any) -> "Config":
        """Settings for a data set and a backbone; what is given wins, None means "what suits".

        What suits is looked up from the general to the particular: the defaults of `Config`, the data set, whether the
        backbone is pretrained, the profile, the preset. No profile makes a named data set smaller.

        >>> Config.resolve("quick", dataset="omniglot", epochs=None).epochs
        30
        """
        from gl_core.models import backbone

        unknown = set(given) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown setting {min(unknown)!r}: must be one of {', '.join(cls.names())}")
        profile = "quick" if profile is None else profile
        _checks.choice("profile", profile, PROFILES)
        given = {name: value for name, value in given.items() if value is not None}
        preset = given.get("preset")
        _checks.choice("preset", preset, (None, *PRESETS))
        published = PRESETS.get(preset, {})
        dataset = (published | given).get("dataset", cls.dataset)
        # A data set without settings of its own is taken for photographs.
        settings = dict(DATASETS.get(dataset, PHOTOGRAPHS))
        network = (settings | published | given).get("backbone", cls.backbone)
        if backbone(network).has_weights and given.get("pretrained", True):
            settings |= PRETRAINED
        settings |= BY_PROFILE.get((dataset, profile), {}) | published
        return cls(**(settings | given | {"profile": profile}))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "Config":
        """Settings from a chapter's parameters, as `Config.resolve(**parameters)`; other names in the mapping are passed over."""
        return cls.resolve(**{name: parameters[name] for name in cls.names() if name in parameters})

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels that the network sees."""
        return self.image_size, self.image_size if self.image_width is None else self.image_width

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return dataclasses.asdict(self)


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
