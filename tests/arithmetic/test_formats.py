"""Number formats: values and roundings against established libraries, and the compiled rounding against the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import FormatInfo, RoundMode
from gfloat.formats import format_info_ocp_e4m3
from gfloat.types import Domain
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from operators import assert_same_bits
from roundings import FEW, KEY, ROUNDINGS, VALUES, rounded
from torch import Tensor

from noisykernels import _C
from noisykernels.arithmetic import FORMATS, FixedFormat, FloatFormat, as_format, quantize
from noisykernels.reference import noise as reference

# ------------------------------------------------------------------------------- against torch, ml_dtypes and gfloat


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp8_e5m2", torch.float8_e5m2)],
    ids=str,
)
def test_well_known_formats_are_torchs(name: str, theirs: torch.dtype) -> None:
    """Normal values, ties, subnormals, overflow, infinities, NaN."""
    assert_same_bits(rounded(VALUES, name), VALUES.to(theirs).float())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("fp16", np.float16), ("bf16", ml_dtypes.bfloat16), ("fp8_e5m2", ml_dtypes.float8_e5m2),
        ("fp8_e4m3", ml_dtypes.float8_e4m3fn),
        (FloatFormat(3, 4, subnormals=True, overflow="infinity", rounding="nearest"), ml_dtypes.float8_e4m3),
        (FloatFormat(4, 3, subnormals=True, overflow="infinity", rounding="nearest"), ml_dtypes.float8_e3m4),
        (FloatFormat(2, 3, subnormals=True, rounding="nearest"), ml_dtypes.float6_e3m2fn),
        (FloatFormat(3, 2, subnormals=True, rounding="nearest"), ml_dtypes.float6_e2m3fn),
        (FloatFormat(1, 2, subnormals=True, rounding="nearest"), ml_dtypes.float4_e2m1fn),
    ],
    ids=str,
)  # fmt: skip
def test_formats_are_those_of_ml_dtypes(name: Any, theirs: Any) -> None:
    """Where both have a value: of finite formats, those without NaN are compared below their largest value."""
    fmt, x = as_format(name), VALUES
    if fmt.overflow == "saturate":
        assert rounded(torch.tensor([1e30, -math.inf]), fmt).tolist() == [fmt.largest_value, -fmt.largest_value]
        assert float(ml_dtypes.finfo(theirs).max) == fmt.largest_value
        x = x[x.abs() <= fmt.largest_value]
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaN
        expected = torch.from_numpy(x.numpy().astype(theirs).astype(np.float32))
    assert_same_bits(rounded(x, fmt), expected)


def test_every_half_float_and_its_surroundings() -> None:
    """All 2^16 patterns stay; their midpoints go to the even one; the float32 next to a midpoint to the nearer one."""
    half = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    assert_same_bits(rounded(half.float(), "fp16"), half.float())
    assert_same_bits(rounded(half, "fp16"), half)
    finite = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).double()
    middle = (finite[:-1] + finite[1:]) / 2
    even = torch.where(torch.arange(len(middle)) % 2 == 0, finite[:-1], finite[1:])
    for sign in (1, -1):
        exact = (sign * middle).float()
        assert_same_bits(rounded(exact, "fp16"), (sign * even).float())
        for towards, nearer in ((finite[:-1], finite[:-1]), (finite[1:], finite[1:])):
            moved = torch.nextafter(exact, (sign * towards).float())
            assert_same_bits(rounded(moved, "fp16"), (sign * nearer).float())
        cut = torch.nextafter((sign * finite[1:]).float(), torch.zeros(()))
        ieee = FORMATS["fp16"].rounded("truncate")
        assert_same_bits(rounded(cut, ieee), (sign * finite[:-1]).float())


def info(fmt: FloatFormat, wider: int = 0) -> FormatInfo:
    """A format as gfloat describes it; wider: with so many more bits of exponent, which hold all that overflows."""
    infinite = fmt.overflow == "infinity"
    return FormatInfo(
        name=str(fmt),
        k=fmt.bits + wider,
        precision=fmt.mantissa + 1,
        bias=2 ** (fmt.exponent - 1) - 1 if fmt.bias is None else fmt.bias,
        is_signed=True,
        domain=Domain.Extended if infinite else Domain.Finite,
        has_nz=True,
        num_high_nans=2**fmt.mantissa - 1 if infinite else 0,
        has_subnormals=True,
        is_twos_complement=False,
    )


MODES = {"truncate": RoundMode.TowardZero, "nearest": RoundMode.TiesToEven, "stochastic": RoundMode.StochasticFastest}


def by_gfloat(x: Tensor, fmt: FloatFormat, random: np.ndarray | None = None) -> Tensor:
    """gfloat rounds in a format with more exponents. Overflow and what lies below the normal values are then ours to
    settle, as FloatFormat says it: gfloat knows neither formats without small values nor truncation to infinity."""
    described = info(fmt, wider=9 - fmt.exponent)
    bits = None if random is None else 2**25 - 1 - 2 * (random >> 8).astype(np.int64)  # up if bits + 2^25 f >= 2^25
    y = gfloat.round_ndarray(described, x.double().numpy(), MODES[fmt.rounding], srbits=bits, srnumbits=25)
    if not fmt.subnormals:
        y = np.where(np.abs(y) < info(fmt).smallest_normal, np.copysign(0.0, y), y)
    largest = min(info(fmt).max, float(2**128 - 2 ** (127 - fmt.mantissa)))
    instead = math.inf if fmt.overflow == "infinity" else largest
    y = np.where(np.abs(y) > largest, np.copysign(instead, y), y)
    return torch.from_numpy(y).to(x.dtype)


@st.composite
def float_formats(draw: Callable[..., Any]) -> FloatFormat:
    mantissa, exponent = draw(st.integers(1, 23)), draw(st.integers(2, 8))
    usual = 2 ** (exponent - 1) - 1
    bias = draw(st.none() if exponent == 8 else st.none() | st.integers(usual - 60, usual + 60))
    try:
        return FloatFormat(
            mantissa,
            exponent,
            bias=bias,
            subnormals=draw(st.booleans()),
            overflow=draw(st.sampled_from(["saturate", "infinity"])),
            rounding=draw(st.sampled_from(ROUNDINGS)),
        )
    except ValueError:
        assume(False)
        raise


def near(fmt: FloatFormat) -> Tensor:
    """Values that matter to a format: around its normal and smallest values, around its largest, and ties."""
    g = torch.Generator().manual_seed(fmt.bits)
    parts = torch.randint(2 ** max(0, 23 - fmt.mantissa), (60,), generator=g) << 0
    edges = torch.tensor([fmt.least_exponent - fmt.mantissa - 1, fmt.least_exponent, 0, 3])
    scales = torch.cat([torch.ldexp(torch.ones(4), edges), torch.tensor([fmt.largest_value / 2])])
    heads = torch.randint(2**fmt.mantissa, (5, 60), generator=g) * 2 ** (23 - fmt.mantissa)
    halves = 2 ** (22 - fmt.mantissa) if fmt.mantissa < 23 else 0
    tails = torch.cat([parts[:20], torch.full((20,), halves), halves + parts[40:] % 3 - 1])
    mantissas = 1 + (heads + tails).double() / 2**23
    return torch.cat([(mantissas * scales.double()[:, None]).float().flatten(), FEW])


@settings(max_examples=60, deadline=None)
@given(float_formats())
def test_any_float_format_is_gfloats(fmt: FloatFormat) -> None:
    """Values, roundings and limits; with stochastic rounding, given the same random words."""
    if not (fmt.exponent == 8 and fmt.overflow == "saturate"):  # whose highest code is beyond float32
        assert fmt.largest_value == info(fmt).max
    assert 2.0**fmt.least_exponent == info(fmt).smallest_normal and fmt.bits == info(fmt).k
    x = near(fmt)
    random = None
    if fmt.stochastic:
        # Their comparison has 2^-25 left over, which fractions of more than 24 bits would see: of small values.
        x = x[~(x.abs() < 2.0 ** (fmt.least_exponent))]
        random = reference.words(**KEY, operand="rounding_sum", draw=0, row=np.arange(len(x)), elements=0)
    assert_same_bits(rounded(x, fmt), by_gfloat(x, fmt, random), fmt)
    g = torch.Generator().manual_seed(fmt.bits)
    wide = x.double() * (1 + torch.randint(-3, 4, x.shape, generator=g) * 2.0**-45)
    y = rounded(torch.cat([wide, torch.tensor([1e300, -1e300, 5e-324, -1e-310], dtype=torch.float64)]), fmt)
    if not fmt.stochastic:
        assert_same_bits(y[:-4], by_gfloat(wide, fmt), fmt)


@pytest.mark.parametrize("rounding", ["truncate", "nearest"])
@pytest.mark.parametrize(
    "fmt",
    [FloatFormat(2, 4), FloatFormat(3, 3, subnormals=True), FloatFormat(2, 5, subnormals=True, overflow="infinity"),
     FloatFormat(1, 6, bias=20), FloatFormat(4, 3, overflow="infinity"), FORMATS["fp8_e4m3"]],
    ids=repr,
)  # fmt: skip
def test_values_are_those_of_the_codes(fmt: FloatFormat, rounding: str) -> None:
    """What comes out is exactly what gfloat decodes, and it is the nearest of these, or the next one towards zero."""
    fmt = fmt.rounded(rounding)  # type: ignore[assignment]
    described = format_info_ocp_e4m3 if fmt.largest == 448 else info(fmt)
    codes = [gfloat.decode_float(described, code) for code in range(2**fmt.bits)]
    kept = [c.fval for c in codes if c.fclass.name in ("NORMAL", "ZERO") or fmt.subnormals]
    values = np.unique([v for v in kept if math.isfinite(v)])
    x = FEW[FEW.abs() <= fmt.largest_value]
    y = rounded(x, fmt)
    out = np.unique(y.numpy())
    assert np.isin(out, values).all()
    assert_same_bits(rounded(torch.from_numpy(values).float(), fmt), torch.from_numpy(values).float())
    dense = torch.linspace(-fmt.largest_value, fmt.largest_value, 100001)
    below = values[np.searchsorted(values, np.abs(dense.numpy()), side="right") - 1]
    z = np.abs(rounded(dense, fmt).numpy())
    if rounding == "truncate":
        assert (z == below).all()
    else:
        distance = np.abs(np.abs(dense.numpy().astype(np.float64))[:, None] - values[values >= 0]).min(1)
        flushed = (z == 0) & ~np.bool_(fmt.subnormals)  # rounds to what would be a small value, which counts as zero
        assert (np.abs(np.abs(dense.numpy().astype(np.float64)) - z) == distance)[~flushed].all()


def test_names_and_numbers_of_formats() -> None:
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16),
                        ("fp8_e5m2", torch.float8_e5m2), ("fp8_e4m3", torch.float8_e4m3fn)):  # fmt: skip
        fmt, finfo = FORMATS[name], torch.finfo(dtype)
        assert (fmt.largest_value, fmt.bits) == (finfo.max, finfo.bits)  # type: ignore[attr-defined]
        assert 2.0**fmt.least_exponent == finfo.tiny  # type: ignore[attr-defined]
    assert as_format("M7E6") == FloatFormat(7, 6) and str(FloatFormat(7, 6, bias=3)) == "M7E6"
    assert as_format("L8R8") == FixedFormat(8, 8) and str(FixedFormat(8, 8)) == "L8R8" and FixedFormat(8, 8).bits == 17
    assert FixedFormat(8, 8).largest_value == 255 + 255 / 256
    assert as_format(FORMATS["tf32"]) is FORMATS["tf32"] and FORMATS["tf32"].bits == 19
    for fmt in (*FORMATS.values(), FloatFormat(3, 4, bias=2, largest=1.5), FixedFormat(0, 3, "nearest")):
        assert eval(repr(fmt)) == fmt and hash(fmt) == hash(eval(repr(fmt)))
        assert fmt.rounded("stochastic").stochastic and fmt.rounded("nearest").rounded(fmt.rounding) == fmt  # type: ignore[attr-defined]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_float32_in_float32_is_itself(rounding: str) -> None:
    assert_same_bits(rounded(VALUES, FORMATS["fp32"].rounded(rounding)), VALUES)


def test_doubles_to_float32() -> None:
    """Nearest is the conversion of the processor; truncation never is farther from zero, by less than a step."""
    g = torch.Generator().manual_seed(1)
    exponents = torch.randint(-170, 140, (20000,), generator=g)
    x = torch.ldexp(torch.randn(20000, generator=g, dtype=torch.float64), exponents)
    x = torch.cat([x, VALUES.double(), torch.tensor([5e-324, 1e308, -1e308], dtype=torch.float64)])
    assert_same_bits(rounded(x, "fp32"), x.float().double())
    cut = rounded(x, FORMATS["fp32"].rounded("truncate"))
    toward_zero = x.float()
    away = (toward_zero.double().abs() > x.abs()) & toward_zero.isfinite()
    expected = torch.where(away, torch.nextafter(toward_zero, torch.zeros(())), toward_zero).double()
    inside = x.abs() < 2.0**128
    assert_same_bits(cut[inside], expected[inside].where(expected[inside].isfinite(), _top(x[inside])))
    assert (cut[x.abs() >= 2.0**128].isinf()).all()  # here a truncated overflow is infinite, unlike IEEE 754's


def _top(x: Tensor) -> Tensor:
    return torch.copysign(torch.tensor(torch.finfo(torch.float32).max, dtype=torch.float64), x)


def test_nan_of_any_payload_stays() -> None:
    """Also a signalling one whose upper bits are zero, which truncation of its bits would make an infinity."""
    codes = torch.tensor([0x7F800001, 0x7F801000, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int64)
    nan = torch.cat([codes, codes - 2**31]).to(torch.int32).view(torch.float32)
    for rounding in ROUNDINGS:
        for fmt in (FloatFormat(1, 2), FloatFormat(7, 6), *FORMATS.values(), FixedFormat(8, 8)):
            assert rounded(nan, fmt.rounded(rounding)).isnan().all()


# ---------------------------------------------------------------------------------------------------------- fixed


def exactly_fixed(value: float, fmt: FixedFormat) -> float:
    """By rational arithmetic; Python's round goes to the even one of a tie."""
    scaled = Fraction(value) * 2**fmt.right
    whole = round(scaled) if fmt.rounding == "nearest" else math.trunc(scaled)
    most = 2 ** (fmt.left + fmt.right) - 1
    return math.copysign(float(Fraction(min(abs(whole), most), 2**fmt.right)), value)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 24),
    st.integers(0, 24),
    st.sampled_from(["truncate", "nearest"]),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
)
def test_fixed_point_is_exact(left: int, right: int, rounding: str, values: list[float]) -> None:
    assume(1 <= left + right <= 24)
    fmt = FixedFormat(left, right, rounding)
    some = [v * 2.0**e for v in (1.0, 1.5, 2.5, 0.49999997) for e in (-right - 1, -right, left - 2)]
    x = torch.tensor([*values, *some, *(-v for v in some)])
    expected = torch.tensor([exactly_fixed(v, fmt) for v in x.tolist()])
    assert_same_bits(rounded(x, fmt), expected, fmt)
    assert_same_bits(rounded(x.double(), fmt), expected.double(), fmt)


@pytest.mark.parametrize("rounding", ["truncate", "nearest"])
@pytest.mark.parametrize(("left", "right"), [(20, 33), (53, 0), (0, 53), (1, 40)])
def test_wide_fixed_point_of_doubles(left: int, right: int, rounding: str) -> None:
    fmt = FixedFormat(left, right, rounding)
    g = torch.Generator().manual_seed(left)
    x = torch.randn(500, generator=g, dtype=torch.float64) * 2.0 ** torch.randint(
        -right - 2, left + 2, (500,), generator=g
    )
    x = torch.cat([x, torch.tensor([1e308, -1e308, 5e-324, 0.0, -0.0], dtype=torch.float64)])
    assert_same_bits(rounded(x, fmt), torch.tensor([exactly_fixed(v, fmt) for v in x.tolist()], dtype=torch.float64))


@pytest.mark.parametrize(
    "fmt", [FixedFormat(8, 8), FixedFormat(0, 3, "nearest"), FixedFormat(24, 0, "stochastic")], ids=repr
)
def test_values_that_are_no_numbers(fmt: FixedFormat) -> None:
    y = rounded(torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0]), fmt)
    assert y[0].isnan() and y[1:3].tolist() == [fmt.largest_value, -fmt.largest_value]
    assert torch.signbit(y[3:]).tolist() == [True, False]


def test_errors_name_what_is_wrong() -> None:
    x = torch.ones(3)
    for wrong, said in (
        (lambda: FloatFormat(0, 5), "mantissa must be a whole number from 1 to 23, got 0"),
        (lambda: FloatFormat(24, 5), "mantissa"),
        (lambda: FloatFormat(5, 1), "exponent must be a whole number from 2 to 8, got 1"),
        (lambda: FloatFormat(5, 9), "exponent"),
        (lambda: FloatFormat(5.0, 5), "mantissa"),
        (lambda: FloatFormat(True, 5), "mantissa"),
        (lambda: FloatFormat(3, 4, bias=1.5), "bias must be a whole number"),
        (lambda: FloatFormat(3, 4, bias=1000), "bias must keep all values"),
        (lambda: FloatFormat(3, 4, bias=-100), "bias must keep all values"),
        (lambda: FloatFormat(3, 8, bias=126), "bias must keep all values"),
        (lambda: FloatFormat(3, 4, rounding="up"), "rounding must be one of truncate, nearest, stochastic, got 'up'"),
        (lambda: FloatFormat(3, 4, overflow="wrap"), "overflow must be 'saturate' or 'infinity', got 'wrap'"),
        (lambda: FloatFormat(3, 4, largest=449.0), "largest must be a value of the format"),
        (lambda: FloatFormat(3, 4, largest=1e9), "largest must be a value of the format"),
        (lambda: FloatFormat(3, 4, largest=-1.0), "largest must be a value of the format"),
        (lambda: FloatFormat(3, 4, largest=2.0**-100), "largest must be a value of the format from 0.015625 to 480.0"),
        (lambda: FloatFormat(3, 4, largest=True), "largest must be a value of the format"),
        (lambda: FloatFormat(3, 4, largest="448"), "largest must be a value of the format"),
        (lambda: FixedFormat(0, 0), "left [+] right must be from 1 to 53 bits, got 0 [+] 0"),
        (lambda: FixedFormat(30, 24), "left [+] right"),
        (lambda: FixedFormat(-1, 4), "left must be a whole number"),
        (lambda: FixedFormat(4, 4, "up"), "rounding must be one of"),
        (lambda: as_format("E5M3"), "format must be one of fp32, .*got 'E5M3'"),
        (lambda: as_format("M7E9"), "exponent"),
        (lambda: quantize(x, 16), "format must be one of"),  # type: ignore[arg-type]
        (lambda: quantize(x, FixedFormat(20, 5)), "more than 24 bits: torch.float32 data cannot hold it"),
        (lambda: quantize(x, "fp16", first_row=-1), "first_row must lie in"),
        (lambda: quantize(x, "fp16", first_row=1, rows=[0, 1, 2]), "rows or first_row"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            wrong()  # type: ignore[no-untyped-call]
    stochastic = FixedFormat(4, 4, "stochastic")
    for wrong, said in (
        (lambda: quantize(x, stochastic, seed=1, rows=[0, 1]), "rows"),
        (lambda: quantize(x, stochastic, seed=1, draw=torch.tensor([1, 2])), "draw"),
        (lambda: quantize(x, stochastic, seed=1, draw=2**32), "draw"),
        (lambda: quantize(x, stochastic, seed=1, site=2**24), "site"),
        (lambda: quantize(x, stochastic, seed=1, first_row=2**32 - 1), "row"),
        (lambda: quantize(x.int(), "fp16"), "float|dtype"),
        (lambda: quantize(x, "fp16", operand="wait"), "operand"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=said):
            wrong()  # type: ignore[no-untyped-call]
    assert _C.cpu_levels()


@pytest.mark.parametrize("name", ("fp16", "fp8_e4m3", "M7E6", "L8R8", "M7E6 nearest", "L3R2 stochastic"))
def test_names(name: str) -> None:
    assert str(as_format(name)) == name


USUAL_DTYPES = {
    "float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float8_e5m2": "fp8_e5m2",
    "float8_e4m3fn": "fp8_e4m3", "float8_e4m3fnuz": "fp8_e4m3fnuz", "float8_e5m2fnuz": "fp8_e5m2fnuz",
    "int8": "int8", "int16": "int16",
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL_DTYPES)
def test_usual_names_are_those_of_torchs_types(name: str) -> None:
    """The name, in any case of letters, and the type itself; within its range the type's own conversion, and then the
    largest value, or infinity where the type has one."""
    dtype, fmt = getattr(torch, name), as_format(name)
    assert fmt is FORMATS[USUAL_DTYPES[name]] and as_format(dtype) is fmt is as_format(name.upper())
    assert as_format(f"{name} truncate") == fmt.rounded("truncate")
    if not dtype.is_floating_point:
        whole = torch.arange(-300, 300) / 2
        limit = fmt.largest_value
        assert limit == torch.iinfo(dtype).max and torch.equal(rounded(whole, fmt), whole.round().clamp(-limit, limit))
        return
    largest = torch.finfo(dtype).max
    assert fmt.largest_value == largest and fmt.bits == torch.finfo(dtype).bits
    x = VALUES[VALUES.abs() <= largest]
    expected = x.to(dtype).float()
    assert torch.equal(rounded(x, fmt), expected)
    infinite = name not in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz")
    assert rounded(torch.tensor([math.inf]), fmt).item() == (math.inf if infinite else largest)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("fp4", "E2M1", "fp4_e2m1", "float4_e2m1fn_x2"), [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        (("E2M3", "fp6_e2m3"), [k / 8 * 2**e for e in range(3) for k in range(16)]),
        (("fp6", "E3M2"), [*(k / 16 for k in range(4)), *((4 + k) / 16 * 2**e for e in range(7) for k in range(4))]),
        (("int4", "INT4"), list(range(8))),
        (("int2",), [0, 1]),
    ],
)  # fmt: skip
def test_small_formats_hold_their_values(names: tuple[str, ...], values: list[float]) -> None:
    dense = torch.linspace(-40, 40, 20001)
    for name in names:
        found = rounded(dense, as_format(name)).abs().unique()
        assert found.tolist() == sorted(set(values)), name


def test_unknown_names_list_the_known_ones() -> None:
    for name in ("fp8", "E9M9", "float64", torch.float64, torch.uint8, "int3", 16):
        with pytest.raises(ValueError, match=r"must be one of fp32, .* int8, .* a usual name"):
            as_format(name)  # type: ignore[arg-type]
