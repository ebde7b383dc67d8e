"""cars196_half: Cars196-half (128 px crops), photographs of cars.

The 8,144 images of the classification train split of Stanford Cars (Krause et al., "3D Object Representations for
Fine-Grained Categorization", 2013), cropped to the car's box and resized to 128 x 128 pixels: about half of Cars196, so
that no figure from it may be called a Cars196 result. Classes 001-098 are trained on, 099-196 are the test, as the full
benchmark splits them.

For non-commercial research only, and not public: `root` is the tar `cars196-crops-128.tar`, the folder that holds it,
or its content `images/<class>/<image>.webp`.
"""

import os

from gl_core.datasets.archive import open_files
from gl_core.datasets.base import RetrievalDataset, describe_left_out, existing, tabulate
from gl_core.datasets.folder import images_by_class

__all__ = ["load"]

TAR = "cars196-crops-128.tar"
EXPECTED = f"{TAR}, the folder that holds it, or its content images/<class 001-196>/<image>.webp"
CLASSES = [f"{number:03}" for number in range(1, 197)]
TRAIN_CLASSES = 98
IMAGES = 8144


def load(root: str | os.PathLike | None = None) -> RetrievalDataset:
    """The images of both splits."""
    root = existing(root, EXPECTED)
    files = open_files(root / TAR if (root / TAR).is_file() else root)
    classes, left_out = images_by_class(files, EXPECTED)
    found = set(classes.values())
    if found != set(CLASSES) or len(classes) != IMAGES:
        raise ValueError(
            f"root={files.root}: holds {len(classes)} images of {len(found)} classes: must be {EXPECTED}, "
            f"{IMAGES} images of {len(CLASSES)} classes; {describe_left_out(left_out)}"
        )
    train, test = CLASSES[:TRAIN_CLASSES], CLASSES[TRAIN_CLASSES:]
    table, class_names = tabulate(list(classes), list(classes.values()), train, test)
    dataset = RetrievalDataset("cars196_half", table, class_names, files)
    dataset.left_out = left_out
    return dataset
