"""Whole studies against the obvious loop of plain torch, written well: tensors in memory, batches of 1,000 rows,
noise in forward hooks, `inference_mode`. The loop is timed on three (level, draw) cells of each site, interleaved
with ours in three rounds, and multiplied: its time does not depend on the level or the draw.

What a grid costs at least, for LeNet-5-BN and each row, level and draw (multiply-adds; values written): sites 0
to 3 need the second convolution (154k; 864 + 256) and the dense layers (42k; 214), sites 4 to 7 the dense layers
and a pooling of 1,024 values, sites 8 to 15 parts of the dense layers: 0.98 M multiply-adds for all 16, against
16 x 0.37 M of the loop, which draws 33k normals beside them, at about 13 cycles each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine import evaluator
from noisykernels.datasets import load
from noisykernels.training import train
from noisykernels.zoo import MLP, LeNet5, trained

BATCH = 1000
TIMED = 2000  # rows on which a cell of the loop is timed; its time is proportional to them


class SmallVGG(nn.Module):
    """Six 3x3 convolutions on 32 x 32 pixels, two for each size."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for width in (32, 64, 128):
            for _ in range(2):
                layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU()]
                last = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, last: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(last, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.skip = nn.ReLU(inplace=True), nn.Sequential()
        if (last, stride) != (width, 1):
            self.skip = nn.Sequential(nn.Conv2d(last, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + self.skip(x))


class ResNet18(nn.Module):
    """As for CIFAR: no pooling in front."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        shape = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
        self.blocks = nn.Sequential(*(Block(last * width, wide * width, stride) for last, wide, stride in shape))
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """A small transformer encoder: two layers of width 64 on 16 tokens."""

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(features, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


def calibrated(model: nn.Module, shape: tuple[int, ...], rows: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Random weights, norms that fit them, and labels that the model gets right: a grid costs what it costs trained."""
    torch.manual_seed(0)
    x = torch.rand(rows, *shape)
    with torch.no_grad():
        model.train()
        for batch in x[:2000].split(500):
            model(batch)
        model.eval()
        y = torch.cat([model(batch).argmax(1) for batch in x.split(BATCH)])
    return model, (x, y)


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {  # the two usual ones
    "add": (
        lambda v: v + torch.normal(0.0, 0.1, v.shape),
        lambda v: v + 0.1 * torch.randn_like(v),
    ),
    "mul": (
        lambda v: v * torch.normal(1.0, 0.1, v.shape),
        lambda v: v * (1 + 0.1 * torch.randn_like(v)),
    ),
    "mixed": (
        lambda v: v * torch.normal(1.0, 0.1, v.shape) + torch.normal(0.0, 0.1, v.shape),
        lambda v: v * (1 + 0.1 * torch.randn_like(v)) + 0.1 * torch.randn_like(v),
    ),
}


def trained_lenet() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """LeNet-5-BN after three epochs on Fashion-MNIST, and the test set."""
    return trained("lenet5-bn", "fashion-mnist", epochs=3).eval(), load("fashion-mnist", "test")


def framed(part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST in a frame of 2 pixels, three times."""
    x, y = load("fashion-mnist", part, limit=limit)
    return nn.functional.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), y


def trained_vgg() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The small VGG after two epochs on 10,000 images of Fashion-MNIST, and the test set: how much a search needs
    depends on how steeply accuracy falls.
    """
    torch.manual_seed(0)
    model = SmallVGG()
    train(model, framed("train", 10_000), epochs=2, seed=0)
    return model.eval(), framed("test", None)


def plain_cell(
    model: nn.Module, data: tuple[Tensor, Tensor], module: nn.Module | None, noise: str,
    clock: Callable[[], float] = time.perf_counter, rows: int = TIMED,
) -> float:  # fmt: skip
    """Seconds of one (site, level, draw) of plain torch: the faster of the two usual ways to write the noise."""
    x, y = (part[:rows] for part in data)
    best = float("inf")
    for noisy in WAYS[noise]:
        hook = module.register_forward_hook(lambda _m, _i, out, f=noisy: f(out)) if module is not None else None
        start = clock()
        hits = 0
        for xb, yb in zip(x.split(BATCH), y.split(BATCH), strict=True):
            hits += int((model(noisy(xb) if module is None else xb).argmax(1) == yb).sum())
        best = min(best, (clock() - start) * len(data[1]) / len(y))
        if hook is not None:
            hook.remove()
    return best


def modules_of_sites(model: nn.Module, data: tuple[Tensor, Tensor]) -> list[nn.Module | None]:
    """The module whose output each site is; None for the input."""
    return [
        None if s.name == "input" else model.get_submodule(s.name.partition(":")[0])
        for s in nk.sites(model, data[0][:2])
    ]


# Sites of the encoder that the loop's hooks can reach: input, dense layers and norms, not what is within attention.
ENCODER = [s.index for s in nk.sites(Encoder(), torch.zeros(2, 16, 32))
           if s.kind in ("input", "linear", "layer_norm") and "self_attn" not in s.name]  # fmt: skip

STUDIES: dict[str, dict[str, Any]] = {
    "LeNet-5-BN, additive grid, 49 levels x 5 draws": dict(
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, 49), draws=5), cells=245, at_least=12
    ),
    "LeNet-5-BN, multiplicative grid, 21 levels x 5 draws": dict(
        walk=dict(noise=nk.Noise(mul=1.0), levels=torch.linspace(0, 2, 21), draws=5), cells=105, at_least=12,
        loop="mul",
    ),
    "LeNet-5-BN, mixed grid, 25 levels x 5 ratios x 5 draws": dict(
        walk=dict(noise=[nk.Noise.amplitude(1.0, r / 4) for r in range(5)], levels=torch.logspace(-3, 3, 25), draws=5),
        cells=625, at_least=12, loop="mixed",
    ),
    "LeNet-5-BN, Fashion-MNIST, additive grid, 49 levels x 5 draws, plateaus settled": dict(
        trained=trained_lenet, cells=245, at_least=40,
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, 49), draws=5, plateaus=0.03),
    ),
    "LeNet-5-BN, last four sites, 49 levels x 5 draws": dict(
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, 49), draws=5, sites=[12, 13, 14, 15]),
        cells=245, at_least=100, some=[12, 13, 14, 15],
    ),
    "LeNet-5-BN, Fashion-MNIST, midpoints within 5 %": dict(
        trained=trained_lenet, walk=dict(noise=nk.Noise(add=1.0)), cells=245, at_least=200
    ),
    "small VGG, additive grid, 20 levels x 10 draws": dict(
        model=(SmallVGG, (3, 32, 32)), rows=100,
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-2, 2, 20), draws=10), cells=200, at_least=4.5,
    ),
    "small VGG, Fashion-MNIST, midpoints within 5 %": dict(
        trained=trained_vgg, model=(SmallVGG, (3, 32, 32)), walk=dict(noise=nk.Noise(add=1.0)), cells=200,
        at_least=150,
    ),
    "MLP 784-64-64-64-10, additive grid, 49 levels x 5 draws": dict(
        model=(lambda: MLP(784, 10), (1, 28, 28)),
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, 49), draws=5), cells=245,
    ),
    "ResNet-18 (CIFAR shapes), additive grid, 20 levels x 2 draws": dict(
        model=(ResNet18, (3, 32, 32)), rows=40,
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-2, 2, 20), draws=2), cells=40, at_least=2.5,
    ),
    "transformer encoder (2 layers of width 64, 16 tokens), additive grid, 20 levels x 5 draws": dict(
        model=(Encoder, (16, 32)), rows=500, some=ENCODER,
        walk=dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-2, 2, 20), draws=5, sites=ENCODER), cells=100,
        at_least=3.5,
    ),
}  # fmt: skip


def smaller(about: dict[str, Any]) -> dict[str, Any]:
    """A study that only shows that it runs: few rows, two levels and one draw, untrained, without a bar."""
    less: dict[str, Any] = {"levels": about["walk"]["levels"][:2], "draws": 1} if "levels" in about["walk"] else {}
    walk = about["walk"] | (less or {"search": nk.Search(rel_ci=0.5, most=2000)})
    kept = {k: v for k, v in about.items() if k not in ("trained", "at_least")}
    cells, rows = 2 if less else about["cells"], min(100, about.get("rows", 10_000) // 10)
    return kept | {"rows": rows, "walk": walk, "cells": cells}


@pytest.mark.parametrize("name", list(STUDIES))
def test_study(name: str, benchmark: Any, record_row: Callable[..., None], small: bool) -> None:
    """Seconds of our study and of the loop's, and their ratio."""
    torch.set_num_threads(1 if small else 2)  # two threads wait for each other where others work
    about = smaller(STUDIES[name]) if small else STUDIES[name]
    if "trained" in about:
        model, data = about["trained"]()
    else:
        build, shape = about.get("model", (lambda: LeNet5(norm=True), (1, 28, 28)))
        model, data = calibrated(build(), shape, about.get("rows", 10_000))
    sites = modules_of_sites(model, data)
    chosen = [sites[i] for i in about.get("some", range(len(sites)))]
    ours, cells = [], []
    with torch.inference_mode():
        kind = about.get("loop", "add")
        plain_cell(model, data, None, kind)
        nk.walk(model, data, **{**about["walk"], "sites": "input", "seed": 0})
        for seed in range(3):
            if seed == 0 or sum(ours) < 10:  # a long study is timed once
                start = time.perf_counter()
                nk.walk(model, data, **about["walk"], seed=seed)
                ours.append(time.perf_counter() - start)
            cells.append([plain_cell(model, data, module, kind) for module in chosen])
    loop = [about["cells"] * sum(row) for row in cells]
    ratios = sorted(a / b for a in loop for b in ours)
    record_row(
        {
            "what": name,
            "base us": 1e6 * statistics.median(loop),
            "ours": statistics.median(ratios),
            "spread": (ratios[0], ratios[-1]),
            "bar": about.get("at_least"),
            "met": None if "at_least" not in about else statistics.median(ratios) >= about["at_least"],
            "our s": statistics.median(ours),
        }
    )
    last = {**about["walk"], "sites": len(sites) - 1, "seed": 0}
    benchmark.pedantic(nk.walk, args=(model, data), kwargs=last, rounds=1)


def test_check(benchmark: Any, record_row: Callable[..., None]) -> None:
    """Share of a grid of the published size (16 sites x 30 levels x 10 draws x 10,000 rows) that holding the engines
    against each other takes before it: our seconds are those of 1,000 rows and 2 draws, interleaved, 50 times."""
    torch.set_num_threads(2)
    model, data = calibrated(LeNet5(norm=True), (1, 28, 28), 1000)
    took: list[float] = []
    correct = evaluator.Check.through

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        found = correct(*args)
        took.append(time.perf_counter() - start)
        return found

    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator.Check, "through", timed)
        for seed in range(5):
            start = time.perf_counter()
            nk.walk(model, data, noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, 30), draws=2, seed=seed)
            grid = 50 * (time.perf_counter() - start - took[-1])
            shares.append(100 * took[-1] / max(grid, 15.0))  # of a grid of less than 15 s, 0.3 s are allowed
    record_row(
        {
            "what": "both engines held against each other, % of a published grid",
            "base us": 1e6 * statistics.median(took),
            "ours": statistics.median(shares),
            "spread": (min(shares), max(shares)),
            "bar": 2,
            "met": statistics.median(shares) <= 2,
        }
    )
    last = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=1, sites=15, seed=0)
    benchmark.pedantic(nk.walk, args=(model, data), kwargs=last, rounds=1)
