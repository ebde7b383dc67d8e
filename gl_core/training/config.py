"""The settings of a run, each with its range and the reason for its default."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin

from gl_core import _checks, datasets
from gl_core._extras import require
from gl_core.datasets.augmentation import AUGMENTATIONS
from gl_core.devices import PRECISIONS
from gl_core.loss import SIMILARITIES
from gl_core.models import backbone
from gl_core.models.bn_inception import FROM
from gl_core.propagation import DYNAMICS
from gl_core.training.baselines import BASELINES, check_options
from gl_core.training.presets import BY_PROFILE, DATASETS, PHOTOGRAPHS, PRESETS, PRETRAINED
from gl_core.training.validation import did_you_mean, one_of, refusal

require("pydantic", extra="train")
from pydantic import ConfigDict, Field, ValidationError, model_validator  # noqa: E402
from pydantic.dataclasses import dataclass  # noqa: E402

__all__ = ["METHODS", "OF_GROUP_LOSS", "OPTIMIZERS", "PROFILES", "Config"]

METHODS = ("group_loss", "cross_entropy", *BASELINES)
OPTIMIZERS = ("radam", "adamw", "sgd")
PROFILES = ("quick", "full")
# Settings of `GroupLoss`, which do nothing for another method.
OF_GROUP_LOSS = ("num_anchors", "num_iterations", "temperature", "similarity", "dynamics", "cross_entropy_weight")

C = TypeVar("C", bound=type)
Path = Annotated[str, Field(min_length=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _errors_in_one_line(config: C) -> C:
    """Let a class of settings refuse what pydantic refuses with a ValueError of one line."""
    construct: Callable[..., None] = vars(config)["__init__"]

    @functools.wraps(construct)
    def __init__(self, **settings: Any) -> None:
        try:
            construct(self, **settings)
        except ValidationError as errors:
            raise ValueError(_first(errors)) from None

    def _first(errors: ValidationError) -> str:
        error = errors.errors()[0]
        if error["type"] == "value_error":  # raised by a rule of our own
            return str(error.get("ctx", {})["error"])
        declared = {field.name: field.type for field in dataclasses.fields(config)}
        name = error["loc"][0]
        if name not in declared:
            known = ", ".join(declared)
            return f"unknown setting {name!r}: must be one of {known}{did_you_mean(str(name), declared)}"
        return refusal(str(name), error["input"], declared[name])

    setattr(config, "__init__", __init__)  # noqa: B010
    return config


@_errors_in_one_line
@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Config:
    """Settings of one training run.

    Build one with `Config.resolve`, which fills in what suits the data set, the backbone and the profile. A whole
    number may stand for a float; nothing else is converted.

    Raises:
        ValueError: a value is not of its type, out of its range, or does not go with another, in one line.
    """

    # What is learned from what.
    dataset: Annotated[str, one_of(datasets.names)] = "glyphs"
    data_root: Path | None = None  # folder or archive that holds the data set; not needed for glyphs
    method: Annotated[str, one_of(lambda: METHODS)] = "group_loss"
    backbone: str = "conv4"
    pretrained: bool = True  # start from the backbone's own weights, where it has any
    weights: Path | None = None  # file of these weights, for bn_inception, whose weights come with no package
    last_stride: Literal[1, 2] = 2  # of resnet50; 1 doubles its map: better re-identification, a third more work
    bn_neck: bool = False  # batch normalisation between embedding and classifier, see gl_core.models.EmbeddingNet
    retrieve_after_neck: bool = True  # compare images after that normalisation, as its authors found better
    image_size: Pixels = 32  # height in pixels that the network sees, and width unless image_width is given
    image_width: Pixels | None = None  # for images that are not square
    keep_aspect: bool = True  # cut images to that shape; False squeezes them into it, as re-identification does

    # The batch: P classes with K images each. With few images, a class has too few positives to propagate labels to.
    classes_per_batch: Annotated[int, Field(ge=2)] = 12
    samples_per_class: Annotated[int, Field(ge=2)] = 8

    # The loss. T = 1 is what the authors use; a higher T saturates the assignments, so that the gradient vanishes.
    num_anchors: Annotated[int, Field(ge=0)] = 2  # of each class; fewer than samples_per_class, or nothing is learned
    num_iterations: Annotated[int, Field(ge=0)] = 1
    temperature: Rate = 10.0  # the published settings lie between 24 and 79
    similarity: Annotated[str, one_of(lambda: SIMILARITIES)] = "pearson"
    dynamics: Annotated[str, one_of(lambda: DYNAMICS)] = "replicator"
    cross_entropy_weight: NotNegative = 1.0
    # The other losses have options of their own (see gl_core.training.baselines), by default those of their papers.
    loss_options: dict | None = None

    # Optimisation. RAdam as in the paper: its rectified first steps need no warm-up.
    epochs: Annotated[int, Field(ge=0)] = 10  # an upper bound where choose_epochs is set
    optimizer: Annotated[str, one_of(lambda: OPTIMIZERS)] = "radam"
    learning_rate: Rate = 2e-3
    classifier_learning_rate: Rate | None = None  # for the classifier or proxies alone; None: as the rest
    weight_decay: NotNegative = 1e-4
    # "cosine" falls to 0 over the epochs, "constant" stays, "step" falls to a tenth at the beginning of epoch step_at.
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    step_at: Annotated[int, Field(ge=2)] = 31  # counted from 1; 31 of 70 in the authors' code
    augmentation: Annotated[str, one_of(lambda: AUGMENTATIONS)] = "drawing"  # see gl_core.datasets.augmentation.augment
    # Share of training images with a rectangle blotted out; 0.5 in re-identification.
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    center_crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # part of the shorter side that evaluation looks at

    # Gentleness, for pretrained backbones: few images must not overwrite what millions taught.
    freeze_batch_norm: bool = False  # keep the statistics and affine parameters of the pretraining
    finetune_epochs: Annotated[int, Field(ge=0)] = 0  # of plain classification before; the authors train 10
    finetune_learning_rate: Rate = 3e-4
    # Decay of the running mean of weights that is evaluated; 0: the last weights.
    average_weights: Annotated[float, Field(ge=0, lt=1)] = 0.0

    # Selection happens on held-out training classes. The test classes are read once, at the end.
    choose_epochs: bool = False  # find the number of epochs (0 included) on held-out classes, then train on all
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of the training classes that is held out for choosing
    evaluate_on: Literal["test", "held_out"] = "test"  # "held_out" for tuning: the test classes are never read

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # what every generator of random numbers takes
    device: Annotated[str, Field(min_length=1)] = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Annotated[str, one_of(lambda: PRECISIONS)] = "auto"  # auto, 32, bf16, fp16: see gl_core.devices.fabric
    # Processes that decode images which do not fit into memory; None: one a processor core.
    workers: Annotated[int, Field(ge=0)] | None = None
    preset: Annotated[str, one_of(lambda: PRESETS)] | None = None  # see gl_core.training.presets; only sets defaults
    profile: Annotated[str, one_of(lambda: PROFILES)] = "quick"  # only sets defaults

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        method, network = self.method, self.backbone
        smallest = backbone(network).smallest
        for name in ("image_size", "image_width"):
            if (value := getattr(self, name)) is not None:
                _checks.count(name, value, least=smallest)
        if method == "group_loss" and self.num_anchors >= self.samples_per_class:
            raise ValueError(
                f"num_anchors={self.num_anchors}: must be below samples_per_class={self.samples_per_class}; "
                "where every image is an anchor, nothing is left to learn"
            )
        if method in BASELINES:
            object.__setattr__(self, "loss_options", check_options(method, self.loss_options))
        elif self.loss_options is not None:
            raise ValueError(f"loss_options={self.loss_options!r}: must be None for {method}, which has other settings")
        if self.last_stride == 1 and network != "resnet50":
            raise ValueError(f"last_stride=1: must be 2 for backbone={network}; resnet50 alone has this option")
        if self.bn_neck and method in BASELINES:
            raise ValueError(f"bn_neck=True: must be False for method={method}, which has no classifier after a neck")
        if self.weights is not None and network != "bn_inception":
            raise ValueError(f"weights={self.weights!r}: must be None for backbone={network}, which finds its own")
        if network == "bn_inception" and self.pretrained and self.weights is None:
            raise ValueError(f"weights=None: bn_inception needs the path of {FROM}; or choose pretrained=False")
        return self

    @classmethod
    def resolve(cls, profile: str | None = "quick", **given: Any) -> Self:
        """Settings for a data set and a backbone; what is given wins, None means "what suits".

        What suits is looked up from the general to the particular: the defaults of `Config`, the data set, whether the
        backbone is pretrained, the profile, the preset.

        Raises:
            ValueError: as the constructor does, and for a setting that does nothing with the method.

        >>> Config.resolve("quick", dataset="omniglot", epochs=None).epochs
        30
        """
        profile = "quick" if profile is None else profile
        _checks.choice("profile", profile, PROFILES)
        given = {name: value for name, value in given.items() if value is not None}
        preset = given.get("preset")
        _checks.choice("preset", preset, (None, *PRESETS))
        published: dict[str, Any] = PRESETS[preset] if preset else {}
        dataset = (published | given).get("dataset", cls.dataset)
        # A data set without settings of its own is taken for photographs.
        settings: dict[str, Any] = dict(DATASETS.get(dataset, PHOTOGRAPHS))
        network = (settings | published | given).get("backbone", cls.backbone)
        if backbone(network).has_weights and given.get("pretrained", True):
            settings |= PRETRAINED
        settings |= BY_PROFILE.get((dataset, profile), {}) | published
        config = cls(**(settings | given), profile=profile)
        for name in OF_GROUP_LOSS if config.method != "group_loss" else ():
            if name in given and given[name] != settings.get(name, getattr(cls, name)):
                raise ValueError(f"{name}={given[name]!r}: does nothing with method={config.method}; leave it out")
        return config

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Settings from a chapter's parameters, as `Config.resolve(**parameters)`; other names are passed over.

        Raises:
            ValueError: as `resolve` does, and for a string where the chapter declares a list or a mapping: papermill's
                option -p makes one of it.
        """
        for name, declared in parameters.get("__annotations__", {}).items():
            value = parameters.get(name)
            if isinstance(value, str) and (get_origin(declared) or declared) in (list, dict):
                raise ValueError(f"{refusal(name, value, declared)}; papermill takes it by -y '{name}: {value}'")
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
