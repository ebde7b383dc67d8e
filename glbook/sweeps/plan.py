"""From a file to runs: which chapters with which parameters, all of them checked before any is started."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gl_core.training import records
from glbook import notebooks
from glbook.sweeps import keys

__all__ = ["Plan", "PlannedRun", "make_plan", "read_plan"]

FIELDS = ("chapter", "parameters", "grid", "runs", "tuned", "keep", "threads")


@dataclass(frozen=True)
class PlannedRun:
    """A chapter with parameters: those `given`, and under `settings` all it has, with a `Config` filled in.

    `name` is what tells the run from others of its plan, `versions` are those of code, chapter and data.
    """

    chapter: str
    given: dict[str, Any]
    settings: dict[str, Any]
    name: str
    key: str
    versions: dict[str, str | None] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """Runs, and the number of threads that each computes with on a CPU.

    The last digits of a result depend on the number of threads, so it belongs to the plan and not to the machine.
    """

    name: str
    runs: list[PlannedRun]
    threads: int = 1


def read_plan(path: Path, given: Mapping[str, Any] | None = None, keep: str | None = None) -> Plan:
    """The runs that a YAML file describes.

        chapter: training            # whose parameters these are; may stand in grid or runs instead
        parameters: {epochs: 30}     # of every run
        grid: {seed: [0, 1], ...}    # every combination, the last name varying fastest
        runs: [{...}, {...}]         # a list, each of them with every combination of the grid
        tuned: true                  # settings found by `glbook tune`, where no other are given
        keep: final                  # as of `glbook run`
        threads: 1                   # of each run on a CPU

    `given` are parameters of every run that win over those of the file, and `keep` does too; texts are read as on the command line.

    Raises ValueError, in one line, for anything that could not run: a field, chapter or parameter that does not exist, an empty
    list, a value of the wrong type, settings that `Config` refuses, data that are not there, the same run twice.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: must hold {', '.join(FIELDS)}")
    try:
        return _plan(path.stem, content, dict(given or {}), keep)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _plan(name: str, content: dict[str, Any], given: dict[str, Any], keep: str | None) -> Plan:
    for word in content:
        if word not in FIELDS:
            raise ValueError(f"{word}: must be one of {', '.join(FIELDS)}")
    common = _mapping("parameters", content.get("parameters") or {})
    grid = _mapping("grid", content.get("grid") or {})
    for axis, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {axis}={values!r}: must be a list of one value or more")
    listed = content.get("runs", [{}])
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"runs={listed!r}: must be a list of one run or more")
    listed = [_mapping("runs", entry) for entry in listed]
    for axis in grid:
        if axis in common or any(axis in entry for entry in listed):
            raise ValueError(f"grid: {axis} has a value elsewhere in the file, too")
    varied = list(dict.fromkeys([*(word for entry in listed for word in entry), *grid]))
    for word in given:
        if word in varied:
            raise ValueError(f"{word}: the file varies it, so it cannot be given")
    threads = content.get("threads", 1)
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads={threads!r}: must be a whole number, 1 or more")
    if not isinstance(content.get("tuned", False), bool):
        raise ValueError(f"tuned={content['tuned']!r}: must be true or false")
    common |= {"chapter": content["chapter"]} if "chapter" in content else {}
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    parameters = [common | entry | combination | given for entry in listed for combination in combinations]
    return make_plan(
        name,
        parameters,
        varied=varied,
        keep=content.get("keep") if keep is None else keep,
        threads=threads,
        tuned=content.get("tuned", False),
    )


def make_plan(
    name: str,
    parameters: Sequence[Mapping[str, Any]],
    *,
    varied: Sequence[str],
    keep: str | None = None,
    threads: int = 1,
    tuned: bool = False,
) -> Plan:
    """A plan of runs of these parameters, "chapter" among them. Raises as `read_plan` does.

    `varied` are the parameters by which the runs are told apart.
    """
    planned: dict[str, PlannedRun] = {}
    for entry in parameters:
        run = _planned(dict(entry), varied, keep, tuned)
        if run.key in planned:
            raise ValueError(f"the same run twice: {planned[run.key].name or 'all defaults'} and {run.name}")
        planned[run.key] = run
    return Plan(name, list(planned.values()), threads)


def _planned(given: dict[str, Any], varied: Sequence[str], keep: str | None, tuned: bool) -> PlannedRun:
    if "chapter" not in given:
        raise ValueError(f"chapter: must be one of {', '.join(notebooks.names())}")
    name = " ".join(f"{word}={_short(given[word])}" for word in varied if word in given)
    chapter = given.pop("chapter")
    declared = notebooks.parameters(chapter)
    given = {
        word: notebooks.parse_value(value, declared[word]) if isinstance(value, str) and word in declared else value
        for word, value in given.items()
    }
    if keep is not None:
        records.results_folder(keep)
        if "keep" not in declared:
            raise ValueError(f"keep={keep}: chapter {chapter!r} makes no records that could be kept")
        given["keep"] = keep
    if tuned:
        from glbook import tuning

        given = tuning.best_settings(notebooks.check_parameters(chapter, given)) | given
    if given.get("data_root") is not None:
        given["data_root"] = str(Path(given["data_root"]).expanduser().absolute())
    given = notebooks.check_parameters(chapter, given)
    settings = {word: parameter.default for word, parameter in declared.items()} | given
    data = None
    if "dataset" in settings:
        from gl_core.training.config import Config

        config = Config.from_parameters(settings)
        settings |= config.as_dict()
        data = keys.data_version(config.dataset, config.data_root)
    versions = {"code": keys.code_version(), "chapter": keys.chapter_version(chapter), "data": data}
    return PlannedRun(chapter, given, settings, name, keys.run_key(chapter, settings, versions), versions)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{name}: {value!r}: must give values to names")
    return dict(value)


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
