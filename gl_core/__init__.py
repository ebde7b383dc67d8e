"""Deep metric learning by differentiable label propagation: the Group Loss and what surrounds it.

The modules in reading order: `propagation`, `loss`, `sampling`, `models`, `evaluation`, `datasets`, `training`, `runs`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gl_core.loss import GroupLoss, group_loss
    from gl_core.sampling import GroupSampler

__all__ = ["GroupLoss", "GroupSampler", "group_loss"]
__version__ = "0.1.0"

_HOMES = {"GroupLoss": "loss", "GroupSampler": "sampling", "group_loss": "loss"}


def __getattr__(name: str) -> Any:
    """What `from gl_core import GroupLoss` finds; loaded when asked for, as the command line answers without torch."""
    if name in _HOMES:
        return getattr(import_module(f"gl_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gl_core' has no attribute {name!r}")
