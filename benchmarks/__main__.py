"""Measure what the library costs, print the table, and keep it."""

import argparse
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, parts
from benchmarks.table import markdown, seconds
from gl_core import devices
from gl_core._files import write_atomically
from gl_core.training import records

PAGE = Path(__file__).with_name("RESULTS.md")


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
    folder = records.project_root() / ("data/results" if whole else "_build") / "benchmarks"
    path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    record = table(rows)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"The table is in {path.relative_to(records.project_root())}.")
    if whole:
        PAGE.write_text(markdown(record), encoding="utf-8")


def _measured(part: str, case: measure.Case, quick: bool) -> dict[str, Any]:
    """The row of a case: measured now or, at the same commit, before a run was cut short."""
    commit = records.commit()
    name = hashlib.sha256(f"{part}\0{case.name}\0{commit}".encode()).hexdigest()[:16]
    kept = records.project_root() / "_build" / "benchmarks" / f"{name}.json"
    keep = not quick and commit is not None and not commit.endswith("-dirty")
    if keep and kept.is_file():
        return json.loads(kept.read_text())
    load = measure.load()
    row = measure.measure(part, case, quick) | {
        "load": load,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
    }
    if keep:
        write_atomically(kept, json.dumps(row).encode())
    return row


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows with where they come from."""
    gpu = torch.cuda.is_available()
    return {
        "kind": "benchmarks",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": records.commit(),
        "device": devices.device_name(torch.device("cpu")),
        "gpu": devices.device_name(torch.device("cuda")) if gpu else None,
        "versions": records.versions(),
        "rows": rows,
    }


def line(row: dict[str, Any]) -> str:
    """A row as it is printed: our time, and our speed as a multiple of each peer's."""
    memory = row["megabytes"][measure.OURS]
    words = [f"{row['part']}: {row['case']}: {seconds(row['seconds'][measure.OURS])}"]
    words += [f"{speedup:.2f} x the speed of {name}" for name, speedup in row["speedup"].items()]
    words += [] if memory is None else [f"{memory:.0f} MB"]
    if row["met"] is not None:
        words.append(f"{'met' if row['met'] else 'NOT MET'}: {row['target']}")
    return "; ".join(words)


if __name__ == "__main__":
    sys.exit(main())
