"""Sweeps: many runs of a chapter, each made once, on this machine or on a Dask cluster.

plan      a file becomes runs, all checked before any is started
keys      what a run depends on, so that it is not made twice
claims    who makes which run, so that it is not made twice at the same time
worker    one run, in a process that dies with the one that started it
gpus      one run at a time on each
pool      the runs of a plan on a cluster
progress  how far it is
cli       `glbook sweep`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gl_core.sweeps.plan import Plan, PlannedRun, make_plan, read_plan
    from gl_core.sweeps.pool import Outcome, run_plan

__all__ = ["Outcome", "Plan", "PlannedRun", "make_plan", "read_plan", "run_plan"]

_HOMES = dict.fromkeys(("Plan", "PlannedRun", "make_plan", "read_plan"), "plan")
_HOMES |= dict.fromkeys(("Outcome", "run_plan"), "pool")


def __getattr__(name: str) -> Any:
    """Loaded when asked for: a run's process, and the command line, answer without torch."""
    if name in _HOMES:
        return getattr(import_module(f"gl_core.sweeps.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gl_core.sweeps' has no attribute {name!r}")
