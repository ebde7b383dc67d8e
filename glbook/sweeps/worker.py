"""One run of a sweep, in a process of its own: it and the chapter's kernel die with the worker that started it."""

import json
import os
import re
import subprocess
import sys
import threading
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from gl_core.training import records
from glbook import notebooks, processes
from glbook.sweeps import gpus, keys
from glbook.sweeps.claims import Claim, Claims, TakenError

__all__ = ["claims_of", "run_one"]

HEARTBEAT = 5.0  # seconds between two signs of life
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def claims_of(root: Path) -> Claims:
    """The claims of all sweeps of the book under `root`."""
    return Claims(root / "_build" / "sweeps")


def run_one(spec: dict[str, Any]) -> dict[str, Any]:
    """Make a run; what a Dask worker is given to do.

    `spec` is plain values: root, key, after (the last entry of the run, see `claims`), chapter, given, versions, threads, and the
    device that the run asks for.

    Returns a dict with "state": "done" (with "records"), "failed" (with "error"), "elsewhere" if another process has it, "lost"
    (with "error") if its process was killed.
    """
    last = claims_of(Path(spec["root"])).last(spec["key"])
    if (last.number if last else 0) > spec["after"] and not last.is_orphan():
        return {"state": "elsewhere"}
    child = subprocess.Popen(
        [sys.executable, "-c", "from glbook.sweeps.worker import main; main()", str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=spec["root"],
    )  # fmt: skip
    output, errors = child.communicate(json.dumps(spec))
    if child.returncode:
        reason = errors.strip().splitlines() or [f"its process ended with status {child.returncode}"]
        return {"state": "lost", "error": reason[-1]}
    return json.loads(output.splitlines()[-1]) if output else {"state": "elsewhere"}


def main() -> None:
    """The program of the run's process: a specification on standard input, what came of it on standard output."""
    processes.die_with_parent(int(sys.argv[1]))
    outcome = _make(json.load(sys.stdin))
    print(json.dumps(outcome), flush=True)


def _make(spec: dict[str, Any]) -> dict[str, Any]:
    now = {"code": keys.code_version(), "chapter": keys.chapter_version(spec["chapter"])}
    try:
        claim = claims_of(Path(spec["root"])).take(spec["key"], after=spec["after"])
    except TakenError:
        return {"state": "elsewhere"}
    over = threading.Event()
    threading.Thread(target=_give_signs_of_life, args=(claim, over), daemon=True).start()
    try:
        if now != {name: spec["versions"][name] for name in now}:
            raise ValueError("the code on this worker is not that which the sweep was planned with; start it again")
        with gpus.reserved(spec["device"]) as gpu:
            _execute(spec, claim, on_gpu=gpu is not None)
        over.set()
        return {"state": "done", "records": claim.hand_in()}
    except TakenError:
        return {"state": "elsewhere"}
    except Exception as error:
        over.set()
        message = (
            f"{type(error).__name__}: {error}" if not hasattr(error, "ename") else f"{error.ename}: {error.evalue}"
        )
        trace = _trace(error.path) if hasattr(error, "ename") else traceback.format_exc()
        try:
            claim.fail(message, trace)
        except TakenError:
            return {"state": "elsewhere"}
        return {"state": "failed", "error": message}


def _execute(spec: dict[str, Any], claim: Claim, *, on_gpu: bool) -> None:
    """Execute the chapter in a kernel that inherits these variables; its records stay aside until the run has ended well."""
    os.environ["GLBOOK_SWEEP"] = json.dumps({"key": spec["key"], **spec["versions"]})
    os.environ["GLBOOK_RECORDS"] = str(claim.records_folder())
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not on_gpu:
        for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
            os.environ[f"{library}_NUM_THREADS"] = str(spec["threads"])
    session = f"{spec['chapter']}-{datetime.now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
    notebook = records.project_root() / "_build" / "runs" / f"{session}.ipynb"
    notebooks.execute(spec["chapter"], spec["given"], notebook, session=session, whole=False, progress=False)


def _give_signs_of_life(claim: Claim, over: threading.Event) -> None:
    """Until the run is over. If it is taken over before, this process and its kernel have nothing left to do."""
    while not over.wait(HEARTBEAT):
        if not claim.is_mine():
            os._exit(0)
        claim.give_sign_of_life()


def _trace(notebook: Path) -> str:
    """The traceback that an executed notebook holds, without its colours."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    lines = [line for output in outputs if output["output_type"] == "error" for line in output["traceback"]]
    return COLOURS.sub("", "\n".join(lines)) + f"\n\nexecuted notebook: {notebook}"
