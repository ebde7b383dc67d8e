"""Image files as a person has them: in folders of folders, of any size and mode, some of them broken."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gl_core.datasets.archive import open_files
from gl_core.datasets.base import describe_left_out
from gl_core.datasets.decoding import open_image
from gl_core.evaluation.arrays import unit_rows
from gl_core.inference import embed
from gl_core.models import EmbeddingNet
from gl_core.training import checkpoints
from gl_core.training.components import image_store

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


def find_images(paths: Sequence[str | os.PathLike]) -> tuple[list[Path], dict[Path, str]]:
    """Files as they are given, and all images in and below folders, without hidden ones.

    Returns:
        The images, one that is found twice, or by several names, once; and what is left out of folders, and why.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: a folder holds no images.
    """
    found: dict[object, Path] = {}
    left_out: dict[Path, str] = {}
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            images = open_files(path)
            files = [path / name for name in images.names]
            left_out |= {path / name: reason for name, reason in images.left_out.items()}
            if not files:
                raise ValueError(f"{path}: holds no images; {describe_left_out(images.left_out)}")
        elif path.exists():
            files = [path]
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        for file in files:
            found.setdefault(_identity(file), file)
    return list(found.values()), left_out


def _identity(path: Path) -> object:
    """What two names of one file have in common."""
    try:
        state = path.stat()
    except OSError:  # it has just gone
        return path
    return state.st_dev, state.st_ino


def embed_files(
    networks: Sequence[tuple[EmbeddingNet, dict[str, Any]]],
    files: Sequence[Path],
    *,
    progress: Callable[[int], object] = lambda count: None,
) -> Embedded:
    """Embed image files by one network, or by an ensemble of several, each with its own preparation and strategies.

    The embeddings of several networks are normalised and concatenated,

        e = (f_1 / |f_1|, ..., f_m / |f_m|),    so that <e, e'> is the sum of the m cosines.

    Args:
        networks: each with its card, as `gl_core.training.checkpoints.load` returns them.
        files: image files; one that cannot be read is reported, and left out of the embeddings.
        progress: called with the number of files dealt with since its last call.

    Raises:
        ValueError: `networks` is empty, or an embedding is not finite.
    """
    if not networks:
        raise ValueError("networks is empty: must hold at least one network with its card")
    embeddings = [torch.empty(0, sum(model.embedding_size for model, _ in networks))]
    readable, unreadable = [], {}
    for start in range(0, len(files), CHUNK):
        photos = _Photos(files[start : start + CHUNK])
        parts = [_embed(model, card, photos) for model, card in networks]
        if len(parts) > 1:
            parts = [unit_rows(part) for part in parts]
        kept = [i for i in range(len(photos)) if i not in photos.unreadable]
        embeddings.append(torch.cat(parts, dim=1)[kept])
        readable += [photos.files[i] for i in kept]
        unreadable |= {photos.files[i]: photos.unreadable[i] for i in sorted(photos.unreadable)}
        progress(len(photos))
    return Embedded(torch.cat(embeddings), readable, unreadable)


def _embed(model: EmbeddingNet, card: dict[str, Any], photos: "_Photos") -> Float[Tensor, "n d"]:
    store = image_store(photos, checkpoints.configuration(card), next(model.parameters()).device)
    try:
        return embed(model, store, checkpoints.strategies(card)).cpu()
    except ValueError as error:
        raise ValueError(f"{card.get('weights', 'the network')}: {error}") from error


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
            return open_image(self.files[index]), 0
        # A decoder raises whatever it stumbles over in a damaged file.
        except Exception as error:
            self.unreadable[index] = str(error) or type(error).__name__
            return Image.new("RGB", (1, 1), "grey"), 0
