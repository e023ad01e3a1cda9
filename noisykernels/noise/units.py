"""Units of additive levels: the size of each row of a value, by which a level that is relative to it is multiplied.

Sums of whole numbers are exact, so that no order of additions can be told from another: not those of lanes, threads,
devices, or processes that hold a part of the row each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisykernels._util.checks import one_of
from noisykernels.noise.arguments import Key, tensors
from noisykernels.noise.contract import STATISTICS
from noisykernels.noise.description import Noise

__all__ = ["by_torch", "in_units", "row_scale"]

LEAST = -990  # exponent below which the grid gets no finer: of float64 only


def row_scale(x: Tensor, statistic: str) -> Tensor:
    r"""The size of each row of a value: what additive levels that are relative to it are multiplied by.

    It depends on the set of the row's elements and on nothing else: not on their order, the rows beside it, the memory
    format, threads or the device. Elements are first put on a grid of whole numbers,

    .. math:: q_i = \mathrm{round}(2^{k-e} x_i), \qquad 2^{e-1} \le \max|x| < 2^e, \qquad
        k = \min(24, \lfloor (61 - \lceil \log_2 n \rceil) / 2 \rfloor)

    for the *n* elements that are finite; others do not count. ``"rms"`` is :math:`2^{e-k} \sqrt{\sum q_i^2 / n}`,
    ``"std"`` that of the :math:`q_i` less their mean, itself rounded to the grid, and ``"max"`` is :math:`\max|x|`. Up
    to 8192 elements the grid is as fine as float32 is at the largest of them.

    Args:
        x: (rows, ...); a 0-d tensor is one row.
        statistic: ``"rms"``, ``"max"`` or ``"std"``.

    Returns:
        float64 (rows), without a gradient; 0 for a row of zeros, and for one without a finite element.

    Raises:
        ValueError: an unknown statistic.

    Example:
        >>> row_scale(torch.tensor([[3.0, -4.0], [0.0, 0.0], [torch.inf, 2.0]]), "rms")
        tensor([3.5355, 0.0000, 2.0000], dtype=torch.float64)
    """
    tensors("row_scale", x=x)
    one_of("row_scale", "statistic", statistic, STATISTICS)
    found: Tensor = torch.ops.noisykernels.row_scale.default(x.detach(), STATISTICS.index(statistic))
    return found


def in_units(op: str, noise: Noise, add: Tensor | None, value: Tensor, key: Key, shared: bool) -> Tensor | None:
    """The additive level of a noise in the units of a value: times the size of each of its rows, where it is relative.

    Args:
        op: name of the operator, for errors.
        noise: which may be relative.
        add: its level, as operators take it.
        value: without this noise: (B, ...), or (D * B, ...) unless `shared`; 0-d: one row.
        key: of the noise.
    """
    if noise.relative is None or add is None:
        return add
    if not isinstance(noise.relative, str):
        raise ValueError(
            f"{op}: noise relative to ranges needs the name of a site, which models have that are injected: inject() "
            f"it, or give noise.at(site), got {noise!r}"
        )
    size = row_scale(value, noise.relative)
    draws = 1 if shared or key.draws is None else len(key.draws)
    if draws and len(size) % draws:
        return add  # an error of the operator's, which says so
    of_row = size.view(draws, -1 if draws else 0, *[1] * (value.dim() - 1))
    return (add if add.dim() == 0 else add.to(size.device)) * of_row


def by_torch(x: Tensor, statistic: int) -> Tensor:
    """The same of torch's operators: where there is no kernel, and what kernels are held against."""
    rows = x.reshape(1, 1) if x.dim() == 0 else x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    if rows.numel() == 0:
        return rows.new_zeros(len(rows), dtype=torch.float64)
    finite = rows.isfinite()
    rows, count = torch.where(finite, rows, 0).double(), finite.sum(1).double()
    largest = rows.abs().amax(1)
    if STATISTICS[statistic] == "max":
        return largest
    bits = ((61 - torch.frexp(count - 1)[1]) // 2).clamp(max=24)
    exponent = torch.frexp(largest)[1].clamp(min=LEAST)
    q = (rows * _power_of_two(bits - exponent).unsqueeze(1)).round()
    if STATISTICS[statistic] == "std":
        mean = (q.long().sum(1).double() / count.clamp(min=1)).round()
        q = torch.where(finite, q - mean.unsqueeze(1), 0)
    squares = q.square().long().sum(1).double()
    return (squares / count.clamp(min=1)).sqrt() * _power_of_two(exponent - bits)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Exactly, which torch's own powers are not everywhere."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
