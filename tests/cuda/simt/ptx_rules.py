"""What the instructions of PTX compute that touch only registers: exact to the bit, except for the payloads of NaN."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
WINDOW = 1 << 62  # generic addresses from here on are shared memory


# --------------------------------------------------------------------------------------------------- exact arithmetic

KINDS = {
    **{f"{letter}{bits}": np.dtype(f"u{bits // 8}") for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "pred": np.dtype(bool),
    "bf16": np.dtype("u2"),
    "bf16x2": np.dtype("u4"),
    "f16x2": np.dtype("u4"),
    "tf32": np.dtype("u4"),
}
_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype, _libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_fma64 = np.frompyfunc(_libm.fma, 3, 1)


def fma(x: Array, y: Array, z: Array) -> Array:
    """x * y + z, rounded once."""
    if x.dtype == np.float64:
        return np.asarray(_fma64(x, y, z), np.float64)
    product, z = np.asarray(x, np.float64) * y, np.asarray(z, np.float64)  # exact
    total = np.asarray(product + z)
    part = total - product
    lost = (product - (total - part)) + (z - part)  # exact: product + z = total + lost
    # Rounded to odd in float64, it can be rounded again.
    bits = total.view(np.int64)
    odd = (np.abs(lost) > 0) & (bits & 1 == 0)
    bits = np.where(odd, bits + np.where((lost > 0) == (total > 0), 1, -1), bits)
    return bits.view(np.float64).astype(np.float32)


def high(x: Array, y: Array) -> Array:
    """The upper 64 of the 128 bits of a product."""
    if x.dtype == np.int64:
        wide = high(x.view(np.uint64), y.view(np.uint64)).view(np.int64)
        return wide - np.where(x < 0, y, 0) - np.where(y < 0, x, 0)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a, b, c, d = x >> half, x & low, y >> half, y & low
    middle = (b * d >> half) + (a * d & low) + (b * c & low)
    return a * c + (a * d >> half) + (b * c >> half) + (middle >> half)


def quotient(x: Array, y: Array) -> Array:
    if np.any(y == 0):
        raise ZeroDivisionError
    return (x - np.fmod(x, y)) // y


def least(x: Array, y: Array) -> Array:
    """The minimum of floating-point numbers: not NaN where one is not, and -0 below +0."""
    return np.where((x == y) & np.signbit(x), x, np.fmin(x, y))


def most(x: Array, y: Array) -> Array:
    return -least(-x, -y)


def to_bfloat16(x: Array) -> Array:
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tfloat32(x: Array) -> Array:
    """To the nearest, ties away from zero."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), bits + np.uint32(0x1000) & np.uint32(0xFFFFE000), bits)


WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integer(x: Array, kind: str, how: str) -> Array:
    """Saturates; NaN is 0."""
    range_ = np.iinfo(KINDS[kind])
    x = WHOLE[how](x.astype(np.float64))
    inside = (x >= float(range_.min)) & (x < float(range_.max + 1))
    beyond = np.where(x > 0, range_.max, np.where(x < 0, range_.min, 0))
    return np.where(inside, np.where(inside, x, 0).astype(KINDS[kind]), beyond.astype(KINDS[kind]))


def pack(high_half: Array, low_half: Array) -> Array:
    return high_half.astype(np.uint32) << np.uint32(16) | low_half


def lop3(x: Array, y: Array, z: Array, table: Array) -> Array:
    result = np.zeros_like(x)
    for k in range(8):
        chosen = (x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z)
        result |= np.where(table >> np.uint32(k) & 1, chosen, 0).astype(np.uint32)
    return result


def both(x: Array, y: Array) -> Array:
    """y:x, 64 bits."""
    return x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)


def prmt(x: Array, y: Array, selector: Array) -> Array:
    pair, result = both(x, y), np.zeros(np.shape(x), np.uint32)
    for k in range(4):
        choice = (selector >> np.uint32(4 * k)).astype(np.uint64)
        byte = pair >> (choice % 8 * 8) & 0xFF
        byte = np.where(choice & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * k)
    return result


def funnel(direction: str, mode: str, x: Array, y: Array, by: Array) -> Array:
    by = (by & 31 if mode == "wrap" else np.minimum(by, 32)).astype(np.uint64)
    return (both(x, y) << by >> np.uint64(32) if direction == "l" else both(x, y) >> by).astype(np.uint32)


def extract(x: Array, at: Array, count: Array) -> Array:
    """Bits [at, at + count), the last one repeated above where x is signed."""
    bits, signed = 8 * x.dtype.itemsize, x.dtype.kind == "i"
    wide = np.int64 if signed else np.uint64
    at = np.minimum(at & 255, bits - signed).astype(wide)
    count = np.minimum((count & 255).astype(wide), bits - at)
    return (x.astype(wide) << (64 - at - count) >> (64 - count)).astype(x.dtype)


# ------------------------------------------------------------------------------------- instructions that only compute

Rule = tuple[Callable[..., Any], str, tuple[str, ...]]  # the function, the type of its result, those of its operands
RULES: list[tuple[str, Callable[..., Rule]]] = []


def rule(pattern: str) -> Callable[[Callable[..., Rule]], Callable[..., Rule]]:
    def add(make: Callable[..., Rule]) -> Callable[..., Rule]:
        RULES.append((pattern, make))
        return make

    return add


INT, FLOAT, BITS = r"([us](?:16|32|64))", r"(f32|f64)", r"(b16|b32|b64)"
COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
TWO = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
ONE = {"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "rcp": np.reciprocal}


def twice(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


@rule(r"mov\.(\w+)")
def _(kind: str) -> Rule:
    return lambda x: x, kind, (kind,)


@rule(rf"(add|sub|mul|div)(?:\.rn)?\.{FLOAT}")
@rule(rf"(add|sub|mul)(?:\.lo)?\.{INT}")
def _(name: str, kind: str) -> Rule:
    return TWO[name], kind, (kind, kind)


@rule(r"(neg|abs|sqrt|rcp)(?:\.rn)?\.(s32|s64|f32|f64)")
def _(name: str, kind: str) -> Rule:
    return ONE[name], kind, (kind,)


@rule(rf"(min|max)\.(?:{INT}|{FLOAT})")
def _(name: str, integer: str | None, real: str) -> Rule:
    by = {"min": np.minimum, "max": np.maximum} if integer else {"min": least, "max": most}
    return by[name], integer or real, (integer or real,) * 2


@rule(rf"(div|rem)\.{INT}")
def _(name: str, kind: str) -> Rule:
    return quotient if name == "div" else lambda x, y: x - quotient(x, y) * y, kind, (kind, kind)


@rule(rf"mul\.hi\.{INT}")
def _(kind: str) -> Rule:
    if kind[1:] == "64":
        return high, kind, (kind, kind)
    wide, bits = KINDS[twice(kind)], int(kind[1:])
    return lambda x, y: x.astype(wide) * y.astype(wide) >> wide.type(bits), kind, (kind, kind)


@rule(r"(mul|mad)\.wide\.([us](?:16|32))")
def _(name: str, kind: str) -> Rule:
    wide = KINDS[twice(kind)]
    product = lambda x, y: x.astype(wide) * y.astype(wide)  # noqa: E731
    if name == "mul":
        return product, twice(kind), (kind, kind)
    return lambda x, y, z: product(x, y) + z, twice(kind), (kind, kind, twice(kind))


@rule(rf"mad\.lo\.{INT}")
def _(kind: str) -> Rule:
    return lambda x, y, z: x * y + z, kind, (kind,) * 3


@rule(rf"fma\.rn\.{FLOAT}")
def _(kind: str) -> Rule:
    return fma, kind, (kind,) * 3


@rule(r"(and|or|xor)\.(pred|b16|b32|b64)")
def _(name: str, kind: str) -> Rule:
    return LOGIC[name], kind, (kind, kind)


@rule(r"not\.(pred|b16|b32|b64)")
def _(kind: str) -> Rule:
    return np.invert, kind, (kind,)


@rule(r"(shl|shr)\.([bus](?:16|32|64))")
def _(name: str, kind: str) -> Rule:  # numpy, too, shifts by the width and more to nothing
    shift = np.left_shift if name == "shl" else np.right_shift
    return lambda x, by: shift(x, by.astype(x.dtype)), kind, (kind, "u32")


@rule(r"shf\.(l|r)\.(wrap|clamp)\.b32")
def _(direction: str, mode: str) -> Rule:
    return lambda x, y, by: funnel(direction, mode, x, y, by), "b32", ("b32", "b32", "u32")


@rule(r"lop3\.b32|(prmt)\.b32")
def _(name: str | None) -> Rule:
    return (prmt, "b32", ("b32",) * 3) if name else (lop3, "b32", ("b32",) * 4)


@rule(r"bfe\.([us](?:32|64))")
def _(kind: str) -> Rule:
    return extract, kind, (kind, "u32", "u32")


@rule(r"popc\.(b32|b64)")
def _(kind: str) -> Rule:
    return np.bitwise_count, "u32", (kind,)


@rule(r"selp\.(\w+)")
def _(kind: str) -> Rule:
    return lambda x, y, p: np.where(p, x, y), kind, (kind, kind, "pred")


@rule(r"setp\.(eq|ne|lt|le|gt|ge|lo|ls|hi|hs|nan|num|equ|neu|ltu|leu|gtu|geu)(?:\.(and|or|xor))?\.(\w+)")
def _(name: str, combine: str | None, kind: str) -> Rule:
    def unordered(x: Array, y: Array) -> Array:
        return np.isnan(x) | np.isnan(y)

    if name in ("nan", "num"):
        compare = unordered if name == "nan" else lambda x, y: ~unordered(x, y)
    elif len(name) == 3:
        compare = lambda x, y: COMPARE[name[:2]](x, y) | unordered(x, y)  # noqa: E731
    elif name == "ne" and kind[0] == "f":
        compare = lambda x, y: (x != y) & ~unordered(x, y)  # noqa: E731
    else:
        compare = COMPARE[name]
    if combine is None:
        return compare, "pred", (kind, kind)
    return lambda x, y, p: LOGIC[combine](compare(x, y), p), "pred", (kind, kind, "pred")


@rule(r"cvta(?:\.to)?\.(?:global|const|param)\.u64")
def _() -> Rule:
    return lambda x: x, "u64", ("u64",)


@rule(r"cvta(\.to)?\.shared\.u64")
def _(to: str | None) -> Rule:
    return lambda x: x - np.uint64(WINDOW) if to else x + np.uint64(WINDOW), "u64", ("u64",)


@rule(r"cvt\.([us]\d+)\.([us]\d+)")
@rule(r"cvt\.(f64)\.(f32|f16)")
@rule(r"cvt\.(f32)\.(f16)")
@rule(r"cvt\.rn\.(f32|f64)\.([us]\d+)")
@rule(r"cvt\.rn\.(f32)\.(f64)")
@rule(r"cvt\.rn\.(f16)\.(f32|f64)")
def _(to: str, kind: str) -> Rule:
    return lambda x: x.astype(KINDS[to]), to, (kind,)


@rule(rf"cvt\.(rni|rzi|rmi|rpi)\.([us](?:32|64))\.{FLOAT}")
def _(how: str, to: str, kind: str) -> Rule:
    return lambda x: to_integer(x, to, how), to, (kind,)


@rule(r"cvt\.(rni|rzi|rmi|rpi)\.(f32\.f32|f64\.f64)")
def _(how: str, kinds: str) -> Rule:
    return WHOLE[how], kinds[:3], (kinds[:3],)


@rule(r"cvt\.rn\.bf16\.f32|cvt\.(f32)\.bf16")
def _(to: str | None) -> Rule:
    return (from_bfloat16, "f32", ("bf16",)) if to else (to_bfloat16, "bf16", ("f32",))


@rule(r"cvt\.rn\.(bf16|f16)x2\.f32")
def _(kind: str) -> Rule:
    narrow = to_bfloat16 if kind == "bf16" else lambda x: x.astype(np.float16).view(np.uint16)
    return lambda x, y: pack(narrow(x), narrow(y)), "b32", ("f32", "f32")


@rule(r"cvt\.rna\.tf32\.f32")
def _() -> Rule:
    return to_tfloat32, "b32", ("f32",)
