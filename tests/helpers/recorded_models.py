"""Models, data, noises and a parameter's devices of recorded cases: small whole numbers, whose sums are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from recorded_names import ADC, Noise, NoiseSite, NoisyLinear, Serial, WeightNoise
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def whole(shape: Sequence[int], low: int, high: int, salt: int) -> Tensor:
    """Whole numbers low..high that look random: SplitMix64 of their positions."""
    z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(1 + (salt << 32))
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z % np.uint64(high - low + 1)).astype(np.float32) + low).view(*shape)


class Grid(nn.Module):
    """Rounds to quarters and limits: what follows adds up exactly, in whichever order."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.round(x * 4) / 4).clamp(-2048, 2048)


class Skip(nn.Module):
    """Two ways around a layer, and a normalisation of scale 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 10), nn.Linear(10, 10), nn.Linear(10, 5)
        self.norm, self.grid = nn.BatchNorm1d(10, eps=2**-10), Grid()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(self.grid(x.flatten(1)))))
        x = self.grid(x + torch.relu(self.second(self.grid(x))))
        return self.last(x)


class Attention(nn.Module):
    """Four tokens that look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.attention(x, x, x, need_weights=False)[0]).flatten(1))


class Unrecordable(nn.Module):
    """Looks at a value, so that every pass has to run all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.grid = nn.Linear(16, 8), nn.Linear(8, 4), Grid()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.grid(x)))
        return self.last(self.grid(x if float(x.abs().max()) > -1 else -x))


def filled(model: Model, salt: int = 1, scale: float = 1.0, most: int = 3) -> Model:
    """A model with whole numbers as weights, and normalisations that are exact."""
    with torch.no_grad():
        for k, (name, values) in enumerate(sorted(model.state_dict().items())):
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                values.copy_(4.0 ** whole(values.shape, 0, 1, salt + k) - 2**-10)
            elif name.endswith("running_mean"):
                values.copy_(whole(values.shape, -2, 2, salt + k))
            elif "norm" in name:
                values.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                values.copy_(scale * whole(values.shape, -most, most, salt + k))
    return model.eval()


def mlp(grid: bool = True) -> nn.Sequential:
    """Two layers; without the grid, noise enters contractions as it is."""
    layers = [nn.Flatten(), Grid(), nn.Linear(16, 12), nn.ReLU(), Grid(), nn.Linear(12, 5)]
    model = filled(nn.Sequential(*(layer for layer in layers if grid or not isinstance(layer, Grid))))
    with torch.no_grad():
        model[-1].bias += torch.arange(5) / 8  # no two scores are equal
    return model


def cnn() -> nn.Module:
    model = nn.Sequential()
    layers = {
        "conv1": nn.Conv2d(1, 4, 3, padding=1), "norm1": nn.BatchNorm2d(4, eps=2**-10), "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2), "grid1": Grid(), "conv2": nn.Conv2d(4, 6, 3), "relu2": nn.ReLU(), "grid2": Grid(),
        "flat": nn.Flatten(), "fc": nn.Linear(24, 5),
    }  # fmt: skip
    for name, layer in layers.items():
        model.add_module(name, layer)
    return filled(model, 11, most=2)


def own() -> nn.Module:
    """Noisy layers of its own, with hardware in one."""
    return filled(nn.Sequential(
        nn.Flatten(), NoisyLinear(16, 12, noise=Noise(add=2.0)), nn.ReLU(), Grid(), NoiseSite(Noise(mul=0.25)), Grid(),
        NoisyLinear(12, 5, noise=Noise(add=1.0, mul=0.125), hardware=[ADC(6, 64.0)]),
    ), 21)  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (1, 4, 4)),
    "plain mlp": (lambda: mlp(False), (1, 4, 4)),
    "cnn": (cnn, (1, 8, 8)),
    "skip": (lambda: filled(Skip(), 31), (1, 4, 4)),
    "own": (own, (1, 4, 4)),
    "attention": (lambda: filled(Attention(), 41, 0.125), (4, 8)),
    "unrecordable": (lambda: filled(Unrecordable(), 51), (16,)),
}


def problem(name: str, rows: int = 240) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model, and data of which it classifies nine tenths right."""
    make, shape = MODELS[name]
    model = make()
    inputs = whole((rows, *shape), -4, 4, 99)
    exact = model
    if name == "own":  # the labels are those without noise
        exact = filled(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), Grid(), Grid(), Grid(), nn.Linear(12, 5)), 21
        )
    with torch.no_grad():
        scores = exact(inputs)
    wrong = torch.arange(rows) % 10 == 3
    return model, (inputs, (scores.argmax(1) + wrong) % scores.shape[1])


ROWS = [7 * i + 3 for i in range(240)]
LEVELS = [1.0, 16.0, 256.0]
GRID = {"levels": LEVELS, "draws": 2, "seed": 5}

NOISES = {
    "add": Noise(add=1.0),
    "mul": Noise(mul=0.25),
    "mul_add": Noise(add=0.5, mul=0.25),
    "add_mul": Noise(add=0.5, mul=0.25, order="add_mul"),
    "fold": Noise(add=0.5, mul=0.25, fold=True),
    "uniform": Noise(add=1.0, kind="uniform"),
    "laplace": Noise(add=1.0, mul=0.125, kind="laplace"),
    "channels": Noise(add=torch.tensor([[[1.0, 0.5, 2.0, 0.0, 1.0, 1.0, 4.0, 1.0, 1.0, 0.5, 1.0, 1.0]]])),
}
WEIGHT_NOISES = {
    "absolute": WeightNoise(add=0.125),
    "layer": WeightNoise(add=0.125, relative="layer"),
    "channel": WeightNoise(add=0.125, relative="channel"),
    "mul": WeightNoise(mul=0.125),
    "fold": WeightNoise(add=0.125, mul=0.125, fold=True, kind="gaussian"),
    "uniform": WeightNoise(add=0.125, kind="uniform"),
}


def saturating(limit: float) -> Serial:
    return Serial(low=-limit, high=limit)
