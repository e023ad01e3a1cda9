"""The noise contract stated a second time, in NumPy: the oracle for the compiled kernels.

Written from the contract and from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC'11), not from the C++; never uses the compiled module. Slow, and exact to the bit: fused
multiply-adds of float32 and float64 are emulated with their single rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisykernels.reference.units import row_size

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Reals = npt.NDArray[Any]  # float32 or float64


class NoiseLike(Protocol):
    """What the oracle reads of a `noisykernels.Noise`; an absent level is None."""

    add: Tensor | None
    mul: Tensor | None
    order: str
    kind: str
    fold: bool
    relative: Any


# ------------------------------------------------------------------------------- exact arithmetic


def _two_sum(a: Reals, b: Reals) -> tuple[Reals, Reals]:
    """The rounded sum and its error: a + b = sum + error exactly (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def _two_product(a: Reals, b: Reals) -> tuple[Reals, Reals]:
    """The rounded float64 product and its error (Dekker, with Veltkamp's splitting)."""

    def split(v: Reals) -> tuple[Reals, Reals]:
        scaled = v * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - v)
        return high, v - high

    product = a * b
    (a1, a2), (b1, b2) = split(a), split(b)
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


def _to_odd(total: Reals, error: Reals) -> Doubles:
    """The exact float64 sum total + error rounded to odd: no later rounding is a double one.

    An inexact sum lies between two neighbours, of which one has an odd last bit: take that one.
    """
    bits = np.asarray(total, np.float64).view(np.int64)
    move = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    odd: npt.NDArray[np.int64] = bits + move * np.where((error > 0) == (total > 0), 1, -1)
    return odd.view(np.float64)


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """a * b + c of float32 values, rounded once.

    The product of two float32 is exact in float64; the float64 sum rounded to odd keeps all that
    the rounding to float32 must know (53 >= 24 + 2 bits).
    """
    x, y, z = (np.asarray(v, np.float32).astype(np.float64) for v in (a, b, c))
    with np.errstate(all="ignore"):
        return _to_odd(*_two_sum(x * y, z)).astype(np.float32)


def fma64(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Doubles:
    """a * b + c of float64 values, rounded once.

    By Boldo and Melquiond's algorithm ("Emulation of FMA and correctly rounded sums", 2008), which
    needs room in the exponents, and by rational arithmetic near their ends.
    """
    x, y, z = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    with np.errstate(all="ignore"):
        high, low = _two_product(x, y)
        upper, lower = _two_sum(z, low)
        upper, middle = _two_sum(high, upper)
        rest = _to_odd(*_two_sum(lower, middle))
        result: Doubles = upper + rest
        finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
        result = np.where(finite & (result != 0), result, x * y + z)  # of a zero, the right sign
        exact_product = (x == 0) | (y == 0) | (high != 0)
        outside = ~exact_product
        for v in (x, y, z, high):
            outside |= (v != 0) & ~((np.abs(v) > 2.0**-800) & (np.abs(v) < 2.0**800))
    for i in np.argwhere(finite & outside):
        at = tuple(i)
        result[at] = _fma_scalar(float(x[at]), float(y[at]), float(z[at]))
    return result


def _fma_scalar(a: float, b: float, c: float) -> float:
    """a * b + c rounded once, for finite values of any size."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # for the sign of the zero
    sign = 1.0 if exact > 0 else -1.0
    try:
        return sign * float(abs(exact))
    except OverflowError:
        return sign * float("inf")


# ------------------------------------------------------------------------------ generator, counter

OPERANDS = tuple(
    "add mul input weight g_plus g_minus programming drift read column_offset column_gain "
    "per_product per_step rounding_product rounding_sum spare".split()
)
"""The operands in the order of their numbers, from 0. Part of the contract."""

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike, rounds: int = 10) -> Words:
    """Philox4x32 of counters [..., 4] under keys [..., 2], both of 32-bit words: words [..., 4].

    A round multiplies words 0 and 2, crosses the halves over and mixes in words 1, 3 and the key;
    the key grows by the Weyl constants from round to round.
    """
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(PHILOX_MULTIPLIERS[0]), c2 * np.uint64(PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + PHILOX_WEYL[0]) & mask, (k1 + PHILOX_WEYL[1]) & mask
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), -1).astype(np.uint32)


def counters(site: int, operand: str, draw: npt.ArrayLike, row: npt.ArrayLike, block: npt.ArrayLike) -> Words:
    """Counters [..., 4] of blocks of four elements: block, row, draw, site << 8 | operand."""
    last = site << 8 | OPERANDS.index(operand)
    fields = {"block": block, "row": row, "draw": draw, "site": last}
    for name, values in fields.items():
        v = np.asarray(values, np.int64)
        if v.size and not (v.min() >= 0 and v.max() < 2**32):
            raise ValueError(f"{name}: {v.min()} to {v.max()} does not fit the counter")
    return np.stack(np.broadcast_arrays(*fields.values()), -1).astype(np.uint32)


def block_words(
    seed: int,
    site: int,
    operand: str,
    draw: npt.ArrayLike,
    row: npt.ArrayLike,
    block: npt.ArrayLike,
) -> Words:
    """The four words [..., 4] of blocks. The key is the 64-bit seed, its low half first."""
    return philox4x32(counters(site, operand, draw, row, block), (seed % 2**32, seed >> 32))


def words(
    seed: int,
    site: int,
    operand: str,
    draw: npt.ArrayLike,
    row: npt.ArrayLike,
    elements: npt.ArrayLike,
) -> Words:
    """The word of each element: word e % 4 of block e // 4."""
    e = np.asarray(elements, np.int64)
    four = block_words(seed, site, operand, draw, row, e // 4)
    which = np.broadcast_to(e % 4, four.shape[:-1])[..., None]
    return np.take_along_axis(four, which, -1)[..., 0]


# ------------------------------------------------------------------------------------------ kinds
# The literals are the float32 constants of the contract; a change of one is another stream.

LOG_COEFFICIENTS = (
    *(0.30528003, -0.3398085, 0.32882842, -0.39636382),
    *(0.5001256, -0.6667347, 0.9999992),
)
"""q_6 ... q_0 of -2 ln(1 + f) = f (-2 + f q(f)), -1/3 <= f <= 1/3."""
LOG_SPLIT = 0.6666667
"""An argument is 2^k (1 + f) with 1 + f in [LOG_SPLIT, 2 LOG_SPLIT)."""
TWO_LOG_2 = 1.3862944
"""2 ln 2."""
SIN_COEFFICIENTS = (-0.0032620004, 0.056346223, -0.4567657, 1.1107208)
"""Coefficients in t^2 of sin(pi t / 2) / (t sqrt 2), |t| <= 1/2, highest first."""
COS_COEFFICIENTS = (-0.014434947, 0.17932315, -0.87235576, 0.70710677)
"""Coefficients in t^2 of cos(pi t / 2) / sqrt 2, |t| <= 1/2, highest first."""
UNIFORM_STEP, UNIFORM_HALF_STEP = 8.06549e-10, 4.032745e-10
"""sqrt(3) 2^-31 and sqrt(3) 2^-32."""
LAPLACE_SCALE = 0.35355338
"""1 / sqrt 8."""


def horner(x: Floats, coefficients: Sequence[float]) -> Floats:
    """The polynomial of the coefficients, highest first, by fused multiply-adds."""
    value = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = fma32(value, x, c)
    return value


def minus_two_log(u: Floats) -> Floats:
    """-2 ln u of float32 u in (0, 1]."""
    part, exponent = np.frexp(u)  # u = part * 2^exponent, part in [1/2, 1)
    low = part < np.float32(LOG_SPLIT)
    f = np.where(low, part * 2, part) - np.float32(1)
    k = (exponent - low).astype(np.float32)
    series = fma32(f, horner(f, LOG_COEFFICIENTS), -2)
    return fma32(f, series, k * np.float32(-TWO_LOG_2))


def unit_interval(w: Words) -> Floats:
    """The upper 31 bits of a word as a float32 u in (0, 1]: (w // 2 + 1/2) 2^-31."""
    return fma32((w >> 1).astype(np.float32), 2.0**-31, 2.0**-32)


def cos_sin(w: Words) -> tuple[Floats, Floats]:
    """Cosine and sine of the angle of a word.

    Its lower 30 bits, as t in [-1/2, 1/2), place it at (t + 1/2) pi / 2 in a quarter turn; bits 31
    and 30 are the signs of cosine and sine.
    """
    t = (w << 2).view(np.int32).astype(np.float32) * np.float32(2.0**-32)
    s, c = horner(t * t, SIN_COEFFICIENTS), horner(t * t, COS_COEFFICIENTS)
    cosine, sine = fma32(-t, s, c), fma32(t, s, c)
    return np.where(w >> 31, -cosine, cosine), np.where(w >> 30 & 1, -sine, sine)


def _gaussian(w: Words) -> Floats:
    """Box-Muller: radius from words 0 and 2, angle from words 1 and 3; cosine, then sine."""
    radius = np.sqrt(minus_two_log(unit_interval(w[..., 0::2])))
    cosine, sine = cos_sin(w[..., 1::2])
    return np.stack([radius * cosine, radius * sine], -1).reshape(w.shape)


def _uniform(w: Words) -> Floats:
    """Uniform on [-sqrt 3, sqrt 3]: (i + 1/2) sqrt(3) 2^-31 of the word as a signed integer i."""
    return fma32(w.view(np.int32).astype(np.float32), UNIFORM_STEP, UNIFORM_HALF_STEP)


def _laplace(w: Words) -> Floats:
    """Laplace of scale 1/sqrt 2: magnitude -ln(u) / sqrt 2, negative if the lowest bit is set."""
    magnitude = minus_two_log(unit_interval(w)) * np.float32(LAPLACE_SCALE)
    return np.where(w & 1, -magnitude, magnitude)


KINDS: dict[str, Callable[[Words], Floats]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "laplace": _laplace,
}
"""Each kind turns the words [..., 4] of blocks into values [..., 4] of mean 0 and variance 1."""

LAWS: dict[str, tuple[str, dict[str, float]]] = {
    "gaussian": ("norm", {}),
    "uniform": ("uniform", {"loc": -(3**0.5), "scale": 2 * 3**0.5}),
    "laplace": ("laplace", {"scale": 0.5**0.5}),
}
"""The exact law of each kind: a name in scipy.stats and its parameters."""


def eps(
    shape: Sequence[int],
    *,
    kind: str = "gaussian",
    seed: int,
    site: int = 0,
    operand: str = "add",
    draw: int = 0,
    rows: npt.ArrayLike | None = None,
    first_row: int = 0,
) -> Floats:
    """The raw noise; dimension 0 counts rows, an element is the contiguous index inside its row."""
    count, *item = shape
    ids = first_row + np.arange(count) if rows is None else np.asarray(rows, np.int64)
    n = int(np.prod(item))
    four = block_words(seed, site, operand, draw, ids[:, None], np.arange(-(-n // 4)))
    return KINDS[kind](four).reshape(count, four.shape[1] * 4)[:, :n].reshape(count, *item)


# ------------------------------------------------------------------------------------- operations


def _apply(x: Reals, a: Reals, m: Reals, draw: Callable[[str], Reals], formula: str) -> Reals:
    """x with noise of levels a and m; draw(operand) is its eps."""
    fma: Callable[[Reals, Reals, Reals], Reals] = fma64 if x.dtype == np.float64 else fma32
    one = np.ones_like(x)
    if formula == "add":
        return fma(a, draw("add"), x)
    if formula == "fold":  # x + sqrt(m^2 x^2 + a^2) eps by the larger part and the parts' ratio
        mx = np.abs(m * x)
        large, small = np.where(mx > a, mx, a), np.where(mx < a, mx, a)
        ratio = np.where(large > 0, small / large, 0 * one)
        return fma(large * np.sqrt(fma(ratio, ratio, one)), draw("add"), x)
    factor = fma(m, draw("mul"), one)
    if formula == "mul":
        return x * factor
    if formula == "mul_add":
        return fma(a, draw("add"), x * factor)
    return fma(a, draw("add"), x) * factor  # add_mul


def _formula(noise: NoiseLike) -> str:
    if noise.mul is None:
        return "add"
    if noise.add is None:
        return "mul"
    return "fold" if noise.fold else noise.order


def perturb(
    x: Tensor,
    noise: NoiseLike,
    *,
    seed: int,
    site: int = 0,
    draws: Sequence[int] | Tensor | None = None,
    shared: bool = False,
    rows: Sequence[int] | Tensor | None = None,
    first_row: int = 0,
    operand: str = "add",
) -> Tensor:
    """`noisykernels.perturb`, exactly: float64 in double, every other type in float32 and rounded.

    Output row i of D * B belongs to draw draws[i // B] and data-set row rows[i % B]; levels are 0-d
    or broadcast to [D, B, *item]. An operand other than "add" is the one stream of noise of one term.
    """
    ids = [0] if draws is None else [int(d) for d in draws]
    if shared:
        x = torch.cat([x] * len(ids))
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    item = x.shape[1:]
    batch = x.shape[0] // len(ids)
    value = x.detach().to(compute).contiguous().numpy().reshape(len(ids), batch, *item)

    def level(t: Tensor | None, size: Reals | float = 1.0) -> Reals:
        v = np.float64(0) if t is None else t.double().numpy() * size
        return np.broadcast_to(v.astype(value.dtype), value.shape)

    sizes: Reals | float = 1.0
    if noise.relative is not None:
        sizes = np.array([row_size(row, noise.relative) for row in value.reshape(len(ids) * batch, -1)])
        sizes = sizes.reshape(len(ids), batch, *[1] * len(item))

    def draw_eps(term: str) -> Reals:
        stream = term if operand == "add" else operand
        of_draw = functools.partial(eps, (batch, *item), kind=noise.kind, seed=seed, site=site)
        row_ids = None if rows is None else np.asarray(rows)
        draws_eps = [of_draw(operand=stream, draw=d, rows=row_ids, first_row=first_row) for d in ids]
        return np.stack(draws_eps).astype(value.dtype)

    with np.errstate(all="ignore"):
        y = _apply(value, level(noise.add, sizes), level(noise.mul), draw_eps, _formula(noise))
    return torch.from_numpy(y.reshape(x.shape)).to(x.dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    noise: NoiseLike,
    relu: bool = False,
    **ids: Any,
) -> Tensor:
    """`noisykernels.linear` up to the rounding of the contraction. ids: as in `perturb`."""
    return _noisy(torch.nn.functional.linear(x, weight, bias), x.ndim == 1, noise, relu, ids)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    noise: NoiseLike,
    relu: bool = False,
    transposed: bool = False,
    geometry: dict[str, Any],
    **ids: Any,
) -> Tensor:
    """`noisykernels.conv1d` ... `conv_transpose3d` up to the rounding of the contraction.

    The rank of the weight tells which; geometry: stride, padding, dilation, groups, and
    output_padding if transposed. ids: as in `perturb`.
    """
    rank = weight.ndim - 2
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    y = getattr(torch.nn.functional, name)(x, weight, bias, **geometry)
    return _noisy(y, x.ndim == rank + 1, noise, relu, ids)


def _noisy(y: Tensor, unbatched: bool, noise: NoiseLike, relu: bool, ids: dict[str, Any]) -> Tensor:
    """Noise and ReLU on the result of a contraction; an unbatched one is one row."""
    noisy = perturb(y[None], noise, **ids)[0] if unbatched else perturb(y, noise, **ids)
    return noisy.relu() if relu else noisy
