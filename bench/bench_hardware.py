"""Noise inside a contraction, against the noiseless torch layer and plain torch's noise, in the same rounds.

Weights: 1 + c F / M for M rows that share them (c cycles per normal, F multiply-adds per cycle, both per core). Noise
of every product, folded: a second product, of the squares. Input: 1 + c F / N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import noisykernels as nk
from noisykernels.datasets import load
from noisykernels.zoo import trained

SEED = torch.tensor(1)
WEIGHT_BARS = {1: 7.0, 32: 1.8, 256: 1.3}


def layer(n: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.set_num_threads(2)
    return torch.randn(batch, n), torch.randn(n, n), torch.randn(n)


@pytest.mark.parametrize("relative", [None, "layer", "channel"])
@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("n", [512, 1024])
def test_weights(contest: Any, n: int, batch: int, relative: str | None) -> None:
    x, w, b = layer(n, batch)
    hardware = [nk.WeightNoise(add=0.1, relative=relative)]
    unit = {None: lambda: 1.0, "layer": lambda: w.abs().max(), "channel": lambda: w.abs().amax(1, keepdim=True)}[
        relative
    ]
    contest(
        f"weights {n}->{n} batch {batch}, {f'relative to {relative}' if relative else 'absolute'}",
        ours=lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        bar=WEIGHT_BARS[batch] if relative is None else None,
        **{
            "plain normal": lambda: F.linear(x, w + unit() * torch.normal(0.0, 0.1, w.shape), b),
            "plain randn": lambda: F.linear(x, w + unit() * 0.1 * torch.randn_like(w), b),
        },
    )


@pytest.mark.parametrize("draws", [8])
def test_weights_of_several_chips(contest: Any, draws: int) -> None:
    """Eight chips on the same rows, against eight noiseless layers."""
    x, w, b = layer(512, 32)
    hardware, ids = [nk.WeightNoise(add=0.1)], torch.arange(draws)
    contest(
        f"weights 512->512 batch 32, {draws} chips at once",
        ours=lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED, draws=ids, shared=True),
        baseline=lambda: [F.linear(x, w, b) for _ in range(draws)],
        **{"plain randn": lambda: [F.linear(x, w + 0.1 * torch.randn_like(w), b) for _ in range(draws)]},
    )


def test_weights_of_a_convolution(contest: Any) -> None:
    torch.set_num_threads(2)
    x, w, b = torch.randn(32, 64, 32, 32), torch.randn(64, 64, 3, 3), torch.randn(64)
    hardware = [nk.WeightNoise(add=0.1, relative="channel")]
    contest(
        "weights, conv 64->64 3x3 @32 batch 32",
        ours=lambda: nk.conv2d(x, w, b, padding=1, hardware=hardware, seed=SEED),
        baseline=lambda: F.conv2d(x, w, b, padding=1),
        **{"plain randn": lambda: F.conv2d(x, w + 0.1 * torch.randn_like(w), b, padding=1)},
    )


CELLS = {
    "pair": nk.hardware.DifferentialPair(0.1), "PCM": nk.hardware.PCM(3600.0),
    "PCM, compensated": nk.hardware.PCM(3600.0, compensate=True),
    "PCM, pair=False": nk.hardware.PCM(3600.0, pair=False),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("n", [512, 1024])
def test_cells(contest: Any, n: int, batch: int) -> None:
    """What holds the weights, one chip: a pair against plain torch's, the others in the same rounds."""
    x, w, b = layer(n, batch)

    def plain() -> torch.Tensor:
        spread = 0.1 * w.abs().max()
        plus = (w.clamp(min=0) + spread * torch.randn_like(w)).clamp(min=0)
        minus = ((-w).clamp(min=0) + spread * torch.randn_like(w)).clamp(min=0)
        return F.linear(x, plus - minus, b)

    pair, *others = CELLS
    contest(
        f"pair {n}->{n} batch {batch}",
        ours=lambda: nk.linear(x, w, b, hardware=[CELLS[pair]], seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        **{"plain pair": plain},
        **{name: lambda name=name: nk.linear(x, w, b, hardware=[CELLS[name]], seed=SEED) for name in others},
    )


def plain_fold(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The exact fold as one writes it in torch."""
    mean, variance = F.linear(x, w, b), F.linear(x * x, w * w)
    return mean + 0.1 * variance.sqrt() * torch.randn_like(mean)


@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("n", [512, 1024])
def test_products(contest: Any, n: int, batch: int) -> None:
    x, w, b = layer(n, batch)
    hardware = [nk.MacNoise(per_product=0.1)]
    squares = x * x, w * w
    contest(
        f"per product, folded, {n}->{n} batch {batch}",
        ours=lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        bar=2.1,
        **{
            "plain fold": lambda: plain_fold(x, w, b),
            "two products": lambda: (F.linear(x, w, b), F.linear(*squares)),  # what no fold can do without
        },
    )


def test_products_one_by_one(contest: Any) -> None:
    """Every product drawn, by our reference and by plain torch, where that is still possible."""
    x, w, b = layer(256, 32)
    folded, explicit = [nk.MacNoise(per_product=0.1)], [nk.MacNoise(per_product=0.1, explicit=True)]
    contest(
        "per product, folded, 256->256 batch 32",
        ours=lambda: nk.linear(x, w, b, hardware=folded, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        bar=2.1,
        **{
            "plain fold": lambda: plain_fold(x, w, b),
            "explicit": lambda: nk.linear(x, w, b, hardware=explicit, seed=SEED),
            "plain explicit": lambda: (x[:, None] * w * (1 + 0.1 * torch.randn(32, 256, 256))).sum(-1) + b,
        },
    )


@pytest.mark.parametrize("form", ["per_step", "read"])
def test_steps_and_readings(contest: Any, form: str) -> None:
    """No product of squares: the deviation is constant, or the length of the row."""
    x, w, b = layer(512, 256)
    hardware = [nk.MacNoise(**{form: 0.1})]
    contest(
        f"{form}, folded, 512->512 batch 256",
        ours=lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
    )


def test_products_of_a_convolution(contest: Any) -> None:
    torch.set_num_threads(2)
    x, w, b = torch.randn(32, 64, 32, 32), torch.randn(64, 64, 3, 3), torch.randn(64)
    hardware = [nk.MacNoise(per_product=0.1)]
    contest(
        "per product, folded, conv 64->64 3x3 @32 batch 32",
        ours=lambda: nk.conv2d(x, w, b, padding=1, hardware=hardware, seed=SEED),
        baseline=lambda: F.conv2d(x, w, b, padding=1),
    )


def test_input(contest: Any) -> None:
    x, w, b = layer(512, 256)
    hardware = [nk.InputNoise(add=0.1)]
    contest(
        "input 512->512 batch 256",
        ours=lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED),
        baseline=lambda: F.linear(x, w, b),
        **{"plain randn": lambda: F.linear(x + 0.1 * torch.randn_like(x), w, b)},
    )


def test_training_step(contest: Any) -> None:
    """Forward and backward, weights and inputs: the weight is drawn twice, and never kept."""
    x, w, b = (t.requires_grad_() for t in layer(512, 256))
    hardware = [nk.WeightNoise(add=0.1)]
    contest(
        "weights 512->512 batch 256, forward and backward",
        ours=lambda: gradients(lambda: nk.linear(x, w, b, hardware=hardware, seed=SEED), (x, w, b)),
        baseline=lambda: gradients(lambda: F.linear(x, w, b), (x, w, b)),
        **{"plain randn": lambda: gradients(lambda: F.linear(x, w + 0.1 * torch.randn_like(w), b), (x, w, b))},
    )


def test_walk(contest: Any) -> None:
    """A grid over the weights of LeNet-5-BN, against the whole model run for each layer, level and chip in plain torch,
    and against our engine that runs the whole model too.
    """
    torch.set_num_threads(2)
    model = trained("lenet5-bn", "fashion-mnist", epochs=3).eval()
    x, y = load("fashion-mnist", "test", limit=1000)
    levels, count = [0.02, 0.05, 0.1, 0.2, 0.5], 8
    noise = nk.WeightNoise(add=1.0, relative="layer")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]

    def walk(engine: str) -> nk.Study:
        return nk.walk(
            model,
            (x, y),
            noise=noise,
            target="weight",
            levels=levels,
            draws=count,
            seed=1,
            compute=nk.Compute(engine=engine),
        )

    def plain() -> list[float]:
        found = []
        for name in names:
            weight = model.get_submodule(name).weight
            for level in levels:
                for _ in range(count):
                    chip = {f"{name}.weight": weight + level * weight.abs().max() * torch.randn_like(weight)}
                    scores = torch.func.functional_call(model, chip, (x,))
                    found.append(float((scores.argmax(1) == y).float().mean()))
        return found

    contest(
        "walk over weights, LeNet-5-BN, 5 levels x 8 chips",
        ours=lambda: walk("auto"),
        baseline=plain,
        rounds=3,
        **{"whole model": lambda: walk("plain")},
    )


def gradients(f: Callable[[], torch.Tensor], operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False), torch.enable_grad():
        y = f()
        return torch.autograd.grad(y, operands, torch.ones_like(y))
