"""Number formats: which values they hold, and how a value is rounded to one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from noisykernels._util.checks import flag, in_range, one_of, shown, whole
from noisykernels.noise.arguments import Key, Seed, operand_number, seed_tensor, tensors, word
from noisykernels.noise.tokens import RowIds, by_tokens

__all__ = [
    "FORMATS",
    "USUAL",
    "FixedFormat",
    "FloatFormat",
    "Format",
    "as_format",
    "check_holds",
    "format_of",
    "quantize",
]

_ops = torch.ops.noisykernels


ROUNDINGS = ("truncate", "nearest", "stochastic")
OVERFLOWS = ("saturate", "infinity")
FLOAT32_LARGEST = float(torch.finfo(torch.float32).max)


class Format:
    """A number format: `FloatFormat` or `FixedFormat`. Every value of one is a float32 number (a float64 number for
    fixed-point formats of more than 24 bits, which serve float64 data)."""

    rounding: str
    point: ClassVar[Literal["float", "fixed"]]

    def rounded(self, rounding: str) -> Format:
        """This format with another rounding.

        Example:
            >>> FloatFormat(7, 6).rounded("nearest")
            FloatFormat(mantissa=7, exponent=6, rounding='nearest')
        """
        made: Any = self
        other: Format = replace(made, rounding=rounding)
        return other

    @property
    def stochastic(self) -> bool:
        """Whether its rounding draws random numbers."""
        return self.rounding == "stochastic"

    @property
    def numbers(self) -> list[float]:
        """The format as the operators take it: is it fixed-point, which rounding, bits after the point, least normal
        exponent, largest value, are there subnormals, do large values become infinite."""
        raise NotImplementedError

    @property
    def bits(self) -> int:
        """Width of a code, with its sign."""
        raise NotImplementedError

    @property
    def layout(self) -> str:
        """Its bits, such as ``"M7E6"``, ``"L8R8"``."""
        raise NotImplementedError

    def __str__(self) -> str:
        """As `as_format` reads it, but for what a name has no words for."""
        known = next((name for name, one in FORMATS.items() if one == self), None)
        return known or self.layout + ("" if self.rounding == "truncate" else f" {self.rounding}")


@dataclass(frozen=True, repr=False)
class FloatFormat(Format):
    r"""Floating point: a sign, *E* exponent bits with bias *b*, *M* mantissa bits behind an implicit one.

    .. math:: \pm 2^{c - b} (1 + \sum_{i=1}^{M} m_i 2^{-i}), \qquad c = 1 \dots 2^E - 1

    and zero, which has the exponent code *c* = 0. With ``overflow="infinity"`` the highest code is that of infinity and
    NaN, as in IEEE 754. NaN stays NaN in every format.

    Args:
        mantissa: *M*, 1 to 23.
        exponent: *E*, 2 to 8. Wider exponents than float32's are not told from it: a value that stays within float32 is
            the same in M2/E14 as in M2/E8.
        bias: *b*; None: :math:`2^{E-1} - 1`. All values must be float32 numbers.
        subnormals: whether code 0 holds :math:`\pm 2^{1 - b} \sum m_i 2^{-i}`; if not, what would be rounded to one of
            these counts as zero.
        overflow: what a magnitude becomes that is above the largest after rounding: ``"saturate"``: the largest;
            ``"infinity"``.
        rounding: ``"truncate"`` (towards zero), ``"nearest"`` (ties to even) or ``"stochastic"`` (up with the
            probability of the fraction that is cut off, to within 2^-24).
        largest: the largest magnitude, a normal one, where some of the highest codes are taken by other things; None:
            of the highest code that is not infinity's.

    Raises:
        ValueError: bits out of range, or values beyond float32.

    Source: formats with truncation and saturation: Hill et al. 2018, Rethinking Numerical Representations for Deep
    Neural Networks (arXiv 1808.02513).

    Example:
        >>> FloatFormat(10, 5, subnormals=True, overflow="infinity", rounding="nearest").largest_value  # IEEE half
        65504.0
        >>> quantize(torch.tensor([1.99, -300.0]), FloatFormat(2, 4, bias=7))
        tensor([   1.7500, -256.0000])
    """

    point = "float"

    mantissa: int
    exponent: int
    bias: int | None = None
    subnormals: bool = False
    overflow: str = "saturate"
    rounding: str = "truncate"
    largest: float | None = None

    def __post_init__(self) -> None:
        name = "FloatFormat"
        in_range(name, "mantissa", self.mantissa, whole(1, 23))
        flag(name, "subnormals", self.subnormals)
        in_range(name, "exponent", self.exponent, whole(2, 8))
        one_of(name, "overflow", self.overflow, OVERFLOWS)
        one_of(name, "rounding", self.rounding, ROUNDINGS)
        if self.bias is not None and (not isinstance(self.bias, int) or isinstance(self.bias, bool)):
            raise ValueError(f"{name}: bias must be a whole number, got {self.bias!r}")
        whole_range = self.exponent == 8 and self._bias == 127  # that of float32, whose highest code is not a number
        if not whole_range and (self._highest > 103 or self.least_exponent - self.mantissa < -126):
            raise ValueError(
                f"{name}: bias must keep all values and steps between 2^-126 and 2^104 (or be 127 with 8 exponent "
                f"bits), got {self.bias} with {self.exponent} exponent bits and {self.mantissa} mantissa bits"
            )
        if self.largest is not None:
            top, least, given = self._top, 2.0**self.least_exponent, self.largest
            number = isinstance(given, int | float) and not isinstance(given, bool)
            if not number or not least <= given <= top or _rounded_down(given, self.mantissa) != given:
                raise ValueError(f"{name}: largest must be a value of the format from {least} to {top}, got {given!r}")

    @property
    def _bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1 if self.bias is None else self.bias

    @property
    def least_exponent(self) -> int:
        """Of a normal number: 1 - b."""
        return 1 - self._bias

    @property
    def _highest(self) -> int:
        codes: int = 2**self.exponent - (2 if self.overflow == "infinity" else 1)
        return codes - self._bias

    @property
    def _top(self) -> float:
        return (2 - 2.0**-self.mantissa) * 2.0 ** min(self._highest, 127)

    @property
    def largest_value(self) -> float:
        """The largest finite magnitude."""
        return self._top if self.largest is None else float(self.largest)

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent + self.mantissa

    @property
    def numbers(self) -> list[float]:
        """As the operators take it."""
        return [
            0.0,
            float(ROUNDINGS.index(self.rounding)),
            float(self.mantissa),
            float(self.least_exponent),
            self.largest_value,
            float(self.subnormals),
            float(self.overflow == "infinity"),
        ]

    def __repr__(self) -> str:
        return _shown(self, ("mantissa", "exponent"))

    @property
    def layout(self) -> str:
        """Its bits."""
        return f"M{self.mantissa}E{self.exponent}"


def _rounded_down(value: float, mantissa: int) -> float:
    fraction, exponent = math.frexp(value)
    return math.ldexp(math.floor(math.ldexp(fraction, mantissa + 1)), exponent - mantissa - 1)


@dataclass(frozen=True, repr=False)
class FixedFormat(Format):
    r"""Fixed point: a sign, *L* bits left and *R* bits right of the point: multiples of :math:`2^{-R}` of magnitude up
    to :math:`2^L - 2^{-R}`, where larger ones saturate. NaN stays NaN.

    Args:
        left: *L*.
        right: *R*; L + R is 1 to 24, or to 53, which serves float64 data only.
        rounding: as for `FloatFormat`.

    Raises:
        ValueError: bits out of range.

    Source: Hill et al. 2018 (arXiv 1808.02513).

    Example:
        >>> quantize(torch.tensor([300.0, -1.3]), FixedFormat(8, 2))
        tensor([255.7500,  -1.2500])
    """

    point = "fixed"

    left: int
    right: int
    rounding: str = "truncate"

    def __post_init__(self) -> None:
        name = "FixedFormat"
        in_range(name, "left", self.left, whole(0, 53))
        in_range(name, "right", self.right, whole(0, 53))
        one_of(name, "rounding", self.rounding, ROUNDINGS)
        if not 1 <= self.left + self.right <= 53:
            raise ValueError(f"{name}: left + right must be from 1 to 53 bits, got {self.left} + {self.right}")

    @property
    def largest_value(self) -> float:
        """The largest magnitude."""
        return 2.0**self.left - 2.0**-self.right

    @property
    def bits(self) -> int:
        """Sign and magnitude."""
        return 1 + self.left + self.right

    @property
    def numbers(self) -> list[float]:
        """As the operators take it."""
        return [
            1.0,
            float(ROUNDINGS.index(self.rounding)),
            float(self.right),
            0.0,
            self.largest_value,
            1.0,
            0.0,
        ]

    def __repr__(self) -> str:
        return _shown(self, ("left", "right"))

    @property
    def layout(self) -> str:
        """Its bits."""
        return f"L{self.left}R{self.right}"


def _shown(made: Any, always: Sequence[str]) -> str:
    fields = type(made).__dataclass_fields__
    given = [
        f"{name}={getattr(made, name)!r}"
        for name, field in fields.items()
        if name in always or getattr(made, name) != field.default
    ]
    return f"{type(made).__name__}({', '.join(given)})"


_IEEE = {"subnormals": True, "overflow": "infinity", "rounding": "nearest"}
_FINITE = {"subnormals": True, "rounding": "nearest"}  # no code for infinity: the largest value stands for more
FORMATS: dict[str, Format] = {
    "fp32": FloatFormat(23, 8, **_IEEE),  # type: ignore[arg-type]
    "tf32": FloatFormat(10, 8, **_IEEE),  # type: ignore[arg-type]
    "bf16": FloatFormat(7, 8, **_IEEE),  # type: ignore[arg-type]
    "fp16": FloatFormat(10, 5, **_IEEE),  # type: ignore[arg-type]
    "fp8_e5m2": FloatFormat(2, 5, **_IEEE),  # type: ignore[arg-type]
    "fp8_e4m3": FloatFormat(3, 4, **_FINITE, largest=448.0),  # type: ignore[arg-type]
    "fp8_e5m2fnuz": FloatFormat(2, 5, bias=16, **_FINITE),  # type: ignore[arg-type]
    "fp8_e4m3fnuz": FloatFormat(3, 4, bias=8, **_FINITE),  # type: ignore[arg-type]
    "fp6_e3m2": FloatFormat(2, 3, **_FINITE),  # type: ignore[arg-type]
    "fp6_e2m3": FloatFormat(3, 2, **_FINITE),  # type: ignore[arg-type]
    "fp4_e2m1": FloatFormat(1, 2, **_FINITE),  # type: ignore[arg-type]
    **{f"int{bits}": FixedFormat(bits - 1, 0, "nearest") for bits in (16, 8, 4, 2)},
}
"""Well-known formats by name, all of which round to nearest, ties to even. IEEE's and ``fp8_e5m2`` have infinities;
the others of 4 to 8 bits have none and saturate: ``fp8_e4m3`` (of the Open Compute Project; ``float8_e4m3fn`` in torch,
whose own conversion gives NaN there) at 448, ``fp8_e4m3fnuz`` at 240, ``fp8_e5m2fnuz`` at 57344, ``fp6_e3m2`` at 28,
``fp6_e2m3`` at 7.5, ``fp4_e2m1`` at 6. ``int8`` and its like are whole numbers that saturate at both ends alike, at 127
and -127, as quantised weights do."""

_BITS = {
    "e5m2": "fp8_e5m2", "e4m3": "fp8_e4m3", "e4m3fn": "fp8_e4m3", "e5m2fnuz": "fp8_e5m2fnuz",
    "e4m3fnuz": "fp8_e4m3fnuz", "e3m2": "fp6_e3m2", "e2m3": "fp6_e2m3", "e2m1": "fp4_e2m1",
}  # fmt: skip
USUAL = {
    "float32": "fp32", "float": "fp32", "single": "fp32", "tensorfloat32": "tf32", "bfloat16": "bf16",
    "float16": "fp16", "half": "fp16", "fp6": "fp6_e3m2", "fp4": "fp4_e2m1", "float4_e2m1fn_x2": "fp4_e2m1",
    "fp8_e4m3fn": "fp8_e4m3", **_BITS, **{f"float{name[2]}_{bits}": name for bits, name in _BITS.items()},
}  # fmt: skip
"""Other names of the same formats: torch's (a ``torch.dtype`` will do), and those of bits such as ``"E4M3"``; in any
case of letters."""


def as_format(given: str | Format | torch.dtype) -> Format:
    """A format from its name: one of `FORMATS` or a usual name of one (``"float16"``, ``"bfloat16"``, ``"E4M3"``,
    ``"float8_e4m3fn"``, ``"fp4"``, ``torch.int8``), or ``"M7E6"``, ``"L8R8"`` as in the design sweeps of the literature
    (truncation, saturation, no subnormals); each perhaps with another rounding, ``"M7E6 stochastic"``.

    Args:
        given: the name, or a dtype of torch; a `Format` is returned as it is.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> as_format("M7E6"), as_format("L8R8")
        (FloatFormat(mantissa=7, exponent=6), FixedFormat(left=8, right=8))
        >>> as_format(torch.float16) == as_format("half") == as_format("fp16"), str(as_format("E4M3"))
        (True, 'fp8_e4m3')
    """
    return format_of("as_format", "format", given)


def format_of(op: str, name: str, given: Any) -> Format:
    """A format that is an argument of something else."""
    if isinstance(given, Format):
        return given
    if isinstance(given, str | torch.dtype):
        bits, _, rounding = str(given).removeprefix("torch.").partition(" ")
        known = bits.lower()
        if (found := FORMATS.get(USUAL.get(known, known))) is not None:
            return found.rounded(rounding) if rounding else found
        if match := re.fullmatch(r"M([0-9]{1,3})E([0-9]{1,3})", bits):
            return FloatFormat(int(match[1]), int(match[2]), rounding=rounding or "truncate")
        if match := re.fullmatch(r"L([0-9]{1,3})R([0-9]{1,3})", bits):
            return FixedFormat(int(match[1]), int(match[2]), rounding=rounding or "truncate")
    words = f"one of {', '.join(FORMATS)}, a usual name of one, 'M<bits>E<bits>' or 'L<bits>R<bits>'"
    raise ValueError(f"{op}: {name} must be {words}, got {shown(given)}")


@by_tokens
def quantize(
    x: Tensor,
    fmt: str | Format | torch.dtype,
    *,
    seed: Seed = None,
    site: int = 0,
    operand: str = "rounding_sum",
    draw: int | Tensor | None = None,
    rows: RowIds = None,
    first_row: int = 0,
) -> Tensor:
    """Every value rounded to a format.

    Args:
        x: any shape, dimension 0 counts rows; float32, float64, bfloat16 or float16 (half types by way of float32).
        fmt: a `Format`, or its name (`as_format`).
        seed, site, operand, draw, rows, first_row: of the random numbers of stochastic rounding: word ``element`` of
            the row's stream decides element ``element`` of the row.

    Returns:
        The shape and dtype of ``x``. The gradient passes straight through.

    Raises:
        ValueError: an unknown format, or one of more bits than the data's type holds.

    Example:
        >>> quantize(torch.tensor([0.1, 1e6]), "fp16")
        tensor([0.1000,    inf])
        >>> x = torch.rand(99)
        >>> bool((quantize(x, "bf16") == x.bfloat16().float()).all())
        True
    """
    tensors("quantize", x=x)
    made = as_format(fmt)
    check_holds("quantize", made, x.dtype)
    if seed is not None and not made.stochastic:
        seed_tensor("quantize", seed, x.device)  # which is not used: checked all the same
    if draw is not None and not isinstance(draw, Tensor):
        word("quantize", "draw", draw)
    draws = None if draw is None else [draw] if isinstance(draw, int) else draw
    key = Key.of("quantize", x.device, seed if made.stochastic else 0, site, draws, rows, first_row)
    out: Tensor = _ops.quantize.default(x, made.numbers, *key, operand_number("quantize", operand))
    return out


def check_holds(op: str, fmt: Format | None, dtype: torch.dtype) -> None:
    """Raises an error for a fixed-point format whose values the data's type does not hold."""
    most = 53 if dtype == torch.float64 else 24
    if isinstance(fmt, FixedFormat) and fmt.left + fmt.right > most:
        raise ValueError(f"{op}: {fmt!r} has more than {most} bits: {dtype} data cannot hold it (float64: up to 53)")
