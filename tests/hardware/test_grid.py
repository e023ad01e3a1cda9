"""Rounding to a grid of codes against exact fractions: what is on the grid stays there, the limit has the top code."""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import noisykernels as nk
from noisykernels.hardware.contraction import Contraction
from noisykernels.noise.arguments import Key

DRAW = nk.hardware.Draw(Contraction("linear"), Key(torch.tensor(0), None, None, 0, 0), torch.device("cpu"))
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BITS_OF = {torch.float32: (24, -149), torch.float64: (53, -1074), torch.float16: (11, -24), torch.bfloat16: (8, -133)}
ROUNDINGS = ("nearest", "floor")
every_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))


def rounded(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The number of a type that is nearest to a value, ties to even."""
    if value == 0:
        return value
    digits, finest = BITS_OF[dtype]
    power = value.numerator.bit_length() - value.denominator.bit_length() - 1 - digits
    while abs(value) >= Fraction(2) ** (power + digits):
        power += 1
    unit = Fraction(2) ** max(power, finest)
    return round(value / unit) * unit


def beside(x: Tensor) -> Tensor:
    """Values, and the numbers just below and above each."""
    if x.dtype in (torch.float32, torch.float64):
        return torch.cat([x, torch.nextafter(x, x + math.inf), torch.nextafter(x, x - math.inf)], -1)
    bits = x.contiguous().view(torch.int16)
    found = torch.cat([x, (bits + 1).view(x.dtype), (bits - 1).view(x.dtype)], -1)
    return torch.where(found.isfinite(), found, 0)


def check(x: Tensor, y: Tensor, limit: Tensor, top: int, least: int, rounding: str) -> None:
    """Each y is what the formula makes of x in exact arithmetic, rounded where numbers are."""
    dtype, kept = x.dtype, torch.float64 if x.dtype == torch.float64 else torch.float32
    step = rounded(Fraction(limit.to(kept).item()) / top, kept)
    values = grid(limit, top, least, dtype)
    on_grid = set(values)
    for one, got in zip(x.double().tolist(), y.double().tolist(), strict=True):
        exact = Fraction(one)
        if rounding == "floor":
            expected = values[max(0, bisect.bisect_right(values, exact) - 1)]
        else:
            code = round(rounded(exact / step, kept))
            expected = exact if exact in on_grid else values[min(max(code, least), top) - least]
        assert Fraction(got) == expected, (one, got, float(expected))


def grid(limit: Tensor, top: int, least: int, dtype: torch.dtype) -> list[Fraction]:
    """The values of all codes, as numbers of a type hold them; those of the largest are the limit."""
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    largest = Fraction(limit.to(kept).item())
    step = rounded(largest / top, kept)
    exact = [c // top * largest if abs(c) == top else rounded(c * step, kept) for c in range(least, top + 1)]
    return [rounded(v, dtype) for v in exact]


LIMITS = (1.0, 0.3, 2 / 3, 31.0, 1 / 49)


@every_type
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_converters_are_exact(dtype: torch.dtype, rounding: str) -> None:
    """All codes of few bits, the numbers beside their values, those half-way, and beyond; limits of three kinds."""
    for bits, signed, number in itertools.product((1, 2, 3, 4), (True, False), LIMITS):
        if bits - signed < 1:
            continue
        top = 2 ** (bits - signed) - 1
        least = -top - 1 if signed else 0
        limit = torch.tensor(number, dtype=torch.float64)
        of_row = limit.to(dtype)  # which is a value of the row
        for kind in ("number", "row", "channels") if number == 0.3 else ("row",):
            held = of_row if kind == "row" else limit
            values = grid(held, top, least, dtype)
            some = torch.tensor([float(v) for v in values], dtype=torch.float64)
            x = beside(torch.cat([some, (some[1:] + some[:-1]) / 2, 1.5 * some[[0, -1]]]).to(dtype))
            if kind == "row":
                x = torch.cat([x[x.abs() <= of_row], of_row[None]])
            given: Any = "row" if kind == "row" else limit if kind == "number" else limit.repeat(len(x))
            converter = nk.hardware.DAC(bits, given, signed=signed, rounding=rounding)
            y = converter.input(x[None], DRAW)
            check(x, y[0], held, top, least, rounding)
            assert torch.equal(converter.input(y, DRAW), y)
            assert torch.equal(y, nk.hardware.ADC(bits, given, signed=signed, rounding=rounding).output(x[None], DRAW))


@every_type
@pytest.mark.parametrize("limit", ["number", "row", "channels"])
def test_converting_twice_is_converting_once(limit: str, dtype: torch.dtype) -> None:
    """Up to 24 bits, where codes are finer than the type; a row's largest value keeps its value, and so the limit."""
    g = torch.Generator().manual_seed(5)
    spread = torch.logspace(-4, 4, 50, dtype=torch.float64)[:, None]
    tiny = {torch.float16: 1.0, torch.bfloat16: 1e-20, torch.float32: 1e-30, torch.float64: 1e-290}[dtype]
    for bits, signed, rounding, size in itertools.product(
        (1, 2, 4, 8, 12, 16, 20, 23, 24), (True, False), ROUNDINGS, (1.0, tiny)
    ):
        if bits - signed < 1:
            continue
        x = (torch.randn(50, 12, generator=g, dtype=torch.float64) * spread * size).to(dtype)
        limits = torch.rand(12, generator=g, dtype=torch.float64) * size + size / 100
        given: Any = {"row": "row", "number": limits[0], "channels": limits}[limit]
        converter = nk.hardware.DAC(bits, given, signed=signed, rounding=rounding)
        parts = [x, converter.input(x, DRAW)] if limit == "row" else [x]
        for value in (torch.cat(parts, 1), *beside(x).split(12, 1)):
            y = converter.input(value, DRAW)
            assert torch.equal(converter.input(y, DRAW), y), (bits, signed, rounding, size)
            if rounding == "floor":
                beyond = torch.zeros_like(value) if limit == "row" else torch.full_like(value, -math.inf)
                assert ((y <= value) | (y == converter.input(beyond, DRAW))).all()
            if limit == "row":
                largest = value.abs().amax(1) if signed else value.amax(1).clamp(min=0)
                assert torch.equal(y.abs().amax(1), largest)


def test_tiny_rows_have_their_codes() -> None:
    """A step that is subnormal, or none at all, costs no code; the row's largest value stays to the bit."""
    units = torch.tensor([[1000.0, 999, 500, 126, 127, 3, 0, -1000]])
    for size in (2.0**-149, 2.0**-140, 2.0**-127):
        for rounding in ROUNDINGS:
            converter = nk.hardware.DAC(8, "row", rounding=rounding)
            expected = converter.input(units, DRAW) * size  # rounded to whole units of 2^-149
            y = converter.input(units * size, DRAW)
            assert (y - expected).abs().max() <= 2.0**-149 and y[0, 0] == 1000 * size and y[0, -1] == -1000 * size
            assert torch.equal(converter.input(y, DRAW), y)
    y = nk.hardware.DAC(8, "row", rounding="floor").input(torch.full((3, 2), 5e-324, dtype=torch.float64), DRAW)
    assert torch.equal(y, torch.full((3, 2), 5e-324, dtype=torch.float64))


def test_an_unsigned_row_has_its_largest_value_as_limit() -> None:
    converter = nk.hardware.DAC(2, "row", signed=False, rounding="floor")
    assert torch.equal(
        converter.input(torch.tensor([[-6.0, 3.0, 2.0], [-6.0, -3.0, -1.0]]), DRAW),
        torch.tensor([[0.0, 3.0, 2.0], [0.0, 0.0, 0.0]]),
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_gradient_reaches_both_ends_of_a_row(rounding: str) -> None:
    """Nothing of a row lies beyond its limit."""
    x = torch.randn(300, 7, generator=torch.Generator().manual_seed(2)).requires_grad_()
    nk.hardware.DAC(5, "row", rounding=rounding).input(x, DRAW).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@every_type
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_conductances_on_the_grid_stay_there(rounding: str, dtype: torch.dtype) -> None:
    """Weights that a pair holds are held as they are by another pair of the same levels; the largest always."""
    g = torch.Generator().manual_seed(6)
    for levels, over in itertools.product((1, 3, 4, 7, 10, 31, 100, 1000, 2**20), ("layer", "channel")):
        pair = nk.hardware.DifferentialPair(0.0, levels=levels, over=over, rounding=rounding)
        weight = torch.randn(40, 30, generator=g, dtype=torch.float64).to(dtype)
        held = pair.weight(weight, DRAW)
        assert held.abs().max() == weight.abs().max(), levels
        assert torch.equal(pair.weight(held, DRAW), held), levels
