"""The commands `glbook data list`, `fetch`, `check` and `pack`."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glbook.commands import a_path

if TYPE_CHECKING:
    import numpy as np

    from gl_core.datasets import RetrievalDataset

__all__ = ["add_commands"]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook data` its four commands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("list", _list, "List the data sets: licence, images, how to get them."),
        ("fetch", _fetch, "Download a data set from its public source, or say how to get it."),
        ("check", _check, "Count a data set's images, open each, and say whether it is whole."),
        ("pack", _pack, "Decode a data set once into a file that training reads in place."),
    ):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function, interrupted="interrupted; the same command goes on")
        if name == "list":
            continue
        added.add_argument("name", metavar="NAME", help="cub, cars196, sop, ...")
        added.add_argument(
            "--root", type=a_path, metavar="DIR", help="the folder of the data set (data/NAME of the book)"
        )
        if name == "pack":
            added.add_argument(
                "--size", default="256", metavar="N", help="pixels of a side, or HEIGHTxWIDTH (%(default)s)"
            )
            added.add_argument("--yes", action="store_true", help="write without asking")


def _list(options: argparse.Namespace) -> int:
    from gl_core.datasets.catalogue import CATALOGUE

    for name, entry in CATALOGUE.items():
        total = ""
        if entry.counts:
            train, query, gallery = (entry.counts[part] for part in ("train", "query", "gallery"))
            # Queries that search each other are their own gallery.
            total = f"{train[0] + query[0] + (gallery[0] if gallery != query else 0):,} images"
        access = "fetch" if entry.archive else "manual" if entry.steps else "nothing to do"
        print(f"{name:16} {entry.title:32} {total:15} {access:14} {entry.licence}")
    return 0


def _folder(options: argparse.Namespace) -> Path:
    from gl_core import _checks
    from gl_core.datasets.catalogue import CATALOGUE
    from gl_core.training.records import project_root

    _checks.choice("NAME", options.name, CATALOGUE)
    return project_root() / "data" / options.name if options.root is None else options.root.expanduser()


def _fetch(options: argparse.Namespace) -> int:
    from gl_core.datasets.catalogue import CATALOGUE
    from gl_core.datasets.download import fetch, locked
    from gl_core.datasets.unpack import unpack

    folder, entry = _folder(options), CATALOGUE[options.name]
    if entry.archive is None:
        print(f"{entry.title} ({entry.licence})\n{entry.steps or 'Nothing to fetch.'}")
        print(f"Expected in {folder}: {entry.expected}\nThen: glbook data check {options.name} --root {folder}")
        return 0
    path = folder / entry.archive.file
    fetch(entry.archive.url, path, f"md5:{entry.archive.md5}")
    with locked(folder / f".{options.name}.lock"):
        if not (folder / entry.expected).is_dir():
            print(f"unpacking {path} ...", file=sys.stderr)
            unpack(path, folder, entry.archive.most_bytes)
    print(f"{entry.title} is in {folder}. Next: glbook data check {options.name} --root {folder}")
    return 0


def _loaded(options: argparse.Namespace) -> "RetrievalDataset":
    from gl_core import _checks, datasets
    from gl_core.datasets.catalogue import CATALOGUE

    _checks.choice("NAME", options.name, CATALOGUE)
    root = options.root
    if root is None and CATALOGUE[options.name].counts:
        root = _folder(options)
    return datasets.load(options.name, root, "all")


def _check(options: argparse.Namespace) -> int:
    from gl_core.datasets.catalogue import CATALOGUE
    from gl_core.datasets.checking import check
    from gl_core.datasets.packed import verify

    dataset = _loaded(options)
    for packed in dataset.packed.values():
        verify(packed.path)
    findings = check(dataset, CATALOGUE[options.name].counts, progress=sys.stderr.isatty())
    print(findings.report(options.name))
    return 0 if findings.whole else 1


def _pack(options: argparse.Namespace) -> int:
    from gl_core.datasets.packed import pack
    from gl_core.datasets.store import ImageStore

    sides = options.size.split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdigit() and int(side) for side in sides):
        wanted = "pixels of a side, such as 256, or HEIGHTxWIDTH, such as 256x128"
        raise ValueError(f"--size {options.size}: must be {wanted}")
    height, width = int(sides[0]), int(sides[-1])
    dataset, folder = _loaded(options), _folder(options)
    path = folder / f"{options.name}-{height}x{width}.pack"
    need, free = len(dataset) * height * width * 3, shutil.disk_usage(folder if folder.is_dir() else os.curdir).free
    images = f"{len(dataset):,} images of {height} x {width} pixels"
    print(f"{path}: {need / 1e9:.2f} GB for {images}; {free / 1e9:.0f} GB are free")
    if need > free:
        raise OSError(f"{path}: does not fit the disk")
    if not options.yes:
        if not sys.stdin.isatty():
            raise ValueError("there is nobody to ask whether to write this: give --yes")
        if input("Write it? [y/N] ").strip().lower() not in ("y", "yes"):
            print("not written")
            return 0

    def decode(part: "RetrievalDataset", rows: range) -> "np.ndarray":
        store = ImageStore(part.subset(list(rows)), (height, width), keep_aspect=height == width, workers=0)
        ((pixels, _),) = store.batches([list(range(len(rows)))])
        return pixels.permute(0, 2, 3, 1).numpy()

    pack(dataset, path, height, width, decode, progress=sys.stderr.isatty())
    print(f"written: {path}")
    return 0
