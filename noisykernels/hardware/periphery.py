"""Models of what stands around the array: converters of inputs and outputs, the fixed pattern of columns. For the list
``hardware=``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisykernels._util.checks import flag, in_range, one_of, whole
from noisykernels._util.tensors import can_look, constructed, kept_type, number, straight_through
from noisykernels.hardware.device import Device, Draw
from noisykernels.hardware.grid import ROUNDINGS, Grid

__all__ = ["ADC", "DAC", "ColumnGain", "ColumnOffset"]


class _Converter(Device):
    """Quantisation with saturation."""

    def __init__(
        self, bits: int, limit: float | Tensor | str, *, signed: bool = True, rounding: str = "nearest"
    ) -> None:
        name = type(self).__name__
        self.signed = flag(name, "signed", signed)
        self.bits = in_range(name, "bits", bits, whole(2 if self.signed else 1, 24))  # exact in float32
        self.rounding = one_of(name, "rounding", rounding, ROUNDINGS)
        if isinstance(limit, str) and limit != "row":
            raise ValueError(f"{name}: limit must be a number, a tensor or 'row', got {limit!r}")
        self.limit: Tensor | str
        if isinstance(limit, Tensor) and limit.dim() == 1:
            if not limit.is_floating_point() or limit.requires_grad:
                raise ValueError(f"{name}: limit must hold floating-point values without gradient, got {limit!r}")
            if can_look(limit) and not bool(((limit > 0) & limit.isfinite()).all()):
                raise ValueError(f"{name}: limit must be finite and positive, got {limit[:8].tolist()}")
            self.limit = limit.double()
        elif isinstance(limit, str):
            self.limit = limit
        else:
            self.limit = number(name, "limit", limit, positive=True)

    def _quantised(self, value: Tensor, draw: Draw) -> Tensor:
        if value.numel() == 0:
            return value
        kept = kept_type(value)
        x = value.to(kept)
        top = 2 ** (self.bits - self.signed) - 1
        least = -top - 1 if self.signed else 0
        if isinstance(self.limit, str):
            limit = self._of_rows(x.detach())
        else:
            limit = self.limit.to(x.device, kept)
            if limit.dim() == 1:
                channels = x.shape[-1 if draw.contraction.geometry is None else 1]
                if len(limit) != channels:
                    name = type(self).__name__
                    raise ValueError(
                        f"{name}: limit must hold one value for each of {channels} channels, got {len(limit)}"
                    )
                limit = draw.channels(limit, x)
        grid = Grid(limit, least, top, value.dtype)
        exact = grid.value(grid.code(x.detach(), self.rounding))
        lowest, highest = (grid.stored(x.new_tensor(code)) for code in (least, top))
        return straight_through(exact, x.clamp(lowest, highest)).to(value.dtype)

    def _of_rows(self, x: Tensor) -> Tensor:
        """The limit of each row: its largest magnitude, or without codes below zero its largest value."""
        rows = x.flatten(1)
        limit = torch.linalg.vector_norm(rows, math.inf, 1) if self.signed else rows.amax(1).clamp(min=0)
        return limit.view(-1, *[1] * (x.dim() - 1))

    def __repr__(self) -> str:
        names = ("bits", "limit", "signed", "rounding")
        return constructed(type(self).__name__, {name: getattr(self, name) for name in names})


class DAC(_Converter):
    r"""Inputs that a converter of *b* bits makes: quantised and saturated.

    .. math:: x \leftarrow \Delta\, \mathrm{clamp}(\mathrm{round}(x / \Delta), q_{min}, q_{max}),
        \qquad \Delta = limit / q_{max}

    Signed codes reach from :math:`-2^{b-1}` to :math:`2^{b-1} - 1`, unsigned ones from 0 to :math:`2^b - 1`. So the
    limit is the largest value that can be told, and zero is one of them. What has the value of a code keeps it: to
    convert twice is to convert once.

    Args:
        bits: 1 to 24, at least 2 if signed.
        limit: value of the largest code, in units of the input: a number; a tensor of one, or of one for each input
            feature (channel); or ``"row"``: the largest magnitude of the row, all its positions and channels (of an
            unsigned converter: the largest value). It never depends on what other rows are in the batch.
        signed: whether there are codes below zero.
        rounding: ``"nearest"`` (ties to even), or ``"floor"``: the largest code whose value is not above.

    The gradient passes straight through the rounding, is 1 from the smallest to the largest code and 0 where the
    converter saturates; a limit takes part in none.

    Raises:
        ValueError, TypeError: ``bits`` out of range, a limit that is not positive, or an unknown ``rounding``.

    Source: common practice; the straight-through rule is that of Bengio et al. 2013 (arXiv 1308.3432).

    Example:
        >>> import noisykernels as nk
        >>> x = torch.tensor([[0.4, -3.0, 9.0]])
        >>> nk.linear(x, torch.eye(3), hardware=[DAC(bits=3, limit=3.0)])
        tensor([[ 0., -3.,  3.]])
    """

    def input(self, x: Tensor, draw: Draw) -> Tensor:
        """x as the converter makes it."""
        return self._quantised(x, draw)


class ADC(_Converter):
    r"""Outputs as a converter of *b* bits reads them: quantised and saturated, before the bias.

    .. math:: y \leftarrow \Delta\, \mathrm{clamp}(\mathrm{round}(y / \Delta), q_{min}, q_{max}),
        \qquad \Delta = limit / q_{max}

    Args:
        bits, signed, rounding: as for `DAC`.
        limit: value of the largest code, in units of the output: a number; a tensor of one, or of one for each output
            feature (channel); or ``"row"``: as for `DAC`.

    Gradient, errors and source: as for `DAC`.

    Raises:
        ValueError, TypeError: as `DAC`.

    Example:
        >>> import noisykernels as nk
        >>> x = torch.tensor([[3.7, -200.0, 200.0]])
        >>> nk.linear(x, torch.eye(3), hardware=[ADC(bits=8, limit=127.0, rounding="floor")])
        tensor([[   3., -128.,  127.]])
    """

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        """y as the converter reads it."""
        return self._quantised(y, draw)


# ------------------------------------------------------------------------------------------- columns


class _Column(Device):
    level_names = ("sigma",)
    of_array = True

    def __init__(self, sigma: float | Tensor) -> None:
        self.sigma = number(type(self).__name__, "sigma", sigma)

    def _pattern(self, y: Tensor, draw: Draw) -> Tensor:
        """sigma eps of each output feature, beside y."""
        features = y.shape[-1 if draw.contraction.geometry is None else 1]
        eps = draw.fixed((features,), self.operands[0], dtype=kept_type(y))
        return draw.channels(self.sigma.to(eps.device, eps.dtype) * eps, y)

    def __repr__(self) -> str:
        return constructed(type(self).__name__, {"sigma": self.sigma})


class ColumnOffset(_Column):
    r"""An offset of each output feature (column, channel), drawn once for each chip.

    .. math:: y_n + \sigma \epsilon_n

    Args:
        sigma: standard deviation over columns and chips, in units of the output.

    Raises:
        ValueError, TypeError: a negative ``sigma``.

    Source: fixed-pattern offsets as measured on BrainScaleS-2, which differ from neuron to neuron.

    Example:
        >>> import noisykernels as nk
        >>> y = nk.linear(torch.zeros(2, 3), torch.ones(4, 3), hardware=[ColumnOffset(sigma=0.5)], seed=1)
        >>> bool((y[0] == y[1]).all()), len(y.unique())
        (True, 4)
    """

    operands = ("column_offset",)

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        """y with the offsets."""
        return (y.to(kept_type(y)) + self._pattern(y, draw)).to(y.dtype)


class ColumnGain(_Column):
    r"""A factor of each output feature (column, channel), drawn once for each chip.

    .. math:: y_n (1 + \sigma \epsilon_n)

    Args:
        sigma: standard deviation over columns and chips, relative.

    Raises:
        ValueError, TypeError: a negative ``sigma``.

    Source: as for `ColumnOffset`; gains are the other half of a column's calibration.

    Example:
        >>> import noisykernels as nk
        >>> y = nk.linear(torch.ones(2, 3), torch.ones(4, 3), hardware=[ColumnGain(sigma=0.0)], seed=1)
        >>> y[0]
        tensor([3., 3., 3., 3.])
    """

    operands = ("column_gain",)

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        """y times the factors."""
        return (y.to(kept_type(y)) * (1 + self._pattern(y, draw))).to(y.dtype)
