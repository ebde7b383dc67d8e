"""The commands `glbook sweep` and `glbook tune`."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glbook.sweeps.plan import Plan

__all__ = ["add_arguments", "add_tuning_arguments", "run", "tune"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the runs (see book/sweeps)")
    _add_parameters(parser, "a parameter of every run; may be given several times")
    parser.add_argument(
        "--keep", choices=("final", "tuning"), help="put the records into data/results, for this purpose"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run, and how long it would take")
    _add_cluster_arguments(parser)


def add_tuning_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="group_loss, cross_entropy, proxy_anchor, ...")
    _add_parameters(parser, "a parameter of every trial, such as the data set; may be given several times")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (%(default)s)")
    _add_cluster_arguments(parser)


def _add_parameters(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=text
    )


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler: tcp://HOST:8786"
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="runs at a time on this machine (what it can carry)"
    )


def run(options: argparse.Namespace) -> int:
    """Make the runs. Returns the exit status: 1 if any failed."""
    from gl_core import devices
    from glbook import sweeps

    plan = sweeps.read_plan(options.file, dict(options.parameters), options.keep)
    if options.scheduler is None:
        for device in {run.settings["device"] for run in plan.runs if "device" in run.settings}:
            devices.choose_device(device or "auto")
    if options.dry_run:
        _describe(plan, options)
        return 0
    outcome = sweeps.run_plan(plan, scheduler=options.scheduler, workers=options.workers, say=_say)
    for name, error in outcome.failed.items():
        print(f"failed: {name}: {error}")
    if outcome.failed:
        print("Their tracebacks are in _build/sweeps and in the executed notebooks; the same command tries them again.")
    return 1 if outcome.failed else 0


def tune(options: argparse.Namespace) -> int:
    """Tune methods, one after another. Returns the exit status."""
    from glbook import parameters, tuning

    declared = parameters.parameters("training")
    given = {
        name: parameters.parse_value(text, declared[name]) if name in declared else text
        for name, text in options.parameters
    }
    for method in options.methods:
        parameters.check_parameters("training", {"method": method} | given)
    for method in options.methods:
        where = {"scheduler": options.scheduler, "workers": options.workers}
        study = tuning.tune(method, given, seed=options.seed, say=_say, **where)
        scores = [f"{trial['score']:.3f}" if trial["score"] is not None else "failed" for trial in study.trials]
        _say(f"{method}: {study.score}: {' '.join(scores)} (the first with the defaults)")
        _say(f"{method}: best: {study.best}")
    return 0


def _describe(plan: "Plan", options: argparse.Namespace) -> None:
    from glbook.sweeps import pool
    from glbook.sweeps.progress import Progress, duration
    from glbook.sweeps.store import Store

    store, progress, count = Store(), Progress(plan.runs, pool.all_records()), Counter()
    for run in plan.runs:
        state = store.state(run.key)
        count[state] += 1
        print(f"{state:8}{run.chapter} {run.name}")
        if state == "done":
            progress.end(run, made=False)
    print(f"\n{plan.name}: {len(plan.runs)} runs: " + ", ".join(f"{number} {state}" for state, number in count.items()))
    at_once = 1 if options.scheduler else options.workers or pool.local_workers(plan)
    seconds = progress.seconds_left(at_once)
    if not progress.left:
        print("nothing is left to do")
    elif seconds is None:
        print("time: unknown, as there is no record of a like run")
    elif options.scheduler:
        print(f"time: about {duration(seconds)} for one worker, by the records of like runs; divide by their number")
    else:
        print(f"time: about {duration(seconds)}, {at_once} at a time, by the records of like runs")


def _say(line: str) -> None:
    print(line, flush=True)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 1 or more")
    return int(text)
