"""inshop: In-Shop Clothes Retrieval of DeepFashion (Liu et al., "DeepFashion: Powering Robust Clothes Recognition and
Retrieval with Rich Annotations", CVPR 2016).

25,882 images of 3,997 items are trained on. In the test 14,218 queries search a gallery of 12,612 images; both show the
same 3,985 items, and no image is in both.

`root` is the folder that holds `list_eval_partition.txt` and `img/`, or `Eval/list_eval_partition.txt` and `Img/img/`.
"""

import os

import numpy as np

from gl_core.datasets.archive import Folder
from gl_core.datasets.base import RetrievalDataset, tabulate
from gl_core.datasets.listed import find_layout, read_columns

__all__ = ["load"]

LIST = "list_eval_partition.txt"
FLAT, NESTED = (LIST, "img"), (f"Eval/{LIST}", "Img/img")
EXPECTED = f"the folder that holds {' and '.join(FLAT)}/, or {' and '.join(NESTED)}/"
PARTS = ("train", "query", "gallery")


def load(root: str | os.PathLike | None = None) -> RetrievalDataset:
    """The images of both splits."""
    folder, layout = find_layout(root, EXPECTED, [FLAT, NESTED])
    path = folder / (FLAT, NESTED)[layout][0]
    # The number of images, then image_name item_id evaluation_status
    paths, items, statuses = read_columns(path, 3, header=2)
    parts = np.array(statuses)
    if unknown := set(statuses) - set(PARTS):
        raise ValueError(f"{path}: {min(unknown)!r} is no part: must be one of {', '.join(PARTS)}")
    is_train = parts == "train"
    names = np.array(items)
    train, test = (np.unique(names[chosen]).tolist() for chosen in (is_train, ~is_train))
    table, class_names = tabulate(paths, items, train, test, is_query=parts == "query", is_gallery=parts == "gallery")
    images = Folder(folder / ("." if layout == 0 else "Img"), search=False)
    return RetrievalDataset("inshop", table, class_names, images)
