"""The recorded table of `make bench`, as the page "What it costs" shows it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gl_core.training import records

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown
    from matplotlib.figure import Figure

__all__ = ["banner", "growth", "latest", "table", "verdict"]

OURS = "gl_core"


def latest(root: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """The newest table under `root` (that of the book if not given), or None. Raises ValueError for a broken file."""
    folder = records.results_folder("final") / "benchmarks" if root is None else Path(root)
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a table of benchmarks, it holds no valid JSON ({error})") from error
    return max(found, key=lambda each: each["created"]) if found else None


def banner(record: dict[str, Any] | None) -> "Markdown":
    """Where the figures come from: machine, date, commit, versions, and how busy the machine was."""
    from IPython.display import Markdown

    if record is None:
        return Markdown("> **Nothing is recorded yet.** `make bench` measures everything and keeps the table.")
    loads = [row["load"] for row in record["rows"]]
    gpu = record["gpu"] or "no GPU: those rows are missing"
    commits = ", ".join(f"`{commit[:9]}`" for commit in (record["commit"] or "unknown").split(", "))
    return Markdown(
        f"> **Recorded result** · {record['device']} · {gpu} · torch {record['versions']['torch']} · commit "
        f"{commits} · {record['created'][:10]} · while it was measured, {min(loads):.1f} to "
        f"{max(loads):.1f} processes wanted a core"
    )


def table(record: dict[str, Any], part: str) -> "pd.DataFrame":
    """A part of the table, one row a case: time, extra memory, our speed as a multiple of each peer's, and the target."""
    import pandas as pd

    rows = []
    for row in record["rows"]:
        if row["part"] == part:
            memory = row["megabytes"][OURS]
            rows.append(
                {
                    "case": row["case"],
                    "time": _seconds(row["seconds"][OURS]),
                    "extra memory": "" if memory is None else f"{memory:,.0f} MB",
                    **{name: f"{value:,.0f}" for name, value in row["facts"].items()},
                    **{f"speed / {name}": f"{value:.2f}" for name, value in row["speedup"].items()},
                    "target": row["target"] and f"{row['target']}: {'met' if row['met'] else 'not met'}",
                }
            )
    return pd.DataFrame(rows).fillna("").set_index("case") if rows else pd.DataFrame()


def verdict(record: dict[str, Any]) -> "Markdown":
    """How many targets are met, and how far the others are."""
    from IPython.display import Markdown

    aimed = [row for row in record["rows"] if row["met"] is not None]
    missed = [row for row in aimed if not row["met"]]
    text = f"{len(aimed) - len(missed)} of {len(aimed)} targets are met."
    for row in missed:
        peers = ", ".join(f"{value:.2f} times the speed of {name}" for name, value in row["speedup"].items())
        memory = row["megabytes"][OURS]
        words = [_seconds(row["seconds"][OURS]), peers, "" if memory is None else f"{memory:,.0f} MB"]
        text += f"\n- **Not met**: {row['part']}, {row['case']}. Wanted: {row['target']}. Measured: {', '.join(filter(None, words))}."
    return Markdown(text)


def growth(record: dict[str, Any]) -> "Figure":
    """Seconds and extra memory over the number of images, for what is measured at several sizes."""
    from glbook.plots.style import colours, panels

    series: dict[str, list[tuple[int, float, float]]] = {}
    for row in record["rows"]:
        if row["part"] in ("neighbours", "clusters", "reranking") and "n" in row["growth"]:
            kind = f", k1 = {row['growth']['k1']}" if "k1" in row["growth"] else ""
            whole = "best 100" in row["case"] or row["case"].startswith(("R@", "NMI"))
            if whole:
                names = {
                    "neighbours": "retrieval metrics",
                    "clusters": "clusters, NMI",
                    "reranking": f"re-ranking{kind}",
                }
                series.setdefault(names[row["part"]], []).append(
                    (row["growth"]["n"], row["seconds"][OURS], row["megabytes"][OURS] or 0)
                )
    figure, axes = panels(1, 2, size=(3.5, 2.9))
    for (name, points), colour in zip(series.items(), colours(len(series)), strict=True):
        n, seconds, megabytes = zip(*sorted(points), strict=True)
        axes[0].loglog(n, seconds, marker="o", color=colour, label=name)
        axes[1].semilogx(n, megabytes, marker="o", color=colour)
    axes[0].set(title="seconds", xlabel="images")
    axes[1].set(title="extra memory (MB)", xlabel="images", ylim=(0, None))
    if series:
        axes[0].legend(fontsize=8)
    return figure


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"
