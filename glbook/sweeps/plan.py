"""From a file to runs: which chapters with which parameters, all of them checked before any is started."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from gl_core.training import records
from gl_core.training.config import Config
from glbook import chapters, parameters, studies
from glbook.sweeps import keys

__all__ = ["Plan", "PlannedRun", "SweepFile", "make_plan", "read_file", "read_plan"]


class SweepFile(BaseModel):
    """What a sweep's file says.

    chapter: training            # whose parameters these are; may stand in grid or runs instead
    parameters: {epochs: 30}     # of every run
    grid: {seed: [0, 1], ...}    # every combination, the last name varying fastest
    runs: [{...}, {...}]         # a list, each of them with every combination of the grid
    tuned: true                  # settings found by `glbook tune`, where no other are given
    keep: final                  # as of `glbook run`
    threads: 1                   # of each run on a CPU
    """

    model_config = ConfigDict(extra="forbid")

    chapter: str | None = None
    parameters: dict[str, Any] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]
    tuned: StrictBool = False
    keep: str | None = None
    threads: Annotated[StrictInt, Field(ge=1)] = 1

    @property
    def varied(self) -> list[str]:
        """The parameters by which the runs are told apart."""
        return list(dict.fromkeys([*itertools.chain(*self.runs), *self.grid]))

    def each(self) -> list[dict[str, Any]]:
        """The parameters of each run, "chapter" among them."""
        common = self.parameters | ({} if self.chapter is None else {"chapter": self.chapter})
        for name in self.grid:
            if name in common or any(name in run for run in self.runs):
                raise ValueError(f"grid: {name} has a value elsewhere in the file, too")
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [common | run | point for run in self.runs for point in points]


@dataclass(frozen=True)
class PlannedRun:
    """A chapter with parameters: those `given`, and under `settings` all it has, with a `Config` filled in.

    `name` is what tells the run from others of its plan.
    """

    chapter: str
    given: dict[str, Any]
    settings: dict[str, Any]
    name: str
    key: str
    data_version: str | None


@dataclass(frozen=True)
class Plan:
    """Runs, and the number of threads that each computes with on a CPU.

    The last digits of a result depend on the number of threads, so it belongs to the plan and not to the machine.
    """

    name: str
    runs: list[PlannedRun]
    threads: int = 1


def read_plan(path: Path, given: Mapping[str, Any] | None = None, keep: str | None = None) -> Plan:
    """The runs that a YAML file describes, see `SweepFile`.

    Args:
        path: the file.
        given: parameters of every run that win over those of the file; texts are read as on the command line.
        keep: the purpose of the records, in place of the file's.

    Raises:
        ValueError: in one line, for anything that could not run: a field, chapter or parameter that does not exist, a
            value of the wrong type, settings that `Config` refuses, data that are not there, the same run twice.
    """
    given = given or {}
    file = read_file(path)
    try:
        for name in given:
            if name in file.varied:
                raise ValueError(f"{name}: the file varies it, so it cannot be given")
        runs = [parameters | given for parameters in file.each()]
        keep = file.keep if keep is None else keep
        return make_plan(path.stem, runs, varied=file.varied, keep=keep, threads=file.threads, tuned=file.tuned)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


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
        raise ValueError(f"chapter: must be one of {', '.join(chapters.names())}")
    name = " ".join(f"{word}={_short(given[word])}" for word in varied if word in given)
    chapter = given.pop("chapter")
    declared = parameters.parameters(chapter)
    given = {
        word: parameters.parse_value(value, declared[word]) if isinstance(value, str) and word in declared else value
        for word, value in given.items()
    }
    if keep is not None:
        records.results_folder(keep)
        if "keep" not in declared:
            raise ValueError(f"keep={keep}: chapter {chapter!r} makes no records that could be kept")
        given["keep"] = keep
    if tuned:
        given = studies.best_settings(parameters.check_parameters(chapter, given)) | given
    if given.get("data_root") is not None:
        given["data_root"] = str(Path(given["data_root"]).expanduser().absolute())
    given = parameters.check_parameters(chapter, given)
    settings = {word: parameter.default for word, parameter in declared.items()} | given
    config, data_version = {}, None
    if "dataset" in settings:
        config = Config.from_parameters(settings).as_dict()
        data_version = keys.dataset_version(config["dataset"], config["data_root"])
    key = keys.run_key(chapter, settings, config, data_version)
    return PlannedRun(chapter, given, settings | config, name, key, data_version)


def read_file(path: Path) -> SweepFile:
    """What a sweep's file says. Raises ValueError, in one line, for what no such file may say."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        content = parameters.read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: must hold {', '.join(SweepFile.model_fields)}")
    try:
        return SweepFile.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path.name}: {'; '.join(map(_in_words, error.errors()))}") from error


def _in_words(error: Mapping[str, Any]) -> str:
    """One fault that pydantic found."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{place}: must be one of {', '.join(SweepFile.model_fields)}"
    return f"{place}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
