"""The commands `glbook run` and `glbook train`."""

import argparse
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glbook.commands import a_path, short
from glbook.commands.results import all_runs, as_text

if TYPE_CHECKING:
    from glbook.parameters import Parameter

__all__ = ["add_run", "add_train", "run", "train"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook run` its arguments."""
    parser.add_argument("chapter", metavar="CHAPTER", help="training, task, ...")
    add_train(parser)
    parser.add_argument("--output", type=a_path, metavar="DIR", help="where the executed notebook goes (_build/runs)")


def add_train(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `glbook train` its arguments."""
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter; may be given several times",
    )  # fmt: skip
    kept = "put the records into data/results, for this purpose"
    parser.add_argument("--keep", choices=("final", "tuning"), help=kept)


def run(options: argparse.Namespace) -> int:
    """`glbook run`: the exit status."""
    from gl_core.training import records
    from glbook import notebooks
    from glbook.parameters import check_parameters, parameters

    declared = parameters(options.chapter)
    given = _given(options, declared)
    if options.keep is not None:
        if "keep" not in declared:
            raise ValueError(f"--keep {options.keep}: chapter {options.chapter!r} makes no records that could be kept")
        given["keep"] = options.keep
    given = check_parameters(options.chapter, given)
    _check_machine_and_data(declared, given)

    # Unlike that of any other run, also of one started in the same second.
    session = f"{options.chapter}-{datetime.now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
    folder = records.project_root() / "_build" / "runs" if options.output is None else options.output
    notebook = notebooks.execute(options.chapter, given, folder / f"{session}.ipynb", session=session)
    _report(notebook, session)
    return 0


def train(options: argparse.Namespace) -> int:
    """`glbook train`: the exit status."""
    import dataclasses

    from gl_core import distributed, training
    from gl_core.training.config import Config
    from glbook.parameters import Parameter

    declared = {field.name: Parameter(field.name, field.type, field.default) for field in dataclasses.fields(Config)}
    config = Config.resolve(**_given(options, declared))
    with distributed.processes():
        run = training.run(config, keep=options.keep)
        if distributed.is_main():
            print(run.report())
            print(f"record: {short(run.record_path)}")
    return 0


def _given(options: argparse.Namespace, declared: "Mapping[str, Parameter]") -> dict[str, Any]:
    """The values of the options -p."""
    from glbook.parameters import parse_value

    found: dict[str, Any] = {}
    for name, text in options.parameters:
        if name in found:
            raise ValueError(f"-p {name}: is given twice")
        found[name] = parse_value(text, declared[name]) if name in declared else text
    return found


def _check_machine_and_data(declared: dict, given: dict[str, Any]) -> None:
    """Refuse what cannot work before a kernel starts: a processor or data that are not there."""
    from gl_core import datasets, devices

    settings = {name: parameter.default for name, parameter in declared.items()} | given
    devices.choose_device(settings.get("device") or "auto")
    if settings.get("dataset") is not None:
        datasets.load(settings["dataset"], settings.get("data_root"), "train")


def _report(notebook: Path, session: str) -> None:
    """The metrics of the records that a run left, and where to find them and the networks."""
    from gl_core.training.records import models_folder

    table = all_runs(None)
    if len(table):
        table = table[table["session"] == session]
    if len(table):
        print(as_text(table))
    print(f"\nnotebook: {short(notebook)}")
    for path, run_id in zip(table.get("path", []), table.get("run_id", []), strict=True):
        print(f"record:   {short(path)}")
        network = models_folder() / f"{run_id}.safetensors"
        if network.is_file():
            print(f"network:  {short(network)}")
