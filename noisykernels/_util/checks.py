"""One table of what numbers may be, and the checks by it: the command line reads text by it, functions take values.

Each message says which function, which argument, what was expected and what came. Must not know torch.
"""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex

__all__ = ["ITEMS", "RANGES", "Range", "flag", "in_range", "is_number", "one_of", "shown", "whole"]

LARGEST = sys.float_info.max
LONGEST = 200  # of a value in a message


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: whole ones or all, with the ends or without; finite ones, but for an infinite end.

    Example:
        >>> print(Range(0, 2**64 - 1, whole=True)), print(Range(0, 1, ends=False)), print(Range(0))
        a whole number from 0 to 2^64 - 1
        a number above 0 and below 1
        a finite number of at least 0
        (None, None, None)
    """

    low: float = -LARGEST
    high: float = LARGEST
    whole: bool = False
    ends: bool = True

    def __contains__(self, value: float) -> bool:
        if not self.whole and isinstance(value, int) and abs(value) > LARGEST:  # no float can be so large
            return False
        return self.low <= value <= self.high if self.ends else self.low < value < self.high

    def __str__(self) -> str:
        least, most = ("from", "to") if self.ends else ("above", "and below")
        if self.whole and self.low == -(2**63):
            return "a whole number"
        if self.high != LARGEST:
            return f"a {'whole ' * self.whole}number {least} {_bound(self.low)} {most} {_bound(self.high)}"
        if self.low == -LARGEST:
            return "a finite number"
        return f"a finite number {'of at least' if self.ends else 'above'} {_bound(self.low)}"

    def of(self, value: Any) -> int | float | None:
        """A value as a number of this kind, in the range or not; None: it is none."""
        if getattr(value, "shape", ()) or isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
            return None
        if not self.whole:
            return value if isinstance(value, Real) else None  # type: ignore[return-value]
        try:
            return operator.index(value)
        except TypeError:
            return None


def whole(low: int, high: int) -> Range:
    """The whole numbers from `low` to `high`."""
    return Range(low, high, whole=True)


SIZE = whole(1, 2**63 - 1)
SEED = whole(0, 2**64 - 1)
ID = whole(0, 2**32 - 1)  # of a row or a draw: a word of the counter
SHARE = Range(0, 1)
# Starting very many fails in ways that no one can catch. A study that was begun on a larger machine goes on elsewhere
# with its own number, so the bound is the same on all: four for each processor of a machine of 256.
THREADS = whole(1, 1024)

# What an argument may be, by its name, wherever it stands: an argument that is not here is given its range there.
RANGES = {
    "batch_rows": SIZE, "batch_size": SIZE, "draws_per_pass": SIZE, "evaluations": SIZE, "inputs": SIZE, "limit": SIZE,
    "memory": SIZE, "most": SIZE, "permutations": SIZE, "repeats": SIZE, "rows": SIZE, "threads": THREADS,
    "workers": THREADS, "seed": SEED, "draw": ID, "first_row": ID, "draws": whole(1, 10**6),
    "epochs": whole(0, 10**6), "confidence": Range(0, 1, ends=False), "rel_ci": Range(0, 1, ends=False),
    "plateaus": Range(0, 0.5, ends=False), "ratio": SHARE, "ratios": SHARE, "limits": SHARE, "level": Range(0),
    "levels": Range(0), "lr": Range(0), "rho": Range(0), "eta": Range(0), "p": Range(1, math.inf), "budget": Range(0),
    "classes": SIZE, "steps": SIZE, "takes": SIZE, "speakers": SIZE,
    "features": SIZE, "bottleneck": SIZE, "kernel_size": SIZE, "subsets": whole(0, 2**31), "ndim": whole(0, 64),
    "every": SIZE, "in_channels": SIZE, "in_features": SIZE, "width": SIZE, "hidden": whole(0, 2**31),
}  # fmt: skip

# Of numbers in a list, where a number alone is something else: a count beside ids; or is none at all.
ITEMS = {"draws": ID, "rows": ID, "row_dims": whole(-64, 63)}


def in_range(op: str, name: str, value: Any, allowed: Range | None = None) -> Any:
    """A number that an argument may be, as an int or a float; `allowed` where the table does not know its name.

    Raises:
        TypeError: no number, or not a whole one.
        ValueError: a number outside of the range; NaN is outside of all.
    """
    allowed = RANGES[name] if allowed is None else allowed
    number = allowed.of(value)
    if number is None or number not in allowed:
        error = TypeError if number is None else ValueError
        raise error(f"{op}: {name} must be {allowed}, got {shown(value)}")
    return number if allowed.whole else float(number) + 0.0  # -0.0 is 0.0


def is_number(value: Any) -> bool:
    """Whether this may be a whole number; a vector that holds one is none."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and not getattr(value, "shape", ())


def flag(op: str, name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: anything else, be it 1.
    """
    if type(value).__name__ not in ("bool", "bool_"):  # numpy has its own
        raise TypeError(f"{op}: {name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> Any:
    """One of some words.

    Raises:
        TypeError: no text.
        ValueError: another word.
    """
    if not isinstance(value, str) or value not in choices:
        words = " or ".join(map(repr, choices)) if len(choices) < 3 else f"one of {', '.join(choices)}"
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{op}: {name} must be {words}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and short, whatever it is.

    Example:
        >>> shown(10**5000), shown("a" * 500)
        ('a whole number of 16610 bits', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'")
    """
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to write out very long ones
        return f"a whole number of {value.bit_length()} bits"
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {list(value.shape)}"
    try:
        text = " ".join(_short.repr(value).split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    except Exception:  # of somebody else's repr
        return f"an object of class {type(value).__name__}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 64
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 8


def _bound(value: float) -> str:
    """A bound as one reads it: 2^64 - 1 and not 18446744073709551615."""
    if isinstance(value, int) and value > 10**6:
        for more, told in ((0, ""), (1, " - 1")):
            if (value + more).bit_count() == 1:
                return f"2^{(value + more).bit_length() - 1}{told}"
    return f"{value:g}" if isinstance(value, float) else str(value)
