"""What the outputs of a chapter depend on, as one hash: a chapter is executed again when it changes, and only then.

It is made of the chapter's own code cells, the modules of the library that they import, directly or not, the recorded
results, the tables in `book/`, and the versions of Python and of the packages that the project names. Prose, and the
docstrings and comments of modules, are left out: they cannot change an output.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["chapter_key", "files", "hashed", "package_versions", "source_files", "surroundings"]

FOLDER = Path(__file__).resolve().parents[1]
PACKAGES = ("gl_core", "glbook")


def chapter_key(notebook: dict[str, Any], around: str) -> str:
    """The hash of a chapter, given as the JSON of its notebook; `around` is that of its `surroundings`."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    modules = modules_behind(name for cell in cells for name in imported(_parsed(cell)))
    return hashed(*cells, *(f"{name}\n{_meaning(name)}" for name in modules), around)


def modules_behind(names: Iterable[str]) -> list[str]:
    """These modules of the library and those that they import, directly or not; other names are passed over."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not _path(name).is_file():
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0], *_imports(name)]
    return sorted(found)


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of the library that some code imports; among them names that are no modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _imports(module: str) -> list[str]:
    """The modules that a module of the library imports. A package names those that it loads when they are asked for."""
    path = _path(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = list(imported(tree))
    if path.name == "__init__.py":
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        names += [f"{module}.{word}" for word in words if isinstance(word, str) and word.isidentifier()]
    return names


@cache
def _meaning(module: str) -> str:
    """A module's source without comments, docstrings and layout."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _parsed(cell: str) -> ast.Module:
    """A code cell as Python, whatever commands of IPython it holds."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return ast.parse(TransformerManager().transform_cell(cell))
    except SyntaxError:  # the chapter will say so when it is executed
        return ast.Module([], [])


def _path(module: str) -> Path:
    parts = module.split(".")
    if parts[0] not in PACKAGES or not all(part.isidentifier() for part in parts):
        return FOLDER / "no module of the library"
    path = FOLDER.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def surroundings(root: Path) -> str:
    """The hash of what every chapter may use besides code: recorded results, tables, packages."""
    tables = [path for path in files(root / "book") if path.suffix in (".csv", ".yaml")]
    read = [f"{path.name}\n{hashed(path.read_bytes())}" for path in files(root / "data" / "results") + tables]
    return hashed(*read, *package_versions(), sys.version)


def package_versions() -> list[str]:
    """The packages that the project names, but for those that only tests use, with the versions that are installed."""
    named = [line for line in metadata.requires("gl_core") or [] if not re.search(r"extra == .test", line)]
    found = []
    for name in sorted({match[0] for line in named if (match := re.match(r"[\w.-]+", line))}):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def source_files() -> list[Path]:
    """All files of the library's source, docstrings included: what the pages of its reference are made of."""
    return [path for package in PACKAGES for path in files(FOLDER / package) if path.suffix == ".py"]


def files(folder: Path) -> list[Path]:
    """All files under a folder in a fixed order; hidden ones, such as an editor's copies, are passed over."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def hashed(*parts: str | bytes) -> str:
    """One hash of several parts, in which none can pass for another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()
