"""The recorded table of `make bench` as Markdown: what stands in benchmarks/RESULTS.md."""

from typing import Any

from benchmarks.measure import OURS

__all__ = ["markdown"]

TITLES = {
    "loss": "The loss",
    "neighbours": "Retrieval metrics",
    "clusters": "Clustering metrics",
    "reranking": "Re-ranking",
    "gpu": "On a GPU",
}
HEAD = """| case | time | extra memory | our speed as a multiple of a peer's | target |
|---|---|---|---|---|"""


def markdown(record: dict[str, Any]) -> str:
    """The whole page: where the figures come from, how many targets are met, and a table for each part."""
    rows = record["rows"]
    aimed = [row for row in rows if row["met"] is not None]
    loads = [row["load"] for row in rows]
    lines = [
        "# Results of the benchmarks",
        "",
        f"{record['device']}; {record['gpu'] or 'no GPU'}; torch {record['versions']['torch']}; "
        f"commit {record['commit']}; {record['created'][:10]}; "
        f"{min(loads):.1f} to {max(loads):.1f} processes wanted a core meanwhile. Written by `make bench`.",
        "",
        f"{sum(row['met'] for row in aimed)} of {len(aimed)} targets are met.",
    ]
    for part, title in TITLES.items():
        of_part = [row for row in rows if row["part"] == part]
        if of_part:
            lines += ["", f"## {title}", "", HEAD, *map(_line, of_part)]
    if not any(row["part"] == "gpu" for row in rows):
        lines += ["", "No GPU was at hand, so there are no figures of one. `make bench ONLY=gpu` measures them."]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    memory = row["megabytes"][OURS]
    peers = ", ".join(f"{value:.2f} x {name}" for name, value in row["speedup"].items())
    target = row["target"] and f"{row['target']}: {'met' if row['met'] else '**not met**'}"
    cells = [row["case"], seconds(row["seconds"][OURS]), "" if memory is None else f"{memory:,.0f} MB", peers, target]
    return f"| {' | '.join(cells)} |"


def seconds(value: float) -> str:
    """A time with three digits, in the unit that suits it."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"
