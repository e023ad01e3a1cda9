"""Ordered sums against number types, integers and the laws that published experiments saw; orders, synapses, noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import assert_same_bits
from scipy.stats import chi2
from summing import KEY, checked, loop, made, small_wholes, summed
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import FORMATS, ORDERS, FixedFormat, Serial, as_format, quantize, random_order
from noisykernels.reference import noise as reference
from noisykernels.reference import serial as reference_serial

# ------------------------------------------------------------------------------------- against other number systems


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=30),
    st.integers(-60, 0),
    st.integers(0, 60),
    st.integers(0, 2**30),
)
def test_whole_numbers_are_added_as_whole_numbers(products: list[int], low: int, high: int, seed: int) -> None:
    order = random_order(len(products), seed).tolist()
    v = 0
    for k in order:
        v = max(low, min(high, v + products[k]))
    assert summed(products, Serial(low=low, high=high, order=order)) == v


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-999, 999), st.integers(-999, 999)), min_size=1, max_size=20),
    st.integers(3, 9),
    st.integers(0, 7),
    st.booleans(),
)
def test_fixed_point_is_that_of_rational_numbers(
    pairs: list[tuple[int, int]], left: int, right: int, nearest: bool
) -> None:
    """Operands, products and sums of up to 16 bits: nothing else is rounded."""
    step, most = Fraction(1, 2**right), Fraction(2 ** (left + right) - 1, 2**right)

    def kept(v: Fraction) -> Fraction:
        whole = Fraction(round(v / step) if nearest else math.trunc(v / step)) * step
        return max(-most, min(most, whole))

    v = Fraction(0)
    for x, w in pairs:
        v = kept(v + kept(kept(Fraction(x, 64)) * kept(Fraction(w, 128))))
    x, w = (torch.tensor([pair[i] for pair in pairs]) / (64, 128)[i] for i in (0, 1))
    how = Serial(FixedFormat(left, right, "nearest" if nearest else "truncate"))
    assert checked("linear", [x[None], w[None]], how, None).item() == v


def operands_of_many_sizes(k: int, spread: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(k)
    sizes = [torch.randint(-spread, spread + 1, s, generator=g) for s in ((16, k), (24, k))]
    return [torch.ldexp(torch.randn(e.shape, generator=g), e).to(dtype).float() for e in sizes]


@pytest.mark.parametrize("spread", [0, 4, 9])
def test_half_floats_are_those_of_numpy(spread: int) -> None:
    """IEEE arithmetic: a float32 result rounded to half is the half result, as 24 >= 2 * 11 + 2 bits (Figueroa 1995).
    The spread lets products become subnormal and sums overflow."""
    x, w = operands_of_many_sizes(300, spread, torch.float16)
    y = checked("linear", [x, w], Serial("fp16"), None)
    assert_same_bits(y, torch.from_numpy(loop(x, w, np.float16).astype(np.float32)))
    assert_same_bits(nk.linear(x.half(), w.half(), hardware=[Serial("fp16")]).float(), y)


@pytest.mark.parametrize("spread", [0, 4, 30])
def test_bfloat16_is_that_of_ml_dtypes(spread: int) -> None:
    x, w = operands_of_many_sizes(300, spread, torch.bfloat16)
    y = checked("linear", [x, w], Serial("bf16"), None)
    assert_same_bits(y, torch.from_numpy(loop(x, w, ml_dtypes.bfloat16).astype(np.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bias_is_one_more_sum(dtype: torch.dtype) -> None:
    """Computed in float32, then rounded once: not by way of the data's type."""
    g = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(s, generator=g).to(dtype) for s in ((200, 6), (50, 6), (50,)))
    how = Serial("fp8_e5m2")
    y = checked("linear", [x, w, b], how, None).float()
    sums = nk.linear(x, w, hardware=[how]).float() + b.float()
    assert_same_bits(y, quantize(sums, "fp8_e5m2"))
    if dtype == torch.bfloat16:
        assert not torch.equal(y, quantize(sums.to(dtype).float(), "fp8_e5m2"))  # the test could tell


@pytest.mark.parametrize("spread", [0, 5])
def test_products_of_fp8_in_sums_of_half_floats(spread: int) -> None:
    """Products of e4m3 values have eight bits: exact in half floats but for the smallest. Saturates only above 448."""
    x, w = operands_of_many_sizes(200, spread, torch.float16)
    y = checked("linear", [x, w], Serial(operands="fp8_e4m3", product="fp16", sum="fp16"), None)
    low = [t.clamp(-448, 448).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32) for t in (x, w)]
    assert_same_bits(y, torch.from_numpy(loop(*low, np.float16).astype(np.float32)))


@pytest.mark.parametrize("rounding", ["truncate", "nearest", "stochastic"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_float32_is_a_loop_of_float32(kind: Any, rounding: str) -> None:
    """And no multiplication is contracted with the addition behind it."""
    x, w = (t.numpy().astype(kind) for t in operands_of_many_sizes(500, 3, torch.float32))
    expected = torch.from_numpy(loop(x, w, kind))
    given = [torch.from_numpy(x), torch.from_numpy(w)]
    if kind is np.float32:
        assert_same_bits(checked("linear", given, Serial(FORMATS["fp32"].rounded(rounding)), None), expected)
    assert_same_bits(checked("linear", given, Serial(), None), expected)
    fused = torch.zeros((), dtype=torch.float64)
    if kind is np.float32:
        v = np.zeros(expected.shape, np.float32)
        for k in range(500):
            v = reference.fma32(x[:, None, k], w[None, :, k], v)
        fused = torch.from_numpy(v)
        assert not torch.equal(fused, expected)  # the test could tell


def test_many_formats_are_loops_of_gfloat() -> None:
    """Sums of products, rounded by another library after each of them."""
    import gfloat
    from gfloat.formats import format_info_ocp_e4m3, format_info_ocp_e5m2

    x, w = operands_of_many_sizes(40, 2, torch.float16)
    for described, fmt in ((format_info_ocp_e5m2, FORMATS["fp8_e5m2"]), (format_info_ocp_e4m3, FORMATS["fp8_e4m3"])):
        for rounding, mode in (("nearest", gfloat.RoundMode.TiesToEven), ("truncate", gfloat.RoundMode.TowardZero)):

            def kept(v: Any, described: Any = described, mode: Any = mode, fmt: Any = fmt) -> Any:
                y = gfloat.round_ndarray(described, v.astype(np.float32), mode, sat=fmt.overflow == "saturate")
                return y.astype(np.float32)

            v, a, b = np.zeros((16, 24), np.float32), kept(x.numpy()), kept(w.numpy())
            for k in range(40):
                v = kept(v + kept(a[:, None, k] * b[None, :, k]))
            # Truncation never overflows in IEEE 754; no sum of these is that large.
            y = checked("linear", [x, w], Serial(fmt.rounded(rounding)), None)
            assert np.abs(v).max() < fmt.largest_value  # type: ignore[attr-defined]
            assert_same_bits(y, torch.from_numpy(v))


# ------------------------------------------------------------------------------- what the published experiments saw
# Hill et al. 2018, section 4.3, one neuron: reproduced as sums that are made for it.


def trace(products: Any, fmt: str) -> list[float]:
    x = np.float32(products)[None, None]
    kept = as_format(fmt)
    sums = reference_serial.running_sums(x, np.ones_like(x).swapaxes(1, 2), product=kept, sum=kept)
    return [float(v.item()) for v in sums]


def test_fixed_point_saturates_at_255() -> None:
    """L8/R8: 60 inputs of 4.28125 pass its largest value, 255.99609375, where the sum then stays; what is subtracted
    afterwards starts there."""
    products = [4.28125] * 80
    sums = trace(products, "L8R8")
    assert sums[58] == 59 * 4.28125 and sums[59:] == [255.99609375] * 21
    assert summed(products, Serial("L8R8")) == 255.99609375
    assert summed([*products, -100.0], Serial("L8R8")) == 155.99609375
    assert summed([-p for p in products], Serial("L8R8")) == -255.99609375


def test_a_small_exponent_saturates_in_the_end() -> None:
    """M10/E4 ends at 511.75: sums of 1128 inputs of 0.5, which is exact, reach it after 1024."""
    sums = trace([0.5] * 1128, "M10E4")
    assert sums[1022] == 511.5 and sums[1023:] == [511.75] * 105
    assert summed([0.5] * 1128, Serial("M10E4")) == 511.75
    assert summed([0.5] * 1128, Serial("M10E5")) == 564.0


def test_a_small_mantissa_loses_small_addends() -> None:
    """M2/E14: above 256 the smallest step is 64, and anything less is lost. Only its mantissa matters while values
    stay within float32's range, so that M2/E8 is the same: shown against rational arithmetic without limits."""
    assert quantize(torch.arange(256.0, 512.0), "M2E8").unique().tolist() == [256.0, 320.0, 384.0, 448.0]
    assert summed([256.0] + [63.0] * 120, Serial("M2E8", operands="exact", product="exact")) == 256.0
    assert summed([256.0, 48.0, 64.0, 48.0], Serial("M2E8")) == 320.0
    assert summed([256.0, -1.0], Serial("M2E8")) == 224.0  # the step below 256 is 32, and truncation goes on to zero
    assert summed([1.0] * 120, Serial("M2E8")) == 8.0 and summed([1.0] * 120, Serial("M8E6")) == 120.0

    def kept(v: Fraction) -> Fraction:
        if v == 0:
            return v
        step = Fraction(2) ** (math.frexp(float(v))[1] - 3)
        return math.trunc(v / step) * step

    g = torch.Generator().manual_seed(7)
    products = (torch.randn(400, generator=g) * 20 + 2).tolist()
    v = Fraction(0)
    for p in products:
        v = kept(v + kept(Fraction(p)))
    assert summed(products, Serial("M2E8")) == v


def test_eight_bits_of_mantissa_are_nearly_float32() -> None:
    """M8/E6: each truncation costs less than 2^-8 of what it cuts. M2/E8 is outside of that bound, and far."""
    g = torch.Generator().manual_seed(8)
    x, w = torch.randn(200, 100, generator=g), torch.randn(1, 100, generator=g)
    exact = (x.double() @ w.double().T).flatten()
    traces = torch.cumsum(x.double() * w.double(), 1).abs()
    bound = 2.0**-8 * (traces.sum(1) + 3 * (x * w).double().abs().sum(1)) * (1 + 2.0**-6)
    shares = {}
    for fmt in ("M8E6", "M2E8"):
        y = checked("linear", [x, w], Serial(fmt), None).flatten().double()
        assert ((y - exact).abs() < bound).all() == (fmt == "M8E6")
        shares[fmt] = float(torch.corrcoef(torch.stack([y, exact]))[0, 1] ** 2)
    assert shares["M8E6"] > 0.99 > 0.9 > shares["M2E8"], shares


# ----------------------------------------------------------------------------------------------------------- orders


def test_without_saturation_exact_sums_have_no_order() -> None:
    """With it they have: the spread over permutations, of the same operands."""
    x, w = small_wholes(8, 60), small_wholes(6, 60)
    orders = [*ORDERS, *(random_order(60, s) for s in range(6))]
    free = [checked("linear", [x, w], Serial(order=order, leak=1.0), None) for order in orders]
    limited = [checked("linear", [x, w], Serial(order=order, low=-20, high=20), None) for order in orders]
    for y in free:
        assert_same_bits(y + 0.0, F.linear(x, w) + 0.0)
    assert (torch.stack(limited).std(0) > 0).float().mean() > 0.9
    assert all(y.abs().max() <= 20 for y in limited)


def test_sorted_orders_are_orders_of_each_output() -> None:
    """Against each output with its own permutation, sorted in Python; ties in the natural order."""
    x, w = small_wholes(3, 12), small_wholes(4, 12)
    keys: dict[str, Callable[[float], float]] = {
        "positive_first": lambda p: p < 0,
        "negative_first": lambda p: p >= 0,
        "ascending": abs,
        "descending": lambda p: -abs(p),
    }
    noisy = dict(step_noise=0.3, low=-9, high=7, sum=FixedFormat(6, 5, "stochastic"))
    for name, key in keys.items():
        y = checked("linear", [x, w], Serial(order=name, **noisy), None)
        for i, j in itertools.product(range(3), range(4)):
            order = sorted(range(12), key=lambda k: key(float(x[i, k] * w[j, k])))
            alone = checked("linear", [x, w], Serial(order=order, **noisy), None)
            assert_same_bits(alone[i, j], y[i, j])


def test_what_comes_first_is_lost_in_saturation() -> None:
    """The last operands count in full: all positive ones first end lower."""
    x, w = small_wholes(20, 200), small_wholes(9, 200)
    ends = {o: checked("linear", [x, w], Serial(order=o, low=-30, high=30), None) for o in ORDERS}
    products = x[:, None] * w
    positive, negative = products.clamp(min=0).sum(-1), products.clamp(max=0).sum(-1)
    expected = {
        "positive_first": (positive.clamp(max=30) + negative).clamp(min=-30),
        "negative_first": (negative.clamp(min=-30) + positive).clamp(max=30),
    }
    for order, end in expected.items():
        assert_same_bits(ends[order] + 0.0, end + 0.0)
    assert_same_bits(ends["reversed"], checked("linear", [x.flip(1), w.flip(1)], Serial(low=-30, high=30), None))


def test_random_orders_are_the_same_everywhere() -> None:
    assert random_order(8, seed=1).tolist() == random_order(8, seed=1).tolist() != random_order(8, seed=2).tolist()
    u = reference.eps((1, 1000), kind="uniform", seed=77, operand="spare")[0]
    order = random_order(1000, seed=77)
    assert order.tolist() == np.argsort(u, kind="stable").tolist() and order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(1000))
    assert random_order(0, seed=1).shape == (0,)


def test_noise_and_words_belong_to_operands_not_to_places() -> None:
    """Operand k has its noise, whenever it is added: without rounding or clamp, orders differ by roundings only."""
    x, w = torch.zeros(3, 30), torch.randn(4, 30)
    one = nk.linear(x, w, hardware=[Serial(step_noise=1.0)], **KEY)
    for order in ("reversed", random_order(30, 5)):
        other = nk.linear(x, w, hardware=[Serial(step_noise=1.0, order=order)], **KEY)
        torch.testing.assert_close(other, one, rtol=0, atol=30 * 2**-24 * 64)
    eps = nk.eps((3, 120), **KEY, operand="per_step").view(3, 4, 30).double().sum(-1)
    torch.testing.assert_close(one.double(), eps, rtol=0, atol=30 * 2**-24 * 64)
    words = Serial(product=FixedFormat(8, 0, "stochastic"))
    x = torch.full((3, 30), 0.5)
    alone = nk.linear(x, torch.ones(4, 30), hardware=[words], **KEY)
    words.order = random_order(30, 9)
    assert_same_bits(nk.linear(x, torch.ones(4, 30), hardware=[words], **KEY), alone)


# ------------------------------------------------------------------------------------------- synapses, leak, noise


def test_synapses_saturate_and_decay() -> None:
    """By hand: limit 4, half of the last input left, two lines."""
    how = Serial(synapse_limit=4.0, synapse_decay=0.5)
    assert summed([3, 3, -1, 0], how) == 3 + 4 + (2 - 1) + (1 - 0.5)
    assert summed([9, 9], Serial(synapse_limit=4.0)) == 8 and summed([9, -9], Serial(synapse_limit=4.0)) == 0
    assert summed([1, 1, 1], Serial(synapse_limit=math.inf, synapse_decay=0.5)) == 1 + 1.5 + 1.75
    assert summed([1, 2, 3], Serial(synapse_limit=math.inf)) == 6


def test_a_leak_forgets() -> None:
    assert summed([8, 4, 2], Serial(leak=0.5)) == 8 / 4 + 4 / 2 + 2
    assert summed([8, 4, 2], Serial(leak=0.0)) == 2
    assert summed([8, 4, 2], Serial(leak=0.5, order="reversed")) == 2 / 4 + 4 / 2 + 8
    assert summed([8.0, 8.0], Serial(leak=0.5, high=9.0)) == 9.0


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_noise_of_steps_has_its_variance(name: str) -> None:
    """a^2 times the squared leaks of the steps; ordered or not; false alarm 1e-6 in all cases."""
    op, (x, w, _), geometry = made(name)
    count, a = 400, 0.25
    steps = math.prod(w.shape[1:])
    for how, variance in (
        (Serial(step_noise=a), a * a * steps),
        (Serial(step_noise=a, ordered=False), a * a * steps),
        (Serial(step_noise=a, leak=0.75), a * a * sum(0.75 ** (2 * k) for k in range(steps))),
    ):
        call = lambda how, **ids: op(x.double(), w.double(), **(geometry or {}), hardware=[how], **KEY, **ids)  # noqa: E731
        mean = call(Serial(leak=how.leak))
        y = call(how, draws=range(count), shared=True).view(count, *mean.shape)
        ratio = (y - mean).square().sum(0) / variance
        bound = 1e-6 / (6 * 2 * ratio.numel())
        assert ratio.min() > chi2.ppf(bound, count) and ratio.max() < chi2.isf(bound, count)


def test_the_twin_without_an_order_clamps_once() -> None:
    """Whole numbers, whose contraction is exact: rounding, noise and clamp one after the other."""
    x, w, b = small_wholes(8, 60), small_wholes(6, 60), small_wholes(6)
    ordered = Serial(low=-20, high=20, leak=0.5, synapse_limit=1.0, order="reversed")
    twin = ordered.unordered()
    assert ordered.ordered and not twin.ordered and "ordered=False" in repr(twin)
    assert_same_bits(nk.linear(x, w, hardware=[twin]), F.linear(x, w).clamp(-20, 20))
    assert_same_bits(nk.linear(x, w, b, hardware=[twin]), F.linear(x, w).clamp(-20, 20) + b)
    assert not torch.equal(nk.linear(x, w, hardware=[Serial(low=-20, high=20)]), F.linear(x, w).clamp(-20, 20))
    rich = Serial(sum="M3E6", low=-20, high=20, step_noise=0.5, ordered=False)
    noise = torch.from_numpy(reference.eps((8, 6), **KEY, operand="per_step", draw=4))
    expected = F.linear(x, w) + noise * torch.tensor(0.5 * math.sqrt(60)).float()
    y = nk.linear(x, w, hardware=[rich], **KEY, draws=[4])
    assert_same_bits(y, quantize(expected, "M3E6").clamp(-20, 20))
    _, (x, w, _), geometry = made("conv2d")
    x, w = small_wholes(*x.shape), small_wholes(*w.shape)
    y = nk.conv2d(x, w, **geometry, hardware=[Serial("L4R0", ordered=False)])
    assert_same_bits(y, F.conv2d(x, w, **geometry).clamp(-15, 15))
