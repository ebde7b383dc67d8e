"""What tells runs apart: two runs of the same key give the same result, and so only one of them is made."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from gl_core.training.version import RESULTS_VERSION

__all__ = ["WHERE", "dataset_version", "run_key", "setting", "settings_that_count"]

# Settings that say where something lies or runs, and those that only set defaults of others.
WHERE = ("data_root", "weights", "device", "workers", "preset", "profile")
# Settings that are newer than recorded runs, each with the value that computes what was computed before there was this
# setting. At that value it is left out of the key, so that the recorded runs stay valid.
ADDED: dict[str, Any] = {}


def run_key(chapter: str, parameters: Mapping[str, Any], config: Mapping[str, Any], data_version: str | None) -> str:
    """The key of a run of a chapter, 16 hexadecimal digits: a hash of all that its result depends on.

    That is the chapter, its parameters, the settings of its training (`Config.as_dict`, {} for a chapter that has
    none), the version of the data, and that of the training code; not the settings of `WHERE`, nor what is kept.
    """
    own = {name: value for name, value in parameters.items() if name not in (*config, *WHERE, "keep")}
    counted = settings_that_count(config) if config else {}
    counted = {name: value for name, value in counted.items() if name not in ADDED or ADDED[name] != value}
    content = json.dumps([chapter, own, counted, RESULTS_VERSION, data_version], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def settings_that_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration without those of `WHERE`."""
    from gl_core.training.config import Config

    return {name: setting(config, name) for name in Config.names() if name not in WHERE}


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting of a recorded configuration; one that is newer than the record had its default."""
    from gl_core.training.config import Config

    return config.get(name, getattr(Config, name, None))


@cache
def dataset_version(dataset: str, root: str | None) -> str:
    """The version of a data set. Raises what `gl_core.datasets.load` raises."""
    from gl_core import datasets
    from gl_core.datasets.version import data_version

    return data_version(datasets.load(dataset, root, "all"))
