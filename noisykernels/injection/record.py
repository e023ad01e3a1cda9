"""The sites of a forward in order, as a trace of it meets them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from noisykernels.injection.belonging import Followed
from noisykernels.injection.memory import Array

__all__ = ["Entry", "Record"]


class Entry(NamedTuple):
    """A site as a trace meets it."""

    name: str
    shape: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...] = ()  # shapes, of a product
    array: Array | None = None  # which of them lies in the memory of the model
    value: Tensor | None = None  # where it was asked for
    held: Followed | None = None  # the tokens that it is of, where they are followed


Record = list[Entry]
