"""folder: your own images, `class/image` in a folder or in a tar or zip of one.

Classes are sorted by name; the first half of them (rounded up) is trained on, the rest is the test, unless
`train_classes` says which ones to train on. A folder around all classes is allowed. Hidden files and those that are no
images are passed over. Left out, and said to be, is what cannot be used: images that cannot be decoded, that lie
elsewhere than the others, or that are alone in their class (a pair is the least that a group can learn or be judged
from).
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gl_core._files import printable
from gl_core.datasets.archive import ImageFiles, open_files
from gl_core.datasets.base import RetrievalDataset, describe_left_out, existing, tabulate

__all__ = ["images_by_class", "load"]

EXPECTED = "a folder, tar or zip that holds class/image"


def load(
    root: str | os.PathLike | None = None, *, train_classes: Sequence[str] | str | os.PathLike | None = None
) -> RetrievalDataset:
    """The images of all splits. They are decoded once to see whether they can be, and known from then on.

    Args:
        root: the folder or archive; must hold at least two classes of at least two images each.
        train_classes: names of the classes to train on, or a text file with one name a line; all others are the test.
    """
    files = open_files(existing(root, EXPECTED))
    classes, left_out = images_by_class(files)
    undecodable = files.undecodable(progress=sys.stderr.isatty())
    left_out |= {name: f"the image cannot be read: {reason}" for name, reason in undecodable.items()}
    classes = {name: of for name, of in classes.items() if name not in left_out}
    counts = Counter(classes.values())
    left_out |= {name: f"its class {of} has no other image" for name, of in classes.items() if counts[of] == 1}
    classes = {name: of for name, of in classes.items() if counts[of] > 1}
    names = sorted(set(classes.values()))
    if len(names) < 2:
        raise ValueError(
            f"root={files.root}: holds {len(names)} classes of two images or more ({', '.join(names)}): must hold two "
            f"or more, as {EXPECTED}; {describe_left_out(left_out)}"
        )
    train = names[: -(-len(names) // 2)] if train_classes is None else _chosen(train_classes, names)
    test = [name for name in names if name not in set(train)]
    table, class_names = tabulate(list(classes), list(classes.values()), train, test)
    dataset = RetrievalDataset("folder", table, class_names, files)
    dataset.left_out = left_out
    return dataset


def images_by_class(files: ImageFiles, expected: str = EXPECTED) -> tuple[dict[str, str], dict[str, str]]:
    """The class of each image, which is the folder it is in; and what is left out, and why.

    Images lie in `class/image`, or all in one folder around that; if none do, a ValueError says what is `expected`.
    """
    parts = {name: PurePosixPath(name).parts for name in files.names}
    if not parts:
        raise ValueError(f"root={files.root}: holds no images: must be {expected}; {describe_left_out(files.left_out)}")
    depths = {len(part) for part in parts.values()}
    # Images beside the folders belong to none of them, so they tell nothing of the layout.
    one_around_all = len({part[0] for part in parts.values() if len(part) > 1}) == 1
    depth = 3 if one_around_all and 2 not in depths else 2
    if depth not in depths:
        name = files.names[0]
        where = "is in no folder that would be its class" if len(parts[name]) == 1 else "lies too deep"
        wanted = f"must be {expected}, at most with one folder around it all"
        raise ValueError(f"root={files.root}: {printable(name)} {where}: {wanted}")
    stray, deep = "it is in no folder that would be its class", "it lies deeper than its class"
    faults = {name: stray if len(part) < depth else deep for name, part in parts.items() if len(part) != depth}
    return {name: part[-2] for name, part in parts.items() if len(part) == depth}, files.left_out | faults


def _chosen(train_classes: Sequence[str] | str | os.PathLike, names: list[str]) -> list[str]:
    if isinstance(train_classes, (str, os.PathLike)):
        path = Path(train_classes).expanduser()
        if not path.is_file():
            message = f"train_classes={path}: must be names of classes, or a text file with one name a line"
            raise FileNotFoundError(message)
        lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
        train_classes = list(filter(None, lines))
    chosen = sorted(train_classes)
    for name in chosen:
        if name not in names:
            some = ", ".join(map(printable, names[:10])) + (", ..." if len(names) > 10 else "")
            raise ValueError(f"train_classes: {name!r} is no class: must be among {some}")
        if chosen.count(name) > 1:
            raise ValueError(f"train_classes: {name!r} is there twice")
    if not 0 < len(chosen) < len(names):
        raise ValueError(
            f"train_classes names {len(chosen)} of {len(names)} classes: must leave some for the test, and not all"
        )
    return chosen
