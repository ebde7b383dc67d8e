"""What a page of the book says about results: where they come from, how to make them again, tables with mean and spread."""

import dataclasses
import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gl_core import devices, runs

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown

    from gl_core.config import Config

__all__ = [
    "as_table",
    "banner",
    "columns",
    "command",
    "commands",
    "is_fraction",
    "matching",
    "planned",
    "recorded",
    "spread_table",
]

# What a run may differ in and still be the same experiment.
_ELSEWHERE = ("data_root", "device", "preset", "profile")
# What a command says even where it is the default, so that it can be read.
_ALWAYS = ("dataset", "method", "seed")
_FRACTION = re.compile(r"(^|\s)(R@\d+|MAP@R|R-Precision|NMI|AMI|mAP|Rank-\d+|accuracy)$")


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction in [0, 1], which pages show in percent.

    >>> is_fraction("held-out R@1"), is_fraction("loss")
    (True, False)
    """
    return _FRACTION.search(metric) is not None


def as_table(records: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Records of live runs (`Run.record`) as a table with the columns of `gl_core.runs.load_runs`."""
    import pandas as pd

    rows = []
    for record in records:
        row = {name: record.get(name) for name in runs.COLUMNS} | dict(record.get("metrics", {}))
        row |= {f"untrained {name}": value for name, value in record.get("untrained", {}).items()}
        rows.append(row | {name: record.get(name) for name in ("history", "selection", "versions")})
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=runs.COLUMNS)


def recorded(
    *,
    dataset: str | None = None,
    chapter: str | None = None,
    method: str | None = None,
    purpose: str | None = "final",
    root: str | None = None,
    **settings: Any,
) -> "pd.DataFrame":
    """The recorded runs that match, oldest first; an empty table where there are none.

    None matches everything. `settings` are compared with the configurations, `epochs=30` for instance. `root` is the folder
    of records, that of the book if not given. Raises ValueError for a setting that no configuration has.
    """
    from gl_core.config import Config

    unknown = set(settings) - set(Config.names())
    if unknown:
        raise ValueError(f"unknown setting {min(unknown)!r}: must be one of {', '.join(Config.names())}")
    table = runs.load_runs(root)
    for name, value in {"dataset": dataset, "chapter": chapter, "method": method, "purpose": purpose}.items():
        if value is not None:
            table = table[table[name] == value]
    for name, value in settings.items():
        if value is not None:
            table = table[[_setting(config, name) == value for config in table["config"]]]
    return table.reset_index(drop=True)


def matching(
    configs: "Iterable[Config]", *, chapter: str = "training", purpose: str = "final", root: str | None = None
) -> "pd.DataFrame":
    """The recorded run of each configuration, in their order; the newest where there are several, none where there is none.

    Only runs of one `chapter` count: that on test-time strategies records its trainings too, with all it found out besides.

    Configurations are the same if all settings are, seed included, but for the path of the data, the device, and preset and
    profile, which only set defaults. A setting that came after a run was recorded has its default there.
    """
    table = runs.load_runs(root)
    table = table[(table["purpose"] == purpose) & (table["chapter"] == chapter) & table["config"].map(bool)]
    # Written oldest first, so that the newest stays.
    found = {_identity(config): row for row, config in enumerate(table["config"])}
    rows = [found[key] for config in configs if (key := _identity(config.as_dict())) in found]
    return table.iloc[rows].reset_index(drop=True)


def planned(sweep: str) -> "list[Config]":
    """The configurations of a sweep's runs, in order, whether they have been run or not.

    `sweep` is a file as `glbook sweep` reads it, its path relative to the book's folder. Other than there the data need not be
    here: a page shows what is recorded also where it could not be recorded. In a tuned sweep, methods that have not been tuned
    yet are left out.
    """
    import itertools

    import yaml

    from gl_core import chapters
    from gl_core.config import Config

    content = yaml.safe_load((runs.project_root() / sweep).read_text(encoding="utf-8"))
    declared = chapters.parameters(content["chapter"])
    defaults = {name: parameter.default for name, parameter in declared.items()}
    grid = content.get("grid", {})
    made = []
    for entry in content.get("runs", [{}]):
        for values in itertools.product(*grid.values()):
            given = content.get("parameters", {}) | entry | dict(zip(grid, values, strict=True))
            if content.get("tuned"):
                from gl_core import tuning

                try:
                    given = tuning.best_settings(given) | given
                except ValueError:  # no study of it yet, so no run either
                    continue
            made.append(Config.from_parameters(defaults | given))
    return made


def _identity(config: Mapping[str, Any]) -> str:
    from gl_core.config import Config

    settings = {name: _setting(config, name) for name in Config.names() if name not in _ELSEWHERE}
    return json.dumps(settings, sort_keys=True)


def _setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting of a recorded configuration; one that is newer than the record had its default."""
    from gl_core.config import Config

    default = {field.name: field.default for field in dataclasses.fields(Config)}
    return config[name] if name in config else default.get(name)


def columns(table: "pd.DataFrame", *names: str) -> "pd.DataFrame":
    """Columns of a table of runs; what is no column is looked up as a setting in each configuration.

    Raises ValueError, naming it, for what is neither, and for an empty table.
    """
    import pandas as pd

    from gl_core.config import Config

    if len(table) == 0:
        raise ValueError("table holds no runs")
    found = {}
    for name in names:
        if name in table:
            found[name] = table[name].tolist()
        elif "config" in table and (name in Config.names() or all(name in config for config in table["config"])):
            found[name] = [_setting(config, name) for config in table["config"]]
        else:
            raise ValueError(f"{name!r} is neither a column of the table nor a setting of all its runs")
    return pd.DataFrame(found)


def banner(source: "Config | Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame") -> "Markdown":
    """Where a result comes from, as a quoted paragraph: live or recorded, which runs, when, by which code, on what.

    A record, a list of them, or their table (`as_table`) is a live result; what `recorded` or `gl_core.runs.load_runs` has
    read from files is a recorded one. An empty table says that nothing is recorded. A `Config` stands for what a page
    computes without keeping a record.
    """
    from IPython.display import Markdown

    from gl_core.config import Config

    if isinstance(source, Config):
        device = devices.device_name(devices.choose_device(source.device))
        source = runs.new_record(chapter="", config=source.as_dict(), device=device) | {"run_id": None}
    if not hasattr(source, "groupby"):
        source = as_table([source] if isinstance(source, Mapping) else source)
    table, live = source, "path" not in source
    if len(table) == 0:
        return Markdown("> **No recorded result** matches these parameters: run the chapter with them to get one.")
    ids = table["run_id"].dropna().tolist()
    seeds = sorted(set(table["seed"]))
    dates = sorted({created[:10] for created in table["created"]})
    time = table["wall_time_s"].sum()
    processors = "; ".join(_distinct(table["device"])).replace(", 1 threads", ", 1 thread")
    facts = [
        "**Live result**, computed while this page was built" if live else "**Recorded result**",
        *([f"run `{ids[0]}`"] if len(ids) == 1 else [f"{len(ids)} runs"] if ids else []),
        f"{', '.join(_distinct(table['dataset']))}; {', '.join(_distinct(table['method']))}",
        f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}",
        f"{_duration(time) + ' on ' if time else ''}{processors}",
        f"commit {', '.join(f'`{_short(commit)}`' for commit in _distinct(table['commit']))}",
        dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
    ]
    text = f"> {' · '.join(facts)}"
    if len(ids) > 1:
        text += f"\n>\n> <details><summary>All {len(ids)} runs</summary>{', '.join(ids)}</details>"
    return Markdown(text)


def command(config: "Config | Mapping[str, Any]", *, chapter: str = "training", keep: str | None = "final") -> str:
    """The shortest command that repeats a run: `glbook run` with the settings that are not what suits the data set anyway.

    `config` is that of the run, or a row of a table of runs, whose chapter, purpose and number of threads are then used.

    >>> from gl_core.config import Config
    >>> command(Config.resolve(dataset="omniglot", num_iterations=3))
    'glbook run training -p dataset omniglot -p method group_loss -p num_iterations 3 -p seed 0 --keep final'

    Raises ValueError for a configuration that no command gives, one that holds None where something else suits.
    """
    from gl_core.config import Config

    threads = ""
    if not isinstance(config, Config):
        # The last digits of a result on a CPU depend on the number of threads.
        counted = re.search(r", (\d+) threads?$", config["device"] or "")
        threads = f"OMP_NUM_THREADS={counted[1]} " if counted else ""
        chapter, keep, recorded = config["chapter"], config["purpose"], config["config"]
        config = Config(**{name: _setting(recorded, name) for name in Config.names()})
    given = config.as_dict()
    if _resolved(given) != config:
        lost = [name for name, value in given.items() if value is None and getattr(_resolved(given), name) is not None]
        raise ValueError(f"{lost[0]}=None: no command gives it, because None stands for what suits")
    for name in [name for name in given if name not in _ALWAYS]:
        fewer = {other: value for other, value in given.items() if other != name}
        if _resolved(fewer) == config:
            given = fewer
    words = ["glbook", "run", chapter]
    for name, value in given.items():
        words += ["-p", name, value if isinstance(value, str) else json.dumps(value)]
    return threads + shlex.join(words + (["--keep", keep] if keep else []))


def _resolved(given: Mapping[str, Any]) -> "Config | None":
    from gl_core.config import Config

    try:
        return Config.resolve(**given)
    except ValueError:
        return None


def commands(table: "pd.DataFrame", sweep: str | None = None) -> "Markdown":
    """How to make recorded results again: the command of the whole sweep, where there is one, and folded that of each run."""
    from IPython.display import Markdown

    if len(table) == 0:
        return Markdown(f"`glbook sweep {sweep}` records these runs." if sweep else "")
    lines = [command(row) for _, row in table.iterrows()]
    if len(lines) == 1:
        return Markdown(f"Made by `{lines[0]}`.")
    listed = "\n".join(html.escape(line) for line in lines)
    whole = f"All by `glbook sweep {sweep}`; a single run" if sweep else "Each run"
    return Markdown(
        f"{whole} by its own command, for instance `{lines[0]}`.\n\n<details><summary>The commands of all {len(lines)} runs"
        f'</summary><pre style="white-space: pre-wrap; font-size: 75%">{listed}</pre></details>'
    )


def spread_table(
    table: "pd.DataFrame", by: str | Sequence[str] = "method", metrics: Sequence[str] = ("R@1", "MAP@R")
) -> "pd.DataFrame":
    """Mean ± standard deviation over runs, fractions in percent: one row a group, as text, with the number of runs.

    `by` is a column of the table of runs or a setting of its configurations, or a list of them. The standard deviation
    is that of a sample (divisor n - 1); a single run has none, and is marked.
    """
    import pandas as pd

    by = [by] if isinstance(by, str) else list(by)
    data = columns(table, *by, *metrics)
    rows = []
    for keys, group in data.groupby(by, sort=False, dropna=False):
        row = dict(zip(by, keys, strict=True)) | {"runs": len(group)}
        for metric in metrics:
            row[f"{metric} (%)" if is_fraction(metric) else metric] = _mean_and_spread(group[metric].dropna(), metric)
        rows.append(row)
    return pd.DataFrame(rows).set_index(by)


def _mean_and_spread(values: "pd.Series", metric: str) -> str:
    if values.empty:
        return "–"
    digits, scale = (1, 100) if is_fraction(metric) else (3, 1)
    text = f"{scale * values.mean():.{digits}f}"
    return f"{text} (one run)" if len(values) == 1 else f"{text} ± {scale * values.std(ddof=1):.{digits}f}"


def _distinct(values: Sequence) -> list[str]:
    return list(dict.fromkeys("unknown" if value is None else str(value) for value in values))


def _short(commit: str) -> str:
    """The first digits of a commit; what follows a dash (changed files) stays."""
    number, _, changed = commit.partition("-")
    return number[:9] + (" with local changes" if changed else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
