"""Tracing, coverage, measures and studies leave a model as it was: buffers, counters, caches, generators."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

X, Y = torch.randn(8, 6), torch.arange(8) % 3


class Cache:
    """Of a user's, as caches of keys and values are."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.length = 0


class Writes(nn.Module):
    """Whatever a forward can write into its module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))
        self.h: Tensor | None = None
        self.plain = torch.full((4,), float("nan"))
        self.calls, self.history, self.table, self.last = 0, [1.0], {"a": torch.ones(2)}, deque([1], maxlen=3)
        self.seen, self.pair, self.cache = {0}, (torch.zeros(3), [2]), Cache()
        self.generator = torch.Generator().manual_seed(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.count += 1
        self.mean = self.mean * 0.9 + y.detach().mean(0)
        self.h, self.new = y.detach(), y.detach()
        self.plain[0] = 3.0
        self.calls += 1
        self.history.append(float(len(x)))
        self.table["b"] = y.detach()
        self.table["a"].add_(1)
        self.last.append(self.calls)
        self.seen.add(self.calls)
        self.pair[0].data.add_(1)
        self.pair[1].append(3)
        self.cache.keys.append(y.detach())
        self.cache.length += len(x)
        torch.rand(3, generator=self.generator)
        return self.head(torch.relu(y))


def picture(model: Writes) -> Any:
    told = {
        k: v for k, v in vars(model).items() if k not in ("_modules", "_parameters", "_buffers", "generator", "cache")
    }
    told |= model._buffers | {f"cache.{k}": v for k, v in vars(model.cache).items()}
    return copy.deepcopy(told), model.generator.get_state(), torch.get_rng_state()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(9.5), b.nan_to_num(9.5))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or not isinstance(a, int | float | set | str))


RUNS: dict[str, Callable[[Writes], Any]] = {
    "sites": lambda m: nk.sites(m, X), "inject": lambda m: nk.remove(nk.inject(m, None, example_input=X).model),
    "coverage": lambda m: nk.coverage(m, X),
    "gradients": lambda m: nk.training.gradient_norms(m, (X, Y)),
    "walk": lambda m: nk.walk(m, (X, Y), noise=nk.Noise(add=1.0), levels=[0.1], draws=2, seed=1),
    "chips": lambda m: nk.chips(m, (X, Y), hardware=[nk.WeightNoise(add=0.1)], draws=2, seed=1),
    "vote": lambda m: nk.vote(m, (X, Y), noise=nk.Noise(add=0.1), draws=3, seed=1),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("run", list(RUNS))
def test_a_model_is_left_as_it_was(run: str) -> None:
    model = Writes().eval()
    model(X)
    before, held = picture(model), {k: id(v) for k, v in vars(model).items()}
    RUNS[run](model)
    assert same(picture(model), before)
    assert {k: id(v) for k, v in vars(model).items()} == held
    model(X)
    assert not same(picture(model), before)  # the picture shows it


def test_norms_in_training_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    nk.sites(model, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model[1].training
