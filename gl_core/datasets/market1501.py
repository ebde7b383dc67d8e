"""market1501: Market-1501, pedestrians before a supermarket (Zheng et al., "Scalable Person Re-identification: A
Benchmark", ICCV 2015).

12,936 images of 751 persons are trained on. In the test 3,368 queries search a gallery of 19,732 images of 750 other
persons, taken by six cameras. 3,819 of these are junk (`-1` in the file names, label -1 here), which counts neither as
right nor as wrong; 2,798 are distractors (`0000`), a class of their own that no query belongs to.

`root` is the folder that holds `Market-1501-v15.09.15/`, with `bounding_box_train/`, `query/` and `bounding_box_test/`
in it; its other folders are not read.
"""

import os

from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.listed import find_layout
from gl_core.datasets.persons import FOLDERS, from_folders

__all__ = ["load"]

EXPECTED = f"the folder that holds Market-1501-v15.09.15/ with {', '.join(FOLDERS)}"


def load(root: str | os.PathLike | None = None) -> RetrievalDataset:
    """The images of both splits, with the column `camera`."""
    folder, _ = find_layout(root, EXPECTED, [FOLDERS], ["Market-1501-v15.09.15", "."])
    return from_folders("market1501", folder)
