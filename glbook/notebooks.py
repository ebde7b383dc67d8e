"""Executing chapters by papermill."""

import json
import os
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gl_core._files import write_atomically
from glbook import processes
from glbook.chapters import find, lean
from glbook.parameters import check_parameters, parameters, parse_value

__all__ = ["ChapterError", "check_parameters", "execute", "lean", "parameters", "parse_value"]


class ChapterError(RuntimeError):
    """A chapter stopped at an error of its own.

    Attributes:
        chapter: its name.
        ename, evalue: the error's type and message.
        path: the notebook as far as it was executed, with the traceback.
    """

    def __init__(self, chapter: str, ename: str, evalue: str, path: Path) -> None:
        super().__init__(f"{chapter}: {ename}: {evalue} (executed notebook with the traceback: {path})")
        self.chapter, self.ename, self.evalue, self.path = chapter, ename, evalue, path

    def __reduce__(self) -> tuple:  # so that another process can raise it
        return type(self), (self.chapter, self.ename, self.evalue, self.path)


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
    """Execute a chapter with papermill in this Python, in the current folder.

    The executed notebook appears when the chapter has ended, well or with an error; where the run is interrupted, none
    is left. The cell that papermill injects is hidden on pages.

    Args:
        chapter: its name.
        given: parameters, see `check_parameters`.
        output: the executed notebook.
        session: an identifier that the chapter's records carry (see `gl_core.training.records`).
        stamp: what to write into the executed notebook's metadata, under "glbook".
        whole: execute all cells, not only those that `lean` keeps.
        progress: show the chapter's progress on standard error.

    Returns:
        `output`.

    Raises:
        ValueError: as `check_parameters` does.
        ChapterError: the chapter fails.
        OSError: the notebook cannot be written.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = find(chapter)
    given = check_parameters(chapter, given)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{os.getpid()}-{output.name}")
    if not whole:
        aside.write_text(json.dumps(lean(json.loads(source.read_text(encoding="utf-8")))), encoding="utf-8")
        source = aside
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
        write_atomically(output, nbformat.writes(notebook).encode())
    finally:
        aside.unlink(missing_ok=True)
        if relay is not None:
            relay.end_line()
    if error is not None:
        raise ChapterError(chapter, *error, output)
    return output


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
