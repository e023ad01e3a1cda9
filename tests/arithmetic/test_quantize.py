"""Stochastic rounding, and rounding as an operator of torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from operators import assert_same_bits
from roundings import FEW, KEY, ROUNDINGS, rounded
from scipy.stats import binom, norm
from torch import Tensor

from noisykernels.arithmetic import FORMATS, FixedFormat, FloatFormat, Format, as_format, quantize
from noisykernels.reference import noise as reference

# ------------------------------------------------------------------------------------------------ stochastic rounding

FALSE_ALARM = 1e-6
STOCHASTIC: list[Format] = [
    FloatFormat(7, 6, rounding="stochastic"),
    FloatFormat(3, 4, subnormals=True, rounding="stochastic"),
    FixedFormat(8, 8, "stochastic"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", STOCHASTIC, ids=repr)
def test_up_with_the_probability_of_the_fraction(fmt: Format, dtype: torch.dtype) -> None:
    """Counts of ups are binomial: for seven fractions of a step, at a false-alarm level of 1e-6 in all cases."""
    count, fractions = 40000, [2.0**-12, 0.01, 0.125, 0.5, 0.75, 0.9921875, 1 - 2.0**-12]
    step = 2.0**-fmt.right if isinstance(fmt, FixedFormat) else 2.0**-fmt.mantissa  # type: ignore[attr-defined]
    for n, fraction in enumerate(fractions):
        value = torch.tensor(1 + step * fraction, dtype=dtype)
        exact = (value.double().item() - 1) / step
        for sign in (1, -1):
            y = rounded((sign * value).expand(count // 4, 4).contiguous(), fmt, draw=n, site=3 + sign)
            ups = int((y == sign * (1 + step)).sum())
            assert int((y == sign).sum()) == count - ups
            level = FALSE_ALARM / (len(fractions) * 2 * 6) / 2
            assert binom.ppf(level, count, exact) <= ups <= binom.isf(level, count, exact), (fraction, ups / count)


@pytest.mark.parametrize("fmt", STOCHASTIC, ids=repr)
def test_rounding_has_no_bias(fmt: Format) -> None:
    """The error of many values, in units of its deviation, is a standard normal: false alarm 1e-6 in all cases."""
    x = torch.rand(400, 500, generator=torch.Generator().manual_seed(4)) + 1  # one binade
    y = rounded(x, fmt).double()
    step = 2.0**-fmt.right if isinstance(fmt, FixedFormat) else 2.0**-fmt.mantissa  # type: ignore[attr-defined]
    fraction = (x.double() / step) % 1
    z = ((y - x.double()) / step).sum() / (fraction * (1 - fraction)).sum().sqrt()
    assert abs(float(z)) < norm.isf(FALSE_ALARM / 2 / len(STOCHASTIC))
    nearest = rounded(x, fmt.rounded("truncate")).double()
    assert (((nearest - x.double()) / step).sum() / (fraction * (1 - fraction)).sum().sqrt()).abs() > 100  # it can fail


def test_the_smallest_chance_is_one_word_in_2_to_the_24() -> None:
    """A word is up only if its upper 24 bits are below 2^24 f."""
    fmt = FixedFormat(8, 0, "stochastic")
    words = reference.words(**KEY, operand="rounding_sum", draw=0, row=np.arange(3000), elements=0) >> 8
    u = torch.from_numpy(words.astype(np.float32) * np.float32(2.0**-24))  # exact
    for fraction, up in ((u, False), (torch.nextafter(u, torch.ones(())), True)):
        y = rounded(fraction, fmt)
        assert (y == float(up)).all()


def test_values_of_the_format_stay_whatever_the_word() -> None:
    for fmt in STOCHASTIC:
        x = rounded(torch.randn(50, 40), fmt)
        assert_same_bits(rounded(x, fmt, draw=5), x)


def test_words_belong_to_row_and_element() -> None:
    """Not to batch, strides, threads or level of the processor; another id of any kind is another rounding."""
    fmt = FloatFormat(3, 5, rounding="stochastic")
    x = torch.randn(12, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    whole = rounded(x, fmt, draw=3)
    assert_same_bits(rounded(x[4:9], fmt, draw=3, first_row=4), whole[4:9])
    picked = [7, 0, 11]
    assert_same_bits(rounded(x[picked], fmt, draw=3, rows=picked), whole[picked])
    assert_same_bits(rounded(x.to(memory_format=torch.channels_last), fmt, draw=3).contiguous(), whole)
    assert_same_bits(rounded(x.transpose(1, 3).contiguous().transpose(1, 3), fmt, draw=3).contiguous(), whole)
    assert_same_bits(rounded(torch.stack([x, x], -1)[..., 1], fmt, draw=3).contiguous(), whole)
    assert_same_bits(quantize(x, fmt, **KEY, draw=torch.tensor([3])), whole)
    limits = dict(draw=2**32 - 1, first_row=2**32 - 12, operand="spare")
    seen = [whole, *(rounded(x, fmt, **{"draw": 3, **other}) for other in (
        dict(draw=4), dict(site=8), dict(seed=1), dict(operand="rounding_product"), dict(first_row=1), limits,
    ))]  # fmt: skip
    assert len({tuple(y.flatten().tolist()) for y in seen}) == len(seen)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_any_level_and_any_number_of_threads(cpu_level: str, threads: Callable[[int], None], rounding: str) -> None:
    long = torch.randn(70001, generator=torch.Generator().manual_seed(2)) * 300
    for count in (1, 2, 3):
        threads(count)
        for fmt in (FloatFormat(7, 6), FloatFormat(2, 3, subnormals=True), FixedFormat(8, 8), FORMATS["fp16"]):
            fmt = fmt.rounded(rounding)
            rounded(FEW, fmt)
            rounded(FEW.double(), fmt)
            for length in (0, 1, 3, 7, 8, 9, 31, 33):
                rounded(long[: 5 * length].view(5, length), fmt)
            rounded(long, fmt)
            rounded(long.expand(1, -1), fmt)  # one long row


@pytest.mark.parametrize("name", ["fp16", "M7E6", "L8R8"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_go_by_way_of_float32(dtype: torch.dtype, rounding: str, name: str) -> None:
    x = torch.arange(2**16).to(torch.int32).to(torch.int16).view(dtype).view(64, -1)
    fmt = as_format(name).rounded(rounding)
    y = rounded(x, fmt)
    assert y.dtype == dtype
    assert_same_bits(y, rounded(x.float(), fmt).to(dtype))


def test_a_missing_seed_is_torchs() -> None:
    x, fmt = torch.rand(30, 30), "L1R2"
    torch.manual_seed(1)
    first = quantize(x, as_format(fmt).rounded("stochastic"))
    second = quantize(x, as_format(fmt).rounded("stochastic"))
    state = torch.get_rng_state()
    quantize(x, fmt)  # draws nothing
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert_same_bits(quantize(x, as_format(fmt).rounded("stochastic")), first)
    assert not torch.equal(first, second)


# -------------------------------------------------------------------------------------------------- as an operator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_passes_straight_through(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 5, dtype=torch.float64) * 1000).to(dtype).requires_grad_()
    along = torch.randn(4, 5).to(dtype)
    (grad,) = torch.autograd.grad(quantize(x, FloatFormat(3, 4, rounding="stochastic"), seed=1), x, along)
    assert_same_bits(grad, along)


def test_empty_and_single_values() -> None:
    for shape in ((0,), (0, 3), (3, 0), ()):
        for fmt in (FloatFormat(3, 4), FixedFormat(3, 4, "stochastic")):
            x = torch.full(shape, 1.3)
            y = quantize(x, fmt, seed=1)
            assert (y.shape == x.shape and y.data_ptr() != x.data_ptr()) or not x.numel()
    assert rounded(torch.tensor(1.3), "L3R1").item() == 1.0
    x = torch.randn(5)
    before = x.clone()
    quantize(x, "L1R1")
    assert_same_bits(x, before)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_opcheck_compile_and_vmap(rounding: str) -> None:
    fmt = FloatFormat(3, 5, rounding=rounding)
    x, seed, draw = torch.randn(4, 6, requires_grad=True), torch.tensor(5), torch.tensor([3])
    op = torch.ops.noisykernels.quantize.default
    torch.library.opcheck(op, (x, fmt.numbers, seed, draw, None, 0, 2, 13))
    torch.library.opcheck(op, (x, fmt.numbers, seed, None, torch.tensor([5, 1, 0, 7]), 0, 2, 14))

    def f(x: Tensor, seed: Tensor) -> Tensor:
        return quantize(x, fmt, seed=seed, site=2)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for s in (5, 6):
            assert_same_bits(compiled(x, torch.tensor(s)), f(x, torch.tensor(s)))
    (grad,) = torch.autograd.grad(compiled(x, seed).sum(), x)
    assert (grad == 1).all()
    wide = torch.randn(3, 4, 6)
    assert_same_bits(torch.func.vmap(f, (0, None))(wide, seed), torch.stack([f(part, seed) for part in wide]))
