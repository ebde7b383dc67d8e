"""folder: your own images, `class/image` in a folder or in a tar or zip of one.

Classes are sorted by name; the first half of them (rounded up) is trained on, the rest is the test, unless
`train_classes` says which ones to train on. A folder around all classes is allowed. Hidden files and those that are no
images are ignored.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gl_core.datasets.archive import ImageFiles, open_files
from gl_core.datasets.base import RetrievalDataset, existing, tabulate

__all__ = ["images_by_class", "load"]

EXPECTED = "a folder, tar or zip that holds class/image"


def load(
    root: str | os.PathLike | None = None, *, train_classes: Sequence[str] | str | os.PathLike | None = None
) -> RetrievalDataset:
    """The images of all splits.

    Args:
        root: the folder or archive.
        train_classes: names of the classes to train on, or a text file with one name a line; all others are the test.

    Raises FileNotFoundError if `root` or the text file is missing, and ValueError if `root` does not hold at least two
    classes, all at one level and of at least two images (a pair is the least that a group can learn or be judged from),
    or if `train_classes` names a class twice, or one that is not there, or all of them.
    """
    files = open_files(existing(root, EXPECTED))
    classes = images_by_class(files)
    names = sorted(set(classes.values()))
    if len(names) < 2:
        raise ValueError(
            f"root={files.root}: holds the single class {names[0]!r}: must hold two or more, as {EXPECTED}"
        )
    _refuse_single_images(files, classes)
    train = names[: -(-len(names) // 2)] if train_classes is None else _chosen(train_classes, names)
    test = [name for name in names if name not in set(train)]
    table, class_names = tabulate(list(classes), list(classes.values()), train, test)
    return RetrievalDataset("folder", table, class_names, files)


def images_by_class(files: ImageFiles, expected: str = EXPECTED) -> dict[str, str]:
    """The class of each image: the folder it is in.

    Raises ValueError, saying what is `expected`, unless all images lie in `class/image`, or all in one folder around
    that.
    """
    parts = [PurePosixPath(name).parts for name in files.names]
    if not parts:
        raise ValueError(f"root={files.root}: holds no images: must be {expected}")
    wrapped = len({part[0] for part in parts}) == 1 and all(len(part) == 3 for part in parts)
    for name, part in zip(files.names, parts, strict=True):
        if len(part) == 1:
            raise ValueError(f"root={files.root}: {name} is in no folder that would be its class: must be {expected}")
        if len(part) > 2 and not wrapped:
            raise ValueError(
                f"root={files.root}: {name} lies too deep: must be {expected}, at most with one folder around it all"
            )
    return {name: part[-2] for name, part in zip(files.names, parts, strict=True)}


def _refuse_single_images(files: ImageFiles, classes: dict[str, str]) -> None:
    single = sorted(name for name, count in Counter(classes.values()).items() if count == 1)
    if single:
        raise ValueError(
            f"root={files.root}: {len(single)} classes have a single image, must have two or more: {_some(single)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _chosen(train_classes: Sequence[str] | str | os.PathLike, names: list[str]) -> list[str]:
    if isinstance(train_classes, (str, os.PathLike)):
        path = Path(train_classes).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"train_classes={path}: must be names of classes, or a text file with one name a line"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        train_classes = [line.strip() for line in lines if line.strip()]
    chosen = sorted(train_classes)
    for name in chosen:
        if name not in names:
            raise ValueError(f"train_classes: {name!r} is no class: must be among {_some(names)}")
        if chosen.count(name) > 1:
            raise ValueError(f"train_classes: {name!r} is there twice")
    if not 0 < len(chosen) < len(names):
        raise ValueError(
            f"train_classes names {len(chosen)} of {len(names)} classes: must leave some for the test, and not all"
        )
    return chosen
