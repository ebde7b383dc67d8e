"""The commands `glbook embed` and `glbook search`: a trained network for a person's own images."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from glbook.search.gallery import Gallery

__all__ = ["add_embed", "add_search"]

# Unreadable files that are named one by one; of more the number is told.
NAMED = 10


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook embed` its arguments."""
    _add_checkpoint(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, and folders of them")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE",
        help="FILE.parquet (path, embedding), or FILE.npy with the paths in FILE.txt, one a line",
    )  # fmt: skip


def add_search(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook search` its arguments."""
    _add_checkpoint(parser)
    parser.add_argument(
        "queries", nargs="+", metavar="QUERY", help="image files, folders of them; - reads names from the input"
    )
    parser.add_argument("--gallery", required=True, type=Path, metavar="DIR", help="the folder to search")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="images to find for each query (%(default)s)")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the images that were found")
    parser.epilog = (
        "The first search leaves a process behind that has PyTorch loaded, so that the next one takes a fraction of a second; "
        "it ends after ten minutes. GLBOOK_RESIDENT=0 in the environment: none; =60: an hour."
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="NAME.safetensors, with NAME.json beside it"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")


def embed(options: argparse.Namespace) -> int:
    """`glbook embed`: the exit status."""
    if options.output.suffix not in (".npy", ".parquet"):
        raise ValueError(f"-o {options.output}: must end in .parquet or .npy")
    from tqdm import tqdm

    from gl_core import devices
    from gl_core.training import checkpoints
    from glbook.search.image_files import embed_files, find_images

    device = devices.choose_device(options.device)
    files = find_images(options.images)
    model, card = checkpoints.load(options.checkpoint, device)
    config, strategies = checkpoints.configuration(card), checkpoints.strategies(card)
    with tqdm(total=len(files), desc="embedding", unit=" images") as bar:
        found = embed_files(model, config, files, strategies, progress=bar.update)
    _name_unreadable({str(path): reason for path, reason in found.unreadable.items()}, len(files))
    if not found.files:
        raise ValueError(f"none of the {len(files)} images can be read")
    written = _write(options.output, found.embeddings, found.files)
    print(f"{len(found.files):,} embeddings of {model.embedding_size} numbers: {' and '.join(map(str, written))}")
    return 0


def _write(path: Path, embeddings: "torch.Tensor", files: list[Path]) -> list[Path]:
    import io

    from gl_core.training.records import write_atomically

    content, values = io.BytesIO(), embeddings.numpy()
    if path.suffix == ".npy":
        import numpy as np

        np.save(content, values)
        names = path.with_suffix(".txt")
        write_atomically(names, "".join(f"{file}\n" for file in files).encode("utf-8", "surrogateescape"))
        write_atomically(path, content.getvalue())
        return [path, names]
    import pyarrow as pa
    from pyarrow import parquet

    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    parquet.write_table(pa.table({"path": [str(file) for file in files], "embedding": column}), content)
    write_atomically(path, content.getvalue())
    return [path]


def search(options: argparse.Namespace) -> int:
    """`glbook search`: the exit status."""
    if options.k < 1:
        raise ValueError(f"-k {options.k}: must be 1 or more")
    if options.figure is not None and "-" in options.queries:
        raise ValueError(f"--figure {options.figure}: takes queries from the command line, not from the input")
    if options.figure is not None and options.figure.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {options.figure}: must end in .png, .pdf or .svg")
    from gl_core import devices
    from gl_core.training import checkpoints
    from glbook.search.gallery import open_gallery
    from glbook.search.image_files import embed_files, find_images

    device = devices.choose_device(options.device)
    model, card = checkpoints.load(options.checkpoint, device)

    def embedded(paths: list[Path]) -> "torch.Tensor":
        config, strategies = checkpoints.configuration(card), checkpoints.strategies(card)
        found = embed_files(model, config, paths, strategies)
        for path, reason in found.unreadable.items():
            raise ValueError(f"{path}: the query cannot be read ({reason})")
        return found.embeddings

    paths = find_images([query for query in options.queries if query != "-"])
    # A query that cannot be read is better refused before a large gallery is indexed.
    vectors = embedded(paths) if paths else None
    gallery, update = open_gallery(options.gallery, model, card, progress=True)
    _name_unreadable(update.unreadable, len(gallery.names) + len(update.unreadable))
    if update.embedded or update.removed:
        print(
            f"{len(gallery.names):,} images; {update.embedded:,} new or changed, {update.removed:,} gone; index: {gallery.index}",
            file=sys.stderr,
        )
    if paths:
        hits = _hits(gallery, vectors, paths, options.k)
        _print(gallery, paths, hits)
        if options.figure is not None:
            _draw(gallery, paths, hits).savefig(options.figure, dpi=150)
            print(f"figure: {options.figure}", file=sys.stderr)
    if "-" in options.queries:
        for line in sys.stdin:
            if line.strip():
                _answer(gallery, Path(line.rstrip("\n")).expanduser(), embedded, options.k)
    return 0


def _answer(gallery: "Gallery", path: Path, embedded, k: int) -> None:
    """One query of many: one that cannot be read does not end the others."""
    began = time.monotonic()
    try:
        vector = embedded([path])
    except ValueError as error:
        print(f"glbook: {error}", file=sys.stderr)
        return
    _print(gallery, [path], _hits(gallery, vector, [path], k))
    print(f"{time.monotonic() - began:.2f} s", file=sys.stderr, flush=True)


def _hits(
    gallery: "Gallery", vectors: "torch.Tensor", queries: list[Path], k: int
) -> list[list[tuple[float, str]]]:  # fmt: skip
    """For each query the similarity and the name of the images found; a query that lies in the gallery does not find itself."""
    similarity, index = gallery.search(vectors, k + 1)
    found = []
    for path, values, rows in zip(queries, similarity.tolist(), index.tolist(), strict=True):
        itself = os.path.relpath(path.resolve(), gallery.root.resolve())
        pairs = [(value, gallery.names[row]) for value, row in zip(values, rows, strict=True) if row >= 0]
        found.append([(value, name) for value, name in pairs if name != itself][:k])
    return found


def _print(gallery: "Gallery", queries: list[Path], hits: list[list[tuple[float, str]]]) -> None:
    """A table for each query. Of Euclidean embeddings the similarity is minus the squared distance."""
    for path, found in zip(queries, hits, strict=True):
        print(f"{path}\n{'':3}  similarity  path")
        for rank, (value, name) in enumerate(found, 1):
            print(f"{rank:3}  {value:10.4f}  {gallery.root / name}")
    sys.stdout.flush()


def _draw(gallery: "Gallery", queries: list[Path], hits: list[list[tuple[float, str]]]):
    from PIL import Image

    from gl_core.datasets.archive import to_rgb
    from glbook.plots import retrieval_gallery

    def picture(path: Path) -> Image.Image:
        with Image.open(path) as image:
            shown = to_rgb(image)
        shown.thumbnail((256, 256))
        return shown

    neighbours = [[picture(gallery.root / name) for _, name in found] for found in hits]
    captions = [[f"{value:.2f}" for value, _ in found] for found in hits]
    return retrieval_gallery(
        [picture(path) for path in queries],
        neighbours,
        captions=captions,
        titles=[path.name for path in queries],
    )


def _name_unreadable(unreadable: dict[str, str], total: int) -> None:
    if not unreadable:
        return
    for path, reason in list(unreadable.items())[:NAMED]:
        print(f"glbook: {path}: cannot be read ({reason})", file=sys.stderr)
    print(f"glbook: {len(unreadable):,} of {total:,} images cannot be read and are left out", file=sys.stderr)
