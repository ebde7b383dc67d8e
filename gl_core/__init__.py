"""Deep metric learning by differentiable label propagation: the Group Loss and what surrounds it.

The modules in reading order: `propagation`, `loss`, `sampling`, `models`, `evaluation`, `datasets`, `training`, `runs`.
"""

from gl_core.loss import GroupLoss, group_loss
from gl_core.sampling import GroupSampler

__all__ = ["GroupLoss", "GroupSampler", "group_loss"]
__version__ = "0.1.0"
