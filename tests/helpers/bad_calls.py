"""Small calls that the tables of mistakes make wrong, one argument at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import noisykernels as nk

Action = Callable[[Path], object]
# area -> [(what is wrong, the call, the exception)]
Table = dict[str, list[tuple[str, Action, type[BaseException] | tuple]]]
NOISE = nk.Noise(add=0.1)
WEIGHTS = nk.WeightNoise(add=0.1, relative="layer")
NAN = float("nan")
X, Y = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


def hardware(*devices: object) -> object:
    return nk.linear(X, torch.zeros(3, 4), hardware=list(devices), seed=0)


def injected(x: Tensor = X, noise: object = NOISE, where: object = None, **options: object) -> object:
    model = options.pop("model", None) or net()
    with nk.inject(model, noise, where, **options):
        return model(x)


def stated(model: nn.Module | None = None, x: Tensor = X, **state: object) -> object:
    model = net() if model is None else model
    with nk.inject(model, NOISE), nk.noise_state(model, **state):
        return model(x)


def walk(model: nn.Module | None = None, data: object = (X, Y), **options: object) -> object:
    settings = dict(noise=NOISE, levels=[1.0], draws=1, seed=0) | options
    return nk.walk(net() if model is None else model, data, **settings)
