"""What every data set returns: images with labels, and a table that says what each image is for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from gl_core import _checks
from gl_core._extras import require
from gl_core._files import printable

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

__all__ = [
    "JUNK",
    "SPLITS",
    "DecodedImages",
    "ImageSource",
    "RetrievalDataset",
    "describe_left_out",
    "existing",
    "tabulate",
]

SPLITS = ("train", "test", "all")
FEWEST_CLASSES = 2  # that are held out, and that remain to be learned from: two make a comparison
# Gallery images that show no whole person: the protocol of re-identification counts them neither as hits nor as misses.
JUNK = "junk"
JUNK_LABEL = -1
NAMED = 3  # files that a message names before it only counts them


class ImageSource(Protocol):
    """Where images come from. Must pickle, and be read by several threads and forked processes at a time."""

    def open(self, path: str) -> "Image.Image":
        """The image of that path, in mode RGB. May raise anything."""

    def where(self, path: str) -> str:
        """The full name of the image, for messages."""

    def digests(self, paths: Sequence[str]) -> list[str]:
        """For each image a text that changes when its content does, the same on every machine."""


class DecodedImages(Protocol):
    """Images of all splits of a data set, decoded to one size."""

    array: UInt8[np.ndarray, "n height width 3"]


class RetrievalDataset(Dataset):
    """Images, their classes, and their parts in retrieval.

    `d[i]` is the i-th image (PIL, mode RGB) and its label. Labels number the classes of all splits, training classes
    first: those of the training split are 0..C-1, ready for a classifier, and no label of the test split is among them.

    Attributes:
        name: the data set's name.
        labels: int64 (n,); -1 for junk in a gallery, which is of no class.
        class_names: the name of each label, of all splits; junk, which has label -1, is not among them.
        table: a pandas table, one row an image, with the columns `path`, `label`, `split` ("train" or "test"),
            `is_query` and `is_gallery` (booleans; both False for images that are only trained on), `class_name`, and
            what else is known: `camera` (from 1) where persons are re-identified, `group` where classes belong together
            (the alphabet of a character, the kind of a product), ...
        images: where the images come from.
        left_out: files and folders that might hold images of the data set and are not in it, of all splits; and why.
        packed: decoded images by (height, width), where `glbook data pack` has written any (`gl_core.datasets.packed`);
            the row of image i is `rows[i]`.

    `d[i]` raises ValueError, naming the file, for an image that cannot be read.
    """

    def __init__(self, name: str, table: "pd.DataFrame", class_names: Sequence[str], images: ImageSource) -> None:
        self.name = name
        self.table = table.reset_index(drop=True)
        self.class_names = list(class_names)
        self.images = images
        self.left_out: dict[str, str] = {}
        self.packed: dict[tuple[int, int], DecodedImages] = {}
        self.rows: Int[np.ndarray, " n"] = np.arange(len(self.table))
        self.labels: Int[np.ndarray, " n"] = self.table["label"].to_numpy(dtype=np.int64, copy=True)
        self._paths = self.table["path"].tolist()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple["Image.Image", int]:
        path = self._paths[index]
        try:
            image = self.images.open(path)
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            raise ValueError(f"{self.images.where(path)}: the image cannot be read ({error})") from error
        return image, int(self.labels[index])

    def __repr__(self) -> str:
        classes = len(np.unique(self.labels[self.labels >= 0]))
        return f"RetrievalDataset({self.name}: {len(self)} images of {classes} classes)"

    def subset(self, index: ArrayLike) -> "RetrievalDataset":
        """The images of these positions (whole numbers, or one boolean an image), with the labels that they have here;
        IndexError if one does not exist."""
        index = np.asarray(index)
        return self._derived(self.table, self.class_names, index.astype(np.int64) if index.size == 0 else index)

    def _derived(self, table: "pd.DataFrame", class_names: Sequence[str], index: np.ndarray) -> "RetrievalDataset":
        """These rows of a table that says of the same images something else."""
        part = RetrievalDataset(self.name, table.iloc[index], class_names, self.images)
        part.left_out, part.packed, part.rows = self.left_out, self.packed, self.rows[index]
        return part

    def split(self, split: str) -> "RetrievalDataset":
        """The images of "train", of "test", or "all"; ValueError if there are none."""
        _checks.choice("split", split, SPLITS)
        if split == "all":
            return self
        part = self.subset(self.table["split"].to_numpy() == split)
        if not len(part):
            raise ValueError(f"split={split!r}: {self!r} holds no such images")
        return part

    def hold_out(self, fraction: float, seed: int = 0) -> tuple["RetrievalDataset", "RetrievalDataset"]:
        """Part the training *classes* for model selection: (those to fit, those held out).

        Both parts have new labels: 0..C-1 to fit, then those held out, so that the rule of all labels holds; the test
        classes keep theirs. Images that are held out become queries and gallery.

        Args:
            fraction: in (0, 1); about this share of the classes is held out, and at least two are on either side.
            seed: of the draw.

        Raises:
            ValueError: there are fewer than four classes, or some that are not for training.
        """
        _checks.count("seed", seed, least=0)
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction}: must lie in (0, 1), the share of the classes to hold out")
        if not (self.table["split"] == "train").all():
            raise ValueError(f"{self!r} holds test images: only training classes can be held out")
        classes = np.unique(self.labels)
        if len(classes) < 2 * FEWEST_CLASSES:
            raise ValueError(f"{self!r}: parting takes {2 * FEWEST_CLASSES} classes or more, {FEWEST_CLASSES} a side")
        count = min(max(round(fraction * len(classes)), FEWEST_CLASSES), len(classes) - FEWEST_CLASSES)
        held_out = np.isin(classes, np.random.default_rng(seed).permutation(classes)[:count])
        absent = np.setdiff1d(np.arange(len(self.class_names)), classes)
        order = np.concatenate([classes[~held_out], classes[held_out], absent])
        labels = np.argsort(order)[self.labels]
        in_fit = labels < len(classes) - count
        table = self.table.assign(label=labels, is_query=~in_fit, is_gallery=~in_fit)
        class_names = [self.class_names[label] for label in order]
        return self._derived(table, class_names, in_fit), self._derived(table, class_names, ~in_fit)


def tabulate(
    paths: Sequence[str],
    classes: Sequence[str],
    train_classes: Sequence[str],
    test_classes: Sequence[str],
    **columns: Sequence[Any],
) -> tuple["pd.DataFrame", list[str]]:
    """The table and the class names of a data set. Images of the test classes search each other, unless columns say
    otherwise.

    Args:
        paths: of each image.
        classes: the name of each image's class; `JUNK` for what a gallery holds beside its classes.
        train_classes: names in the order of the labels.
        test_classes: likewise; no name is in both.
        columns: what else is known of each image; `is_query` and `is_gallery` where these are not the same images.

    Raises:
        ValueError: a class is trained on and tested.
    """
    pd = require("pandas", extra="train")
    class_names = [*train_classes, *test_classes]
    label_of = {JUNK: JUNK_LABEL} | {name: label for label, name in enumerate(class_names)}
    both = set(train_classes) & set(test_classes)
    if both:
        raise ValueError(f"class {min(both)!r} is in training and in the test: the classes of a test must be new")
    labels = np.array([label_of[name] for name in classes], dtype=np.int64)
    is_test = (labels >= len(train_classes)) | (labels == JUNK_LABEL)
    parts = {"is_query": is_test, "is_gallery": is_test}
    table = pd.DataFrame(
        {
            # Objects, as the strings of pandas hold no names of other bytes than UTF-8.
            "path": pd.Series(paths, dtype=object),
            "label": labels,
            "split": np.where(is_test, "test", "train"),
            **{name: np.asarray(columns.pop(name, default), dtype=bool) for name, default in parts.items()},
            "class_name": pd.Series(classes, dtype=object),
            **columns,
        }
    )
    return table.sort_values("label", kind="stable", ignore_index=True), class_names


def existing(root: str | os.PathLike | None, expected: str) -> Path:
    """`root` as a path, at which something is."""
    if root is None:
        raise ValueError(f"root=None: must be {expected} (as a setting of a run: data_root)")
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"root={root}: nothing is there; it must be {expected}")
    return root


def describe_left_out(left_out: dict[str, str]) -> str:
    """How much was left out, and the first few names with their reasons, in one line."""
    some = [f"{printable(name)} ({printable(reason)})" for name, reason in list(left_out.items())[:NAMED]]
    more = [f"{len(left_out) - NAMED} more"] if len(left_out) > NAMED else []
    return f"{len(left_out)} left out: {', '.join(some + more)}" if some else "nothing was left out"
