"""Weights that devices hold are made in panels: the bits of the whole, and a small part of the layer's memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import noisykernels as nk
from noisykernels.hardware import ADC, PCM, DifferentialPair, panels

SHARE = 1 / 4  # of the layer, at most

HOLD: dict[str, list[nk.hardware.Device]] = {
    "pcm": [PCM(3600.0)], "restored": [PCM(1e6, compensate=True)], "one device": [PCM(10.0, pair=False)],
    "pcm by channel": [PCM(10.0, over="channel")], "pair": [DifferentialPair(0.1, levels=8)],
    "pair by channel": [DifferentialPair(0.1, over="channel")], "weights": [nk.WeightNoise(add=0.1, relative="layer")],
    "weights by channel": [nk.WeightNoise(add=0.1, relative="channel"), ADC(8, 30.0)],
    "levels of rows": [nk.WeightNoise(mul=torch.linspace(0.1, 0.5, 12)[None, :, None]), ADC(8, 30.0)],
    "in a row": [DifferentialPair(0.1), PCM(10.0, compensate=True), nk.WeightNoise(add=0.1, relative="layer")],
}  # fmt: skip
LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (nk.linear, (3, 5, 7), (12, 7), {}),
    "conv2d": (nk.conv2d, (4, 4, 5, 5), (12, 4, 3, 3), {"padding": 1}),
    "groups": (nk.conv1d, (3, 8, 6), (12, 2, 3), {"groups": 4, "dilation": 2}),
    "depthwise": (nk.conv1d, (3, 12, 6), (12, 1, 3), {"groups": 12}),
    "transposed": (nk.conv_transpose1d, (3, 12, 6), (12, 2, 3), {"groups": 2}),
}  # fmt: skip


def operands(name: str) -> tuple[Any, list[Tensor], dict[str, Any]]:
    op, x, w, how = LAYERS[name]
    torch.manual_seed(2)
    return op, [torch.randn(s, dtype=torch.float64).requires_grad_() for s in (x, w)], how


def found(name: str, hardware: Any) -> list[Tensor]:
    op, (x, w), how = operands(name)
    y = op(x, w, **how, hardware=hardware, seed=3, site=5, draws=[4, 1], shared=name != "conv2d")
    pull = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, (x, w), pull)]


@pytest.mark.parametrize("size", [1, 40, 100])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("hold", HOLD)
def test_panels_are_the_whole(hold: str, layer: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, in panels of some rows, of groups, of parts of groups."""
    if hold == "levels of rows" and layer != "linear":
        return
    whole = found(layer, HOLD[hold])
    monkeypatch.setattr(panels, "LARGE", 0)
    monkeypatch.setattr(panels, "LEAST", size)
    for part, right in zip(found(layer, HOLD[hold]), whole, strict=True):
        torch.testing.assert_close(part, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hold", ["pcm", "restored", "pair", "in a row"])
def test_what_is_held_is_the_same_to_the_bit(hold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(12, 7)
    held = []
    for large in (1 << 30, 0):
        monkeypatch.setattr(panels, "LARGE", large)
        monkeypatch.setattr(panels, "LEAST", 1)
        held.append(nk.linear(torch.eye(7), w, hardware=HOLD[hold], seed=3))
    assert torch.equal(*held)


def test_gradients_of_gradients_and_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    op, (x, w), how = operands("conv2d")

    def run(x: Tensor, w: Tensor) -> Tensor:
        y: Tensor = op(x, w, **how, hardware=[PCM(10.0)], seed=3)
        return y.square().sum()

    def second() -> Tensor:
        (grad,) = torch.autograd.grad(run(x, w), w, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    right, tangents = second(), torch.func.grad(run, 1)(x, w)
    monkeypatch.setattr(panels, "LARGE", 0)
    torch.testing.assert_close(second(), right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.func.grad(run, 1)(x, w), tangents)


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once while something runs, beside what there was."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del seen, events, event
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the process keeps all that the profiler held, a gigabyte each time
    return most


@pytest.mark.parametrize("hold", ["weights", "pair", "pcm", "restored", "weights by channel"])
def test_memory_beside_the_layer(hold: str) -> None:
    """For values, and for gradients beside the weight's gradient itself."""
    x, w = torch.randn(4, 1024), torch.randn(2048, 1024, requires_grad=True)
    layer = w.nbytes

    def values() -> None:
        with torch.no_grad():
            nk.linear(x, w, hardware=HOLD[hold], seed=1)

    def gradients() -> None:
        nk.linear(x, w, hardware=HOLD[hold], seed=1).sum().backward()

    values()
    assert peak(values) < SHARE * layer
    assert peak(gradients) - layer < SHARE * layer
    assert w.grad is not None


def test_memory_in_an_injected_model() -> None:
    """At its first forward too, at which what parameters are used for is looked at."""
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False))
    x, weight = torch.randn(4, 1024), model[0].weight
    with nk.inject(model, None, hardware=HOLD["pcm"]), nk.noise_state(model, seed=1), torch.no_grad():
        assert peak(lambda: model(x)) < SHARE * weight.nbytes


def test_arrays_stored_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs along the rows, as in `x @ w`: blocks of rows are added up."""
    weight = torch.nn.Parameter(torch.randn(9, 12))

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    x, results, seconds = torch.randn(3, 9), [], []
    for large in (1 << 30, 0):
        monkeypatch.setattr(panels, "LARGE", large)
        monkeypatch.setattr(panels, "LEAST", 1)
        for over in ("layer", "channel"):
            model = Product()
            with nk.inject(model, None, hardware=[PCM(10.0, over=over)]), nk.noise_state(model, seed=1):
                results.append(model(x))
                (first,) = torch.autograd.grad(model(x).sin().sum(), weight, create_graph=True)
                seconds.append(torch.autograd.grad(first.square().sum(), weight)[0])
    torch.testing.assert_close(seconds[2:], seconds[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[2:], results[:2])
    assert not torch.equal(results[0], results[1])


class Stuck(nk.hardware.Device):
    """A device of one's own, which looks at all of the weight."""

    operands = ("stuck",)
    of_array = True

    def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
        return torch.where(draw.fixed(weight.shape, "stuck", kind="uniform") < -1.7, weight.mean(), weight)


class Held(torch.nn.Module):
    """A weight that is used in one of several ways."""

    def __init__(self, how: str, weight: Tensor) -> None:
        super().__init__()
        self.how, self.w = how, torch.nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "embedding":
            return torch.nn.functional.embedding(torch.arange(len(x)), self.w)
        if self.how == "einsum":  # groups, inputs and features of each
            return torch.einsum("bgi,gio->bgo", x.unflatten(1, (2, -1)), self.w.unflatten(0, (2, -1)))
        return x @ self.w if self.how == "product" else torch.nn.functional.linear(x, self.w)


class Steps(torch.nn.Module):
    """A recurrent layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(size, size, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x.unsqueeze(1))[0]
        return out


WHOLE: dict[str, tuple[Callable[[int], torch.nn.Module], list[nk.hardware.Device]]] = {
    "cells": (lambda k: Held("product", torch.randn(k, k)), [PCM(10.0, compensate=True)]),
    "by channel": (lambda k: Held("product", torch.randn(k, k)), [PCM(10.0, over="channel", compensate=True)]),
    "pair": (lambda k: Held("product", torch.randn(k, k)), [DifferentialPair(0.1, over="channel", levels=8)]),
    "noise": (lambda k: Held("product", torch.randn(k, k)), [nk.WeightNoise(add=0.1, relative="channel"), ADC(8, 9.0)]),
    "serial": (lambda k: Held("product", torch.randn(k, k)), [nk.WeightNoise(add=0.1), nk.Serial()]),
    "embedding": (lambda k: Held("embedding", torch.randn(k, k)), [PCM(10.0, over="channel")]),
    "groups": (lambda k: Held("einsum", torch.randn(k, k)), [PCM(10.0, over="channel")]),
    "recurrent": (Steps, [PCM(10.0, over="channel")]), "products": (Steps, [PCM(10.0), nk.MacNoise(0.1)]),
    "of one's own": (lambda k: Held("linear", torch.randn(k, k)), [PCM(10.0), Stuck(), nk.WeightNoise(add=0.1)]),
}  # fmt: skip


def whole(kind: str, size: int) -> tuple[torch.nn.Module, Tensor]:
    """A model whose weights are held whole, injected, and an input."""
    torch.manual_seed(0)
    make, hardware = WHOLE[kind]
    model, x = make(size), torch.randn(4, size)
    nk.inject(model, None, hardware=hardware, example_input=x)
    return model, x


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_held_whole_is_made_in_panels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with its gradients; and it is held once, beside what a panel takes."""
    model, x = whole(kind, 12)
    results: list[list[Tensor]] = []
    for large, least in ((1 << 30, 1), (0, 1), (0, 30)):
        monkeypatch.setattr(panels, "LARGE", large)
        monkeypatch.setattr(panels, "LEAST", least)
        with nk.noise_state(model, seed=1, draws=[2, 5]):
            y = model(x)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), list(model.parameters()))])
    for part in results[1:]:
        for a, b in zip(part, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    in_blocks = kind in ("cells", "by channel", "pair", "noise")  # added up
    assert torch.equal(results[0][0], results[1][0]) or in_blocks
    monkeypatch.undo()
    if kind == "groups":  # few and large rows: a panel is one of them
        return
    model, x = whole(kind, 1024)
    weights = 4 * sum(p.numel() for p in model.parameters())
    with torch.no_grad(), nk.noise_state(model, seed=1):
        model(x)
        # What the device itself makes, squares.
        most = 0 if in_blocks else {"of one's own": 3, "products": 1.5}.get(kind, 1)
        assert peak(lambda: model(x)) <= (most + SHARE) * weights
    if in_blocks:
        with nk.noise_state(model, seed=1):
            assert peak(lambda: model(x).sum().backward()) - weights <= SHARE * weights
