"""Rounding to a grid of codes, of which the largest stands for a limit: what is on the grid stays there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ROUNDINGS", "Grid"]

_ROUND = {"nearest": torch.round, "floor": torch.floor}  # torch.round takes ties to the even neighbour
ROUNDINGS = ("nearest", "floor")


class Grid:
    """Codes from `least` to `top`, and their values as numbers of type `dtype` hold them.

    Args:
        limit: the value of `top`, in the type in which is calculated and in a shape that broadcasts to the values; 0
            where all are 0.
        least, top: the smallest code and the largest.
        dtype: of the values that are put on the grid.
    """

    def __init__(self, limit: Tensor, least: int, top: int, dtype: torch.dtype) -> None:
        self.limit, self.least, self.top, self.dtype = limit, least, top, dtype
        # A step that would be subnormal is no number of 24 bits: tiny limits are calculated with in another unit.
        size = 2.0 ** int(math.log2(torch.finfo(limit.dtype).smallest_normal) * 0.75)
        self.unit = torch.ones_like(limit).masked_fill(limit < size, size)
        self.step = torch.where(limit == 0, 1, limit / self.unit / top)

    def value(self, code: Tensor) -> Tensor:
        """The value of a code: that of the largest is the limit to the bit, where ``limit / top * top`` is often the
        number beside it."""
        return torch.where(code.abs() == self.top, torch.copysign(self.limit, code), code * self.step * self.unit)

    def stored(self, code: Tensor) -> Tensor:
        """The value of a code as a number of type `dtype`."""
        return self.value(code).to(self.dtype).to(self.limit.dtype)

    def code(self, x: Tensor, rounding: str) -> Tensor:
        """The code of a value: its quotient rounded, but for what the division itself rounds.

        ``"floor"``: the largest code whose value is not above x; ``"nearest"``: that of the value itself where there is
        one. A quotient alone falls short of the code of its own value now and then.
        """
        code = _ROUND[rounding](x / self.unit / self.step).clamp(self.least, self.top)
        if rounding == "floor":
            code = code + (self.stored(code + 1) <= x).to(x.dtype) - (self.stored(code) > x).to(x.dtype)
        elif (
            self.top * torch.finfo(self.dtype).eps > 0.25
        ):  # else roundings (to normal numbers) are less than half a code
            code = self.beside(x, code)
        return code.clamp(self.least, self.top)

    def beside(self, x: Tensor, code: Tensor) -> Tensor:
        """A code near that of a value; where the value is on the grid, its own."""
        here, below, above = (self.stored(code + k) == x for k in (0, -1, 1))
        return torch.where(here, code, code + above.to(x.dtype) - (below & ~above).to(x.dtype))
