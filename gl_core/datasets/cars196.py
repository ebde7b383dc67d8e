"""cars196: Cars196, or Stanford Cars (Krause et al., "3D Object Representations for Fine-Grained Categorization",
2013).

Models 1 to 98 are trained on (8,054 images), 99 to 196 are the test (8,131), in which every image searches all others;
the split into images of the data set's own files plays no part (Song et al., "Deep Metric Learning via Lifted
Structured Feature Embedding", CVPR 2016).

`root` is the folder that holds `cars_annos.mat` and `car_ims/`, or, as torchvision expects it, `stanford_cars/` with
`cars_train/`, `cars_test/`, `devkit/cars_train_annos.mat` and `cars_test_annos_withlabels.mat`; the names of the models
are taken from `devkit/cars_meta.mat` where it is there.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gl_core._extras import require
from gl_core.datasets.archive import Folder
from gl_core.datasets.base import ImageSource, RetrievalDataset, tabulate
from gl_core.datasets.listed import Cropped, find_layout

__all__ = ["load"]

ONE_FILE = ("cars_annos.mat", "car_ims")
DEVKIT = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_train", "cars_test")
EXPECTED = f"the folder that holds {' and '.join(ONE_FILE)}, or stanford_cars/ with {', '.join(DEVKIT)}"
TRAIN_CLASSES = 98
SIDES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load(root: str | os.PathLike | None = None, *, crop: bool = False) -> RetrievalDataset:
    """The images of both splits; with `crop`, cut to the car's box."""
    folder, layout = find_layout(root, EXPECTED, [ONE_FILE, DEVKIT], [".", "stanford_cars"])
    annotations: Any
    if layout == 0:
        annotations = _annotations(folder / ONE_FILE[0])
        paths = [str(path) for path in annotations["relative_im_path"]]
        names = _names(folder / ONE_FILE[0])
    else:
        parts = [_annotations(folder / file) for file in DEVKIT[:2]]
        paths = [f"{DEVKIT[2 + i]}/{name}" for i, part in enumerate(parts) for name in part["fname"].tolist()]
        annotations = {field: np.concatenate([part[field] for part in parts]) for field in ("class", *SIDES)}
        names = _names(folder / "devkit" / "cars_meta.mat")
    numbers = annotations["class"].astype(int).tolist()
    # With their numbers in front, names stay in order, and no two are the same.
    name_of = {number: f"{number:03} {names[number - 1]}" if names else f"{number:03}" for number in set(numbers)}
    train = sorted(name for number, name in name_of.items() if number <= TRAIN_CLASSES)
    test = sorted(name for number, name in name_of.items() if number > TRAIN_CLASSES)
    images: ImageSource = Folder(folder, search=False)
    if crop:
        left, top, right, bottom = (annotations[side].astype(float) for side in SIDES)
        # MATLAB counts pixels from 1, and both ends are part of the box.
        boxes = zip((left - 1).tolist(), (top - 1).tolist(), right.tolist(), bottom.tolist(), strict=True)
        images = Cropped(images, dict(zip(paths, boxes, strict=True)))
    table, class_names = tabulate(paths, [name_of[number] for number in numbers], train, test)
    return RetrievalDataset("cars196", table, class_names, images)


def _loaded(path: Path) -> dict:
    loadmat = require("scipy.io", extra="train").loadmat
    try:
        return loadmat(path, squeeze_me=True)
    # scipy raises whatever it stumbles over in a damaged file.
    except Exception as error:
        raise ValueError(f"{path}: is no MATLAB file that can be read ({error})") from error


def _annotations(path: Path) -> np.ndarray:
    annotations = np.atleast_1d(_loaded(path).get("annotations", []))
    fields = annotations.dtype.names or ()
    for field in ("class", *SIDES):
        if field not in fields:
            raise ValueError(f"{path}: holds no struct `annotations` with the field {field!r}")
    return annotations


def _names(path: Path) -> list[str]:
    """The names of the models, or none where the file of names is not there."""
    return [str(name) for name in np.atleast_1d(_loaded(path).get("class_names", []))] if path.is_file() else []
