"""A bias as one more column of the array, which an input of one drives: noisy and converted like the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noisykernels.arithmetic.operands import operands_of
from noisykernels.hardware.contraction import Contraction

__all__ = ["Wider", "with_column"]


class Wider(NamedTuple):
    """A contraction whose last product is the bias."""

    contraction: Contraction
    x: Tensor
    weight: Tensor
    shape: list[int] | None = None  # of a row of the result, where it is another one


def _wider(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K) and weight (N, K) with the column of the bias."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1), torch.cat([weight, bias.unsqueeze(1).to(weight.dtype)], 1)


def with_column(contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor) -> Wider:
    """A contraction of x (rows, ...) with its bias (N) in the array, which is stored as before, the bias last."""
    name, layout = contraction.name, contraction.layout
    if contraction.geometry is None and layout is not None and layout.order == (1, 0):
        x, matrix = _wider(x, weight.t(), bias)
        return Wider(contraction, x, matrix.t())
    weight, contraction = contraction.matrix(weight), contraction.laid_out
    if contraction.geometry is None:
        return Wider(contraction, *_wider(x, weight, bias))
    # A convolution as its products, laid out: one of kernels of size one, in as many groups.
    a, b, shape = operands_of(contraction, x, weight)
    groups, _, steps = a.shape
    taken = b.reshape(len(x), groups, steps, -1)
    taken = torch.cat([taken, taken.new_ones(len(x), groups, 1, taken.shape[3])], 2).flatten(1, 2)
    held = torch.cat([a.reshape(-1, steps), bias.unsqueeze(1).to(weight.dtype)], 1)
    geometry = [1], [0], [1], False, [0], groups
    return Wider(Contraction(name, geometry), taken, held.unsqueeze(-1), shape[1:])
