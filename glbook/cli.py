"""The command `glbook`: its table of contents, and how it ends. What each command does is in `glbook.commands`."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from glbook.commands import data, pages, results, search, short, sweep, training

__all__ = ["main"]

# What a user can put right: these speak for themselves, other types of error are named.
PLAIN = ("ValueError", "OSError", "FileNotFoundError", "NotADirectoryError", "PermissionError", "ConnectionError")
PLAIN += ("PageError",)
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line. Returns the exit status: 0, 1 for a failure, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    # Threads that wait without spinning, here and in the kernels: on a machine that others use too, training is several
    # times faster for it. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.formatwarning = lambda message, *_, **__: f"glbook: {message}\n"
    try:
        return options.command(options)
    except KeyboardInterrupt:
        return _stop(options.interrupted, INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "ename"):  # ChapterError, which is not imported until it is needed
            where = f"(executed notebook with the traceback: {short(error.path)})"
            return _stop(f"{error.chapter}: {_message(error.ename, error.evalue)} {where}", FAILED)
        bad_input = isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError))
        return _stop(_message(type(error).__name__, error), BAD_INPUT if bad_input else FAILED)


def _message(kind: str, text: object) -> str:
    """An error as one line."""
    line = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(text).split()))
    line = line if len(line) <= 600 else line[:600] + " ..."
    return line if kind in PLAIN and line else f"{kind}: {line}" if line else kind


def _stop(line: str, status: int) -> int:
    from gl_core._files import printable

    print(f"glbook: {printable(line)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> None:
        raise SystemExit(_stop(f"{message} (see `{self.prog} --help`)", BAD_INPUT))


GOES_ON = "interrupted; the same command goes on"
AFTER_EPOCH = f"{GOES_ON} after the last finished epoch"
# Name, function, what adds its arguments, what it does, what is said on Ctrl-C.
COMMANDS = (
    ("run", training.run, training.add_run, "Execute a chapter; keep the notebook and the records.", AFTER_EPOCH),
    ("train", training.train, training.add_train, "Train without a notebook; torchrun may start it.", AFTER_EPOCH),
    ("results", results.results, results.add_results, "List the records of runs, one line a run.", "interrupted"),
    ("sweep", sweep.run, sweep.add_arguments, "Make the runs that a file describes, each once.", GOES_ON),
    ("tune", sweep.tune, sweep.add_tuning_arguments, "Look for settings on held-out training classes.", GOES_ON),
    ("embed", search.embed, search.add_embed, "Embed images by a trained network, into a file.", "interrupted"),
    ("search", search.search, search.add_search, "Find the images of a folder nearest to others.", GOES_ON),
    ("book", pages.book, None, "Execute what has changed and build the pages.", GOES_ON),
    ("pdf", pages.pdf, None, "Print the book into one PDF, by Chromium.", GOES_ON),
    ("serve", pages.serve, pages.add_serve, "Show the built book in a browser.", "ended"),
)


def _parser() -> argparse.ArgumentParser:
    about = "Run the chapters of the Group Loss book, list results, build the book."
    parser = _Parser(prog="glbook", description=about)
    parser.add_argument("--version", action="version", version=f"glbook {version('gl_core')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, add_arguments, text, interrupted in COMMANDS:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function, interrupted=interrupted)
        if add_arguments is not None:
            add_arguments(added)
    text = "List, download, check and pack data sets."
    data.add_commands(commands.add_parser("data", help=text, description=text))
    return parser
