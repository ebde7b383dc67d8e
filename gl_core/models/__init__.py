"""Embedding networks: backbones by name, their pooling, and what is done to their last activation."""

from gl_core.models.backbones import (
    BACKBONES,
    Backbone,
    backbone,
    bn_inception,
    build,
    conv4,
    efficientnet_lite0,
    resnet50,
    timm_backbone,
)
from gl_core.models.network import EmbeddingNet, evaluation_mode
from gl_core.models.probe import linear_probe

__all__ = [
    "BACKBONES",
    "Backbone",
    "EmbeddingNet",
    "backbone",
    "bn_inception",
    "build",
    "conv4",
    "efficientnet_lite0",
    "evaluation_mode",
    "linear_probe",
    "resnet50",
    "timm_backbone",
]
