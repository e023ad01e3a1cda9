"""Models that once misled the engine that shares work: it must count as the plain one does, or leave it to that one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels.injection import inject


class Net(nn.Module):
    """Layers by name, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleDict(layers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def __getattr__(self, name: str) -> Any:
        layers = self._modules.get("layers")
        return layers[name] if layers is not None and name in layers else super().__getattr__(name)


def gated(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    u, v = m.b(h), m.c(h)
    return m.o(torch.relu(u) * torch.sigmoid(v))


def branches(m: Any, x: Tensor) -> Tensor:
    z = m.a(torch.relu(x))
    return m.o(torch.relu(m.n(z)) + torch.tanh(z))


def three_branches(m: Any, x: Tensor) -> Tensor:
    z = m.k(torch.relu(x))
    return m.o((F.max_pool2d(torch.relu(z), 2) + F.max_pool2d(z, 2) + F.avg_pool2d(torch.tanh(z), 2)).flatten(1))


def products(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    far = h + 50
    return m.o(h * h + h.mul(h) + 30.0 / far + torch.div(30.0, far) + torch.div(h, 0.5, rounding_mode="floor"))


def detached(m: Any, x: Tensor) -> Tensor:
    y = m.o(torch.relu(m.a(x)))
    m.kept = y.detach()
    y.reshape(-1).sum()
    return y


def with_auxiliary_head(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    m.side = torch.relu(m.b(h)).sum()
    return m.o(h)


def norm_of_steps(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.n(m.a(torch.relu(x)))).flatten(1))


def steps_outside(m: Any, x: Tensor) -> Tensor:
    t = m.a(x.transpose(0, 1)).flatten(0, 1)
    return m.o(torch.relu(t + 0.5 * torch.tanh(t)).view(x.shape[1], len(x), -1).sum(0))


def by_largest(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.o(torch.relu(m.b(h / h.abs().max())))


def by_others(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.b(m.a(x).softmax(0))))


def doubled(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.a(x) * torch.full((8,), 1.5, dtype=torch.float64)).float())


def halved(m: Any, x: Tensor) -> Tensor:
    return m.o(F.max_pool2d(torch.relu(m.k(x).bfloat16()), 2).float().flatten(1))


def by_keyword(m: Any, x: Tensor) -> Tensor:
    z = F.conv2d(input=x, weight=m.k.weight, bias=m.k.bias, padding=1)
    return m.o(F.max_pool2d(torch.relu(z), 2).flatten(1))


def dense(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 8), "o": nn.Linear(8, 4), **more}


def convolution() -> dict[str, nn.Module]:
    return {"k": nn.Conv2d(2, 3, 3, padding=1), "o": nn.Linear(3 * 9, 4)}


HARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "gated": (lambda: Net(gated, **dense(b=nn.Linear(8, 8), c=nn.Linear(8, 8))), (6,)),
    "branches": (lambda: Net(branches, **dense(n=nn.BatchNorm1d(8))), (6,)),
    "three branches": (lambda: Net(three_branches, **convolution()), (2, 6, 6)),
    "products": (lambda: Net(products, **dense()), (6,)),
    "detached": (lambda: Net(detached, **dense()), (6,)),
    "auxiliary head": (lambda: Net(with_auxiliary_head, **dense(b=nn.Linear(8, 2))), (6,)),
    "norm of steps": (
        lambda: Net(norm_of_steps, a=nn.Linear(6, 5), n=nn.BatchNorm1d(5), o=nn.Linear(25, 4)), (5, 6),
    ),
    "norm of other steps": (
        lambda: Net(norm_of_steps, a=nn.Linear(6, 7), n=nn.BatchNorm1d(5), o=nn.Linear(35, 4)), (5, 6),
    ),
    "steps outside": (lambda: Net(steps_outside, **dense()), (5, 6)),
    "by largest": (lambda: Net(by_largest, **dense(b=nn.Linear(8, 8))), (6,)),
    "by others": (lambda: Net(by_others, **dense(b=nn.Linear(8, 8))), (6,)),
    "doubled": (lambda: Net(doubled, **dense()), (6,)),
    "halved": (lambda: Net(halved, **convolution()), (2, 6, 6)),
    "by keyword": (lambda: Net(by_keyword, **convolution()), (2, 6, 6)),
}  # fmt: skip
NOISES = {"add": nk.Noise(add=0.7), "add_mul": nk.Noise(add=0.4, mul=0.5, order="add_mul")}


def made(name: str, rows: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    build, shape = HARD[name]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(rows, *shape)


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(HARD))
def test_counts_are_the_plain_ones(name: str, kind: str) -> None:
    """With passes of one draw and all rows, so that models whose rows look at each other see the same in both."""
    model, x = made(name, 60)
    how: dict[str, Any] = dict(noise=NOISES[kind], levels=[0.0, 0.3, 1.0, 3.0], draws=2, seed=7)
    y = model(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = nk.walk(model, (x, y), **how, compute=nk.Compute(draws_per_pass=1))
    plain = nk.Compute(engine="plain", draws_per_pass=1)
    for ours, theirs in zip(shared.records, nk.walk(model, (x, y), **how, compute=plain).records, strict=True):
        assert ours._replace(status="evaluated") == theirs  # of sites without influence it is "proved"
    assert {r.accuracy for r in shared.records if r.level == 0} == {1.0}
    assert len({r.correct for r in shared.records}) > 3  # the noise does something


@pytest.mark.parametrize(
    ("name", "reason"),
    [("by largest", "max mixes rows"), ("by others", "softmax mixes rows")],
)
def test_what_is_left_to_the_plain_engine_says_why(name: str, reason: str) -> None:
    model, x = made(name, 6)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        tape = record_tape(injected, x)
    assert any(reason in why for why in tape.refused.values()), tape.refused


def test_a_model_of_inference_tensors() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(50, 6)
    with torch.inference_mode():
        y = model(x).argmax(1)
    how: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=2, seed=7)
    assert (
        nk.walk(model, (x, y), **how).records
        == nk.walk(model, (x, y), **how, compute=nk.Compute(engine="plain")).records
    )


@pytest.mark.parametrize("mode", [dict(mul=0.0), dict(mul=0.5), dict(mul=0.5, fold=True)])
def test_levels_of_each_channel(mode: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(50, 6)
    noise = nk.Noise(add=nk.per_channel(torch.linspace(0, 2, 8), ndim=2), **mode)
    how: dict[str, Any] = dict(noise=noise, levels=[0.3, 1.0], draws=10, seed=7, sites=[1, 2])
    study = nk.walk(model, (x, model(x).argmax(1)), **how)
    assert study.records == nk.walk(model, (x, model(x).argmax(1)), **how, compute=nk.Compute(engine="plain")).records


@pytest.mark.parametrize("level", [nk.per_row([0.5] * 50, ndim=2), nk.per_draw([0.5, 1.0], ndim=2), torch.ones(8)])
def test_levels_of_each_row_or_draw_are_refused(level: Tensor) -> None:
    model, x = nn.Linear(8, 4), torch.randn(50, 8)
    with pytest.raises(ValueError, match="walk: levels of the noise must be numbers, or differ by channel or element"):
        nk.walk(model, (x, model(x).argmax(1)), noise=nk.Noise(add=level), levels=[1.0], draws=2, seed=0)
