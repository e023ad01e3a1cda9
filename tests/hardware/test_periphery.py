"""Converters and columns: against their formulas in numpy, codes by hand, gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from device_arrays import FEATURES, OPS, SEED, SITE, eps, every_op, weights

import noisykernels as nk
from noisykernels.hardware.contraction import Contraction
from noisykernels.noise.arguments import Key

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------- converters

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        # 3 bits signed, limit 3: step 1, codes -4 ... 3; ties to even
        ({"bits": 3, "limit": 3.0}, [(0.4, 0), (0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.4, 3)]),
        ({"bits": 3, "limit": 3.0}, [(9.0, 3), (-4.2, -4), (-9.0, -4), (INF, 3), (-INF, -4), (NAN, NAN)]),
        ({"bits": 3, "limit": 3.0, "rounding": "floor"}, [(0.9, 0), (-0.1, -1), (3.9, 3), (-3.1, -4), (-7.0, -4)]),
        # 2 bits unsigned, limit 1.5: step 0.5, codes 0 ... 3
        ({"bits": 2, "limit": 1.5, "signed": False}, [(-1.0, 0), (0.2, 0), (0.3, 0.5), (1.4, 1.5), (5.0, 1.5)]),
        ({"bits": 1, "limit": 2.0, "signed": False}, [(0.9, 0), (1.1, 2), (-3.0, 0), (4.0, 2)]),
        # the limit of a row: its largest magnitude
        ({"bits": 2, "limit": "row"}, [(-6.0, -6), (2.0, 0), (4.0, 6), (0.0, 0)]),
        ({"bits": 3, "limit": "row"}, [(0.0, 0), (0.0, 0)]),
    ],
)
def test_codes_by_hand(options: dict[str, Any], pairs: list[tuple[float, float]]) -> None:
    x = torch.tensor([[value for value, _ in pairs]])
    expected = torch.tensor([[float(code) for _, code in pairs]])
    one = nk.hardware.Draw(Contraction("linear"), Key(torch.tensor(0), None, None, 0, 0), torch.device("cpu"))
    for found in (nk.hardware.DAC(**options).input(x, one), nk.hardware.ADC(**options).output(x, one)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_code_is_a_multiple_of_the_step_to_the_bit() -> None:
    """What makes the straight-through gradient leaves no rounding behind."""
    x = torch.randn(100, 50)
    for bits, limit, rounding in ((8, 1.7, "nearest"), (5, 0.3, "floor"), (12, 2.1, "floor")):
        y = nk.linear(x, torch.eye(50), hardware=[nk.hardware.DAC(bits, limit, rounding=rounding)])
        step = torch.tensor(limit) / (2 ** (bits - 1) - 1)
        assert torch.equal((y / step).round() * step, y) and len(y.unique()) > 10


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_gradient_of_converters_by_hand(rounding: str) -> None:
    """1 from the smallest code to the largest, both included, and 0 beyond; limits take part in none."""
    x = torch.tensor([[-9.0, -4.1, -4.0, -3.9, 0.3, 0.0, 2.9, 3.0, 3.1, 9.0]], requires_grad=True)
    inside = torch.tensor([[0.0, 0, 1, 1, 1, 1, 1, 1, 0, 0]])
    weight = torch.diag(torch.arange(1.0, 11)).requires_grad_()
    y = nk.linear(x, weight, hardware=[nk.hardware.DAC(3, 3.0, rounding=rounding)])
    grad_x, grad_w = torch.autograd.grad(y.sum(), (x, weight))
    assert torch.equal(grad_x, inside * torch.arange(1.0, 11))
    codes = nk.linear(x, torch.eye(10), hardware=[nk.hardware.DAC(3, 3.0, rounding=rounding)])
    assert torch.equal(grad_w, codes.expand(10, 10))  # of the product: with the codes
    y = nk.linear(x, torch.eye(10), hardware=[nk.hardware.ADC(3, 3.0, rounding=rounding)])
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, inside)
    y = nk.linear(x, torch.eye(10), hardware=[nk.hardware.ADC(3, "row", rounding=rounding)])
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


@every_op
def test_limits_of_channels(op: str) -> None:
    """Of input channels for a DAC, of output channels for an ADC; numbers as they come alone."""
    function, x_shape, _, options = OPS[op]
    x, weight = torch.randint(-9, 10, x_shape).float(), torch.randint(-3, 4, OPS[op][2]).float()
    clean = function(x, weight, hardware=[nk.hardware.Device()], **options)
    for kind, value in ((nk.hardware.DAC, x), (nk.hardware.ADC, clean)):
        limits = torch.tensor([3.5, 7.0, 14.0, 1.75]).repeat(5)[: value.shape[1]]
        expected = torch.empty_like(value)
        for n, limit in enumerate(limits):
            expected[:, n] = (value[:, n] / (limit / 7)).round().clamp(-8, 7) * (limit / 7)
        expected = (
            function(expected, weight, hardware=[nk.hardware.Device()], **options)
            if kind is nk.hardware.DAC
            else expected
        )
        assert torch.equal(function(x, weight, hardware=[kind(4, limits)], **options), expected)
        with pytest.raises(ValueError, match=f"{kind.__name__}: limit must hold one value for each of"):
            function(x, weight, hardware=[kind(4, limits[1:])], **options)


def test_channels_of_a_linear_layer_are_last() -> None:
    x = torch.randint(-9, 10, (2, 3, 4)).float()
    y = nk.linear(
        x, torch.eye(4), hardware=[nk.hardware.DAC(4, torch.tensor([7.0, 7, 7, 3.5])), nk.hardware.ADC(4, "row")]
    )
    expected = x.round().clamp(-8, 7)
    expected[..., 3] = (x[..., 3] * 2).clamp(-8, 7) / 2
    limit = expected.abs().amax((1, 2), keepdim=True) / 7  # of all positions of the row
    assert torch.equal(y, (expected / limit).round() * limit)


def test_brainscales_codes_to_the_bit() -> None:
    """Five-bit inputs, weights of six bits and a sign, a gain, rounding down to signed eight bits; in whole numbers."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 32, (20, 128), generator=generator)
    weight = torch.randint(-63, 64, (30, 128), generator=generator)
    hardware = [nk.hardware.DAC(5, 31.0, signed=False), nk.hardware.ADC(8, 127.0, rounding="floor")]
    y = nk.linear(x + 0.25, weight / 128, hardware=hardware)
    expected = ((x @ weight.T) // 128).clamp(-128, 127)
    assert (expected == -128).any() and (expected == 127).any() and torch.equal(y.long(), expected)


# ------------------------------------------------------------------------------------------- columns, order


@every_op
def test_columns(op: str) -> None:
    """One number for each output channel and chip, at all rows and positions; in list order, the bias last."""
    function, x_shape, _, options = OPS[op]
    x, weight = torch.randn(x_shape), weights(op)
    clean = function(x, weight, hardware=[nk.hardware.Device()], **options)
    bias = torch.arange(float(FEATURES))
    wide = (-1, *[1] * (x.dim() - 2))
    for draw in (0, 7):
        gain = 1 + 0.5 * torch.from_numpy(eps((FEATURES,), "column_gain", draw)).float().view(wide)
        offset = 2 * torch.from_numpy(eps((FEATURES,), "column_offset", draw)).float().view(wide)
        devices = [nk.hardware.ColumnGain(0.5), nk.hardware.ColumnOffset(2.0)]
        for hardware, expected in ((devices, clean * gain + offset), (devices[::-1], (clean + offset) * gain)):
            y = function(x, weight, bias, hardware=hardware, seed=SEED, site=SITE, draws=[draw], **options)
            torch.testing.assert_close(y, expected + bias.view(wide))
    assert not np.array_equal(eps((FEATURES,), "column_gain"), eps((FEATURES,), "column_offset"))


def test_a_list_is_applied_in_order() -> None:
    """Inputs, then weights, the contraction, outputs, the bias after all."""
    x, w, bias = torch.tensor([[2.6]]), torch.tensor([[10.0]]), torch.tensor([0.25])
    hardware = [
        nk.hardware.DAC(4, 7.0),
        nk.hardware.DifferentialPair(0.0),
        nk.hardware.ADC(8, 127.0),
        nk.hardware.ADC(3, 3.0),
    ]
    assert nk.linear(x, w, bias, hardware=hardware).item() == 3.25  # 3 * 10 -> 30 -> 3
    assert nk.linear(x, w, bias, hardware=[nk.hardware.DAC(4, 7.0), nk.hardware.DAC(2, 1.0)]).item() == 10.25  # 3 -> 1
