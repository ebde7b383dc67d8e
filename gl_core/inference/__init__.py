"""Group Loss++: what is done at test time, to one image (`embed`) and to the search (`evaluate`), and how its constants are chosen."""

from gl_core.inference.embedding import embed, evaluate, search_and_judge
from gl_core.inference.selection import choose_constants
from gl_core.inference.strategies import Strategies, beta_normalize, mixed_pooling, query_expansion

__all__ = [
    "Strategies",
    "beta_normalize",
    "choose_constants",
    "embed",
    "evaluate",
    "mixed_pooling",
    "query_expansion",
    "search_and_judge",
]
