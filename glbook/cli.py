"""The command `glbook`: run chapters, list what runs found, build the book and show it."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from glbook.commands import data as data_commands
from glbook.commands import search as search_commands
from glbook.commands import sweep as sweep_commands

__all__ = ["main"]

# What a user can put right: these speak for themselves, other types of error are named.
PLAIN = ("ValueError", "OSError", "FileNotFoundError", "NotADirectoryError", "PermissionError", "ConnectionError")
PLAIN += ("PageError",)
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line. Returns the exit status: 0, 1 for a failure, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    options.line = sys.argv[1:] if arguments is None else list(arguments)
    # Threads that wait without spinning, here and in the kernels: on a machine that others use too, training is several times
    # faster for it. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return options.command(options)
    except KeyboardInterrupt:
        return _stop(options.interrupted, INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "ename"):  # ChapterError, which is not imported until it is needed
            where = f"(executed notebook with the traceback: {_short(error.path)})"
            return _stop(f"{error.chapter}: {_message(error.ename, error.evalue)} {where}", FAILED)
        bad_input = isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError))
        return _stop(_message(type(error).__name__, error), BAD_INPUT if bad_input else FAILED)


def _run(options: argparse.Namespace) -> int:
    from gl_core.training import records
    from glbook import notebooks

    declared = notebooks.parameters(options.chapter)
    given = {
        name: notebooks.parse_value(text, declared[name]) if name in declared else text
        for name, text in options.parameters
    }
    if options.keep is not None:
        if "keep" not in declared:
            raise ValueError(f"--keep {options.keep}: chapter {options.chapter!r} makes no records that could be kept")
        given["keep"] = options.keep
    given = notebooks.check_parameters(options.chapter, given)
    _check_machine_and_data(declared, given)

    session = _session(options.chapter)
    folder = records.project_root() / "_build" / "runs" if options.output is None else options.output
    notebook = notebooks.execute(options.chapter, given, folder / f"{session}.ipynb", session=session)
    _report(notebook, session)
    return 0


def _train(options: argparse.Namespace) -> int:
    import dataclasses

    from gl_core import distributed, training
    from gl_core.training.config import Config
    from glbook import notebooks

    declared = {
        field.name: notebooks.Parameter(field.name, field.type, field.default) for field in dataclasses.fields(Config)
    }
    given = {
        name: notebooks.parse_value(text, declared[name]) if name in declared else text
        for name, text in options.parameters
    }
    config = Config.resolve(**given)
    with distributed.processes():
        run = training.run(config, keep=options.keep)
        if distributed.is_main():
            print(run.report())
            print(f"record: {_short(run.record_path)}")
    return 0


def _check_machine_and_data(declared: dict, given: dict[str, Any]) -> None:
    """Refuse what cannot work before a kernel starts: a processor or data that are not there."""
    from gl_core import datasets, devices

    settings = {name: parameter.default for name, parameter in declared.items()} | given
    devices.choose_device(settings.get("device") or "auto")
    if settings.get("dataset") is not None:
        datasets.load(settings["dataset"], settings.get("data_root"), "train")


def _session(chapter: str) -> str:
    """A name for this run that no other has, also among several started in the same second."""
    from datetime import datetime

    return f"{chapter}-{datetime.now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"


def _report(notebook: Path, session: str) -> None:
    """The metrics of the records that a run left, and where to find them and the networks."""
    from gl_core.training.records import models_folder

    table = _runs(None)
    if len(table):
        table = table[table["session"] == session]
    if len(table):
        print(_as_text(table))
    print(f"\nnotebook: {_short(notebook)}")
    for path, run_id in zip(table.get("path", []), table.get("run_id", []), strict=True):
        print(f"record:   {_short(path)}")
        network = models_folder() / f"{run_id}.safetensors"
        if network.is_file():
            print(f"network:  {_short(network)}")


def _results(options: argparse.Namespace) -> int:
    table = _runs(options.root)
    for name in ("chapter", "dataset", "method", "purpose"):
        wanted = getattr(options, name)
        if wanted is not None:
            table = table[table[name] == wanted]
    if options.format == "csv":
        config = table["config"].apply(lambda config: config or {}).tolist()
        import pandas as pd

        settings = pd.DataFrame(config, index=table.index).drop(columns=["dataset", "method", "seed"], errors="ignore")
        plain = table.drop(columns=["config", "history", "selection", "versions"], errors="ignore")
        print(plain.join(settings.add_prefix("config.")).to_csv(index=False), end="")
    else:
        print(_as_text(table) if len(table) else "no records")
    return 0


def _runs(root: Path | None) -> "pd.DataFrame":
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


def _as_text(table: "pd.DataFrame") -> str:
    """One line a run: what tells runs apart, then the headline metrics, untrained and trained."""
    import pandas as pd

    config = pd.DataFrame([dict(config or {}) for config in table["config"]], index=table.index)
    columns = {
        "created": table["created"].str.slice(0, 16),
        "chapter": table["chapter"],
        "dataset": table["dataset"],
        "backbone": config.get("backbone"),
        "method": table["method"],
        "seed": table["seed"],
        "purpose": table["purpose"],
    }
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


def _book(options: argparse.Namespace) -> int:
    from glbook import book

    page = book.build()
    print(f"\nThe book is built: open {_short(page)}, or see it with search at http://localhost:8000 by `make serve`.")
    return 0


def _pdf(options: argparse.Namespace) -> int:
    from glbook import pdf

    print(f"\nThe book is printed: {_short(pdf.print_book())}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from gl_core.training.records import project_root

    html = project_root() / "_build" / "html"
    if not (html / "index.html").is_file():
        raise ValueError(f"{_short(html)}: there is no book yet; build it by `glbook book`")
    with ThreadingHTTPServer(("127.0.0.1", options.port), partial(SimpleHTTPRequestHandler, directory=html)) as server:
        print(f"The book is at http://localhost:{server.server_port} (Ctrl-C ends this).", flush=True)
        server.serve_forever()
    return 0


def _short(path: Path | str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _message(kind: str, text: object) -> str:
    """An error as one line."""
    line = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(text).split()))
    line = line if len(line) <= 600 else line[:600] + " ..."
    return line if kind in PLAIN and line else f"{kind}: {line}" if line else kind


def _stop(line: str, status: int) -> int:
    print(f"glbook: {line}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> None:
        raise SystemExit(_stop(f"{message} (see `{self.prog} --help`)", BAD_INPUT))


class _Version(argparse.Action):
    def __call__(self, *_) -> None:
        from importlib.metadata import version

        print(f"glbook {version('gl_core')}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="glbook", description="Run the chapters of the Group Loss book, list results, build the book."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, help: str, interrupted: str = "interrupted") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(command=function, interrupted=interrupted)
        return added

    goes_on = "interrupted; the same command goes on after the last finished epoch"
    run = command(
        "run", _run, "Execute a chapter with parameters; keep the executed notebook and the records.", goes_on
    )
    run.add_argument("chapter", metavar="CHAPTER", help="training, task, ...")
    train = command(
        "train", _train, "Train and evaluate without a notebook; started by torchrun, on several processes.", goes_on
    )
    for added in (run, train):
        added.add_argument(
            "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
            help="a parameter; may be given several times",
        )  # fmt: skip
        added.add_argument(
            "--keep", choices=("final", "tuning"), help="put the records into data/results, for this purpose"
        )
    run.add_argument("--output", type=Path, metavar="DIR", help="where the executed notebook goes (_build/runs)")

    results = command("results", _results, "List the records of runs, one line a run.")
    results.add_argument(
        "--root", type=Path, metavar="DIR", help="a folder of records (data/results and _build/results)"
    )
    for name in ("chapter", "dataset", "method"):
        results.add_argument(f"--{name}", metavar="NAME", help=f"only runs of this {name}")
    results.add_argument(
        "--purpose", choices=("final", "tuning", "trial"), help="only runs made for this; trials are not kept"
    )
    results.add_argument("--format", choices=("table", "csv"), default="table", help="csv has every setting and metric")

    data = commands.add_parser("data", help="List, download, check and pack data sets.")
    data_commands.add_commands(data)
    sweep = command(
        "sweep",
        sweep_commands.run,
        "Make the runs that a file describes, each once.",
        "interrupted; the same command goes on",
    )
    sweep_commands.add_arguments(sweep)
    tune = command(
        "tune",
        sweep_commands.tune,
        "Look for settings of a method on held-out training classes.",
        "interrupted; the same command goes on",
    )
    sweep_commands.add_tuning_arguments(tune)

    embed = command("embed", search_commands.embed, "Embed images by a trained network, into a file.")
    search_commands.add_embed(embed)
    goes_on = "interrupted; the same command goes on where it was"
    search = command("search", search_commands.search, "Find the images of a folder nearest to others.", goes_on)
    search_commands.add_search(search)

    command("book", _book, "Execute what has changed and build the pages.", "interrupted; the same command goes on")
    command("pdf", _pdf, "Print the book into one PDF, by Chromium.", "interrupted; the same command goes on")
    serve = command("serve", _serve, "Show the built book in a browser.", "ended")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="port of the local server (%(default)s)")
    return parser
