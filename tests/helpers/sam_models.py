"""What the tests of sharpness-aware optimizers share: methods, a network, a batch, its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk

SGD = torch.optim.SGD
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "sam": (nk.training.SAM, {"rho": 0.3}),
    "asam": (nk.training.ASAM, {"rho": 0.7, "eta": 0.05}),
    "samson_inf": (nk.training.SAMSON, {"rho": 0.4, "eta": 0.05}),
    "samson_2": (nk.training.SAMSON, {"rho": 0.4, "eta": 0.05, "p": 2}),
    "samson_1": (nk.training.SAMSON, {"rho": 0.4, "eta": 0.0, "p": 1}),
    "samson_3.5": (nk.training.SAMSON, {"rho": 0.4, "eta": 0.05, "p": 3.5}),
}
every_method = pytest.mark.parametrize("method", METHODS)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Weights, biases, batch norm's too, and a parameter that the loss does not reach."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    model.register_parameter("idle_weight", nn.Parameter(torch.ones(2, dtype=dtype)))
    return model


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (12,), generator=generator)


def made(method: str, model: nn.Module, base: type = SGD, **options: Any) -> Any:
    kind, settings = METHODS[method]
    return kind(model.named_parameters(), base, **settings, **{"lr": 0.1, **options})


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1])


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
