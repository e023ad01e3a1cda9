"""Tracing, coverage, measures and studies leave a model as it was: buffers, counters, caches, generators; and random
numbers of the process."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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
        self.generator, self.dice = torch.Generator().manual_seed(4), random.Random(4)
        self.of_numpy = [np.random.default_rng(4), np.random.RandomState(4)]
        self.array, self.arrays = np.zeros(3), {"a": np.full(2, np.nan)}

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
        torch.rand(3, generator=self.generator), self.dice.random(), [one.normal() for one in self.of_numpy]
        self.array += 1
        self.arrays["a"][0] = 1
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        return self.head(torch.relu(y))

    def scores(self, x: Tensor) -> Tensor:
        """What the forward gives, without its traces."""
        return self.head(torch.relu(self.fc(x)))


def picture(model: Writes) -> Any:
    left = ("_modules", "_parameters", "_buffers", "generator", "dice", "of_numpy", "cache")
    told = {k: v for k, v in vars(model).items() if k not in left}
    told |= model._buffers | {f"cache.{k}": v for k, v in vars(model.cache).items()}
    own = model.generator.get_state(), model.dice.getstate(), [str(m.__getstate__()) for m in model.of_numpy]
    return copy.deepcopy(told), own, randomness()


def randomness() -> Any:
    """The states of the random numbers that a process has."""
    return torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(9.5), b.nan_to_num(9.5))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or not isinstance(a, int | float | set | str))


CHIP: Any = [nk.WeightNoise(add=0.1)]
SERIAL = nk.Serial(low=-1.0)
LEVELS: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.1, 9.0], draws=2, seed=1)

RUNS: dict[str, Callable[[Writes], Any]] = {
    "sites": lambda m: nk.sites(m, X),
    "inject": lambda m: nk.remove(nk.inject(m, None, example_input=X).model),
    "coverage": lambda m: nk.coverage(m, X),
    "programmed": lambda m: nk.injection.programmed(m, X, seed=1),
    "gradients": lambda m: nk.training.gradient_norms(m, (X, Y)),
    "statistics": lambda m: nk.training.site_statistics(m, X),
    "walk": lambda m: nk.walk(m, (X, Y), **LEVELS),
    "walk of weights": lambda m: nk.walk(m, (X, Y), target="weight", **LEVELS),
    "search": lambda m: nk.walk(m, (X, m.scores(X).argmax(1)), noise=nk.Noise(add=1.0), seed=1, search=nk.Search(0.9)),
    "parameter": lambda m: nk.walk_parameter(
        m, (X, Y), lambda v: [nk.WeightNoise(add=v)], [0.1], name="x", larger="worse", draws=1, seed=1
    ),
    "mixed": lambda m: nk.walk_mixed(m, (X, Y), ratios=[0.5], levels=[0.1], draws=1, seed=1),
    "chips": lambda m: nk.chips(m, (X, Y), hardware=CHIP, draws=2, seed=1),
    "vote": lambda m: nk.vote(m, (X, Y), noise=nk.Noise(add=0.1), draws=3, seed=1),
    "order": lambda m: nk.experiments.order_sensitivity(m, (X, Y), SERIAL, permutations=2, seed=1),
    "formats": lambda m: nk.experiments.sweep_formats(m, (X, Y), ["fp16"], seed=1),
    "formats of layers": lambda m: nk.experiments.layer_formats(m, (X, Y), "fp16", evaluations=2, seed=1),
}


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("run", ["walk", "gradients"])
def test_loaders_draw_nothing_that_is_missed(run: str) -> None:
    """A study in the midst of training changes nothing of what follows; a loader draws a number whenever it begins."""
    model, data = nn.Linear(6, 3), DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=run != "walk")
    before = randomness()
    if run == "walk":
        nk.walk(model, data, **LEVELS)
    else:
        nk.training.gradient_norms(model, data)
    assert same(randomness(), before)


def test_measures_without_a_seed_have_new_noise_each_time() -> None:
    model = nn.Linear(6, 3)
    with nk.inject(model, nk.Noise(add=1.0)):
        found = [nk.training.gradient_norms(model, (X, Y))[-1].norm for _ in range(2)]
    assert found[0] != found[1]
    torch.manual_seed(3)
    with nk.inject(model, nk.Noise(add=1.0)):
        first = nk.training.gradient_norms(model, (X, Y))
        torch.manual_seed(3)
        assert nk.training.gradient_norms(model, (X, Y)) == first


class Rescaled(nn.Module):
    """Halves weights when it is first evaluated, and remembers that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.is_rescaled = nn.Linear(6, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.is_rescaled):
            with torch.no_grad():
                self.fc.weight.div_(2)
            self.is_rescaled = True
        return self.fc(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_weights_that_a_first_forward_rescales_are_rescaled_once(engine: str) -> None:
    torch.manual_seed(0)
    model = Rescaled().eval()
    once = model.fc.weight.detach() / 2
    expected = torch.nn.functional.linear(X, once, model.fc.bias).detach()
    how = dict(noise=nk.Noise(add=1.0), levels=[0.1], draws=1, seed=0, compute=nk.Compute(engine=engine))
    with pytest.warns(UserWarning, match=r"writes into its parameters fc\.weight"):
        study = nk.walk(model, (X, expected.argmax(1)), **how)
    assert study.meta.clean == 1.0
    for _ in range(2):
        nk.coverage(model, X)
        nk.sites(model, X)
    assert torch.equal(model.fc.weight, once) and torch.equal(model(X), expected)
