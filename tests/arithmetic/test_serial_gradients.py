"""Gradients of ordered sums: straight through and masked, against loops and the naive reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operators import assert_same_bits, covering
from summing import KEY, LAYERS, made, plainly, small_wholes
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import ORDERS, FixedFormat, FloatFormat, Serial, quantize, random_order
from noisykernels.arithmetic.operands import operands_of
from noisykernels.hardware.contraction import Contraction
from noisykernels.reference import serial as reference_serial

ROUGH = dict(low=-0.9, high=1.5, step_noise=0.2)


def gradients(f: Callable[..., Tensor], operands: list[Tensor], along: Tensor | None = None) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in operands]
    y = f(*leaves)
    along = small_wholes(*y.shape).to(y.dtype) if along is None else along
    return list(torch.autograd.grad(y, leaves, along))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", list(LAYERS))
def test_straight_through_is_the_plain_contraction(name: str, ordered: bool) -> None:
    """Of whole numbers, whose sums are exact: clamps, leaks, noise and roundings pass the gradient through."""
    op, operands, geometry = made(name)
    operands = [small_wholes(*t.shape) for t in operands]
    how = Serial("M7E6", **ROUGH, leak=0.5, synapse_limit=1.0, order="ascending", gain=2.0, ordered=ordered)
    ours = gradients(lambda *t: op(*t, **(geometry or {}), arithmetic=how, **KEY), operands)
    plain = getattr(F, name.split()[0])
    theirs = gradients(lambda x, w, b: plain(x, 2 * w, b, **(geometry or {})), operands)
    for a, e in zip(ours, theirs, strict=True):
        assert_same_bits(a + 0.0, e + 0.0, name)


def test_straight_through_has_the_rounded_operands() -> None:
    x, w = torch.randn(5, 30), torch.randn(4, 30)
    fmt = FloatFormat(3, 5, rounding="stochastic")
    ours = gradients(lambda x, w: nk.linear(x, w, arithmetic=Serial(fmt, gain=0.5), **KEY), [x, w])
    a = quantize(x, fmt, **KEY, operand="input")
    b = quantize(w * 0.5, fmt, **KEY, operand="weight")
    along = small_wholes(5, 4)
    torch.testing.assert_close(ours[0], along @ b * 1.0, rtol=0, atol=4 * 2**-24 * 64)
    torch.testing.assert_close(ours[1], along.T @ a * 0.5, rtol=0, atol=5 * 2**-24 * 64)


def clamped_loop(x: Tensor, w: Tensor, how: Serial, order: list[int]) -> Tensor:
    """In plain torch, whose own clamp passes a gradient inside its limits and on them."""
    v = torch.zeros(len(x), len(w), dtype=x.dtype)
    for k in order:
        v = torch.clamp(how.leak * v + x[:, None, k] * w[None, :, k] * how.gain, how.low, how.high)
    return v


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("limits", [(-0.5, 0.7), (-math.inf, 1.0), (-2.0, math.inf), (0.0, 3.0), (-4.0, 4.0)])
@pytest.mark.parametrize("leak", [1.0, 0.75, 0.0])
def test_masked_gradients_are_those_of_a_loop_of_clamps(leak: float, limits: tuple[float, float], whole: bool) -> None:
    """Of whole numbers, many sums meet a limit exactly, where torch's clamp passes the gradient, and so do we."""
    g = torch.Generator().manual_seed(5)
    x, w = (torch.randn(n, 20, generator=g, dtype=torch.float64) for n in (6, 7))
    if whole:
        x, w = small_wholes(6, 20).double(), small_wholes(7, 20).double()
    for name in ("natural", "reversed", "random"):
        order = {
            "natural": list(range(20)),
            "reversed": list(range(19, -1, -1)),
            "random": random_order(20, 1).tolist(),
        }
        how = Serial(
            low=limits[0], high=limits[1], leak=leak, gain=0.5, gradient="masked",
            order=order["random"] if name == "random" else name,
        )  # fmt: skip
        assert_same_bits(nk.linear(x, w, arithmetic=how), clamped_loop(x, w, how, order[name]).detach())
        ours = gradients(lambda *t: nk.linear(*t, arithmetic=how), [x, w])  # noqa: B023
        theirs = gradients(lambda *t: clamped_loop(*t, how, order[name]), [x, w])  # noqa: B023
        for a, e in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)


MASKED = {
    "clamps": dict(low=-0.5, high=0.7),
    "leak": dict(low=-0.5, high=0.7, leak=0.75),
    "forgetful": dict(high=0.7, leak=0.0),
    "rough": dict(low=-0.9, high=1.5, step_noise=0.2, leak=0.9, sum="M5E5"),
    "synapse": dict(low=-0.9, high=1.5, synapse_limit=1.0, synapse_decay=0.25),
    "stochastic": dict(low=-0.9, high=1.0, fmt=FixedFormat(3, 5, "stochastic")),
    "never": dict(leak=0.5),
}


@pytest.mark.parametrize(
    "case",
    covering(
        2,
        name=["linear", "linear 3-d", "linear wide", "conv2d", "conv_transpose2d", "conv1d"],
        steps=list(MASKED),
        order=[*ORDERS, "random"],
    ),
    ids=str,
)
def test_masked_gradients_are_the_naive_ones(case: dict[str, str]) -> None:
    """Through roundings, synapses and noise as if they were not there; the sums of up to 70 terms in another order."""
    name, steps, order = case.values()
    op, (x, w, _), geometry = made(name)
    contraction = Contraction("linear") if geometry is None else _contraction(name, geometry, w.dim() - 2)
    count = contraction.steps(w)
    how = Serial(**MASKED[steps], gradient="masked", order=random_order(count, 2) if order == "random" else order)
    given = dict(geometry or {})
    ours = gradients(lambda *t: op(*t, **given, arithmetic=how, **KEY, draws=[3]), [x, w])
    fmt = how.format_of_operands
    ids = dict(KEY, draw=3)
    kept = [t if fmt is None else reference_serial.quantized(t, fmt, **ids, operand=n)
            for t, n in ((x, "input"), (w, "weight"))]  # fmt: skip
    a, b, shape = reference_serial.operands(kept[0].numpy(), kept[1].numpy(), plainly(name, geometry))
    along = small_wholes(*shape).reshape(max(len(a), len(b)), a.shape[1], b.shape[2])
    expected = reference_serial.masked_gradient(
        a, b, along, product=how.format_of_product, sum=how.format_of_sum, low=how.low, high=how.high, leak=how.leak,
        order=reference_serial._order(how.order, a, b), synapse_limit=how.synapse_limit,
        synapse_decay=how.synapse_decay, step_noise=0.0 if how.step_noise is None else float(how.step_noise),
        outputs=math.prod(shape[1:]), **ids,
    )  # fmt: skip
    # The operands' matrices are linear in x and w: their gradients go back through them.
    leaves = [t.detach().clone().double().requires_grad_() for t in (x, w)]
    laid = operands_of(contraction, *leaves)[:2]
    theirs = torch.autograd.grad(laid, leaves, [torch.from_numpy(t) for t in expected])
    for got, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double(), e, rtol=0, atol=200 * 2**-24 * float(e.abs().max()))


def _contraction(name: str, geometry: dict[str, Any], dims: int) -> Contraction:
    def each(key: str, usual: int) -> list[int]:
        given = geometry.get(key, usual)
        return [given] * dims if isinstance(given, int) else list(given)

    sides = (each("stride", 1), each("padding", 0), each("dilation", 1))
    return Contraction(
        name, (*sides, "transpose" in name, each("output_padding", 0), geometry.get("groups", 1))
    )  # fmt: skip


@pytest.mark.parametrize("order", ["natural", "descending"])
@pytest.mark.parametrize("name", ["linear 3-d", "conv1d", "conv2d depthwise", "conv_transpose2d"])
def test_finite_differences(name: str, order: str) -> None:
    """Masked gradients are those of the function with clamps, leaks and noise; straight-through ones where there is
    nothing to pass through."""
    op, operands, geometry = made(name, torch.float64, rows=1)
    for how in (Serial(**ROUGH, leak=0.9, gradient="masked", order=order), Serial(step_noise=0.3, order=order)):
        ids = dict(KEY, draws=[4, 1], shared=True)
        f = lambda *t: op(*t, **(geometry or {}), arithmetic=how, **ids)  # noqa: E731, B023
        leaves = [t.clone().requires_grad_() for t in operands]
        assert torch.autograd.gradcheck(f, leaves, fast_mode=name != "conv1d")


def test_second_derivatives() -> None:
    """Straight-through gradients are a contraction's: they have derivatives of their own. Masked ones say no."""
    x, w = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (2, 3))
    assert torch.autograd.gradgradcheck(lambda *t: nk.linear(*t, arithmetic=Serial()), (x, w))
    y = nk.linear(x, w, arithmetic=Serial(low=-1, high=1, gradient="masked"))
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="masked gradients have no derivatives"):
        torch.autograd.grad(first.sum(), x)
    with pytest.raises(NotImplementedError, match="serial, with gradient='masked': there is no forward-mode"):
        torch.func.jvp(lambda x: nk.linear(x, w, arithmetic=Serial(high=1.0, gradient="masked")), (x,), (x,))


def test_gradients_of_the_twin() -> None:
    x, w = small_wholes(8, 60), small_wholes(6, 60)
    inside = F.linear(x, w).abs() <= 20
    assert inside.any() and not inside.all()
    along = small_wholes(8, 6)
    for gradient, passed in (("straight_through", along), ("masked", along * inside)):
        how = Serial(low=-20, high=20, ordered=False, gradient=gradient, sum="M12E6")
        ours = gradients(lambda *t: nk.linear(*t, arithmetic=how), [x, w], along)  # noqa: B023
        assert_same_bits(ours[0] + 0.0, passed @ w + 0.0)
        assert_same_bits(ours[1] + 0.0, passed.T @ x + 0.0)


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
def test_the_twin_stays_within_its_limits(gradient: str) -> None:
    """To the bit, of values that no limit is a simple fraction of, far ones and infinite ones too."""
    x = torch.cat([torch.randn(50, 30) * 100, torch.full((1, 30), 1e10), torch.full((1, 30), math.inf)])
    w = torch.randn(20, 30).abs()
    for requires in (False, True):
        leaf = w.clone().requires_grad_(requires)
        y = nk.linear(x, leaf, arithmetic=Serial(low=-20.0, high=20.3, ordered=False, gradient=gradient))
        assert_same_bits(y.detach(), F.linear(x, w).clamp(-20.0, 20.3))


def test_a_weight_is_not_laid_out_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a convolution with one output position: the weight would be repeated for each row of the batch."""
    x, w = (small_wholes(40, 6, 3, 3).requires_grad_(), small_wholes(8, 6, 3, 3).requires_grad_())
    y = nk.conv2d(x, w, arithmetic=Serial())
    monkeypatch.setattr(Tensor, "repeat", None)
    with torch.profiler.profile(profile_memory=True) as seen:
        ours = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    most = max(e.cpu_memory_usage for e in seen.events())
    assert 0 < most <= 2 * 4 * max(x.numel(), w.numel()) < 4 * 40 * w.numel()
    theirs = torch.autograd.grad(F.conv2d(x, w), (x, w), torch.ones_like(y))
    for a, e in zip(ours, theirs, strict=True):
        assert_same_bits(a + 0.0, e + 0.0)


@pytest.mark.parametrize("shapes", [((4, 3, 6), (2, 6, 5)), ((2, 3, 6), (4, 6, 5)), ((3, 2, 4), (3, 4, 1))], ids=str)
def test_gradients_of_operands_that_matrices_share(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    count = max(len(a), len(b))

    def f(a: Tensor, b: Tensor) -> Tensor:
        numbers = (-math.inf, math.inf, 1.0, math.inf, 0.0, False)
        n = a.shape[1] * b.shape[2]
        return torch.ops.noisykernels.serial.default(
            a, b, None, [], [], *numbers, None, n, torch.tensor(1), None, None, 0, 0, False, False
        )

    assert torch.autograd.gradcheck(f, (a, b)) and torch.autograd.gradgradcheck(f, (a, b))
    wide = [t.detach().repeat(count // len(t), 1, 1) for t in (a, b)]
    torch.testing.assert_close(f(a, b), wide[0] @ wide[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
def test_gradients_of_draws_and_half_types(gradient: str) -> None:
    """Those of several draws are the sum of those of each; half types compute theirs in float32."""
    op, operands, geometry = made("conv2d")
    how = Serial("M7E6", **ROUGH, gradient=gradient)
    y = op(*operands, **geometry, arithmetic=how, **KEY)
    along = small_wholes(*y.shape)
    call = lambda draws: gradients(  # noqa: E731
        lambda *t: op(*t, **geometry, arithmetic=how, **KEY, draws=draws, shared=True),
        operands,
        torch.cat([along] * len(draws)),
    )
    both, alone = call([3, 8]), [call([3]), call([8])]
    for i, t in enumerate(both):
        torch.testing.assert_close(t, alone[0][i] + alone[1][i], rtol=1e-5, atol=1e-4)
    low = [t.bfloat16() for t in operands]
    got = gradients(lambda *t: op(*t, **geometry, arithmetic=how, **KEY), low, along.bfloat16())
    wide = gradients(lambda *t: op(*t, **geometry, arithmetic=how, **KEY), [t.float() for t in low], along)
    for t, e in zip(got, wide, strict=True):
        assert_same_bits(t, e.bfloat16())  # rounded once, for the sums are those of float32


@pytest.mark.parametrize("order", ("reversed", "descending"))
def test_masked_gradients_some_matrices_at_a_time(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(5, 4, 6, 6, dtype=torch.float64), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    how = Serial(low=-2, high=1.5, leak=0.9, order=order, gradient="masked")

    def gradients() -> tuple[Tensor, ...]:
        operands = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = nk.conv2d(*operands, padding=1, groups=2, arithmetic=how)
        return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).sin()).sum(), operands)

    whole = gradients()
    monkeypatch.setattr(
        "noisykernels.arithmetic.autograd._ELEMENTS", 1000
    )  # of 3 x 18 and 18 x 36 for each of 10 matrices
    for one, other in zip(whole, gradients(), strict=True):
        # The sum of a weight's gradient over rows is in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=200 * torch.finfo(torch.float64).eps)
