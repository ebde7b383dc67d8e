"""What makes the Group Loss book: command line, notebooks, sweeps, tuning, statistics, provenance, plots, search."""

from gl_core._lazy import lazily

__all__ = ["begin", "load_runs"]

__getattr__ = lazily(__name__, {"begin": "beginning", "load_runs": "runs"})
