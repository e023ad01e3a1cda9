"""Layers that go from Python to the kernel in one step have the values that hooks and operators give, and what needs
torch's dispatcher goes through it: gradients, transforms, modes, autocast, traces, other types and layouts."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from injecting import NOISE, SEED
from operators import assert_same_bits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import noisykernels as nk
from noisykernels.injection import leaves
from noisykernels.zoo import LeNet5

X = torch.linspace(-1, 1, 24).reshape(4, 6)
NOISES = [NOISE, nk.Noise(mul=0.3), nk.Noise(0.1, 0.2, kind="laplace"), nk.Noise(0.1, 0.2, order="add_mul"),
          nk.Noise(0.1, 0.2, fold=True)]  # fmt: skip


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Types of the layers that went straight, in order."""
    seen: list[str] = []
    called = leaves.call_leaf

    def telling(module: nn.Module, *args: Any) -> Any:
        out = called(module, *args)
        if out is not NotImplemented:
            seen.append(type(module).__name__)
        return out

    monkeypatch.setattr(leaves, "call_leaf", telling)
    return seen


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 70, bias=False), nn.GELU()).eval()


def through_hooks(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.register_forward_hook(lambda *_: None)
    return twin


def outputs(model: nn.Module, x: Any, noise: nk.Noise | None = NOISE, where: Any = None, **state: Any) -> Any:
    with nk.inject(model, noise, where), nk.noise_state(model, **{"seed": SEED, **state}), torch.no_grad():
        return model(x), model(x)  # the second knows its sites


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_values_and_names(noise: nk.Noise, straight: list[str]) -> None:
    for model, x in ((layers(), X), (layers(), X.reshape(4, 1, 6)), (LeNet5().eval(), torch.randn(3, 1, 28, 28))):
        for state in ({}, {"draws": [5, 2]}, {"rows": list(range(7, 7 + len(x)))}):
            straight.clear()
            for ours, hooked in zip(
                outputs(model, x, noise, **state), outputs(through_hooks(model), x, noise, **state), strict=True
            ):
                assert_same_bits(ours, hooked)
            assert len(straight) >= len(list(model.children()))  # of the second call


def test_silent_sites_and_calls_that_come_again(straight: list[str]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()
            self.flat, self.last = nn.Flatten(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.flat(self.act(self.act(x) + 1)))

    model = Twice().eval()
    for where in (None, "act:tanh#1", "last:*", "input"):
        for ours, hooked in zip(
            outputs(model, X, NOISE, where), outputs(through_hooks(model), X, NOISE, where), strict=True
        ):
            assert_same_bits(ours, hooked)
    assert {"Tanh", "Flatten", "Linear"} <= set(straight)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_results_are_tensors_like_others(context: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Linear(6, 5)).eval()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1), context():
        y, plain = (model(X), model(X))[1], torch.nn.functional.linear(X, model[0].weight)
        assert (sys.getrefcount(y), y._use_count()) == (sys.getrefcount(plain), plain._use_count())
        assert y.is_inference() == plain.is_inference() and not y.requires_grad
    if context is torch.no_grad:
        assert y._version == 0 and (y * torch.ones(5, requires_grad=True)).sum().backward() is None


def test_an_input_that_comes_back_is_not_written_to() -> None:
    model = nn.Sequential(nn.Softplus(), nn.Hardtanh()).eval()
    x = X.clone()
    outputs(model, x)
    assert torch.equal(x, X)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


class Watching(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_modes_see_every_operator(straight: list[str]) -> None:
    model = layers()
    expected = outputs(model, X)[1]
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED), torch.no_grad():
        model(X)
        straight.clear()
        with Seen() as seen:
            assert_same_bits(model(X), expected)
        assert [op.split(".")[1] for op in seen.ops if "noisykernels" in op].count("linear") == 2 and not straight
        with Watching():
            assert_same_bits(model(X), expected)
        assert not straight


def test_autocast_lowers_the_operands() -> None:
    model = layers()
    hooked = through_hooks(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = outputs(model, X)[1], outputs(hooked, X)[1]
    assert_same_bits(a, b)
    linear = nn.Sequential(nn.Linear(6, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert outputs(linear, X)[1].dtype == torch.bfloat16


@pytest.mark.parametrize("what", ["double", "half", "transposed", "strided", "negative", "empty", "weight", "subclass"])
def test_what_is_not_plain(what: str) -> None:
    model, x = layers(), X
    if what in ("double", "half"):
        dtype = torch.float64 if what == "double" else torch.bfloat16
        model, x = model.to(dtype), X.to(dtype)
    elif what == "transposed":
        x = X.t().contiguous().t()
    elif what == "strided":
        x = torch.cat([X, X], 1)[:, ::2]
    elif what == "negative":
        x = torch._neg_view(X)
    elif what == "empty":
        x = X[:0]
    elif what == "weight":
        model[0].weight = nn.Parameter(model[0].weight.t().contiguous().t())
        model[3].weight = nn.Parameter(torch._neg_view(model[3].weight.detach()))
    else:

        class Own(Tensor):
            pass

        x = X.as_subclass(Own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for noise in (NOISE, None):
            where = None if noise is None else "0:*"
            for ours, hooked in zip(
                outputs(model, x, noise, where), outputs(through_hooks(model), x, noise, where), strict=True
            ):
                assert type(ours) is type(hooked)
                assert_same_bits(ours, hooked)
            if noise is not None and what != "empty":
                assert not torch.equal(ours, model(x))


def test_transforms_and_gradients() -> None:
    model = layers()
    hooked = through_hooks(model)
    stacked = {k: torch.stack([p.detach(), 2 * p.detach()]) for k, p in model.named_parameters()}

    def values(model: nn.Module) -> list[Tensor]:
        with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
            model(X)
            each = lambda p: torch.func.functional_call(model, p, (X,))  # noqa: E731
            with torch.no_grad():
                mapped = torch.func.vmap(each)(stacked)
                over_data = torch.func.vmap(model)(torch.stack([X, 2 * X]))
                function = torch.func.functionalize(model)(X)
            slope = torch.func.grad(lambda x: model(x).square().sum())(X)
            x = X.clone().requires_grad_()
            (by_autograd,) = torch.autograd.grad(model(x).square().sum(), x)
            with torch.no_grad():  # on, inside
                inner = torch.enable_grad()(lambda: model(x))()
            return [mapped, over_data, function, slope, by_autograd, inner.detach()]

    ours, others = values(model), values(hooked)
    for a, b in zip(ours, others, strict=True):
        assert_same_bits(a, b)
    assert_same_bits(ours[0][0], outputs(model, X)[1])


@pytest.mark.filterwarnings("ignore")  # torch's, about traces
def test_traces_hold_the_noise() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).eval()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED), torch.no_grad():
        expected = model(X)
        traced = torch.jit.trace(model, X, check_trace=False)
        assert "noisykernels" in str(traced.inlined_graph)
        assert_same_bits(traced(X), expected)
