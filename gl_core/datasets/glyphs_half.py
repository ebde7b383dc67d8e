"""glyphs_half: half of the classes of glyphs, for what must be over in seconds.

Of those that are trained on as of the others the first half in the order of Unicode, so the better known: A to z and
some Latin letters more to train on, mostly Greek and Cyrillic in the test. Images, columns of the table and `root` are
those of glyphs.
"""

import os

import numpy as np

from gl_core.datasets import glyphs
from gl_core.datasets.base import RetrievalDataset, tabulate

__all__ = ["load"]


def load(root: str | os.PathLike | None = None, *, size: int = 32, seed: int = 0) -> RetrievalDataset:
    """The letters of all splits.

    Args:
        root: folder to keep the images of glyphs in.
        size: pixels of a side, 12 or more.
        seed: of the deformations, 0 or more.

    Raises ValueError if `root` is a file, or `size` or `seed` is out of its range.
    """
    letters = glyphs.load(root, size=size, seed=seed)
    classes = [np.unique(letters.split(split).labels) for split in ("train", "test")]
    halves = [found[: len(found) // 2] for found in classes]
    table = letters.table[np.isin(letters.labels, np.concatenate(halves))]
    table, class_names = tabulate(
        table["path"].tolist(),
        table["class_name"].tolist(),
        *([letters.class_names[label] for label in half] for half in halves),
        **{name: table[name].tolist() for name in ("typeface", "script", "letters")},
    )
    return RetrievalDataset("glyphs_half", table, class_names, letters.images)
