"""Models of torchvision: classifiers, segmentation, detection and video, of images as small as they take."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from models.inputs import Made, images

__all__ = ["TORCHVISION"]


def _of(name: str, size: int = 32, **how: Any) -> Made:
    """A model of its registry, or of a family at a size of its own."""

    def build() -> nn.Module:
        made = getattr(importlib.import_module("torchvision.models"), name)
        return made(num_classes=10, **how)

    return Made(build, images(size), package="torchvision")


TORCHVISION = {
    "SqueezeNet": _of("squeezenet1_1"),
    "vit": _of(
        "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48
    ),
}  # fmt: skip
