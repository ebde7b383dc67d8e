"""Other losses by name, from pytorch-metric-learning: what the Group Loss is measured against.

Each is trained as the Group Loss is. What a paper changed besides its loss (pooling, a normalisation layer, a longer
warm-up) is left out for all alike; `Baseline.source` says what that is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from gl_core import _checks
from gl_core._extras import require
from gl_core.propagation import at_least_float32, without_autocast

__all__ = ["BASELINES", "Baseline", "MetricLoss", "Option", "check_options"]


@dataclass(frozen=True)
class Option:
    """A number that a loss may be given: its default and the range it lies in."""

    default: float
    low: float = 0.0
    high: float = math.inf
    positive: bool = False  # above `low`, not equal to it
    whole: bool = False

    def check(self, name: str, value: Any) -> float | int:
        """The value as a number of the option's kind. Raises ValueError if it is none or out of range."""
        whole = type(value) is int
        if not (whole or (type(value) is float and not self.whole and math.isfinite(value))):
            raise ValueError(f"{name}={value!r}: must be a {'whole ' * self.whole}number")
        if not self.low <= value < self.high or (self.positive and value == self.low):
            bracket = "(" if self.positive else "["
            raise ValueError(f"{name}={value!r}: must lie in {bracket}{self.low:g}, {self.high:g})")
        return value if self.whole else float(value)


@dataclass(frozen=True)
class Baseline:
    """A loss of pytorch-metric-learning, with the options it takes here."""

    loss: str  # the name of its class there
    options: Mapping[str, Option]  # that class's own arguments, but for those that `MetricLoss` names
    source: str
    has_proxies: bool = False  # vectors of the classes are learned too, at `Config.classifier_learning_rate`


def _above_zero(default: float) -> Option:
    return Option(default, positive=True)


BASELINES: dict[str, Baseline] = {
    "normalised_softmax": Baseline(
        "NormalizedSoftmaxLoss",
        {"temperature": _above_zero(0.05)},
        "Zhai and Wu, BMVC 2019, temperature 0.05; without their layer normalisation",
        has_proxies=True,
    ),
    "contrastive": Baseline(
        "ContrastiveLoss",
        {"pos_margin": Option(0.0), "neg_margin": _above_zero(1.0)},
        "Hadsell et al., CVPR 2006, over all pairs of a batch; distances enter unsquared and pairs within their margin "
        "do not count, as in Musgrave et al., ECCV 2020",
    ),
    "triplet": Baseline(
        "TripletMarginLoss",
        {"margin": _above_zero(0.2)},
        "Schroff et al., CVPR 2015: squared distances, margin 0.2, semi-hard triplets",
    ),
    "multi_similarity": Baseline(
        "MultiSimilarityLoss",
        {"alpha": _above_zero(2.0), "beta": _above_zero(50.0), "base": Option(0.5, low=-1), "epsilon": Option(0.1)},
        "Wang et al., CVPR 2019: alpha 2, beta 50, epsilon 0.1 of its own mining; base 0.5 as in the authors' code",
    ),
    "proxy_anchor": Baseline(
        "ProxyAnchorLoss",
        {"alpha": _above_zero(32.0), "margin": Option(0.1)},
        "Kim et al., CVPR 2020: alpha 32, margin 0.1; the authors move the proxies 100 times as fast as the network",
        has_proxies=True,
    ),
    "proxy_nca": Baseline(
        "ProxyNCALoss",
        {"softmax_scale": _above_zero(9.0)},
        "ProxyNCA++, Teh et al., ECCV 2020: probability of the own proxy among all of them, temperature 1/9; without "
        "its maximum pooling and layer normalisation, and its fast proxies only where classifier_learning_rate says so",
        has_proxies=True,
    ),
    "soft_triple": Baseline(
        "SoftTripleLoss",
        {
            "centers_per_class": Option(10, low=1, whole=True),
            "la": _above_zero(20.0),
            "gamma": _above_zero(0.1),
            "margin": Option(0.01),
            "tau": Option(0.2),
        },
        "Qian et al., ICCV 2019: 10 centres a class, lambda 20, gamma 0.1, margin 0.01, weight tau 0.2 of the term "
        "that merges centres (its memory grows with the square of classes times centres; none at tau 0)",
        has_proxies=True,
    ),
    "arcface": Baseline(
        "ArcFaceLoss",
        {"margin": Option(28.6, high=180), "scale": _above_zero(64.0)},
        "Deng et al., CVPR 2019: scale 64, margin of 28.6 degrees (0.5 radians)",
        has_proxies=True,
    ),
    "supervised_contrastive": Baseline(
        "SupConLoss",
        {"temperature": _above_zero(0.1)},
        "Khosla et al., NeurIPS 2020: temperature 0.1; positives are the other images of the class, without a second "
        "view and without a projection head",
    ),
}


def check_options(method: str, given: Mapping[str, Any] | None) -> dict[str, float]:
    """The options of a baseline, those not given by their defaults. Raises ValueError for those it does not have.

    >>> check_options("proxy_anchor", {"margin": 0.2})
    {'alpha': 32.0, 'margin': 0.2}
    """
    _checks.choice("method", method, BASELINES)
    options = BASELINES[method].options
    given = {} if given is None else given
    for name in given:
        if name not in options:
            raise ValueError(f"loss_options has {name!r}: {method} has {', '.join(options)}")
    return {
        name: option.check(f"loss_options[{name!r}]", given.get(name, option.default))
        for name, option in options.items()
    }


class MetricLoss(nn.Module):
    """A baseline with the calling convention of the other losses; proxies, if it has any, are its parameters.

    Vectors are compared after L2 normalisation, as is evaluated. Triplets are mined semi-hard (the negative is farther
    than the positive, by less than the margin), pairs of the multi-similarity loss by its own rule with `epsilon`; all
    others see every image, pair or proxy. Computes in float32 or wider, whatever autocast says. Losses that mine, or
    leave out what is zero, make the host wait for the device; that is how the library computes them.

    Args:
        method: one of `BASELINES`.
        num_classes: C, training classes.
        embedding_size: d, length of an embedding.
        options: see `BASELINES`; what is not given has its default.

    >>> import torch
    >>> loss = MetricLoss("proxy_anchor", num_classes=100, embedding_size=64, options={"alpha": 16})
    >>> loss(torch.randn(12, 64), torch.arange(3).repeat_interleave(4)).ndim
    0
    """

    def __init__(
        self, method: str, num_classes: int, embedding_size: int, options: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.options = check_options(method, options)
        _checks.count("num_classes", num_classes, least=1)
        _checks.count("embedding_size", embedding_size, least=1)
        self.method, self.num_classes, self.embedding_size = method, num_classes, embedding_size
        self.loss, self.miner = self._build(dict(self.options))
        self._deferred = _checks.Deferred()

    def _build(self, options: dict[str, Any]) -> tuple[nn.Module, nn.Module | None]:
        """The library's loss and miner."""
        distances, losses, miners, regularizers = (
            require(f"pytorch_metric_learning.{name}", extra="train")
            for name in ("distances", "losses", "miners", "regularizers")
        )
        miner = None
        if self.method == "triplet":
            options["distance"] = distances.LpDistance(power=2)
            miner = miners.TripletMarginMiner(options["margin"], "semihard", distance=options["distance"])
        elif self.method == "multi_similarity":
            miner = miners.MultiSimilarityMiner(epsilon=options.pop("epsilon"))
        elif self.method == "soft_triple":
            weight, centers = options.pop("tau"), options["centers_per_class"]
            if weight and centers > 1:
                options["weight_regularizer"] = regularizers.SparseCentersRegularizer(self.num_classes, centers)
                options["weight_reg_weight"] = weight
        if BASELINES[self.method].has_proxies:
            options |= {"num_classes": self.num_classes, "embedding_size": self.embedding_size}
        return getattr(losses, BASELINES[self.method].loss)(**options), miner

    def forward(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        indices_tuple: tuple[Tensor, ...] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, a scalar in float32 or wider; 0 where no pair or triplet is left to learn from.

        Args:
            embeddings: (n, d).
            labels: (n,), in 0..num_classes-1.
            indices_tuple: what a miner found; given, it stands in for the loss's own miner.

        Raises:
            ValueError: embeddings are not finite or of another length than `embedding_size`, or labels are out of
                range. On an accelerator the loss is NaN instead, and `check` raises.
        """
        values = _checks.Values("auto", self._deferred)
        labels = _checks.batch(embeddings, labels, self.embedding_size, self.num_classes, values)
        with without_autocast(embeddings):
            # The library casts its proxies to the type of the embeddings, for good: never let it see half precision.
            (embeddings,) = at_least_float32(embeddings)
            if indices_tuple is None and self.miner is not None:
                indices_tuple = self.miner(embeddings, labels)
            return values.mark(self.loss(embeddings, labels, indices_tuple))

    def check(self) -> None:
        """Raise the ValueError of a batch that could not be checked without waiting for the device, if any."""
        self._deferred.check()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.options.items())
