"""Chapters as programs: find them, check their parameters, execute them, and build the book from what they show."""

import ast
import difflib
import functools
import json
import operator
import os
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gl_core.training import records
from glbook import processes

__all__ = [
    "ChapterError",
    "Parameter",
    "check_parameters",
    "execute",
    "find",
    "lean",
    "names",
    "parameters",
    "parse_value",
]


class ChapterError(RuntimeError):
    """A chapter stopped at an error of its own.

    `ename` and `evalue` are the error's type and message, `path` is the notebook as far as it was executed, with the
    traceback.
    """

    def __init__(self, chapter: str, ename: str, evalue: str, path: Path) -> None:
        super().__init__(f"{chapter}: {ename}: {evalue} (executed notebook with the traceback: {path})")
        self.chapter, self.ename, self.evalue, self.path = chapter, ename, evalue, path


@dataclass(frozen=True)
class Parameter:
    """A parameter of a chapter, as its `parameters` cell declares it: `name: type = default`."""

    name: str
    type: Any
    default: Any

    @property
    def optional(self) -> bool:
        return self.default is None or type(None) in typing.get_args(self.type)


def names() -> list[str]:
    """The chapters of the book, by name."""
    return sorted(path.stem for path in sources().glob("*.ipynb"))


def find(chapter: str) -> Path:
    """The notebook of a chapter. Raises ValueError, with the names there are, if it is none of them."""
    if chapter not in names():
        known = ", ".join(names()) or f"none in {sources()}"
        raise ValueError(f"chapter={chapter!r}: must be one of {known}{_did_you_mean(chapter, names())}")
    return sources() / f"{chapter}.ipynb"


def parameters(chapter: str) -> dict[str, Parameter]:
    """The parameters of a chapter, in the order of its `parameters` cell."""
    notebook = json.loads(find(chapter).read_text(encoding="utf-8"))
    tagged = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(next(tagged, {"source": ""})["source"])).body
    declared = (line for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name))
    return {
        line.target.id: Parameter(line.target.id, _type(ast.unparse(line.annotation)), ast.literal_eval(line.value))
        for line in declared
    }


def parse_value(text: str, parameter: Parameter) -> Any:
    """A value from the command line. What is declared a string stays one; all else is read as in YAML: 30, 1e-3, [1].

    "none" and "null" give None where that is allowed, but "none" is a word where no setting is None: the augmentation "none".

    >>> parse_value("1e-3", Parameter("learning_rate", float, None))
    0.001
    >>> parse_value("2011", Parameter("data_root", str, None))
    '2011'
    """
    import yaml

    if parameter.optional and text.lower() in ("none", "null") and not (text == "none" and _is_word(parameter)):
        return None
    if str in _choices(parameter.type):
        return text
    for number in (int, float):  # YAML 1.1 takes 1e-3 for a string and 010 for eight
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_word(parameter: Parameter) -> bool:
    """Whether a parameter sets a string of the configuration that is never None, whatever a chapter's default is."""
    from gl_core.training.config import Config

    return isinstance(getattr(Config, parameter.name, None), str)


def check_parameters(chapter: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters with their declared types, checked before anything starts.

    A whole number may stand for a float; nothing else is converted. Raises ValueError for a name that the chapter does
    not have, for a value of another type, and for settings that `gl_core.training.config.Config` refuses.
    """
    declared = parameters(chapter)
    checked = {}
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise ValueError(
                f"{name}: chapter {chapter!r} has no such parameter; it has {known}{_did_you_mean(name, declared)}"
            )
        checked[name] = _typed(declared[name], value)
    settings = {name: parameter.default for name, parameter in declared.items()} | checked
    if "dataset" in settings:
        from gl_core.training.config import Config

        Config.from_parameters(settings)
    return checked


def lean(notebook: dict[str, Any]) -> dict[str, Any]:
    """A chapter, as its JSON, reduced to what makes its records: the cells with the tag setup, parameters or run.

    A chapter without a cell of the tag run is returned as it is.
    """
    tags = [set(cell["metadata"].get("tags", [])) for cell in notebook["cells"]]
    if not any("run" in tagged for tagged in tags):
        return notebook
    kept = {"setup", "parameters", "run"}
    return notebook | {"cells": [cell for cell, tagged in zip(notebook["cells"], tags, strict=True) if tagged & kept]}


def execute(
    chapter: str,
    given: Mapping[str, Any],
    output: Path,
    *,
    session: str | None = None,
    stamp: Mapping[str, Any] | None = None,
    whole: bool = True,
    progress: bool = True,
) -> Path:
    """Execute a chapter with papermill in this Python, in the current folder. Returns `output`, the executed notebook.

    The file appears when the chapter has ended, well or with an error; where the run is interrupted, none is left. The
    cell that papermill injects is hidden on pages.

    Args:
        chapter: its name.
        given: parameters, see `check_parameters`.
        output: the executed notebook.
        session: an identifier that the records written by the chapter carry (see `gl_core.training.records.new_record`).
        stamp: what to write into the executed notebook's metadata, under "glbook".
        whole: execute all cells, not only those that `lean` keeps.
        progress: show the chapter's progress on standard error.

    Raises ValueError as `check_parameters` does, ChapterError if the chapter fails, OSError if the notebook cannot be
    written.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = find(chapter)
    given = check_parameters(chapter, given)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{os.getpid()}-{output.name}")
    if not whole:
        shortened = lean(json.loads(source.read_text(encoding="utf-8")))
        source = aside
        source.write_text(json.dumps(shortened), encoding="utf-8")
    relay = _Relay(sys.stderr) if progress else None
    error = None
    try:
        try:
            papermill.execute_notebook(
                # papermill fills in what stands in braces
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, aside)),
                parameters=given,
                kernel_name="python3",
                kernel_manager_class=_kernel_manager(session),
                start_timeout=300,
                progress_bar={"desc": f"chapter {chapter}", "unit": " cells"} if progress else False,
                shutdown_kernel="immediate",  # what a chapter keeps is written by then
                stderr_file=relay,
                coalesce_streams=True,
            )
        except PapermillExecutionError as failed:
            error = (failed.ename, failed.evalue)
        except RuntimeError as failed:  # nbclient's DeadKernelError
            error = (type(failed).__name__, f"{failed} (was there enough memory?)")
        notebook = nbformat.read(aside, as_version=4)
        for cell in notebook.cells:
            if "injected-parameters" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("remove-cell")
        if error is None and stamp is not None:
            notebook.metadata["glbook"] = dict(stamp)
        records.write_atomically(output, nbformat.writes(notebook).encode())
    finally:
        aside.unlink(missing_ok=True)
        if relay is not None:
            relay.end_line()
    if error is not None:
        raise ChapterError(chapter, *error, output)
    return output


def sources() -> Path:
    return records.project_root() / "book"


class _Relay:
    """Passes on what a chapter writes to standard error, and ends the line that a progress bar left unfinished."""

    def __init__(self, stream: typing.TextIO) -> None:
        self._stream, self._unfinished = stream, False

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._unfinished = not text.endswith("\n")

    def flush(self) -> None:
        self._stream.flush()

    def end_line(self) -> None:
        if self._unfinished:
            self.write("\n")


def _did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "None": types.NoneType}


def _type(annotation: str) -> Any:
    """The type that an annotation names; of `list[int]` only the list is checked."""
    parts = [_TYPES.get(part.split("[")[0].strip()) for part in annotation.split("|")]
    return Any if None in parts else functools.reduce(operator.or_, parts)


def _choices(declared: Any) -> tuple[type, ...]:
    return typing.get_args(declared) or (declared,)


def _typed(parameter: Parameter, value: Any) -> Any:
    choices = _choices(parameter.type)
    if parameter.type is Any or type(value) in choices or (value is None and parameter.optional):
        return value
    if float in choices and type(value) is int:
        return float(value)
    expected = [choice.__name__ for choice in choices if choice is not types.NoneType] + ["None"] * parameter.optional
    raise ValueError(f"{parameter.name}={value!r}: must be {' or '.join(expected)}, not {type(value).__name__}")


def _kernel_manager(session: str | None) -> type:
    """A kernel that runs in this Python, whatever kernels of the same name are installed for the user."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # Of itself the kernel has only to tell that it listens on this machine and that it was interrupted.
            quiet = get_kernel_dict(extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
            launcher = quiet["argv"].index("ipykernel_launcher")
            quiet["argv"][launcher - 1 : launcher + 1] = ["-c", "from glbook.processes import kernel; kernel()"]
            return KernelSpec(**quiet, env=processes.MEMORY | ({} if session is None else {"GLBOOK_RUN": session}))

    class Manager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self) -> ThisPython:
            return ThisPython(parent=self)

    return Manager
