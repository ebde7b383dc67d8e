"""What a run depends on, as hashes: two runs of the same key would give the same result, and so only one is made.

The key is made of the chapter's name and parameters, the modules that a training runs, the cells of the chapter, and the data.
The commit is no part of it, or every commit would run everything again; nor are comments, docstrings and layout.
"""

import ast
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from glbook import notebooks

__all__ = [
    "chapter_version",
    "code_version",
    "data_version",
    "imported",
    "modules_behind",
    "run_key",
    "source_version",
    "training_modules",
]

PACKAGE = Path(__file__).resolve().parents[1]
# Modules that a training uses and that cannot change what comes out of it.
EXEMPT = {
    "_checks": "refuses input, computes nothing",
    "checkpoints": "a run that goes on from one ends as a run without",
    "config": "its values are among the parameters",
    "datasets": "has a version of its own, made from what it returns",
    "progress": "shows, computes nothing",
    "runs": "keeps what came out",
}
# Of so many images the pixels are looked at, evenly spaced over the data set.
SAMPLED_IMAGES = 64


def run_key(chapter: str, parameters: Mapping[str, Any], versions: Mapping[str, str | None]) -> str:
    """The key of a run: a hash of the chapter's name, all its parameters, and the versions of code, chapter and data.

    The path to the data is left out: it says where they lie on one machine.
    """
    parameters = {name: value for name, value in parameters.items() if name != "data_root"}
    return _hash(json.dumps([chapter, parameters, versions], sort_keys=True))


@cache
def code_version() -> str:
    """A hash of the modules that a training runs."""
    return source_version(training_modules())


def source_version(modules: Iterable[str]) -> str:
    """A hash of modules of the library, named as in `modules_behind`."""
    return _hash(*(f"{name}\n{_meaning(_path(name).read_text(encoding='utf-8'))}" for name in modules))


def chapter_version(chapter: str) -> str:
    """A hash of the code cells that a sweep executes of a chapter."""
    cells = notebooks.lean(json.loads(notebooks.find(chapter).read_text(encoding="utf-8")))["cells"]
    return _hash(*(_meaning("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"))


@cache
def data_version(dataset: str, root: str | None) -> str:
    """A hash of a data set: its table, and the pixels of some images, evenly spaced.

    Raises what `gl_core.datasets.load` raises.
    """
    import numpy as np

    from gl_core import datasets

    data = datasets.load(dataset, root, "all")
    table = data.table.reindex(sorted(data.table.columns), axis="columns").to_csv(index=False)
    few = np.unique(np.linspace(0, len(data) - 1, SAMPLED_IMAGES).round().astype(int))
    pixels = (np.asarray(data[int(index)][0]) for index in few)
    return _hash(table, *(f"{image.shape}{hashlib.sha256(image.tobytes()).hexdigest()}" for image in pixels))


@cache
def training_modules() -> tuple[str, ...]:
    """The modules of the library that `gl_core.training` imports, directly or not, but for those that change no result."""
    return modules_behind(["training"], exempt=EXEMPT)


def modules_behind(names: Iterable[str], exempt: Collection[str] = ()) -> tuple[str, ...]:
    """These modules of the library and those that they import, directly or not; names without the package, "sweeps.keys"."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name.split(".")[0] in exempt or not _path(name).is_file():
            continue
        found.add(name)
        waiting += imported(ast.parse(_path(name).read_text(encoding="utf-8")))
    return tuple(sorted(found))


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of the library that some code imports; among them names that are no modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            inside = node.module.split(".")[1:]
            yield from [".".join([*inside, alias.name]) for alias in node.names]
            if inside:
                yield ".".join(inside)


def _path(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _meaning(source: str) -> str:
    """Source code without comments, docstrings and layout; as it is where it is not plain Python, such as `%pip`."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:32]
