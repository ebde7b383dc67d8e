"""Images whose names and classes stand in files of their data set, so that no folder need be searched."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gl_core.datasets.base import ImageSource, existing

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Cropped", "find_layout", "read_columns"]

Box = tuple[float, float, float, float]


class Cropped:
    """The images of a source, cut to their boxes, (left, top, right, bottom) in pixels; whole where there is no box."""

    def __init__(self, images: ImageSource, boxes: dict[str, Box]) -> None:
        self.images = images
        self.boxes = boxes

    def open(self, path: str) -> "Image.Image":
        image = self.images.open(path)
        box = self.boxes.get(path)
        if box is None:
            return image
        left, top, right, bottom = (round(side) for side in box)
        # Some boxes of the published files reach over the border by a pixel.
        inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ValueError(f"box {box} lies outside the image of {image.width} x {image.height} pixels")
        return image.crop(inside)

    def where(self, path: str) -> str:
        return self.images.where(path)

    def digests(self, paths: Sequence[str]) -> list[str]:
        digests = self.images.digests(paths)
        return [f"{digest} {self.boxes.get(path)}" for path, digest in zip(paths, digests, strict=True)]


def find_layout(
    root: str | os.PathLike | None, expected: str, layouts: Sequence[Sequence[str]], folders: Sequence[str] = (".",)
) -> tuple[Path, int]:
    """The folder in which all paths of a layout exist, and the number of that layout.

    `expected` says in words what must be there; `folders` below the root are tried in turn. Raises FileNotFoundError,
    which names what is missing from the likeliest layout.
    """
    root = existing(root, expected)
    missing: list[tuple[bool, int, list[str]]] = []
    for folder in folders:
        for number, layout in enumerate(layouts):
            lacking = [path for path in layout if not (root / folder / path).exists()]
            if not lacking:
                return root / folder, number
            # A layout of which something is there is likelier the one that was meant.
            named = [str(PurePosixPath(folder, path)) for path in lacking]
            missing.append((len(lacking) == len(layout), len(missing), named))
    raise FileNotFoundError(f"root={root}: lacks {', '.join(min(missing)[2])}; it must be {expected}")


def read_columns(path: Path, count: int, header: int = 0) -> list[list[str]]:
    """The columns of a text file whose lines hold `count` words, after `header` other lines; the last may hold
    spaces."""
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            words = line.split(None, count - 1)
            if number <= header or not words:
                continue
            if len(words) < count:
                raise ValueError(f"{path}: line {number} holds {len(words)} of {count} values: {line.strip()[:80]!r}")
            words[-1] = words[-1].rstrip()
            rows.append(words)
    if not rows:
        raise ValueError(f"{path}: holds no lines of {count} values")
    return [list(column) for column in zip(*rows, strict=True)]
