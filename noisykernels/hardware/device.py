"""The base classes of what hardware does to a contraction, and one draw of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.checks import Range, in_range, one_of
from noisykernels._util.tensors import can_look
from noisykernels.hardware.contraction import Contraction, largest_of
from noisykernels.noise.arguments import OF_THE_CALL, Chip, Key
from noisykernels.noise.contract import KINDS, OPERANDS, stream_number

__all__ = ["Arithmetic", "Device", "Draw", "standardised"]

_ops = torch.ops.noisykernels


def standardised(zeros: Tensor, key: Key, number: int, kind: str) -> Tensor:
    """Values of mean 0 and variance 1 of the stream with this number, added to zeros."""
    one_of("Draw", "kind", kind, KINDS)
    one = torch.ones((), dtype=torch.float64)
    out: Tensor = _ops.perturb.default(zeros, number, one, None, *key, 0, KINDS.index(kind), False)
    return out


@dataclass(frozen=True)
class Draw:
    """One execution of the hardware at one contraction, as a device sees it: one draw, which stands for one chip.

    Example:
        >>> import noisykernels as nk
        >>> class Uneven(Device):  # each output with a fixed factor of its own
        ...     def output(self, y, draw):
        ...         return y * (1 + draw.channels(draw.fixed((y.shape[-1],), "column_gain"), y))
        >>> y = nk.linear(torch.ones(2, 4), torch.ones(3, 4), hardware=[Uneven()], seed=1)
        >>> bool((y[0] == y[1]).all())
        True
    """

    contraction: Contraction
    key: Key  # of this draw and its rows
    device: torch.device  # of the operands
    array: Chip = OF_THE_CALL  # what holds the weight
    own: tuple[str, ...] = ()  # streams that devices of the list name, besides those of the contract
    first: int = 0  # of some rows of a weight, the first

    @property
    def id(self) -> Tensor | None:
        """The number of the draw, (1); None: 0."""
        return self.key.draws

    @property
    def chip(self) -> Key:
        """The key of what belongs to the chip: the same for every row of the data, and for every call of the array."""
        return self.key.of_chip(self.array)

    def fixed(self, shape: Sequence[int], operand: str, kind: str = "gaussian", dtype: Any = torch.float32) -> Tensor:
        """Standardised values that belong to the chip: the same for every row of the data, and for every call that
        uses the array.

        Args:
            shape: of the values; dimension 0 counts what the contract calls rows: of a weight, as it is stored.
            operand: which stream, such as ``"programming"`` or ``"column_offset"``, or one that the device names in its
                `operands`.
            kind: of noise.
            dtype: of the result.
        """
        zeros = torch.zeros(tuple(shape), dtype=dtype, device=self.device)
        return self._standard(zeros, self.chip.of_rows(self.first, len(zeros)), operand, kind)

    def fresh(self, x: Tensor, operand: str, kind: str = "gaussian") -> Tensor:
        """Standardised values for each element of a value (rows, ...) of this draw: new for every row of the data."""
        return self._standard(torch.zeros_like(x.detach()), self.key, operand, kind)

    def _standard(self, zeros: Tensor, key: Key, operand: str, kind: str) -> Tensor:
        if operand not in OPERANDS and operand not in self.own:
            named = f", or {', '.join(map(repr, self.own))}" if self.own else ""
            raise ValueError(
                f"Draw: operand must be one of {', '.join(OPERANDS)}, or a name that a device has among its `operands`"
                f"{named}, got {operand!r}"
            )
        return standardised(zeros, key, stream_number(operand), kind)

    def largest(self, weight: Tensor, over: str) -> Tensor:
        """max |W| over the ``"layer"``, or for each output ``"channel"`` in a shape that broadcasts to the weight; it
        takes part in no gradient."""
        if over == "layer":
            return largest_of(weight)
        return self.contraction.beside_weight(self.contraction.largest(weight), weight)

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        """One value for each output feature (N), in a shape that broadcasts to the output ``y``."""
        return self.contraction.beside_output(values, y)


class Device:
    """One property of analog hardware at a contraction: a subclass overrides what it changes.

    Devices are applied in the order of their list. Each method is called once for each draw, gets values of that draw
    only, and must be a pure function of its arguments; whatever is random comes from `Draw`. The bias is added after
    the outputs have passed the devices, as it is in most hardware.

    Example:
        >>> import noisykernels as nk
        >>> class Attenuated(Device):
        ...     def output(self, y, draw):
        ...         return y / 2
        >>> nk.linear(torch.ones(1, 2), torch.ones(3, 2), hardware=[Attenuated()])
        tensor([[1., 1., 1.]])

    One that draws noise: see `Draw`.
    """

    operands: tuple[str, ...] = ()
    """The streams it draws from: those of the contract, such as ``"programming"``, or names of its own, such as
    ``"stuck cells"``. Two devices of a list may not share one.
    """

    level_names: tuple[str, ...] = ()
    """The attributes that are levels of its noise; without any it can have no other level than 1."""

    unseen: Tensor | None = None
    """A level that only the graph or the device knows: where it is not 1, for which the device has no rule, results are
    NaN."""

    of_array: bool = False
    """Whether it is a property of an array of weights, which a product of two values does not have."""

    def scaled(self, factor: float | Tensor) -> Device:
        """This device with the levels of its noise multiplied, as ``noise_state(level=...)`` does."""
        name, seen = type(self).__name__, can_look(factor) if isinstance(factor, Tensor) else True
        if self.operands and not self.level_names:
            if seen and factor != 1:
                raise RuntimeError(
                    f"{name}: a level other than 1 needs the names of the device's levels in `level_names`, or a "
                    f"method `scaled`, got level {float(factor)}"
                )
            made = copy.copy(self)
            made.unseen = None if seen else factor  # type: ignore[assignment]
            return made
        if not isinstance(factor, Tensor):
            in_range(f"{name}.scaled", "factor", factor, Range(0))
        made = copy.copy(self)
        for name in self.level_names:
            level = getattr(self, name)
            setattr(made, name, None if level is None else level * factor)
        return made

    def input(self, x: Tensor, draw: Draw) -> Tensor:
        """What the contraction gets instead of the input x (rows, ...)."""
        return x

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """What the array holds instead of the weight."""
        return weight

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        """What comes out instead of the sums y (rows, ...)."""
        return y


class Arithmetic(Device):
    """How a contraction is computed, where it is not the library that computes it. At most one in a list of devices.

    A subclass overrides `contract`; the devices before and after it act on its operands and its result as usual.

    Example:
        >>> import noisykernels as nk
        >>> class Doubled(Arithmetic):
        ...     def contract(self, x, weight, draw):
        ...         return 2 * draw.contraction(x, weight)
        >>> nk.linear(torch.ones(1, 3), torch.ones(2, 3), arithmetic=Doubled())
        tensor([[6., 6.]])
    """

    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        """The sums (rows, ...) from the input and the weight that the other devices have made."""
        raise NotImplementedError

    def add_bias(self, y: Tensor, bias: Tensor, draw: Draw) -> Tensor:
        """The outputs with the bias (N) of each feature."""
        return y + draw.channels(bias.to(y.dtype), y)
