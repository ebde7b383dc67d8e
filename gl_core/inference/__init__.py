"""Group Loss++: strategies at test time, for embedding an image and for searching, and their hyperparameters."""

from gl_core.inference.embedding import embed, evaluate, search_and_judge
from gl_core.inference.selection import choose_hyperparameters
from gl_core.inference.strategies import Strategies, beta_normalize, mixed_pooling, query_expansion

__all__ = [
    "Strategies",
    "beta_normalize",
    "choose_hyperparameters",
    "embed",
    "evaluate",
    "mixed_pooling",
    "query_expansion",
    "search_and_judge",
]
