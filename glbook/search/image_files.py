"""Image files as a person has them: in folders of folders, of any size and mode, some of them broken."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.datasets.archive import open_files, to_rgb
from gl_core.inference import embed
from gl_core.inference.strategies import Strategies
from gl_core.models import EmbeddingNet
from gl_core.training.components import image_store
from gl_core.training.config import Config

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Embedded", "embed_files", "find_images"]

# Files that are decoded before they are embedded: what is lost if the program is killed in between.
CHUNK = 256


@dataclass
class Embedded:
    """The embeddings of the files that could be read, in their order, and why the others could not."""

    embeddings: Float[Tensor, "n d"]
    files: list[Path]
    unreadable: dict[Path, str] = field(default_factory=dict)


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Files as they are given, and all images in and below folders, each once; hidden ones are passed over.

    Raises FileNotFoundError for a path where nothing is, and ValueError for a folder without images.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        if path.is_dir():
            names = open_files(path).names
            if not names:
                raise ValueError(f"{path}: holds no images")
            found |= dict.fromkeys(path / name for name in names)
        else:
            found[path] = None
    return list(found)


def embed_files(
    model: EmbeddingNet,
    config: Config,
    files: Sequence[Path],
    strategies: Strategies | None = None,
    *,
    progress: Callable[[int], object] = lambda count: None,
) -> Embedded:
    """Embed image files, prepared exactly as a run of this configuration prepares what it evaluates.

    A file that cannot be read is reported, not fatal. `progress` is called with the number of files dealt with since its last
    call.
    """
    device = next(model.parameters()).device
    embeddings, readable, unreadable = [torch.empty(0, model.embedding_size)], [], {}
    for start in range(0, len(files), CHUNK):
        photos = _Photos(files[start : start + CHUNK])
        found = embed(model, image_store(photos, config, device), strategies).cpu()
        kept = [i for i in range(len(photos)) if i not in photos.unreadable]
        embeddings.append(found[kept])
        readable += [photos.files[i] for i in kept]
        unreadable |= {photos.files[i]: photos.unreadable[i] for i in sorted(photos.unreadable)}
        progress(len(photos))
    return Embedded(torch.cat(embeddings), readable, unreadable)


class _Photos:
    """Files with the face of a data set. One that cannot be read is noted, and a grey pixel stands in its place."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.labels = torch.zeros(len(files), dtype=torch.int64)
        self.packed: dict = {}
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple["Image.Image", int]:
        from PIL import Image

        try:
            with Image.open(self.files[index]) as image:
                return to_rgb(image), 0
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            self.unreadable[index] = f"{type(error).__name__}: {error}"
            return Image.new("RGB", (1, 1), "grey"), 0
