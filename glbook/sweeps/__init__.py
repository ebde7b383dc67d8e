"""Sweeps: many runs of a chapter, each made once, on this machine or on a Dask cluster.

plan      a file becomes runs, all checked before any is started
keys      what a run's result depends on
store     what is made, being made, or failed
worker    one run, in a process that dies with the one that started it
gpus      one run at a time on each
pool      the runs of a plan, several at a time
progress  how far it is
"""

from gl_core._lazy import lazily

__all__ = ["Outcome", "Plan", "PlannedRun", "make_plan", "read_plan", "run_plan"]

# Loaded when asked for: a run's process, and the command line, answer without torch.
_PLAN = ("Plan", "PlannedRun", "make_plan", "read_plan")
__getattr__ = lazily(__name__, dict.fromkeys(_PLAN, "plan") | {"Outcome": "pool", "run_plan": "pool"})
