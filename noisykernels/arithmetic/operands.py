"""The operands of every output of a contraction, laid out, in parts that memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from noisykernels.hardware.contraction import Contraction

__all__ = ["operands_of", "pieces"]


_ELEMENTS = 1 << 24  # of operands or orders that are laid out at once


def pieces(contraction: Contraction, x: Tensor, weight: Tensor, laid_out: bool) -> Iterator[tuple[int, Tensor]]:
    """The rows in parts whose operands, or orders, are not too many to be laid out at once."""
    if x.shape[0] == 0 or x.numel() == 0:
        return
    steps, of_row = contraction.steps(weight), 1
    if contraction.geometry is not None:
        of_row = math.prod(contraction.positions(x, weight)) * steps * contraction.groups
    elif laid_out:
        of_row = x.numel() // x.shape[0]
    of_row *= contraction.features(weight) // contraction.groups if laid_out else 1
    some = max(1, _ELEMENTS // max(1, of_row))
    whole = contraction.of_values or (contraction.geometry is None and not laid_out)  # of any size under torch.compile
    if whole or x.shape[0] <= some:
        yield 0, x
        return
    for first in range(0, x.shape[0], some):
        yield first, x.narrow(0, first, min(some, x.shape[0] - first))


def operands_of(contraction: Contraction, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The operands of every output of a contraction, as matrices, and the shape of the outputs.

    Output (t, i, j) is the sum over k of ``a[t % Ta, i, k] * b[t % Tb, k, j]``, k in the weight's natural order, with
    zeros for padding.

    Args:
        contraction: of x (rows, ...) and weight.

    Returns:
        a (Ta, I, K), b (Tb, K, J), and the shape, rows first, into which (T, I, J) is to be put.
    """
    if contraction.of_values:
        shape = [*x.shape[:-1], weight.shape[-2]]
        whole = weight.expand(len(x), *weight.shape[1:]).transpose(-1, -2)
        return x.flatten(0, 1), whole.flatten(0, 1), shape
    if contraction.geometry is None:
        return x.reshape(1, -1, x.shape[-1]), weight.t().unsqueeze(0), [*x.shape[:-1], weight.shape[0]]
    stride, padding, dilation, transposed, output_padding, groups = contraction.geometry
    dims, rows = weight.dim() - 2, x.shape[0]
    kernel, sizes, steps = list(weight.shape[2:]), contraction.positions(x, weight), contraction.steps(weight)
    if transposed:
        # The input spread out with zeros between, and the kernel turned round.
        for d, step in enumerate(stride):
            size = x.shape[2 + d]
            x = F.pad(x.unsqueeze(3 + d), [0, 0] * (dims - 1 - d) + [0, step - 1])
            x = x.flatten(2 + d, 3 + d).narrow(2 + d, 0, (size - 1) * step + 1)
        before = [dilation[d] * (kernel[d] - 1) - padding[d] for d in range(dims)]
        after = [before[d] + output_padding[d] for d in range(dims)]
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)  # (groups, N / groups, inputs, kernel)
        steps_of = [1] * dims
    else:
        before = after = list(padding)
        steps_of = list(stride)
    pads = [max(0, side) for d in range(dims - 1, -1, -1) for side in (before[d], after[d])]
    if any(pads):
        x = F.pad(x, pads)
    for d in range(dims):  # what is cropped: after what is added, which it may reach into
        if before[d] < 0 or after[d] < 0:
            first = max(0, -before[d])
            x = x.narrow(2 + d, first, x.shape[2 + d] - first - max(0, -after[d]))
    strides = x.stride()
    windows = x.as_strided(
        (rows, x.shape[1], *kernel, *sizes),
        (
            *strides[:2],
            *(dilation[d] * strides[2 + d] for d in range(dims)),
            *(steps_of[d] * strides[2 + d] for d in range(dims)),
        ),
    )
    if transposed:
        windows = windows.flip(list(range(2, 2 + dims)))
    b = windows.reshape(rows * groups, steps, math.prod(sizes))
    a = weight.reshape(groups, -1, steps)
    return a, b, [rows, a.shape[0] * a.shape[1], *sizes]
