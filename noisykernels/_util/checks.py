"""Checks of single arguments that several packages share. Must not know torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

__all__ = ["is_number", "number_from_to", "one_of", "one_of_two", "whole", "whole_from_to", "whole_size"]


def whole_size(op: str, name: str, size: SupportsIndex) -> int:
    """A whole number of at least 1."""
    try:
        count = operator.index(size)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{op}: {name} must be a whole number of at least 1, got {size!r}")
    return count


def is_number(value: Any) -> bool:
    """Whether this may be a whole number; a vector that holds one is none."""
    return isinstance(value, SupportsIndex) and not getattr(value, "shape", ())


def whole(owner: str, name: str, value: int, low: int, high: int) -> int:
    """A whole number between bounds; another type is an error of its own."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{owner}: {name} must lie in [{low}, {high}], got {value}")
    return value


def whole_from_to(owner: str, name: str, value: Any, low: int, high: int) -> int:
    """A whole number between bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def number_from_to(owner: str, name: str, value: Any, low: float, high: float) -> float:
    """A number between bounds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be a number from {low} to {high}, got {value!r}")
    return float(value)


def one_of(owner: str, name: str, value: str, choices: Sequence[str]) -> str:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def one_of_two(owner: str, name: str, value: str, choices: tuple[str, str]) -> str:
    """One of two words."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}")
    return value
