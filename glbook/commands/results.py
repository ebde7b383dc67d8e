"""The command `glbook results`: the records of runs as a table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from glbook.commands import a_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["add_results", "all_runs", "as_text", "results"]


def add_results(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook results` its arguments."""
    folder = "a folder of records (data/results and _build/results)"
    parser.add_argument("--root", type=a_path, metavar="DIR", help=folder)
    for name in ("chapter", "dataset", "method"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"only runs of this {name}")
    purposes = "only runs made for this; trials are not kept"
    parser.add_argument("--purpose", choices=("final", "tuning", "trial"), help=purposes)
    parser.add_argument("--format", choices=("table", "csv"), default="table", help="csv has every setting and metric")


def results(options: argparse.Namespace) -> int:
    """`glbook results`: the exit status."""
    table = all_runs(options.root)
    for name in ("chapter", "dataset", "method", "purpose"):
        wanted = getattr(options, name)
        if wanted is not None:
            table = table[table[name] == wanted]
    if options.format == "csv":
        settings = _settings(table).drop(columns=["dataset", "method", "seed"], errors="ignore")
        plain = table.drop(columns=["config", "history", "selection", "versions"], errors="ignore")
        print(plain.join(settings.add_prefix("config.")).to_csv(index=False), end="")
    else:
        print(as_text(table) if len(table) else "no records")
    return 0


def all_runs(root: Path | None) -> "pd.DataFrame":
    """The records under a folder; without one, those that are kept and those of trials."""
    import pandas as pd

    from gl_core.training import records
    from glbook import runs

    if root is not None and not root.is_dir():
        raise ValueError(f"--root {root}: there is no such folder")
    folders = [records.results_folder(keep) for keep in (None, "final")] if root is None else [root]
    tables = [runs.load_runs(folder) for folder in folders]
    tables = [table for table in tables if len(table)] or tables[:1]
    table = pd.concat(tables, ignore_index=True).sort_values(["created", "run_id"], ignore_index=True)
    return table.assign(purpose=table["purpose"].fillna("trial"))


def as_text(table: "pd.DataFrame") -> str:
    """One line a run: what tells runs apart, then the headline metrics, untrained and trained."""
    import pandas as pd

    config = _settings(table)
    columns = {"created": table["created"].str.slice(0, 16)}
    for name in ("chapter", "dataset", "backbone", "method", "seed", "purpose"):
        columns[name] = table[name] if name in table else config.get(name)
    usual = {"dataset", "backbone", "method", "seed", "profile", "device"}
    for name in config.columns.difference(usual):
        if config[name].astype(str).nunique() > 1:
            columns[name] = config[name]
    # Of each kind of protocol its two metrics, where a run was judged by it.
    judged = ("R@1", "MAP@R", "Rank-1", "mAP")
    for name in (*(f"{when}{metric}" for metric in judged for when in ("untrained ", "")), "NMI"):
        if name in table and table[name].notna().any():
            columns[name] = table[name].map("{:.3f}".format, na_action="ignore")
    columns["seconds"] = table["wall_time_s"].map("{:.0f}".format, na_action="ignore")
    shown = pd.DataFrame({name: column for name, column in columns.items() if column is not None}, index=table.index)
    return shown.astype(object).where(shown.notna(), "").to_string(index=False)


def _settings(table: "pd.DataFrame") -> "pd.DataFrame":
    """The configurations of runs, a column each setting."""
    import pandas as pd

    return pd.DataFrame([config or {} for config in table["config"]], index=table.index)
