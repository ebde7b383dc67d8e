"""Image sets for retrieval, by name: one file a data set, each returns the same table.

To add one, write a module here whose `load(root, **options)` returns the `RetrievalDataset` of all its splits, and name
it in `_READERS`.
"""

import inspect
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from gl_core import _checks
from gl_core.datasets.base import RetrievalDataset, describe_left_out
from gl_core.datasets.packed import find_packs

__all__ = ["RetrievalDataset", "load", "names"]

# The module that reads a data set, and the options that its name stands for.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "glyphs": ("glyphs", {"half": False}),
    "omniglot": ("omniglot", {}),
    "cars196_half": ("cars196_half", {}),
    "folder": ("folder", {}),
    "cub": ("cub", {}),
    "cars196": ("cars196", {}),
    "sop": ("sop", {}),
    "inshop": ("inshop", {}),
    "glyphs_half": ("glyphs", {"half": True}),
    "glyphs_reid": ("glyphs_reid", {"half": False}),
    "glyphs_reid_half": ("glyphs_reid", {"half": True}),
    "market1501": ("market1501", {}),
    "cuhk03": ("cuhk03", {"boxes": "detected"}),
    "cuhk03_labelled": ("cuhk03", {"boxes": "labelled"}),
}


def names() -> list[str]:
    """The names that `load` knows."""
    return list(_READERS)


def load(
    name: str, root: str | os.PathLike | None = None, split: str = "train", *, strict: bool = False, **options: Any
) -> RetrievalDataset:
    """The images of a data set's split.

    Args:
        name: one of `names()`.
        root: folder or archive that holds the data set, as the docstring of its module describes it. None suits those
            whose name begins with glyphs, which are drawn, and omniglot, which is downloaded.
        split: "train", "test" (queries and gallery), or "all".
        strict: refuse a data set of which something had to be left out, such as an image that cannot be read. Otherwise
            one warning names what was left out, and so does `left_out` of the data set.
        options: those of the data set, such as `size` of glyphs, `train_classes` of a folder or `crop` of cub.

    Raises:
        ValueError: there is no such name, split or option, `root` is needed and not given, or the files do not make up
            the data set.
        FileNotFoundError: `root` or a file of the data set is missing.
        ConnectionError: a download fails.
        ImportError: a package is missing; says how to install it.
    """
    _checks.choice("name", name, _READERS)
    reader, meant = _READERS[name]
    module = import_module(f"gl_core.datasets.{reader}")
    known = [option for option in inspect.signature(module.load).parameters if option not in ("root", *meant)]
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: is no option of {name}, which has {', '.join(known) or 'none'}")
    dataset = module.load(root, **meant, **options)
    # A pack holds the images as they are without options, such as whole and not cut to their boxes.
    if root is not None and not options and Path(root).expanduser().is_dir():
        dataset.packed, unused = find_packs(Path(root).expanduser(), dataset)
        dataset.left_out = dataset.left_out | unused
    if dataset.left_out:
        line = f"{name if root is None else root}: {describe_left_out(dataset.left_out)}"
        if strict:
            raise ValueError(f"{line}; strict=True takes nothing less than all")
        warnings.warn(line, stacklevel=1)  # from here, so that it is shown once, not for each split
    return dataset.split(split)
