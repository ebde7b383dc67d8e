"""Recorded runs as tables: found by their settings or by a sweep, with mean and spread."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from gl_core.training import records
from glbook.sweeps.keys import setting, settings_that_count

if TYPE_CHECKING:
    import pandas as pd

    from gl_core.training.config import Config

__all__ = ["as_table", "columns", "load_runs", "matching", "planned", "recorded", "spoken", "spread_table"]

COLUMNS = "run_id created commit chapter dataset method seed device wall_time_s purpose config".split()
_FRACTION = re.compile(r"(^|\s)(R@\d+|MAP@R|R-Precision|NMI|AMI|mAP|Rank-\d+|accuracy)$")


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction in [0, 1], which pages show in percent.

    >>> is_fraction("held-out R@1"), is_fraction("loss")
    (True, False)
    """
    return _FRACTION.search(metric) is not None


def spoken(value: Any) -> str:
    """A setting or its value as pages write it: without underscores, numbers as short as they can be.

    >>> spoken("num_anchors"), spoken("group_loss"), spoken(10.0), spoken(True)
    ('number of anchors', 'group loss', '10', 'yes')
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{value:g}"
    text = {"True": "yes", "False": "no"}.get(str(value), str(value))
    return f"number of {text[4:]}" if text.startswith("num_") else text.replace("_", " ")


def as_table(records: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Records of live runs (`Run.record`) as a table with the columns of `load_runs`."""
    import pandas as pd

    rows = [_row(record) for record in records]
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: record.get(name) for name in COLUMNS} | record.get("metrics", {})
    row |= {f"untrained {name}": value for name, value in record.get("untrained", {}).items()}
    return row | {name: record.get(name) for name in ("history", "selection", "versions")}


def recorded(
    *,
    dataset: str | None = None,
    chapter: str | None = None,
    method: str | None = None,
    purpose: str | None = "final",
    root: str | None = None,
    **settings: Any,
) -> "pd.DataFrame":
    """The recorded runs that match, oldest first, repeats left out; an empty table where there are none.

    None matches everything. `settings` are compared with the configurations, `epochs=30` for instance. `root` is the
    folder of records, by default the book's. Raises ValueError for a setting that no configuration has.
    """
    from gl_core.training.config import Config

    unknown = set(settings) - set(Config.names())
    if unknown:
        raise ValueError(f"unknown setting {min(unknown)!r}: must be one of {', '.join(Config.names())}")
    table = load_runs(root)
    table = table[~table["repeat"].astype(bool)]
    for name, value in {"dataset": dataset, "chapter": chapter, "method": method, "purpose": purpose}.items():
        if value is not None:
            table = table[table[name] == value]
    for name, value in settings.items():
        if value is not None:
            table = table[[setting(config, name) == value for config in table["config"]]]
    return table.reset_index(drop=True)


def matching(
    configs: "Iterable[Config]", *, chapter: str = "training", purpose: str = "final", root: str | None = None
) -> "pd.DataFrame":
    """The newest recorded run of each configuration, in their order; none where there is none.

    Only runs of one `chapter` count: that on test-time strategies records its trainings too.

    Configurations are the same if all settings are, seed included, but for those of `glbook.sweeps.keys.WHERE`. A
    setting that came after a run was recorded has its default there.
    """
    table = load_runs(root)
    table = table[(table["purpose"] == purpose) & (table["chapter"] == chapter) & table["config"].map(bool)]
    # Written oldest first, so that the newest stays.
    found = {_identity(config): row for row, config in enumerate(table["config"])}
    rows = [found[key] for config in configs if (key := _identity(config.as_dict())) in found]
    return table.iloc[rows].reset_index(drop=True)


def planned(sweep: str) -> "list[Config]":
    """The configurations of a sweep's runs, in order, whether they have been run or not; the data need not be here.

    `sweep` is a file as `glbook sweep` reads it, its path relative to the book's folder. In a tuned sweep, methods that
    have not been tuned yet are left out.
    """
    from gl_core.training.config import Config
    from glbook import notebooks, studies
    from glbook.sweeps.plan import read_file

    file = read_file(records.project_root() / sweep)
    made = []
    for given in file.each():
        defaults = {name: parameter.default for name, parameter in notebooks.parameters(given["chapter"]).items()}
        if file.tuned:
            try:
                given = studies.best_settings(given) | given
            except ValueError:  # no study of it yet, so no run either
                continue
        made.append(Config.from_parameters(defaults | given))
    return made


def _identity(config: Mapping[str, Any]) -> str:
    return json.dumps(settings_that_count(config), sort_keys=True)


def columns(table: "pd.DataFrame", *names: str) -> "pd.DataFrame":
    """Columns of a table of runs, by name; a name that is no column is looked up as a setting in each configuration.

    Raises ValueError for a name that is neither, and for an empty table.
    """
    import pandas as pd

    from gl_core.training.config import Config

    if len(table) == 0:
        raise ValueError("table holds no runs")
    found = {}
    for name in names:
        if name in table:
            found[name] = table[name].tolist()
        elif "config" in table and (name in Config.names() or all(name in config for config in table["config"])):
            found[name] = [setting(config, name) for config in table["config"]]
        else:
            raise ValueError(f"{name!r} is neither a column of the table nor a setting of all its runs")
    return pd.DataFrame(found)


def spread_table(
    table: "pd.DataFrame", by: str | Sequence[str] = "method", metrics: Sequence[str] = ("R@1", "MAP@R")
) -> "pd.DataFrame":
    """Mean ± standard deviation over runs as text: one row a group, with the number of its runs.

    Args:
        table: recorded runs, as from `load_runs`.
        by: a column of the table or a setting of the runs' configurations, or a list of them.
        metrics: columns; fractions are shown in percent. The standard deviation is that of a sample (divisor n - 1); a
            single run has none, and is marked.
    """
    by = [by] if isinstance(by, str) else list(by)
    grouped = columns(table, *by, *metrics).groupby(by, sort=False, dropna=False)
    shown = grouped.size().to_frame("runs")
    for metric in metrics:
        name = f"{metric} (%)" if is_fraction(metric) else metric
        shown[name] = grouped[metric].agg(_mean_and_spread, metric=metric)
    return shown


def _mean_and_spread(values: "pd.Series", metric: str) -> str:
    values = values.dropna()
    if values.empty:
        return "–"
    digits, scale = (1, 100) if is_fraction(metric) else (3, 1)
    text = f"{scale * values.mean():.{digits}f}"
    return f"{text} (one run)" if len(values) == 1 else f"{text} ± {scale * values.std(ddof=1):.{digits}f}"


def load_runs(root: str | os.PathLike | None = None) -> "pd.DataFrame":
    """All records under a folder, one row a run, oldest first.

    The columns are those of `COLUMNS` (created in UTC, config a dict), then the metrics of the trained network ("R@1",
    "MAP@R", ...), those of the untrained one ("untrained R@1", ...), the metrics per epoch ("history", a list of dicts;
    "selection" for the epochs on held-out classes), "versions", "session", "key" (two runs of one key give the same
    result, see `glbook.sweeps.keys`), "path", and "repeat": whether an older record of the table has the same key and
    purpose, so that the two are one run in any statistic.

    Args:
        root: the folder, `data/results` of the book if not given; subfolders are read too. A file that is no record is
            passed over, one that is broken with a warning that names it, and copies of a record count as one.

    Returns:
        The table; empty, with its columns, for an empty or missing folder.
    """
    import pandas as pd

    rows = {}
    for path, record in records.read_records(root):
        row = _row(record) | {"session": record.get("session"), "key": record.get("key"), "path": str(path)}
        rows.setdefault((record["run_id"], record.get("purpose")), row)
    if not rows:
        return pd.DataFrame(columns=[*COLUMNS, "repeat"])
    table = pd.DataFrame(list(rows.values())).sort_values(["created", "run_id"], ignore_index=True)
    # A run of a chapter that trains several networks leaves several records of one key.
    marks = table[["key", "purpose"]].assign(config=[_identity(config or {}) for config in table["config"]])
    return table.assign(repeat=marks.duplicated() & table["key"].notna())
