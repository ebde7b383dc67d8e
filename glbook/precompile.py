"""Compile once what is otherwise compiled when it is first used: UMAP and the loops of re-ranking.

`python -m glbook.precompile` takes about a minute; `make setup` calls it, so that no chapter waits for it.
"""

import numpy as np

from gl_core.rerank import k_reciprocal
from glbook.projection import umap_projection

__all__ = ["compile_all"]


def compile_all() -> None:
    """Use each of them on a few vectors; what was compiled is kept in files, and nothing is compiled again."""
    random = np.random.default_rng(0)
    umap_projection(np.eye(20))
    for dtype in (np.float32, np.float64):
        vectors = random.normal(size=(200, 4)).astype(dtype)
        # With few neighbours the encodings are sparse, with many dense: there is a loop for each.
        for k1 in (2, 50):
            k_reciprocal(vectors, k1=k1, k2=2)


if __name__ == "__main__":
    compile_all()
