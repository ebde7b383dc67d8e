"""Measure, print the table, and keep it."""

import argparse
import hashlib
import json
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, parts
from gl_core import devices
from gl_core.training import records

SHARED = ("measure.py", "memory.py", "neighbours.py")  # by other parts
FOLDER = "benchmarks"  # of the records; a table is no run, and `load_runs` passes it over


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(parts.NAMES)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="small cases, to try the machinery; the table is not kept")
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(parts.NAMES))
    if unknown:
        parser.error(f"no part {unknown[0]!r}: must be of {', '.join(parts.NAMES)}")
    rows = []
    for part in given.parts or parts.NAMES:
        for case in parts.load(part, given.quick):
            row = _measured(part, case, given.quick)
            rows.append(row)
            print(line(row), flush=True)
    if given.quick:
        return
    whole = not given.parts
    path = (
        records.project_root()
        / ("data/results" if whole else "_build")
        / FOLDER
        / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    )
    records.write_atomically(path, (json.dumps(table(rows), indent=1) + "\n").encode())
    print(f"The table is in {path.relative_to(records.project_root())}.")


def _measured(part: str, case: measure.Case, quick: bool) -> dict[str, Any]:
    """The row of a case, measured now or, with this code, before a run was cut short."""
    name = hashlib.sha256(f"{part}\0{case.name}\0{code_of(part)}".encode()).hexdigest()[:16]
    kept = records.project_root() / "_build" / FOLDER / f"{name}.json"
    if not quick and kept.is_file():
        return json.loads(kept.read_text())
    load = measure.load()
    row = measure.measure(part, case, quick) | {
        "load": load,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": records.commit(),
    }
    if not quick:
        records.write_atomically(kept, json.dumps(row).encode())
    return row


@cache
def code_of(part: str) -> str:
    """A hash of what a part measures and how."""
    sources = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in (f"{part}.py", *SHARED)]
    return hashlib.sha256("\0".join([*sources, records.code_hash()]).encode()).hexdigest()


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows with where they come from."""
    gpu = torch.cuda.is_available()
    return {
        "kind": "benchmarks",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        # One, unless a run that was cut short went on after a commit that changed none of what had been measured.
        "commit": ", ".join(dict.fromkeys(row["commit"] or "unknown" for row in rows)),
        "code": records.code_hash(),
        "device": devices.device_name(torch.device("cpu")),
        "gpu": devices.device_name(torch.device("cuda")) if gpu else None,
        "versions": records.versions(),
        "rows": rows,
    }


def line(row: dict[str, Any]) -> str:
    """A row as it is printed: our time, and our speed as a multiple of each peer's."""
    ours = row["seconds"][measure.OURS]
    peers = [f"{speedup:.2f} x the speed of {name}" for name, speedup in row["speedup"].items()]
    memory = row["megabytes"][measure.OURS]
    words = [
        f"{row['part']}: {row['case']}: {1000 * ours:.3g} ms"
        if ours < 1
        else f"{row['part']}: {row['case']}: {ours:.1f} s"
    ]
    words += peers + ([] if memory is None else [f"{memory:.0f} MB"])
    words += [f"{value:,.0f} {name}" for name, value in row["facts"].items()]
    if row["met"] is not None:
        words.append(f"{'met' if row['met'] else 'NOT MET'}: {row['target']}")
    return "; ".join(words)


if __name__ == "__main__":
    sys.exit(main())
