"""Training: from a configuration to a network, its metrics and its record."""

from gl_core._lazy import lazily

__all__ = [
    "Config",
    "Learner",
    "Run",
    "build_loss",
    "build_model",
    "evaluate",
    "fit",
    "image_store",
    "run",
    "train_step",
]

# Loaded when asked for: `records`, which is beside them, answers without torch.
__getattr__ = lazily(
    __name__,
    dict.fromkeys(("Learner", "build_loss", "build_model", "image_store"), "components")
    | dict.fromkeys(("evaluate", "fit", "train_step"), "loop")
    | {"Config": "config", "Run": "experiment", "run": "experiment"},
)
