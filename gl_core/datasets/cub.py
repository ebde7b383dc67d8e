"""cub: CUB-200-2011, photographs of birds (Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011).

Species 1 to 100 are trained on (5,864 images), 101 to 200 are the test (5,924), in which every image searches all
others; not the split into images that `train_test_split.txt` makes (Song et al., "Deep Metric Learning via Lifted
Structured Feature Embedding", CVPR 2016).

`root` is the folder that holds `CUB_200_2011/`, with `images.txt`, `image_class_labels.txt` and `images/` in it.
"""

import os

import numpy as np

from gl_core.datasets.archive import Folder
from gl_core.datasets.base import ImageSource, RetrievalDataset, tabulate
from gl_core.datasets.listed import Cropped, find_layout, read_columns

__all__ = ["load"]

LAYOUT = ("images.txt", "image_class_labels.txt", "images")
EXPECTED = f"the folder that holds CUB_200_2011/ with {', '.join(LAYOUT)}"
BOXES = "bounding_boxes.txt"
TRAIN_CLASSES = 100


def load(root: str | os.PathLike | None = None, *, crop: bool = False) -> RetrievalDataset:
    """The images of both splits; with `crop`, cut to the bird's box."""
    folder, _ = find_layout(root, EXPECTED, [LAYOUT], ["CUB_200_2011", "."])
    ids, paths = read_columns(folder / "images.txt", 2)
    class_of = dict(zip(*read_columns(folder / "image_class_labels.txt", 2), strict=True))
    unlabelled = [path for number, path in zip(ids, paths, strict=True) if number not in class_of]
    if unlabelled:
        raise ValueError(f"{folder / 'image_class_labels.txt'}: holds no class of {unlabelled[0]}")
    numbers = [int(class_of[number]) for number in ids]
    # The folder of an image is its class, such as 001.Black_footed_Albatross.
    name_of = {number: path.split("/")[0] for number, path in zip(numbers, paths, strict=True)}
    train = [name_of[number] for number in sorted(name_of) if number <= TRAIN_CLASSES]
    test = [name_of[number] for number in sorted(name_of) if number > TRAIN_CLASSES]
    images: ImageSource = Folder(folder / "images", search=False)
    if crop:
        if not (folder / BOXES).is_file():
            raise FileNotFoundError(f"crop={crop}: takes {folder / BOXES}, which is not there")
        boxed, *sides = read_columns(folder / BOXES, 5)
        left, top, width, height = np.array(sides, dtype=float)
        sides_of = zip(left.tolist(), top.tolist(), (left + width).tolist(), (top + height).tolist(), strict=True)
        path_of = dict(zip(ids, paths, strict=True))
        boxes = {path_of[number]: box for number, box in zip(boxed, sides_of, strict=True) if number in path_of}
        images = Cropped(images, boxes)
    table, class_names = tabulate(paths, [name_of[number] for number in numbers], train, test)
    return RetrievalDataset("cub", table, class_names, images)
