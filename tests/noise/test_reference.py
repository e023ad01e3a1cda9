"""The oracle itself: published generator, exact fused multiply-adds, accurate polynomials."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from noisykernels import Noise, conv1d, conv_transpose2d, linear
from noisykernels.reference import noise as reference

KNOWN_ANSWERS = Path(__file__).parents[1] / "philox_kat.txt"
ROUNDING = 2.0**-24  # relative error of one float32 rounding


# ---------------------------------------------------------------------------------------- generator


@pytest.mark.parametrize("line", [line for line in KNOWN_ANSWERS.read_text().splitlines() if not line.startswith("#")])
def test_philox_gives_the_published_answers(line: str) -> None:
    rounds, *hexadecimal = line.split()
    w = [int(word, 16) for word in hexadecimal]
    assert reference.philox4x32(w[:4], w[4:6], int(rounds)).tolist() == w[6:]


def test_each_coordinate_has_its_counter_word() -> None:
    # Element 11 is word 3 of block 2; the seed's halves are the key, the low one first.
    seed = 0x299F31D0A4093822
    block = reference.philox4x32([2, 3, 4, 5 << 8 | 1], [0xA4093822, 0x299F31D0])
    word = reference.words(seed, site=5, operand="mul", draw=4, row=3, elements=11)
    assert word == block[3]


@pytest.mark.parametrize("field", ["site", "draw", "row", "block"])
@pytest.mark.parametrize("excess", [-1, 0])
def test_a_value_that_does_not_fit_its_counter_word_is_refused(field: str, excess: int) -> None:
    limit = 2**24 if field == "site" else 2**32
    good = {"site": 0, "draw": 0, "row": 0, "block": 0}
    reference.counters(operand="add", **good | {field: limit - 1})
    with pytest.raises(ValueError, match=field):
        reference.counters(operand="add", **good | {field: -1 if excess else limit})


# ------------------------------------------------------------------------------- exact arithmetic


def nearest(exact: Fraction, precision: int, smallest: int, largest: int) -> float:
    """exact rounded to nearest even: `precision` bits, multiples of 2^smallest, below 2^largest."""
    if exact == 0:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent  # now 2^exponent <= |exact| < 2^(exponent + 1)
    step = Fraction(2) ** max(exponent - precision + 1, smallest)
    rounded = round(exact / step) * step
    if abs(rounded) >= Fraction(2) ** largest:
        return float("inf") if rounded > 0 else float("-inf")
    return float(rounded)


SINGLE, DOUBLE = (24, -149, 128), (53, -1074, 1024)


def hard(width: Literal[32, 64], format_: tuple[int, int, int]) -> st.SearchStrategy[float]:
    """Values of few set bits, whose sums of products lie on or beside ties, of any size."""
    precision, smallest, largest = format_
    near = st.integers(-2 * precision, 2 * precision)
    exponents = st.one_of(near, st.integers(smallest, largest - precision))
    mantissas = st.sampled_from([1, 3, 2**12 - 1, 2**12 + 1, 2 ** (precision - 1) + 1])
    mantissas |= st.integers(0, 2**precision - 1) | st.just(2**precision - 1)
    signs = st.sampled_from([1, -1])
    value = st.builds(lambda s, m, e: nearest(s * m * Fraction(2) ** e, *format_), signs, mantissas, exponents)
    return value.filter(np.isfinite) | st.floats(width=width, allow_nan=False, allow_infinity=False)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(*[hard(32, SINGLE)] * 3)
@example(1 + 2**-15, 2**-24 * (1 - 2**-15), 1 + 2**-23)  # below a tie by 2^-54: wrong if summed twice
@example(2**-75, 2**-75, -(2**-149))  # a tie between subnormals
@example(2**127, 2, -(2**127))
def test_fma32_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assert float(reference.fma32(a, b, c)) == nearest(exact, *SINGLE)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(*[hard(64, DOUBLE)] * 3)
@example(1 + 2**-30, 2**-53 * (1 - 2**-30), 1 + 2**-52)
@example(2**-537, 2**-538, -(2**-1074))
@example(2.0**1023, 2, -(2.0**1023))
@example(2.0**-500, 2.0**-500, 1 + 2**-52)
def test_fma64_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assert float(reference.fma64(a, b, c)) == nearest(exact, *DOUBLE)


@pytest.mark.parametrize("fma", [reference.fma32, reference.fma64])
@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (np.inf, 1, 1, np.inf),
        (np.inf, 0, 1, np.nan),
        (np.inf, 1, -np.inf, np.nan),
        (2, 3, -np.inf, -np.inf),
        (1, 1, np.nan, np.nan),
        (0.0, 1, -0.0, 0.0),
        (-0.0, 1, -0.0, -0.0),
        (1, 1, -1, 0.0),
        (-(2.0**-100), 2.0**-100, 0.0, -(2.0**-200)),  # underflows to -0 in float32
        (-(2.0**-100), 2.0**-100, -0.0, -(2.0**-200)),
    ],
)
def test_fma_of_special_values(fma: Callable[..., np.ndarray], a: float, b: float, c: float, expected: float) -> None:
    actual = fma(a, b, c)
    np.testing.assert_array_equal(actual, actual.dtype.type(expected))
    assert np.isnan(expected) or np.signbit(actual) == np.signbit(expected)


# ------------------------------------------------------------------------------------- polynomials


def test_logarithm_is_as_accurate_as_stated() -> None:
    # The polynomial's relative error is 1.93e-7. Roundings: the result, the series (near 2), and a
    # fifth of those of f q(f): fewer than three in all.
    rng = np.random.default_rng(0)
    u = np.concatenate([np.arange(1, 2**24, 9) * 2.0**-24, 2.0 ** -rng.uniform(0, 32, 10**6)])
    u = u.astype(np.float32)
    u = u[u < 1]
    exact = -2 * np.log(u.astype(np.float64))
    assert np.abs(reference.minus_two_log(u) / exact - 1).max() <= 1.93e-7 + 3 * ROUNDING
    assert reference.minus_two_log(np.array([1.0], np.float32)) == 0


def test_cosine_and_sine_are_as_accurate_as_stated() -> None:
    # The polynomials' absolute error is 2.3e-8. Half roundings: the result, C, t S (all below 1);
    # then that of t itself times pi/2, and what is left of the inner steps: two in all.
    w = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32)
    w = np.concatenate([w, np.array([0x20000000, 0x1FFFFFFF, 0, 0x3FFFFFFF], np.uint32)])
    turn = (w << 2).view(np.int32) * 2.0**-32 + 0.5
    cosine, sine = reference.cos_sin(w)
    bound = 2.3e-8 + 2 * ROUNDING
    assert np.abs(cosine - np.cos(np.pi / 2 * turn) * np.where(w >> 31, -1, 1)).max() <= bound
    assert np.abs(sine - np.sin(np.pi / 2 * turn) * np.where(w >> 30 & 1, -1, 1)).max() <= bound


def exact_gaussian(w: Any, u: Any) -> Any:
    """By numpy's log, cos and sin."""
    radius, turn = np.sqrt(-2 * np.log(u[:, ::2])), (w[:, 1::2] << 2).view(np.int32) * 2.0**-32
    angle = np.pi / 2 * (turn + 0.5)
    cosine = np.cos(angle) * np.where(w[:, 1::2] >> 31, -1, 1)
    sine = np.sin(angle) * np.where(w[:, 1::2] >> 30 & 1, -1, 1)
    return np.stack([radius * cosine, radius * sine], -1).reshape(w.shape)


# kind -> its values in float64, from words and from their upper 31 bits as u in (0, 1)
EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "gaussian": exact_gaussian,
    "uniform": lambda w, u: 3**0.5 * (w.view(np.int32) + 0.5) * 2.0**-31,
    "laplace": lambda w, u: -np.log(u) * 0.5**0.5 * np.where(w & 1, -1, 1),
}


@pytest.mark.parametrize("kind", reference.KINDS)
def test_values_are_the_exact_transform_of_their_words(kind: str) -> None:
    """Every kind against the same transform in float64."""
    w = np.random.default_rng(0).integers(0, 2**32, (10**5, 4), dtype=np.uint32)
    exact = EXACT[kind](w, ((w >> 1) + 0.5) * 2.0**-31)
    # u is rounded to float32: near 1, -ln u moves by up to 2^-25 absolutely, a radius by more where
    # it is small: sqrt(r^2 + 2^-24) - r <= 2^-12. Else the polynomials' and a few roundings count.
    error = np.abs(reference.KINDS[kind](w) - exact)
    near_zero = 2.0**-12 if kind == "gaussian" else 2.0**-24
    assert (error <= 5e-7 * np.abs(exact) + near_zero).all()
    assert np.median(error) < 2e-7


@pytest.mark.parametrize("kind", reference.KINDS)
def test_laws_are_standardised(kind: str) -> None:
    name, parameters = reference.LAWS[kind]
    mean, variance = getattr(stats, name)(**parameters).stats("mv")
    np.testing.assert_allclose([mean, variance], [0, 1], atol=1e-15)


def test_gaussian_tails_reach_beyond_six_and_a_half() -> None:
    # The smallest u is 2^-32: a radius of sqrt(64 ln 2) = 6.66.
    extreme = reference.KINDS["gaussian"](np.array([0, 0x20000000, 0, 0x5FFFFFFF], np.uint32))
    assert np.abs(extreme).max() > 6.5
    assert np.isfinite(extreme).all()


# ------------------------------------------------------------------------------------- contractions


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_contractions_are_the_operators(batched: bool, relu: bool) -> None:
    """On small integers, whose sums are exact in any order: equal to the last bit."""
    noise = Noise(add=0.5, mul=0.25)
    ids: dict[str, Any] = {"noise": noise, "relu": relu, "seed": 3, "site": 2, "first_row": 7}
    geometry = {"stride": 2, "padding": 1, "dilation": 2}
    g = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=g).float()

    x, w, b = integers(5, 6), integers(4, 6), integers(4)
    x = x if batched else x[0]
    assert torch.equal(reference.linear(x, w, b, **ids), linear(x, w, b, **ids))
    x, w = integers(5, 6, 9), integers(4, 6, 3)
    x = x if batched else x[0]
    expected = reference.conv(x, w, b, geometry=geometry, **ids)
    assert torch.equal(expected, conv1d(x, w, b, **geometry, **ids))
    x, w = integers(5, 6, 5, 4), integers(6, 4, 3, 2)
    x = x if batched else x[0]
    geometry["output_padding"] = 1
    expected = reference.conv(x, w, b, transposed=True, geometry=geometry, **ids)
    assert torch.equal(expected, conv_transpose2d(x, w, b, **geometry, **ids))
