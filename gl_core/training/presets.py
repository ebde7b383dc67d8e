"""What suits which data set, backbone and profile, and the published settings; `Config.resolve` looks them up."""

from typing import Any

__all__ = ["BY_PROFILE", "DATASETS", "PHOTOGRAPHS", "PRESETS", "PRETRAINED"]

_DRAWINGS = {"backbone": "conv4", "augmentation": "drawing"}
_GLYPHS = _DRAWINGS | {"image_size": 32, "epochs": 12}
# Half of the images in batches of half the size: as many steps an epoch.
_HALF = _GLYPHS | {"classes_per_batch": 8, "samples_per_class": 6}
PHOTOGRAPHS: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "augmentation": "photo",
    "image_size": 128,
    "center_crop": 0.875,
    "classes_per_batch": 8,
    "samples_per_class": 5,
}
# Pedestrians are upright, so their pictures are twice as high as wide, and are squeezed into that shape.
_PEDESTRIANS = {
    "backbone": "resnet50",
    "augmentation": "person",
    "image_size": 256,
    "image_width": 128,
    "keep_aspect": False,
    "classes_per_batch": 16,
    "samples_per_class": 4,
}
DATASETS: dict[str, dict[str, Any]] = {
    "glyphs": _GLYPHS,
    "glyphs_half": _HALF,
    "glyphs_reid": _GLYPHS,
    "glyphs_reid_half": _HALF,
    "omniglot": _DRAWINGS | {"image_size": 28, "epochs": 30},
    # The crops show the car from edge to edge: nothing to cut off.
    "cars196_half": PHOTOGRAPHS | {"image_size": 96, "center_crop": 1.0},
    "market1501": _PEDESTRIANS,
    "cuhk03": _PEDESTRIANS,
    "cuhk03_labelled": _PEDESTRIANS,
}
# What suits a pretrained backbone.
PRETRAINED: dict[str, Any] = {
    "learning_rate": 5e-4,
    "classifier_learning_rate": 2e-3,
    "freeze_batch_norm": True,
    "average_weights": 0.98,
    "choose_epochs": True,
    "epochs": 10,
}
BY_PROFILE: dict[tuple[str, str], dict[str, Any]] = {
    ("glyphs", "quick"): {"epochs": 3},
    ("glyphs_half", "quick"): {"epochs": 1},
    ("glyphs_reid", "quick"): {"epochs": 3},
    ("glyphs_reid_half", "quick"): {"epochs": 1},
}

# The authors' released code: train.py, train_finetune.py, dataset/utils.py. They train batch normalisation too, and
# pick the epoch on the test set, which no preset does: the last epoch counts.
_AUTHORS = {
    "backbone": "bn_inception",
    "image_size": 227,
    "center_crop": 227 / 256,
    "augmentation": "crop",
    "num_iterations": 1,
    "cross_entropy_weight": 1.0,
    "similarity": "pearson",
    "finetune_epochs": 10,
    "epochs": 70,
    "optimizer": "radam",
    "classifier_learning_rate": None,
    "schedule": "step",
    "step_at": 31,
    "freeze_batch_norm": False,
    "average_weights": 0.0,
    "choose_epochs": False,
}
_OF_A_DATASET = (
    "classes_per_batch", "samples_per_class", "num_anchors", "temperature", "learning_rate", "weight_decay"
)  # fmt: skip
_PUBLISHED = {
    "cub": (6, 9, 2, 24.0, 1.56e-4, 6.06e-6),
    "cars196": (5, 7, 3, 79.0, 2.0e-4, 4.86e-7),
    "sop": (10, 6, 2, 54.0, 6.08e-4, 5.27e-12),
}
PRESETS: dict[str, dict[str, Any]] = {
    name: _AUTHORS | {"dataset": name} | dict(zip(_OF_A_DATASET, values, strict=True))
    for name, values in _PUBLISHED.items()
} | {
    # Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPRW 2019, with the Group
    # Loss in the place of the triplet loss. RAdam stands for Adam with its warm-up; of their two steps of the learning
    # rate (after epochs 40 and 70) there is the first; no label smoothing, no centre loss.
    "reid": _PEDESTRIANS
    | {
        "dataset": "market1501",
        "last_stride": 1,
        "bn_neck": True,
        "random_erasing": 0.5,
        "epochs": 120,
        "optimizer": "radam",
        "schedule": "step",
        "step_at": 41,
        "learning_rate": 3.5e-4,
        "classifier_learning_rate": None,
        "weight_decay": 5e-4,
        "freeze_batch_norm": False,
        "average_weights": 0.0,
        "choose_epochs": False,
    },
}
