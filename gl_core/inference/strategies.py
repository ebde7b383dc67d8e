"""The strategies of Group Loss++ at test time, one formula each: none touches the weights or the training.

Source: strategies and hyperparameters are those of the released code of a co-author of Group Loss++ (arXiv 2204.01509),
but for mirror averaging and query expansion, which are of the field at large.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gl_core import _checks
from gl_core.evaluation import nearest_neighbours

__all__ = ["GROUPS", "PUBLISHED", "Strategies", "beta_normalize", "mixed_pooling", "query_expansion"]


def mixed_pooling(feature_map: Float[Tensor, "n d h w"], weight: float) -> Float[Tensor, "n d"]:
    """weight * max + (1 - weight) * mean, both over the places of each channel.

    Source: the released code of a co-author of Group Loss++, with weights of 0.5 to 0.6.

    Args:
        feature_map: activations (n, d, h, w).
        weight: in [0, 1]; 0 is the mean exactly, 1 the maximum.

    Raises:
        ValueError: `weight` is out of its range, or `feature_map` has not four dimensions or no place.

    >>> import torch
    >>> mixed_pooling(torch.tensor([[[[0., 4.]]]]), 0.5)
    tensor([[3.]])
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: must lie in [0, 1]")
    if feature_map.ndim != 4 or 0 in feature_map.shape[2:]:
        raise ValueError(f"feature_map has shape {tuple(feature_map.shape)}: must be (n, d, h, w), h and w 1 or more")
    mean = feature_map.mean(dim=(2, 3))
    return mean if weight == 0 else weight * feature_map.amax(dim=(2, 3)) + (1 - weight) * mean


def beta_normalize(features: Float[Tensor, "n d"], beta: float) -> Float[Tensor, "n d"]:
    """f / |f| + beta f: the direction of each row, made longer by `beta` times its length.

    Rows have length 1 + beta |f|; a row of zeros stays one. It matters under metric "euclidean" only: the cosine does
    not see lengths. Source: the released code of a co-author of Group Loss++.

    Args:
        features: vectors (n, d).
        beta: 0 or more; 0 gives `torch.nn.functional.normalize` exactly.

    Raises:
        ValueError: `beta` is negative or not finite, or `features` is not a matrix of finite numbers.

    >>> import torch
    >>> beta_normalize(torch.tensor([[0., 5.]]), 0.2)
    tensor([[0., 2.]])
    """
    _checks.weight("beta", beta)
    _checks.matrix("features", features)
    directions = F.normalize(features)
    return directions if beta == 0 else directions + beta * features


def query_expansion(
    query: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"] | None = None, *, k: int, alpha: float
) -> Float[Tensor, "q d"]:
    """Each query moved towards its k nearest images of the gallery, and normalised.

        q' = q + sum_i max(s_i, 0)^alpha g_i,    q'/|q'| is returned

    with q and g_i of length 1 and s_i = <q, g_i>. Source: Radenović et al., "Fine-tuning CNN Image Retrieval with No
    Human Annotation", TPAMI 2019.

    Args:
        query: vectors (q, d).
        gallery: vectors (g, d). None: the queries are each other's gallery, and none is its own neighbour; that is
            database-side expansion.
        k: neighbours, from 0 to the images that a query is compared with; 0 returns `query` itself.
        alpha: power of the similarity, 0 or more.

    Raises:
        ValueError: a setting is out of its range, or the vectors are not matrices of finite numbers with equally many
            columns.

    >>> import torch
    >>> query_expansion(torch.tensor([[1., 0.]]), torch.tensor([[3., 4.], [0., -1.]]), k=1, alpha=0)
    tensor([[0.8944, 0.4472]])
    """
    _checks.weight("alpha", alpha)
    _checks.count("k", k, least=0)
    _checks.matrix("query", query)
    if k == 0:
        return query
    similarity, index = nearest_neighbours(query, gallery, k)
    others = F.normalize(query if gallery is None else gallery)
    expanded = F.normalize(query)
    # One neighbour at a time: all k of all queries at once would be k times the memory of the queries.
    for weight, neighbour in zip(similarity.clamp(min=0).pow(alpha).T, index.T, strict=True):
        expanded = expanded + weight[:, None].to(expanded) * others[neighbour]
    return F.normalize(expanded)


# The strategies in the order in which they take effect, and their hyperparameters: the first one says whether it is on.
GROUPS = {
    "leaky activation": ("leaky_slope",),
    "mixed pooling": ("mixed_pooling",),
    "mirror averaging": ("mirror",),
    "beta-normalisation": ("beta",),
    "query expansion": ("expansion", "alpha", "database_side"),
    "re-ranking": ("lambda_value", "k1", "k2"),
}


@dataclass(frozen=True, kw_only=True)
class Strategies:
    """Which strategies are used at test time, and their hyperparameters. The defaults leave everything as it was.

    They take effect in this order, each on the result of those before it: the last activation, the pooling, the mirror
    image, the normalisation, the expansion, the re-ranking.

    Raises:
        ValueError: a value is out of its range; the message names field and value.
    """

    leaky_slope: float = 0.0  # of the last activation, for negative inputs; 0 to 1
    mixed_pooling: float = 0.0  # weight of the maximum, 0 to 1
    mirror: bool = False  # average the embeddings of an image and of its mirror image
    beta: float = 0.0  # see `beta_normalize`; above 0 images are compared by Euclidean distance
    expansion: int = 0  # neighbours that a query is moved towards
    alpha: float = 3.0  # power of their similarity
    database_side: bool = False  # expand the gallery too
    k1: int = 20  # re-ranking, see `gl_core.rerank.k_reciprocal`
    k2: int = 6
    lambda_value: float = 1.0  # weight of the original distance; 1: no re-ranking

    def __post_init__(self) -> None:
        for name in ("leaky_slope", "mixed_pooling", "lambda_value"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in [0, 1]")
        for name in ("beta", "alpha"):
            _checks.weight(name, getattr(self, name))
        for name, least in {"expansion": 0, "k1": 1, "k2": 1}.items():
            _checks.count(name, getattr(self, name), least=least)
        for name in ("mirror", "database_side"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be True or False")
        if self.k2 > self.k1:
            raise ValueError(f"k2={self.k2}: must be at most k1={self.k1}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Strategies":
        """From a mapping, such as the one in a record. Raises ValueError for a name that is no strategy."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"unknown strategy {unknown[0]!r}: must be one of {', '.join(sorted(known))}")
        return cls(**settings)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return dataclasses.asdict(self)

    @property
    def metric(self) -> str:
        """How embeddings are compared."""
        return "euclidean" if self.beta else "cosine"

    def parts(self) -> dict[str, "Strategies"]:
        """The strategies that are on, each alone, by name and in their order."""
        off = Strategies()
        on = (name for name, (first, *_) in GROUPS.items() if getattr(self, first) != getattr(off, first))
        return {name: self.only([name]) for name in on}

    def only(self, names: Iterable[str]) -> "Strategies":
        """The strategies of these names (see `GROUPS`) as they are here, all others off."""
        names = list(names)
        for name in names:
            _checks.choice("names", name, GROUPS)
        return Strategies(**{field: getattr(self, field) for name in names for field in GROUPS[name]})


# By data set, as the released code has them. How they were chosen it does not say.
PUBLISHED = {
    "cub": Strategies(mixed_pooling=0.5, leaky_slope=0.75, beta=0.004, k1=50, k2=20, lambda_value=0.94),
    "cars196": Strategies(mixed_pooling=0.5, beta=0.004, k1=50, k2=20, lambda_value=0.94),
    "sop": Strategies(mixed_pooling=0.6, leaky_slope=1.0, beta=0.0005),
    "inshop": Strategies(mixed_pooling=0.57, leaky_slope=1.0, beta=0.002, k1=6, k2=2, lambda_value=0.4),
}
