"""Checks of single arguments that several packages share."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from noisykernels._util.tensors import can_look

__all__ = ["is_number", "number", "one_of", "shown", "whole", "whole_size"]


def whole_size(op: str, name: str, size: SupportsIndex) -> int:
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


# ------------------------------------------------------------------------------------------- arguments


def number(owner: str, name: str, value: float | Tensor, positive: bool = False) -> Tensor:
    """A number or a 0-d tensor as a 0-d float64 tensor; checked where its value can be seen."""
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point() or value.requires_grad:
            got = f"{value.dtype} of shape {list(value.shape)}" + (" that requires grad" if value.requires_grad else "")
            raise ValueError(f"{owner}: {name} must be a number or a 0-d floating-point tensor, got {got}")
        t = value.double()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be a number or a 0-d tensor, got {type(value).__name__}")
    else:
        t = torch.tensor(value, dtype=torch.float64, device="cpu")
    if can_look(t) and not (t >= 0 and t.isfinite() and (t > 0 or not positive)):
        raise ValueError(
            f"{owner}: {name} must be finite and {'positive' if positive else 'not negative'}, got {t.item()}"
        )
    return t


def whole(owner: str, name: str, value: int, low: int, high: int) -> int:
    """A whole number between bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{owner}: {name} must lie in [{low}, {high}], got {value}")
    return value


def one_of(owner: str, name: str, value: str, choices: tuple[str, str]) -> str:
    """One of two words."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}")
    return value


def shown(owner: str, parts: dict[str, Any]) -> str:
    """A device as it was constructed; of tensors that cannot be looked at, the shape."""

    def text(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        return repr(value.item()) if value.dim() == 0 and can_look(value) else f"<{list(value.shape)}>"

    return f"{owner}({', '.join(f'{name}={text(value)}' for name, value in parts.items())})"
