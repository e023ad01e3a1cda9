"""Devices that hold weights: pairs of conductances and phase-change memory against their formulas in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from device_arrays import SIGMAS, close, eps, every_op, held, largest, weights

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------- pairs


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
@pytest.mark.parametrize("options", [{}, {"levels": 10}, {"levels": 10, "rounding": "nearest"}, {"clip": False}])
def test_a_pair_is_the_published_formula(op: str, over: str, options: dict[str, Any]) -> None:
    """In conductances, as published. Float64: nothing is rounded to another step."""
    weight, g_max, sigma = weights(op, torch.float64), 0.1, 0.004
    found = held(nk.hardware.DifferentialPair(sigma, g_max=g_max, over=over, **options), weight, op, draw=2)
    w, c = weight.numpy(), g_max / largest(op, weight, over)
    g = c * w
    if "levels" in options:
        step = g_max / options["levels"]
        g = (np.rint if "rounding" in options else np.floor)(np.round(g / step, 12)) * step
    plus = np.where(g > 0, g, 0) + sigma * eps(w.shape, "g_plus", 2)
    minus = np.where(g < 0, -g, 0) + sigma * eps(w.shape, "g_minus", 2)
    if options.get("clip", True):
        assert (plus < 0).any() and (minus < 0).any()
        plus, minus = plus.clip(0), minus.clip(0)
    close(found, (plus - minus) / c, 8.0, 16)


def test_noise_of_a_pair_without_clipping() -> None:
    """std = sqrt(2) sigma / G_max max|W|; with clipping, a weight of zero has half the mean square."""
    weight = torch.zeros(400, 500)
    weight[0, 0] = -3.0
    noise = (held(nk.hardware.DifferentialPair(0.02, g_max=0.5, clip=False), weight) - weight).double()
    n, std = noise.numel(), math.sqrt(2) * 0.02 / 0.5 * 3
    assert float(noise.std()) == pytest.approx(std, rel=SIGMAS / math.sqrt(2 * n))
    assert abs(float(noise.mean())) < SIGMAS * std / math.sqrt(n)
    clipped = held(nk.hardware.DifferentialPair(0.02, g_max=0.5), weight).double().flatten()[1:] / (0.02 / 0.5 * 3)
    # max(0, a) - max(0, b): mean square 1/2 + 1/2 - 2 / (2 pi), fourth moment below 3 + 3 + 6 / 4
    assert float(clipped.square().mean()) == pytest.approx(1 - 1 / math.pi, abs=SIGMAS * math.sqrt(7.5 / n))


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
def test_without_noise_the_weight_comes_back(op: str, over: str) -> None:
    weight = weights(op)
    for device in (
        nk.hardware.DifferentialPair(0.0, g_max=25.0, over=over),
        nk.hardware.DifferentialPair(0.0, over=over, clip=False),
        nk.hardware.PCM(1e7, programming=0.0, drift=0.0, read=0.0, over=over),
        nk.hardware.PCM(programming=0.0, read=0.0, over=over, compensate=True),
        nk.hardware.PCM(programming=0.0, read=0.0, over=over, compensate=True, pair=False),
    ):
        assert torch.equal(held(device, weight, op), weight), device
    for device in (
        nk.hardware.DifferentialPair(0.1, levels=4, over=over),
        nk.hardware.PCM(100.0, over=over, compensate=True),
        nk.hardware.PCM(100.0, over=over, compensate=True, pair=False),
    ):
        assert torch.equal(held(device, torch.zeros_like(weight), op), torch.zeros_like(weight)), device


def test_steps_by_hand() -> None:
    w = torch.tensor([[1.0, 0.99, 0.3, 0.2, 0.0, -0.2, -0.3, -0.99, -1.0]])
    down = [1.0, 0.75, 0.25, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert held(nk.hardware.DifferentialPair(0.0, levels=4), w).tolist() == [down]
    nearest = [1.0, 1.0, 0.25, 0.25, 0.0, -0.25, -0.25, -1.0, -1.0]
    assert held(nk.hardware.DifferentialPair(0.0, levels=4, rounding="nearest"), w).tolist() == [nearest]
    ends = torch.tensor([[0.7, -0.7, 0.0]])
    for levels in (3, 10, 59, 63, 117, 127):  # the largest weight is on the grid whatever the number of steps
        assert torch.allclose(held(nk.hardware.DifferentialPair(0.0, levels=levels), ends), ends, rtol=2.0**-23, atol=0)


def test_gradient_of_a_pair_by_hand() -> None:
    """1, straight through the steps; 0 where the device that holds the weight is clipped."""
    w = weights("linear").requires_grad_()
    for levels in (None, 5):
        device = nk.hardware.DifferentialPair(0.3, levels=levels)
        (grad,) = torch.autograd.grad(held(device, w).sum(), w)
        size = largest("linear", w, "layer")
        value = w.detach().double().numpy()
        value = value if levels is None else np.floor(value / size * levels) / levels * size
        plus, minus = (0.3 * size * eps(w.shape, name) for name in ("g_plus", "g_minus"))
        lives = np.where(value >= 0, value + plus >= 0, -value + minus >= 0)
        assert 0 < lives.sum() < lives.size
        np.testing.assert_array_equal(grad.numpy(), lives)
    (grad,) = torch.autograd.grad(held(nk.hardware.DifferentialPair(0.0), w).sum(), w)
    assert torch.equal(grad, torch.ones_like(w))


# ------------------------------------------------------------------------------------------- phase-change memory


def pcm(target: np.ndarray, t: float, e: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Conductances of devices in microsiemens, as programmed and as read; aihwkit's formulas, written anew."""
    g = target / 25
    made = np.maximum(0, target + (0.26348 + 1.9650 * g - 1.1731 * g**2) * e[0])
    log_g = np.log(np.maximum(g, 1e-30))
    mu = np.clip(-0.0155 * log_g + 0.0244, 0.049, 0.1)
    nu = np.abs(mu + np.clip(-0.0125 * log_g - 0.0059, 0.008, 0.045) * e[1])
    drifted = made * ((t + 20) / 20) ** -nu
    q = np.minimum(0.0088 / np.maximum(made / 25, 1e-30) ** 0.65, 0.2)
    return made, np.maximum(0, drifted * (1 + q * np.sqrt(np.log((t + 20 + 250e-9) / 500e-9)) * e[2]))


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("time", "compensate"), [(0.0, False), (3600.0, False), (3.15e7, True)])
def test_pcm_is_the_published_model(op: str, over: str, time: float, compensate: bool, pair: bool) -> None:
    for dtype, roundings in ((torch.float64, 1000), (torch.float32, 100)):
        weight = weights(op, dtype)
        w, size = weight.double().numpy(), largest(op, weight, over)
        signs = (1, -1) if pair else (np.sign(w),)
        shape = (len(w), len(signs), *w.shape[1:])  # the devices of a row: first all that hold positive weights
        e = [eps(shape, stage, 1).transpose(1, 0, *range(2, len(shape))) for stage in ("programming", "drift", "read")]
        devices = [pcm((w * s).clip(0) / size * 25, time, [each[k] for each in e]) for k, s in enumerate(signs)]
        read = [found for _, found in devices]
        if compensate:
            live = np.ones_like(w, bool) if pair else w != 0
            factor = sum(made[live].sum() for made, _ in devices) / sum(found[live].sum() for found in read)
            read = [found * factor for found in read]
        right = sum(s * found for s, found in zip(signs, read, strict=True)) * size / 25
        found = held(nk.hardware.PCM(time, over=over, compensate=compensate, pair=pair), weight, op, draw=1)
        # the largest values are about 4; with 1e-7 a logarithm's argument, and Q, are bounded a little earlier
        close(found, right, 4.0, roundings)


@pytest.mark.parametrize("time", [1.0, 3600.0, 3.15e7])
def test_weights_in_pcm_are_aihwkits(time: float) -> None:
    """Mean and deviation of each weight, of `PCMLikeNoiseModel.apply_noise` with a `SinglePairConductanceConverter`:
    its formulas, with normal numbers of their own."""
    n, rng = 40_000, np.random.default_rng(7)
    levels = torch.tensor([0.0, 0.02, 0.25, -0.5, -1.0])
    found = held(nk.hardware.PCM(time), levels[:, None].expand(-1, n).contiguous()).double().numpy()
    for w, values in zip(levels.tolist(), found, strict=True):
        plus, minus = (pcm(np.full(n, max(0, s * w) * 25), time, rng.normal(size=(3, n)))[1] / 25 for s in (1, -1))
        right = plus - minus
        assert values.mean() == pytest.approx(right.mean(), abs=SIGMAS * right.std() * math.sqrt(2 / n)), w
        tails = ((right - right.mean()) ** 4).mean() / right.var() ** 2
        assert values.std() == pytest.approx(right.std(), rel=SIGMAS * math.sqrt((tails - 1) / (2 * n))), w
        assert right.std() > 0.003  # a weight of zero, too


def test_moments_of_pcm() -> None:
    """Each stage alone, devices at half the largest conductance."""
    n = 100_000
    weight = torch.full((100, n // 100), -0.5)
    weight[0, 0] = 1.0
    off = {"programming": 0.0, "drift": 0.0, "read": 0.0}

    def values(time: float, **on: float) -> np.ndarray:
        return -held(nk.hardware.PCM(time, **(off | on), pair=False), weight).double().flatten()[1:].numpy()

    def check(found: np.ndarray, mean: float, std: float) -> None:
        assert found.mean() == pytest.approx(mean, abs=SIGMAS * std / math.sqrt(n))
        assert found.std() == pytest.approx(std, rel=SIGMAS / math.sqrt(2 * n))

    check(values(0.0, programming=1.0), 0.5, (0.26348 + 1.9650 / 2 - 1.1731 / 4) / 25)
    check(values(0.0, programming=0.5), 0.5, (0.26348 + 1.9650 / 2 - 1.1731 / 4) / 50)
    # -ln of what is left: nu ln((t + 20) / 20), nu of mean 0.049 and deviation 0.008: both at their bounds here
    check(-np.log(values(180.0, drift=1.0) / 0.5), 0.049 * math.log(10), 0.008 * math.log(10))
    q = 0.0088 / 0.5**0.65
    check(values(1000.0, read=1.0), 0.5, 0.5 * q * math.sqrt(math.log(1020.00000025 / 500e-9)))
    assert (values(0.0, drift=1.0) == 0.5).all()  # nothing has drifted yet


def test_a_chip_ages() -> None:
    """At a later time it is the same chip: what was programmed and the coefficients of the drift are the same."""
    weight = weights("linear")
    one: Any = dict(pair=False)
    fresh, hour, year = (held(nk.hardware.PCM(t, read=0.0, **one), weight).double() for t in (0.0, 3600.0, 3.15e7))
    some = fresh != 0
    slope = (hour / fresh)[some].log() / math.log(3620 / 20)
    assert torch.allclose((year / fresh)[some].log(), slope * math.log(3.150002e7 / 20), atol=1e-5)  # float32
    assert (slope <= 0).all() and len(slope.unique()) > 50
    restored = held(nk.hardware.PCM(3.15e7, compensate=True, **one), weight)
    assert restored.abs().sum() == pytest.approx(float(fresh.abs().sum()), rel=1e-6)
    by_channel = held(nk.hardware.PCM(3.15e7, compensate=True, over="channel", **one), weight).double().numpy()
    made = held(nk.hardware.PCM(0.0, read=0.0, over="channel", **one), weight).double().numpy()
    size = largest("linear", weight, "channel")
    assert np.abs(by_channel / size).sum() == pytest.approx(np.abs(made / size).sum(), rel=1e-6)
