"""Deep metric learning by differentiable label propagation: the Group Loss and what surrounds it.

The idea is in `propagation`, on two screens, and the loss in `loss`. Around it: `sampling`, `evaluation`, `rerank`,
`models`, `datasets`, `inference` (Group Loss++) and `training`.
"""

from gl_core._lazy import lazily

__all__ = [
    "GroupLoss",
    "GroupSampler",
    "average_consistency",
    "cosine_similarity",
    "group_loss",
    "initial_assignments",
    "nearest_neighbours",
    "pearson_similarity",
    "replicator_dynamics",
    "retrieval_metrics",
    "select_anchors",
]
__version__ = "0.2.0"

# Loaded when asked for: the command line answers without torch.
__getattr__ = lazily(
    __name__,
    dict.fromkeys(
        (
            "average_consistency",
            "cosine_similarity",
            "initial_assignments",
            "pearson_similarity",
            "replicator_dynamics",
            "select_anchors",
        ),
        "propagation",
    )
    | dict.fromkeys(("GroupLoss", "group_loss"), "loss")
    | {"GroupSampler": "sampling", "nearest_neighbours": "evaluation", "retrieval_metrics": "evaluation"},
)
