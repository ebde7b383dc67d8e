"""glyphs, glyphs_half: letters in the typefaces that matplotlib brings along, without a download; the test is on other
scripts.

A class is a letter, or several that look alike (A of Latin, Greek and Cyrillic; V and v); whatever looks like a Latin
letter is trained on. Test classes are the other letters of Greek, Cyrillic, Armenian and Georgian. Each letter is drawn
once in each typeface that has it, 12 to 16 times, with a small random deformation of its own: black on white, `size`
pixels a side. glyphs_half holds half of the classes, for what must be over in seconds: of those that are trained on as
of the others the first in the order of Unicode, so the better known.

Beside the usual columns the table says `typeface`, `script` and `letters`, all that share the class.

The images are drawn once, in seconds, and kept in a file of a few megabytes: in `root` if that is given (a folder, made
if need be), otherwise in the user's cache. Where nothing can be written they are drawn each time.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from gl_core import _checks
from gl_core._files import atomic_write
from gl_core.datasets import lettering
from gl_core.datasets.base import RetrievalDataset, tabulate
from gl_core.datasets.cache import cache_folder

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Drawings", "load"]

SMALLEST = 12  # pixels of a side in which letters can still be told apart


def load(
    root: str | os.PathLike | None = None, *, size: int = 32, seed: int = 0, half: bool = False
) -> RetrievalDataset:
    """The letters of all splits.

    Args:
        root: folder to keep the images in.
        size: pixels of a side, 12 or more.
        seed: of the deformations, 0 or more.
        half: half of the classes; the name is then glyphs_half.
    """
    _checks.count("size", size, least=SMALLEST)
    _checks.count("seed", seed, least=0)
    folder = cache_folder() if root is None else Path(root).expanduser()
    if root is not None and Path(root).expanduser().is_file():
        raise ValueError(f"root={root}: must be a folder, in which the images are kept")
    version = f"{size}px-seed{seed}-v{lettering.DRAWING}"
    if folder is None:
        return _dataset(half, version, **_drawn(size, seed))
    # The pixels may depend on these libraries besides this code.
    libraries = "-".join(f"{name}{metadata.version(name)}" for name in ("matplotlib", "numpy"))
    path = folder / f"glyphs-{version}-{libraries}.npz"
    found = _read(path, size)
    if found is None:
        found = _drawn(size, seed)
        # Keeping it is a convenience: a full or read-only disk is no reason to fail.
        with contextlib.suppress(OSError), atomic_write(path) as file:
            np.savez_compressed(file, images=found["images"], groups=found["groups"], typefaces=found["typefaces"])
    return _dataset(half, version, **found)


def _drawn(size: int, seed: int) -> dict[str, np.ndarray]:
    letters = lettering.outlines()
    groups, typefaces, deformed = [], [], []
    for group in lettering.alike(letters):
        for number, typeface in enumerate(lettering.TYPEFACES):
            letter = next((letter for letter in group if typeface in letters[letter]), None)
            if letter is not None:
                # From what the image shows, not from its place in the order: a letter more changes no other image.
                random = np.random.default_rng((seed, ord(letter), number))
                deformed.append(lettering.deform(letters[letter][typeface], size, random))
                groups.append(group)
                typefaces.append(typeface)
    return {"images": lettering.draw(deformed, size), "groups": np.array(groups), "typefaces": np.array(typefaces)}


def _dataset(
    half: bool, version: str, images: np.ndarray, groups: np.ndarray, typefaces: np.ndarray
) -> RetrievalDataset:
    script = {group: lettering.script(group[0]) for group in groups.tolist()}
    # (path, class, typeface, script, letters) of each image
    rows = [
        (f"{script[group]}/{ord(group[0]):04X}/{typeface}", group[0], typeface, script[group], group)
        for group, typeface in zip(groups.tolist(), typefaces.tolist(), strict=True)
    ]
    source = Drawings("glyphs", version, [row[0] for row in rows], images)
    train = [group[0] for group in script if script[group] == "Latin"]
    test = [group[0] for group in script if script[group] != "Latin"]
    if half:
        train, test = train[: len(train) // 2], test[: len(test) // 2]
    chosen = {*train, *test}
    paths, classes, *columns = zip(*(row for row in rows if row[1] in chosen), strict=True)
    named = dict(zip(("typeface", "script", "letters"), columns, strict=True))
    table, class_names = tabulate(paths, classes, train, test, **named)
    return RetrievalDataset("glyphs_half" if half else "glyphs", table, class_names, source)


class Drawings:
    """Images in memory, found by their path. `name` is that of the data set, `version` changes with any of the
    images."""

    def __init__(self, name: str, version: str, paths: list[str], images: UInt8[np.ndarray, "n h w"]) -> None:
        self.name, self.version, self.images = name, version, images
        self.position = {path: position for position, path in enumerate(paths)}

    def open(self, path: str) -> "Image.Image":
        from PIL import Image

        return Image.fromarray(self.images[self.position[path]]).convert("RGB")

    def where(self, path: str) -> str:
        return f"{self.name}: {path}"

    def digests(self, paths: Sequence[str]) -> list[str]:
        return [self.version] * len(paths)


def _read(path: Path, size: int) -> dict[str, np.ndarray] | None:
    """What was kept; None if there is nothing or it is damaged."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("images", "groups", "typefaces")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    images = found["images"]
    return found if images.shape == (len(found["groups"]), size, size) and images.dtype == np.uint8 else None
