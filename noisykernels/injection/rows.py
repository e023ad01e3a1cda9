"""Where a value holds its rows: along a dimension, alone or folded into it with what lies around."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ALONE", "FIRST", "Rows", "apart", "close", "no_rows", "together"]


class Rows(NamedTuple):
    """A dimension that counts rows, or (outer x rows x inner) as where tokens or windows are folded into the batch."""

    dim: int
    outer: int = 1
    folded: bool = False


FIRST = Rows(0)
ALONE = Rows(0, 0)  # a value that is the same for all rows, such as a table of positions: one row


def apart(value: Tensor, rows: Rows, count: int) -> Tensor | None:
    """The value with its `count` rows along dimension 0; None: it does not hold them there."""
    if rows.outer == 0:
        return value.unsqueeze(0)
    dim, outer, folded = rows
    if not -value.dim() <= dim < value.dim():
        return None
    if value.shape[dim] == count:
        return value if dim == 0 else value.movedim(dim, 0)
    if not folded or count == 0 or value.shape[dim] % (outer * count):
        return None
    dim %= value.dim()
    found: Tensor = value.unflatten(dim, (outer, count, -1))
    return found.movedim(dim + 1, 0)


def together(value: Tensor, rows: Rows, like: Tensor) -> Tensor:
    """The counterpart of `apart`, for a value of the shape of `like`."""
    if rows.outer == 0:
        return value.squeeze(0)
    dim = rows.dim
    if value.dim() == like.dim():
        return value if dim == 0 else value.movedim(0, dim)
    dim %= like.dim()
    return value.movedim(0, dim + 1).flatten(dim, dim + 2)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether values are those of the same rows, but for roundings of another size of the batch."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * size, equal_nan=True)


def no_rows(name: str, count: int, value: Tensor) -> str:
    """What to say of a value at a site in which its `count` rows are not found."""
    return (
        f"site {name!r}: expected {count} rows (draws x batch) along the row "
        f"dimension, got a value of shape {list(value.shape)}. Where rows do not lie along "
        "dimension 0, let inject() find them with example_input=..., or give "
        f"row_dims={{{name!r}: dim}}; a value that mixes rows, or holds a part of them as the model cuts "
        "its batch, cannot be a site: leave it out with where=..., or run fewer rows at once"
    )
