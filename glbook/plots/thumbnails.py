"""Small pictures of images of a data set, as far as its licence lets them be shown."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from gl_core.datasets import RetrievalDataset

# Data sets for research use only: what is measured on them may be published, their images may not.
NOT_SHOWN = frozenset({"cars196", "cars196_half", "market1501", "cuhk03", "cuhk03_labelled"})


def may_be_shown(dataset: "RetrievalDataset") -> bool:
    """Whether images of the data set may appear on a page that others can read."""
    return dataset.name not in NOT_SHOWN


def thumbnails(dataset: "RetrievalDataset", indices: Iterable[int], *, size: int = 48) -> list["Image.Image"]:
    """These images, at most `size` pixels a side; tiles with the class's name if they must not be shown."""
    if not may_be_shown(dataset):
        return [_tile(dataset.class_names[dataset.labels[i]], size) for i in indices]
    pictures = []
    for i in indices:
        picture = dataset[int(i)][0].copy()
        picture.thumbnail((size, size))
        pictures.append(picture)
    return pictures


def _tile(name: str, size: int) -> "Image.Image":
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (size, size), "#e8e8e4")
    ImageDraw.Draw(tile).text((size / 2, size / 2), name[:6], fill="#333333", anchor="mm", font_size=size // 3)
    return tile
