"""Layers with noise on their output, against the noiseless torch layer and plain torch's noise, in the same rounds.

Overhead law: 1 + n c F / K, with n normals per output, c cycles per normal and core, F the contraction's FMA per
cycle and core, K its inner length. "mixed" draws two normals per output, "fold" one with the same distribution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import noisykernels as nk
from noisykernels.zoo import LeNet5

A, M = 0.1, 0.2
SEED = torch.tensor(1)
NOISES = {
    "add": lambda: nk.Noise(add=A),
    "mixed": lambda: nk.Noise(add=A, mul=M),
    "fold": lambda: nk.Noise(add=A, mul=M, fold=True),
}


def naive(y: torch.Tensor, kind: str, relu: bool = False) -> torch.Tensor:
    """Plain torch's noise, written well: the draw takes its scale and mean along."""
    if kind != "add":
        y = y * torch.normal(1.0, M, y.shape)
    y = y + torch.normal(0.0, A, y.shape)
    return F.relu(y) if relu else y


def naive_like(y: torch.Tensor, kind: str, relu: bool = False) -> torch.Tensor:
    """The other usual way to write it."""
    if kind != "add":
        y = y * (1 + M * torch.randn_like(y))
    y = y + A * torch.randn_like(y)
    return F.relu(y) if relu else y


def plain_ways(clean: Callable[[], torch.Tensor], kind: str, relu: bool, request: Any) -> dict[str, Callable[[], Any]]:
    """Plain torch's contenders; with --compile also the compiled one."""
    ways: dict[str, Callable[[], Any]] = {
        "plain normal": lambda: naive(clean(), kind, relu),
        "plain randn": lambda: naive_like(clean(), kind, relu),
    }
    if request.config.getoption("--compile"):
        compiled = torch.compile(lambda: naive_like(clean(), kind, relu))
        ways["compiled"] = compiled
    return ways


LINEAR_BARS = {128: 1.28, 256: 1.15, 512: 1.08, 1024: 1.08}


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize(
    ("k", "n", "batch"),
    [
        (256, 10, 1),
        (128, 128, 32),
        (512, 512, 1),
        (512, 512, 32),
        (128, 128, 256),
        (256, 256, 256),
        (512, 512, 256),
        (512, 512, 1024),
        (1024, 1024, 256),
    ],
)
def test_linear(contest: Any, request: Any, k: int, n: int, batch: int, kind: str) -> None:
    """nn.Linear's shapes. Mixed noise of two normals has no bar of its own: the bar holds for additive
    and folded noise.
    """
    torch.set_num_threads(2)
    x, w, b, noise = torch.randn(batch, k), torch.randn(n, k), torch.randn(n), NOISES[kind]()
    bar = 1.02 if batch <= 32 else LINEAR_BARS[k]
    contest(
        f"linear {k}->{n} batch {batch}, {kind}",
        ours=lambda: nk.linear(x, w, b, noise=noise, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        bar=bar if kind != "mixed" else None,
        **plain_ways(lambda: F.linear(x, w, b), kind, False, request),
    )


@pytest.mark.parametrize("relative", ["rms", "max", "std"])
@pytest.mark.parametrize(("k", "n", "batch"), [(512, 512, 256), (256, 256, 512)])
def test_levels_relative_to_rows(contest: Any, k: int, n: int, batch: int, relative: str) -> None:
    """Against levels in units of the value, which one operator has."""
    torch.set_num_threads(1)
    x, w, b = torch.randn(batch, k), torch.randn(n, k), torch.randn(n)
    noise, absolute = nk.Noise(add=A, relative=relative), nk.Noise(add=A)
    contest(
        f"linear {k}->{n} batch {batch}, relative to {relative}",
        ours=lambda: nk.linear(x, w, b, noise=noise, seed=SEED),
        baseline=lambda: nk.linear(x, w, b, noise=absolute, seed=SEED),
        bar=1.25 if k == 512 and relative == "rms" else None,
    )


CONVOLUTIONS = {  # input, weight, padding, bar
    "64->64 3x3 @32": ((32, 64, 32, 32), (64, 64, 3, 3), 1, 1.10),
    "LeNet 6->16 5x5": ((256, 6, 12, 12), (16, 6, 5, 5), 0, 1.25),
    "LeNet 1->6 5x5": ((256, 1, 28, 28), (6, 1, 5, 5), 0, 1.45),
    "3->32 3x3 @32": ((32, 3, 32, 32), (32, 3, 3, 3), 1, 2.0),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_convolution(contest: Any, request: Any, name: str, kind: str, layout: str) -> None:
    """Convolution, noise and ReLU against convolution and ReLU."""
    torch.set_num_threads(2)
    shape, weight, padding, bar = CONVOLUTIONS[name]
    x, w, b, noise = torch.randn(shape), torch.randn(weight), torch.randn(weight[0]), NOISES[kind]()
    if layout == "channels_last":
        if kind == "mixed" or shape[1] < 3:
            pytest.skip("channels_last is timed for additive and folded noise on several channels")
        x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)
    contest(
        f"conv {name}, {kind} + ReLU{', NHWC' if layout == 'channels_last' else ''}",
        ours=lambda: nk.conv2d(x, w, b, padding=padding, noise=noise, relu=True, seed=SEED),
        baseline=lambda: F.relu(F.conv2d(x, w, b, padding=padding)),
        bar=bar if kind != "mixed" and layout == "contiguous" else None,
        **plain_ways(lambda: F.conv2d(x, w, b, padding=padding), kind, True, request),
    )


def with_operators(model: LeNet5, noise: nk.Noise, x: torch.Tensor) -> torch.Tensor:
    """LeNet-5 written with our operators, the rectifiers within them."""
    for conv in (model.conv1, model.conv2):
        x = F.max_pool2d(nk.conv2d(x, conv.weight, conv.bias, noise=noise, relu=True, seed=SEED), 2)
    x = x.flatten(1)
    for layer in (model.fc1, model.fc2):
        x = nk.linear(x, layer.weight, layer.bias, noise=noise, relu=True, seed=SEED)
    return nk.linear(x, model.fc3.weight, model.fc3.bias, noise=noise, seed=SEED)


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("where", ["contractions, operators", "contractions, injected", "all sites, injected"])
def test_lenet(contest: Any, kind: str, where: str) -> None:
    """LeNet-5, batch 256, noise after its five contractions (written with operators, or injected into
    the model as it is), or at all twelve sites.
    """
    torch.set_num_threads(2)
    clean, noisy, hooked = (LeNet5().eval() for _ in range(3))
    x, noise = torch.randn(256, 1, 28, 28), NOISES[kind]()
    contractions = where.startswith("contractions")
    ours = lambda: noisy(x)  # noqa: E731
    if where.endswith("operators"):
        ours = lambda: with_operators(noisy, noise, x)  # noqa: E731
    else:
        nk.inject(noisy, noise, where=["conv*", "fc*"] if contractions else None, example_input=x[:2])
    for module in hooked.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _module, _input, y: naive(y, kind))
    plain = {"plain normal": lambda: hooked(x)} if contractions else {}
    with nk.noise_state(noisy, seed=SEED) if not where.endswith("operators") else contextlib.nullcontext():
        contest(
            f"LeNet-5 batch 256, {kind}, {where}",
            ours=ours,
            baseline=lambda: clean(x),
            bar=1.15 if kind != "mixed" and contractions else None,
            **plain,
        )
