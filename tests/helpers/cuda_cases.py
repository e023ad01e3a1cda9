"""What the tests on CUDA share: models and data of small integers, values of the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

NOISE = nk.Noise(add=0.5, mul=0.25)


exact = pytest.mark.usefixtures("exact_library")


def on_gpu(value: Any) -> Any:
    """A tensor, or a noise, of the GPU."""
    if isinstance(value, nk.Noise):
        moved = value.scaled(1.0)
        moved.add, moved.mul = (None if t is None else t.cuda() for t in (value.add, value.mul))
        return moved
    return value.cuda() if isinstance(value, Tensor) else value


def integers(model: nn.Module) -> nn.Module:
    """Small integers for weights, so that results without noise are the same everywhere."""
    g = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.data.copy_(torch.randint(-1, 2, p.shape, generator=g))
    return model


def network() -> nn.Module:
    return integers(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )).eval()  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randint(-2, 3, (300, 1, 12, 12), generator=g).float(), torch.randint(5, (300,), generator=g)


def classifier() -> nn.Module:
    """A network that tells its inputs apart, each by some margin."""
    model, g = network(), torch.Generator().manual_seed(6)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return model


def labelled() -> tuple[Tensor, Tensor]:
    """Rows that the classifier gets right."""
    x, _ = data()
    with torch.no_grad():
        return x, classifier()(x).argmax(1)


class operators_seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the calls of our operators."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "noisykernels":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))
