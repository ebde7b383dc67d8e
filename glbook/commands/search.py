"""The commands `glbook embed` and `glbook search`: a trained network for a person's own images."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from glbook.commands import a_path

if TYPE_CHECKING:
    import torch

    from gl_core.models import EmbeddingNet
    from glbook.search.gallery import Gallery
    from glbook.search.image_files import Embedded

__all__ = ["add_embed", "add_search"]

Hits = list[list[tuple[float, str]]]  # of each query: similarities and names


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook embed` its arguments."""
    _add_network(parser)
    parser.add_argument(
        "images", nargs="+", type=a_path, metavar="IMAGES",
        help="image files, and folders of them; further networks, NAME.safetensors, make an ensemble: their embeddings "
        "are normalised and concatenated",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", required=True, type=a_path, metavar="FILE",
        help="FILE.parquet, with columns path and embedding, or FILE.npy with the list of paths in FILE.npy.json",
    )  # fmt: skip


def add_search(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook search` its arguments."""
    _add_network(parser)
    queries = parser.add_argument(
        "queries", nargs="+", type=a_path, metavar="QUERY",
        help="image files, and folders of them; without any, or with -, they are read from the input, one a line",
    )  # fmt: skip
    # Not by nargs="*": with Python 3.11 that takes no query that stands behind an option.
    queries.required = False
    parser.add_argument("--gallery", required=True, type=a_path, metavar="DIR", help="the folder to search")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="images to find for each query (%(default)s)")
    parser.add_argument("--figure", type=a_path, metavar="FILE.png", help="draw the images that were found")
    parser.epilog = "The index of the gallery is kept in your cache folder, and follows the images when they change."


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network", type=a_path, metavar="NETWORK",
        help="NAME.safetensors, with NAME.json beside it: what a training leaves",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    parser.add_argument("--strict", action="store_true", help="refuse images that cannot be read: leave none out")


def embed(options: argparse.Namespace) -> int:
    """`glbook embed`: the exit status."""
    output = options.output
    if output.suffix not in (".npy", ".parquet"):
        raise ValueError(f"-o {output}: must end in .parquet or .npy")
    if output.is_dir():
        raise ValueError(f"-o {output}: is a folder")
    from tqdm import tqdm

    from gl_core import devices
    from gl_core._extras import require
    from glbook.search.image_files import embed_files, find_images

    if output.suffix == ".parquet":
        require("pyarrow", extra="search")
    more = [path for path in options.images if path.suffix == ".safetensors"]
    paths = [path for path in options.images if path not in more]
    if not paths:
        raise ValueError("there is nothing to embed: must name images, or folders of them")
    device = devices.choose_device(options.device)
    files, left_out = find_images(paths)
    networks = [_load(path, device) for path in (options.network, *more)]
    with tqdm(total=len(files), desc="embedding", unit=" images") as bar:
        found = embed_files(networks, files, progress=bar.update)
    _report_left_out(left_out | found.unreadable, options.strict)
    if not found.files:
        raise ValueError(f"none of the {len(files)} images can be read")
    _write(output, found)
    rows, columns = found.embeddings.shape
    _print(f"{rows:,} embeddings of {columns} numbers: {output}")
    return 0


def _load(path: Path, device: "torch.device") -> tuple["EmbeddingNet", dict[str, Any]]:
    from gl_core.training import checkpoints

    model, card = checkpoints.load(path, device)
    # By which messages name it: the file may have been renamed.
    return model, card | {"weights": str(path)}


def _write(path: Path, found: "Embedded") -> None:
    import io
    import json

    from gl_core._files import write_atomically

    content, values = io.BytesIO(), found.embeddings.numpy()
    names = [str(file) for file in found.files]
    if path.suffix == ".npy":
        import numpy as np

        np.save(content, values)
        path.unlink(missing_ok=True)  # never old embeddings beside new names
        # In JSON, as a name may hold a new line, or bytes that are not UTF-8. Whoever has a NAME.json keeps it.
        write_atomically(path.with_name(f"{path.name}.json"), (json.dumps(names, indent=0) + "\n").encode())
    else:
        import pyarrow as pa
        from pyarrow import parquet

        # Parquet holds text in UTF-8: other bytes stand there as \xff.
        names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names]
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        parquet.write_table(pa.table({"path": names, "embedding": column}), content)
    write_atomically(path, content.getvalue())


def search(options: argparse.Namespace) -> int:
    """`glbook search`: the exit status."""
    if options.k < 1:
        raise ValueError(f"-k {options.k}: must be 1 or more")
    given = options.queries or [Path("-")]
    reads_input = Path("-") in given
    if options.figure is not None and reads_input:
        raise ValueError(f"--figure {options.figure}: takes queries from the command line, not from the input")
    if options.figure is not None and options.figure.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {options.figure}: must end in .png, .pdf or .svg")
    if reads_input and sys.stdin is None:
        raise ValueError("the input is closed: must name the queries")
    from gl_core import devices
    from glbook.search.gallery import open_gallery
    from glbook.search.image_files import embed_files, find_images

    network = _load(options.network, devices.choose_device(options.device))

    def embedded(paths: list[Path]) -> "torch.Tensor":
        found = embed_files([network], paths)
        for path, reason in found.unreadable.items():
            raise ValueError(f"{path}: the query cannot be read ({reason})")
        return found.embeddings

    queries, left_out = find_images([path for path in given if path != Path("-")])
    _report_left_out(left_out, options.strict)
    # A query that cannot be read is better refused before a large gallery is indexed.
    vectors = embedded(queries)
    gallery, update = open_gallery(options.gallery, *network, say=_say, progress=True)
    _report_left_out(update.unreadable, options.strict)
    if update.embedded or update.removed:
        changes = f"{update.embedded:,} new or changed, {update.removed:,} gone"
        _say(f"{len(gallery.names):,} images; {changes}; index: {gallery.index}")
    if queries:
        hits = _hits(gallery, vectors, queries, options.k)
        _print_hits(gallery, queries, hits)
        if options.figure is not None:
            _draw(gallery, queries, hits).savefig(options.figure, dpi=150)
            _say(f"figure: {options.figure}")
    for line in _lines() if reads_input else ():
        # One that cannot be read does not end the others.
        try:
            queries, _ = find_images([line])
            _print_hits(gallery, queries, _hits(gallery, embedded(queries), queries, options.k))
        except (ValueError, FileNotFoundError) as error:
            _say(f"glbook: {error}")
    return 0


def _lines() -> Iterator[str]:
    """The lines of the input that are not empty; at a terminal there is a prompt."""
    if sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lets `input` edit the line, and bring back earlier ones
        with contextlib.suppress(EOFError):
            while True:
                if line := input("query> ").strip():
                    yield line
        _print("")
        return
    sys.stdin.reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        if line := line.rstrip("\n"):
            yield line


def _hits(gallery: "Gallery", vectors: "torch.Tensor", queries: list[Path], k: int) -> Hits:
    """The images found for each query; one that lies in the gallery is not its own."""
    similarity, index = gallery.search(vectors, k + 1)
    found = []
    for path, values, rows in zip(queries, similarity.tolist(), index.tolist(), strict=True):
        left_out = (-1, gallery.row_of(path))
        pairs = [(value, gallery.names[row]) for value, row in zip(values, rows, strict=True) if row not in left_out]
        found.append(pairs[:k])
    return found


def _print_hits(gallery: "Gallery", queries: list[Path], hits: Hits) -> None:
    """A table for each query. Of Euclidean embeddings the similarity is minus the squared distance."""
    for path, found in zip(queries, hits, strict=True):
        _print(path)
        _print(f"{'':3}  similarity  path")
        for rank, (value, name) in enumerate(found, 1):
            _print(f"{rank:3}  {value:10.4f}  {gallery.root / name}")


def _draw(gallery: "Gallery", queries: list[Path], hits: Hits):
    from PIL import Image

    from gl_core._files import printable
    from gl_core.datasets.decoding import open_image
    from glbook.plots import retrieval_gallery

    def picture(path: Path) -> Image.Image:
        shown = open_image(path)
        shown.thumbnail((256, 256))
        return shown

    return retrieval_gallery(
        [picture(path) for path in queries],
        [[picture(gallery.root / name) for _, name in found] for found in hits],
        captions=[[f"{value:.2f}" for value, _ in found] for found in hits],
        titles=[printable(path.name) for path in queries],
    )


def _report_left_out(left_out: dict[Any, str], strict: bool) -> None:
    """One line on the images that are left out; an error if none may be."""
    from gl_core.datasets.base import describe_left_out

    line = describe_left_out({str(path): reason for path, reason in left_out.items()})
    if left_out and strict:
        raise ValueError(f"--strict: {line}")
    if left_out:
        _say(f"glbook: {line}")


def _print(line: object, file: TextIO | None = None) -> None:
    """Print a line without what a name of a file may do to a terminal."""
    from gl_core._files import printable

    print(printable(str(line)), file=file, flush=True)


def _say(line: str) -> None:
    _print(line, sys.stderr)
