"""One run of a sweep, in a process of its own: it and the chapter's kernel die with the process that started it."""

import json
import os
import re
import subprocess
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from gl_core.training.version import RESULTS_VERSION
from glbook import notebooks, processes
from glbook.sweeps import gpus
from glbook.sweeps.store import Store

__all__ = ["Children", "run_one"]

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Children:
    """The processes of the runs that are being made here."""

    def __init__(self) -> None:
        self._living: set[subprocess.Popen] = set()
        self._over = False

    def add(self, child: subprocess.Popen) -> None:
        self._living.add(child)
        if self._over:
            child.kill()

    def remove(self, child: subprocess.Popen) -> None:
        self._living.discard(child)

    def kill(self) -> None:
        """End all of them, and those that are added from now on."""
        self._over = True
        for child in list(self._living):
            child.kill()


def run_one(spec: dict[str, Any], children: Children | None = None) -> dict[str, Any]:
    """Make a run, unless another process makes it or has made it.

    Args:
        spec: what `glbook.sweeps.pool` says of the run: plain values, so that it can be sent to other machines.
        children: holds the run's process as long as it lives.

    Returns:
        A dict with "state": "done", "failed" (with "error"), "elsewhere" if another process has the run or has made it,
        "lost" (with "error") if its process or the chapter's kernel was killed.
    """
    children = Children() if children is None else children
    with subprocess.Popen(
        [sys.executable, "-c", "from glbook.sweeps.worker import main; main()", str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=spec["root"],
    ) as child:  # fmt: skip
        children.add(child)
        output, errors = child.communicate(json.dumps(spec))
        children.remove(child)
    if child.returncode or not output:
        reason = errors.strip().splitlines() or [f"its process ended with status {child.returncode}"]
        return {"state": "lost", "error": reason[-1]}
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """The program of the run's process: a specification on standard input, what came of it on standard output."""
    processes.die_with_parent(int(sys.argv[1]))
    print(json.dumps(make(json.load(sys.stdin))), flush=True)


def make(spec: dict[str, Any]) -> dict[str, Any]:
    """Make a run in this process; see `run_one`."""
    store, key = Store(Path(spec["root"])), spec["key"]
    try:
        with store.lock(key):
            store.finish(key)
            if store.is_done(key):
                return {"state": "elsewhere"}
            try:
                if spec["results_version"] != RESULTS_VERSION:
                    raise ValueError("the code on this worker is not that of the sweep; start it again")
                staged = store.begin(key)
                with gpus.reserved(spec["device"]) as gpu:
                    _execute(spec, staged, on_gpu=gpu is not None)
                store.end(key, staged)
                return {"state": "done"}
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                trace = traceback.format_exc()
                if isinstance(error, notebooks.ChapterError):
                    message, trace = f"{error.ename}: {error.evalue}", _trace(error.path)
                    if error.ename == "DeadKernelError":
                        return {"state": "lost", "error": message}
                store.fail(key, message, trace)
                return {"state": "failed", "error": message}
    except Timeout:
        return {"state": "elsewhere"}


def _execute(spec: dict[str, Any], staged: Path, *, on_gpu: bool) -> None:
    """Execute the chapter in a kernel that inherits these variables, with its records staged."""
    os.environ["GLBOOK_SWEEP"] = json.dumps({name: spec[name] for name in ("key", "data_version")})
    os.environ["GLBOOK_RECORDS"] = str(staged)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not on_gpu:
        for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
            os.environ[f"{library}_NUM_THREADS"] = str(spec["threads"])
    session = f"{spec['chapter']}-{datetime.now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
    notebook = Path(spec["root"]) / "_build" / "runs" / f"{session}.ipynb"
    notebooks.execute(spec["chapter"], spec["given"], notebook, session=session, whole=False, progress=False)


def _trace(notebook: Path) -> str:
    """The traceback that an executed notebook holds, without its colours."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    lines = [line for output in outputs if output["output_type"] == "error" for line in output["traceback"]]
    return COLOURS.sub("", "\n".join(lines)) + f"\n\nexecuted notebook: {notebook}"
