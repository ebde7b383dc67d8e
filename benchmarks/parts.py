"""The parts of the table, in its order; each is a module of that name with a function `cases`."""

from importlib import import_module

from benchmarks.measure import Case

__all__ = ["NAMES", "load"]

NAMES = ("loss", "neighbours", "clusters", "reranking", "gpu")


def load(part: str, quick: bool = False) -> list[Case]:
    """The cases of a part; `quick` makes them small, to try the machinery."""
    if part not in NAMES:
        raise ValueError(f"part={part!r}: must be one of {', '.join(NAMES)}")
    return import_module(f"benchmarks.{part}").cases(quick)
