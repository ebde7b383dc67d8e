"""Where a result comes from, and the command that makes it again."""

import contextlib
import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gl_core import devices
from gl_core.training import records
from glbook.runs import as_table, setting
from glbook.sweeps.progress import duration

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown

    from gl_core.training.config import Config

__all__ = ["banner", "command", "commands"]

# What a command says even where it is the default, so that it can be read.
ALWAYS_GIVEN = ("dataset", "method", "seed")


def banner(source: "Config | Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame") -> "Markdown":
    """Where a result comes from, as a quoted paragraph: live or recorded, which runs, when, by what code and device.

    Args:
        source: a record, a list of records or their table (`glbook.runs.as_table`) for a live result; a table read
            from files (`glbook.runs.recorded`, `matching`, `load_runs`), which may be empty, for a recorded one; a
            configuration for what a page computes without keeping a record.
    """
    from IPython.display import Markdown

    from gl_core.training.config import Config

    if isinstance(source, Config):
        device = devices.device_name(devices.choose_device(source.device))
        source = records.new_record(chapter="", config=source.as_dict(), device=device) | {"run_id": None}
    if not hasattr(source, "groupby"):
        source = as_table([source] if isinstance(source, Mapping) else source)
    table, live = source, "path" not in source
    if len(table) == 0:
        return Markdown("> **No recorded result** matches these parameters: run the chapter with them to get one.")
    ids = table["run_id"].dropna().tolist()
    seeds = sorted(set(table["seed"]))
    seconds = table["wall_time_s"].sum()
    device = "; ".join(_distinct(table["device"])).replace(", 1 threads", ", 1 thread")
    facts = [
        "**Live result**, computed while this page was built" if live else "**Recorded result**",
        f"{', '.join(_distinct(table['dataset']))}; {', '.join(_distinct(table['method']))}",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        f"{duration(seconds)} on {device}" if seconds else device,
        f"commit {', '.join(f'`{_short(commit)}`' for commit in _distinct(table['commit']))}",
        " to ".join(sorted({table["created"].min()[:10], table["created"].max()[:10]})),
    ]
    if ids:
        facts.insert(1, f"run `{ids[0]}`" if len(ids) == 1 else f"{len(ids)} runs")
    text = f"> {' · '.join(facts)}"
    if len(ids) > 1:
        text += f"\n>\n> <details><summary>All {len(ids)} runs</summary>{', '.join(ids)}</details>"
    return Markdown(text)


def command(config: "Config | Mapping[str, Any]", *, chapter: str = "training", keep: str | None = "final") -> str:
    """The shortest command that repeats a run: `glbook run` with the settings that differ from the data set's defaults.

    Args:
        config: of the run; or a row of a table of runs, which then says chapter, purpose and number of threads too.
        chapter: the chapter that is run.
        keep: "final", "tuning" or None, as for `glbook run --keep`.

    Raises:
        ValueError: if no command gives the configuration, because it holds None where the data set has a default.

    >>> from gl_core.training.config import Config
    >>> command(Config.resolve(dataset="omniglot", num_iterations=3))
    'glbook run training -p dataset omniglot -p method group_loss -p num_iterations 3 -p seed 0 --keep final'
    """
    from gl_core.training.config import Config

    threads = ""
    if not isinstance(config, Config):
        # The last digits of a result on a CPU depend on the number of threads.
        counted = re.search(r", (\d+) threads?$", config["device"] or "")
        threads = f"OMP_NUM_THREADS={counted[1]} " if counted else ""
        chapter, keep, recorded = config["chapter"], config["purpose"], config["config"]
        config = Config(**{name: setting(recorded, name) for name in Config.names()})
    given = config.as_dict()
    made = Config.resolve(**given)
    if made != config:
        lost = [name for name, value in given.items() if value is None and getattr(made, name) is not None]
        raise ValueError(f"{lost[0]}=None: no command gives it, because None stands for the default")
    for name in [name for name in given if name not in ALWAYS_GIVEN]:
        fewer = {other: value for other, value in given.items() if other != name}
        with contextlib.suppress(ValueError):
            given = fewer if Config.resolve(**fewer) == config else given
    words = ["glbook", "run", chapter]
    for name, value in given.items():
        words += ["-p", name, value if isinstance(value, str) else json.dumps(value)]
    return threads + shlex.join(words + (["--keep", keep] if keep else []))


def commands(table: "pd.DataFrame", sweep: str | None = None) -> "Markdown":
    """How to make recorded runs again: the command of the sweep, if there is one, and folded that of each run."""
    from IPython.display import Markdown

    if len(table) == 0:
        return Markdown(f"`glbook sweep {sweep}` records these runs." if sweep else "")
    lines = [command(row) for _, row in table.iterrows()]
    if len(lines) == 1:
        return Markdown(f"Made by `{lines[0]}`.")
    listed = "\n".join(html.escape(line) for line in lines)
    whole = f"All by `glbook sweep {sweep}`; a single run" if sweep else "Each run"
    return Markdown(
        f"{whole} by its own command, for instance `{lines[0]}`.\n\n"
        f"<details><summary>The commands of all {len(lines)} runs</summary>"
        f'<pre style="white-space: pre-wrap; font-size: 75%">{listed}</pre></details>'
    )


def _distinct(values: Sequence) -> list[str]:
    return list(dict.fromkeys("unknown" if value is None else str(value) for value in values))


def _short(commit: str) -> str:
    """The first digits of a commit; what follows a dash (changed files) stays."""
    number, _, changed = commit.partition("-")
    return number[:9] + (" with local changes" if changed else "")
