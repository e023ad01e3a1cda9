"""torchvision beside a torch that it was not built for (a CUDA build beside a CPU torch): its compiled library does not
load, and its import fails on the operators that it then misses. Its models are Python but for one of these."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

__all__ = ["complete_torchvision"]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that no better one covers, best first."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low, high = torch.max(boxes[:, None, :2], boxes[:, :2]), torch.min(boxes[:, None, 2:], boxes[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    covers = both / (area[:, None] + area - both) > iou_threshold
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not covers[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def complete_torchvision() -> torch.library.Library | None:
    """Declares the operators where torchvision's import fails; it lives as long as what this gives."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):  # the second is that of quantized boxes, which none of the models has
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        return library
    return None
