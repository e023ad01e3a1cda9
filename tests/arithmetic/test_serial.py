"""Ordered sums: the compiled ones are the naive reference's, to the bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators import assert_same_bits, covering
from summing import KEY, LAYERS, checked, made

from noisykernels.arithmetic import ORDERS, FixedFormat, FloatFormat, Serial, random_order

FMTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "truncated": dict(fmt="M7E6"),
    "fixed": dict(fmt="L8R8"),
    "nearest": dict(fmt=FixedFormat(4, 6, "nearest"), operands="exact"),
    "fp16": dict(fmt="fp16"),
    "sums of fp8": dict(fmt="fp8_e4m3", sum="fp16"),
    "subnormal": dict(fmt=FloatFormat(3, 3, subnormals=True, rounding="nearest")),
    "stochastic": dict(fmt=FloatFormat(7, 6, rounding="stochastic")),
    "stochastic sum": dict(sum=FixedFormat(5, 7, "stochastic")),
    "stochastic product": dict(product=FloatFormat(4, 4, subnormals=True, overflow="infinity", rounding="stochastic")),
}
STEPS: dict[str, dict[str, Any]] = {
    "none": {},
    "clamp": dict(low=-0.75, high=1.25),
    "one side": dict(low=0.0),
    "leak": dict(leak=0.75),
    "leak of nothing": dict(leak=0.0, high=2.0),
    "synapse": dict(synapse_limit=0.8, synapse_decay=0.5),
    "short synapse": dict(synapse_limit=0.3),
    "noise": dict(step_noise=0.3),
    "all": dict(low=-0.9, high=1.5, leak=0.9, synapse_limit=1.0, synapse_decay=0.25, step_noise=0.2, gain=0.7),
}
DRAWS: dict[str, dict[str, Any]] = {
    "one": {},
    "numbered": dict(draws=[7]),
    "shared": dict(draws=[5, 2**32 - 1], shared=True),
    "expanded": dict(draws=[3, 9]),
    "rows": dict(rows="shuffled"),
    "first row": dict(first_row=2**32 - 40),
}


def ids_of(name: str, rows: int) -> tuple[int, dict[str, Any]]:
    ids = dict(DRAWS[name])
    if ids.get("rows"):
        ids["rows"] = [(7 * i + 3) % 1000 for i in range(rows)]
    return rows * (2 if name == "expanded" else 1), ids


CASES: dict[str, list[Any]] = dict(
    layer=list(LAYERS),
    fmt=list(FMTS),
    steps=list(STEPS),
    order=[*ORDERS, "random"],
    dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16],
    draws=list(DRAWS),
    bias=[False, True],
    threads=[1, 2],
)


@pytest.mark.parametrize("case", covering(2, **CASES), ids=str)
def test_compiled_sums_are_the_naive_ones(case: dict[str, Any], threads: Callable[[int], None]) -> None:
    compare(case, threads)


@pytest.mark.full
@pytest.mark.parametrize("case", covering(3, **CASES), ids=str)
def test_triples_of_properties(case: dict[str, Any], threads: Callable[[int], None]) -> None:
    compare(case, threads)


def compare(case: dict[str, Any], threads: Callable[[int], None]) -> None:
    """A case's compiled sums with the naive ones."""
    name = case["layer"]
    rows, ids = ids_of(case["draws"], LAYERS[name]["x"][0])
    _, operands, geometry = made(name, case["dtype"], rows)
    order = case["order"]
    if order == "random":
        w = operands[1]
        steps = math.prod(w.shape[2:]) * (
            w.shape[0] // geometry.get("groups", 1) if "transpose" in name else w.shape[1]
        )
        order = random_order(steps, 3)
    threads(case["threads"])
    how = Serial(**FMTS[case["fmt"]], **STEPS[case["steps"]], order=order)
    checked(name, operands if case["bias"] else operands[:2], how, geometry, **ids)


RICH = [(fmt, steps) for fmt in FMTS for steps in ("none", "clamp", "all")]


@pytest.mark.parametrize(("fmt", "steps"), RICH, ids=str)
def test_any_level_and_any_number_of_threads(
    cpu_level: str, threads: Callable[[int], None], fmt: str, steps: str
) -> None:
    """Also numbers of outputs around the width of a vector, and around several."""
    how = Serial(**FMTS[fmt], **STEPS[steps])
    sorted_ = Serial(**FMTS[fmt], **STEPS[steps], order="descending")
    g = torch.Generator().manual_seed(1)
    for count, (n, k) in enumerate([(1, 5), (7, 3), (8, 4), (9, 1), (15, 17), (33, 6), (65, 2)]):
        threads(1 + count % 3)
        x, w = torch.randn(1 + count % 4, k, generator=g), torch.randn(n, k, generator=g)
        checked("linear", [x, w], how, None)
        checked("linear", [x.double(), w.double()], how, None)
        if n < 33:
            checked("linear", [x, w], sorted_, None, first_row=5)
    for name in ("conv2d", "conv_transpose1d"):
        _, operands, geometry = made(name)
        checked(name, operands, how, geometry, draws=[4])


@pytest.mark.parametrize("fmt", ["float32", "truncated", "stochastic", "stochastic sum"])
@pytest.mark.parametrize("order", ["natural", "random", "ascending"])
def test_more_outputs_than_a_block(threads: Callable[[int], None], order: str, fmt: str) -> None:
    """The work is cut into blocks of outputs (128 by 256): none of their sizes is a divisor of these."""
    threads(3)
    for name, (x, w), geometry in (
        ("linear", ((261, 4), (300, 4)), None),
        ("conv2d", ((3, 2, 19, 18), (150, 2, 1, 2)), dict(padding=1)),
        ("conv1d", ((2, 4, 600), (260, 2, 2)), dict(groups=2, stride=2)),
    ):
        g = torch.Generator().manual_seed(len(name))
        operands = [torch.randn(x, generator=g), torch.randn(w, generator=g)]
        by = random_order(math.prod(w[1:]), 4) if order == "random" else order
        checked(name, operands, Serial(**FMTS[fmt], low=-1.0, high=1.5, leak=0.75, order=by), geometry, draws=[6])
        checked(name, operands, Serial(**FMTS[fmt], order=by), geometry)


@pytest.mark.parametrize("fmt", ["float32", "truncated", "fixed", "fp16", "stochastic"])
def test_values_that_are_no_numbers(fmt: str) -> None:
    """NaN stays, infinities saturate or meet and make NaN, zeros keep the reference's signs."""
    given = [math.inf, -math.inf, math.nan, -0.0, 0.0, 1e38, -1e38, 1e-45, -3e-39, 300.0, 1.0]
    x = torch.tensor(list(itertools.product(given, repeat=3)))
    w = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.5, -2.0], [3.0, -0.0, 1e3]])
    for steps in ({}, dict(low=-2.0, high=0.0), dict(leak=0.5), dict(leak=0.0), dict(synapse_limit=2.0)):
        y = checked("linear", [x, w], Serial(**FMTS[fmt], **steps), None)
        assert y[x.isnan().any(1)].isnan().all()


def test_layouts_change_nothing() -> None:
    how = Serial("M7E6", low=-3, high=3, step_noise=0.1)
    x, w, b = torch.randn(6, 33), torch.randn(5, 33), torch.randn(5)
    y = checked("linear", [x, w, b], how, None)
    for other in (x.t().contiguous().t(), torch.stack([x, x], -1)[..., 1], x.flip(0).flip(0), x.expand(1, 6, 33)[0]):
        assert_same_bits(checked("linear", [other, w.t().contiguous().t(), b], how, None), y)
    _, (x, w, b), geometry = made("conv2d")
    y = checked("conv2d", [x, w, b], how, geometry)
    last = torch.channels_last
    z = checked("conv2d", [x.to(memory_format=last), w.to(memory_format=last), b], how, geometry)
    assert_same_bits(z.contiguous(), y)


def test_rows_keep_their_random_numbers_in_any_batch() -> None:
    how = Serial(FloatFormat(5, 5, rounding="stochastic"), step_noise=0.2, low=-4, high=4)
    for name in ("linear", "linear 3-d", "conv2d", "conv_transpose2d"):
        op, (x, w, b), geometry = made(name, rows=7)
        call = lambda x, **ids: op(x, w, b, **(geometry or {}), hardware=[how], **KEY, **ids)  # noqa: B023, E731
        whole = call(x, draws=[4])
        assert_same_bits(call(x[2:5], draws=[4], first_row=2), whole[2:5])
        assert_same_bits(call(x[[6, 0]], draws=[4], rows=[6, 0]), whole[[6, 0]])
        assert_same_bits(call(x, draws=[1, 4], shared=True)[7:], whole)
        if name != "linear 3-d":  # which has no unbatched form
            assert_same_bits(call(x[0]), call(x)[0])
        others = [call(x, draws=[5]), call(x, first_row=1), call(x, rows=[0, 1, 2, 3, 4, 5, 7])]
        assert len({tuple(y.flatten().tolist()) for y in (whole, *others)}) == 4
        assert_same_bits(others[2][:6], call(x)[:6])


def test_work_in_pieces_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and sorted orders are laid out a few rows at a time."""
    from noisykernels.arithmetic import operands as laid_out

    how = [Serial("M7E6", step_noise=0.1, order=order, low=-2) for order in ("natural", "ascending")]
    how.append(Serial(FixedFormat(4, 4, "stochastic")))
    for name, some in itertools.product(("linear 3-d", "conv2d", "conv_transpose2d"), how):
        _, operands, geometry = made(name, rows=5)
        monkeypatch.setattr(laid_out, "_ELEMENTS", 1 << 24)
        whole = checked(name, operands, some, geometry, rows=[4, 9, 1, 0, 7], draws=[3])
        for elements in (1, 1500, 5000):
            monkeypatch.setattr(laid_out, "_ELEMENTS", elements)
            assert_same_bits(checked(name, operands, some, geometry, rows=[4, 9, 1, 0, 7], draws=[3]), whole)
            checked(name, operands, some, geometry, first_row=8)
