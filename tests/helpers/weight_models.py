"""What the walks over weights and parameters, and the chips, run on: models, data, noises of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from options import gathered
from torch import Tensor, nn
from traced_models import Encoder, Residual, living_norms

import noisykernels as nk
from noisykernels.zoo import MLP, LeNet5

NOISES: dict[str, nk.WeightNoise] = {
    "add": nk.WeightNoise(add=0.3),
    "layer": nk.WeightNoise(add=0.3, relative="layer"),
    "channel": nk.WeightNoise(add=0.5, relative="channel"),
    "mul": nk.WeightNoise(mul=0.5),
    "fold": nk.WeightNoise(add=0.2, mul=0.4, fold=True),
    "fold, channel": nk.WeightNoise(add=0.2, mul=0.4, fold=True, relative="channel"),
    "uniform": nk.WeightNoise(add=0.3, kind="uniform"),
}
LEVELS, DRAWS, SEED = [0.0, 0.3, 1.0, 3.0], [4, 1], 2**63 + 11


class Convolutions(nn.Module):
    """Groups, a stride, a dilation, one dimension, and a transposed convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1, groups=2, stride=2)
        self.b = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, output_padding=1)
        self.c = nn.Conv1d(6, 4, 3, dilation=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(torch.tanh(self.c(x.mean(3))).mean(2))


class Twice(nn.Module):
    """A module that is called twice: two sites, one array."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(torch.relu(self.a(x)))))


class Computed(nn.Module):
    """A weight that is computed from the input, though it does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(x, self.a.weight * x.new_ones(()), self.a.bias)))


class Keywords(nn.Module):
    """Arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, bias=self.a.bias, weight=self.a.weight)
        return self.head(torch.relu(y) + F.linear(input=x, weight=self.b.weight))


def normalised() -> nn.Module:
    """A weight that a parametrization computes."""
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda: LeNet5(norm=True), (1, 28, 28)),
    "mlp": (lambda: MLP(12, 4, width=8, norm=True), (12,)),
    "skips": (Residual, (3, 8, 8)),
    "attention": (Encoder, (5, 6)),
    "convolutions": (Convolutions, (4, 6, 6)),
    "shared": (Twice, (6,)),
    "parametrized": (normalised, (6,)),
    "keywords": (Keywords, (6,)),
    "computed": (Computed, (6,)),
}


def problem(name: str, rows: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model with norms that do something, data, and labels that it gets right. In float64, where no rounding of
    a contraction can flip any of some thousand predictions (margins of 1e-12 would be needed)."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().eval()
    living_norms(model)
    model, x = model.to(dtype), torch.randn(rows, *shape, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        scores = model(x)
        *_, last = (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == scores.shape[1])
        last.bias -= scores.mean(0)  # so that every class is the answer to some
        return model, (x, model(x).argmax(1))


def walk(model: nn.Module, data: Any, noise: Any = NOISES["layer"], **options: Any) -> Any:
    settings: dict[str, Any] = dict(levels=LEVELS, draws=DRAWS, seed=SEED) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nk.walk(model, data, noise=noise, target="weight", **gathered(settings))
