"""sop: Stanford Online Products, photographs of things for sale (Song et al., "Deep Metric Learning via Lifted
Structured Feature Embedding", CVPR 2016).

`Ebay_train.txt` is trained on (59,551 images of 11,318 products), `Ebay_test.txt` is the test (60,502 of 11,316), in
which every image searches all others. The columns `super_class` and `group` name the kind of thing, of 12: "bicycle",
...

`root` is the folder that holds `Stanford_Online_Products/`, with both lists and the folders of images in it.
"""

import os

from gl_core.datasets.archive import Folder
from gl_core.datasets.base import RetrievalDataset, tabulate
from gl_core.datasets.listed import find_layout, read_columns

__all__ = ["load"]

LISTS = ("Ebay_train.txt", "Ebay_test.txt")
EXPECTED = f"the folder that holds Stanford_Online_Products/ with {' and '.join(LISTS)}"


def load(root: str | os.PathLike | None = None) -> RetrievalDataset:
    """The images of both splits."""
    folder, _ = find_layout(root, EXPECTED, [LISTS], ["Stanford_Online_Products", "."])
    # image_id class_id super_class_id path
    (_, train, _, train_paths), (_, test, _, test_paths) = (read_columns(folder / name, 4, header=1) for name in LISTS)
    paths = train_paths + test_paths
    kinds = [path.split("/")[0].removesuffix("_final") for path in paths]
    ordered = (sorted(set(classes), key=int) for classes in (train, test))
    table, class_names = tabulate(paths, train + test, *ordered, super_class=kinds, group=kinds)
    return RetrievalDataset("sop", table, class_names, Folder(folder, search=False))
