"""What the data sets of re-identification share: a file name says who is seen by which camera."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gl_core.datasets.archive import Folder
from gl_core.datasets.base import JUNK, ImageSource, RetrievalDataset, tabulate

__all__ = ["FOLDERS", "from_folders", "from_parts"]

# Trained on, queries, gallery.
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
# 0002_c1s1_000451_03.jpg: person 2 seen by camera 1; the rest numbers sequence, frame and box.
NAME = re.compile(r"(-1|\d+)_c(\d+)")


def from_folders(name: str, folder: Path) -> RetrievalDataset:
    """The data set of three folders, whose files are named by person and camera."""
    paths, persons, cameras, parts = [], [], [], []
    left_out: dict[str, str] = {}
    for part in FOLDERS:
        files = Folder(folder / part)
        left_out |= {f"{part}/{path}": reason for path, reason in files.left_out.items()}
        for file in files.names:
            match = NAME.match(file)
            if match is None:
                raise ValueError(f"{files.where(file)}: the name must begin with person and camera, as 0002_c1")
            paths.append(f"{part}/{file}")
            persons.append(match[1])
            cameras.append(int(match[2]))
            parts.append(part)
    dataset = from_parts(name, paths, persons, cameras, parts, Folder(folder, search=False))
    dataset.left_out = left_out
    return dataset


def from_parts(
    name: str,
    paths: Sequence[str],
    persons: Sequence[str],
    cameras: Sequence[int],
    parts: Sequence[str],
    images: ImageSource,
    **columns: Sequence[Any],
) -> RetrievalDataset:
    """The data set of images of persons ("-1" is junk), taken by cameras (from 1), in parts (each one of `FOLDERS`)."""
    for path, person, part in zip(paths, persons, parts, strict=True):
        if person == "-1" and part != FOLDERS[2]:
            raise ValueError(f"{images.where(path)}: is junk (person -1), which only a gallery may hold")
    train = sorted({person for person, part in zip(persons, parts, strict=True) if part == FOLDERS[0]})
    test = sorted({person for person, part in zip(persons, parts, strict=True) if part != FOLDERS[0]} - {"-1"})
    table, class_names = tabulate(
        paths,
        [JUNK if person == "-1" else person for person in persons],
        train,
        test,
        is_query=[part == FOLDERS[1] for part in parts],
        is_gallery=[part == FOLDERS[2] for part in parts],
        camera=list(cameras),
        **columns,
    )
    return RetrievalDataset(name, table, class_names, images)
