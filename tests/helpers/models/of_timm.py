"""Models of timm, at small sizes."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from models.inputs import Made, images

__all__ = ["TIMM"]


def _of(name: str, size: int = 32, **how: Any) -> Made:
    def build() -> nn.Module:
        return importlib.import_module("timm").create_model(name, num_classes=10, **how)

    return Made(build, images(size), package="timm")


TIMM = {
    "vit_tiny": _of("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24),
}
