"""The analog matrix-vector product of BrainScaleS-2, as its published software model has it, and with an order: the
device. `brainscales` has it with all that stands around it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisykernels._util.checks import flag, in_range, one_of, whole
from noisykernels._util.tensors import can_look, kept_type, number, straight_through
from noisykernels.arithmetic.operands import operands_of
from noisykernels.arithmetic.order import shown_order
from noisykernels.arithmetic.serial import GRADIENTS, Serial
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Arithmetic, Draw

__all__ = ["ADC_HIGH", "ADC_LOW", "INPUT_MAX", "WEIGHT_MAX", "BrainScaleS2"]


INPUT_MAX = 31  # 5 bits
WEIGHT_MAX = 63  # 6 bits and the row's sign
ADC_LOW, ADC_HIGH = -128.0, 127.0  # 8 bits
ROWS = 128  # of an array: 256 synapses of a column, two for a weight with a sign


class BrainScaleS2(Arithmetic):
    r"""Products as the analog core of BrainScaleS-2 adds them up. For ``arithmetic=`` or in the list ``hardware=``.

    The operands are rounded to inputs of 5 bits and weights of 6 bits and a sign, and cut into chunks of 128 rows.
    For each chunk *c*, each sent *n* times, and each output:

    .. math::
        v_c &= g n \sum_{k \in c} x_k w_k + \sigma \epsilon_c \\
        y &= \mathrm{clamp}\Big(\sum_c \mathrm{clamp}(\lfloor v_c \rfloor, -128, 127), -128, 127\Big)

    The sum is one of whole numbers and exact; *gn* is rounded to float32 once, and so is each of the product with it,
    the noise :math:`\sigma\epsilon_c`, and the sum of both (float64 for such data). With ``ordered=True`` the charges
    of a chunk arrive one after the other, and the membrane saturates meanwhile:

    .. math:: v \leftarrow \mathrm{clamp}(\lambda v + g\, x_k w_k,\; v_{min}, v_{max})

    *n* times over the chunk, then come noise, floor and clamp as before. Where nothing saturates or leaks, both are
    equal to the bit.

    Args:
        gain: *g*, in units of the least significant bit (LSB) of the result.
        noise_std: :math:`\sigma` in LSB.
        num_sends: *n*, how often the inputs are sent.
        avg: number of neurons that compute the same output, whose results are averaged.
        input_limit: None: inputs and weights are what the chip takes, numbers of [0, 31] and [-63, 63], and the result
            is in LSB. A number, or ``"row"`` (the largest magnitude of a row of the data): the input that is sent as
            31, max|W| of the layer being sent as 63; what is outside is clamped (so negative inputs are 0), and the
            result is in units of the sum of products, as a trained network needs it.
        ordered: whether the charges arrive in an order.
        low, high: limits of the membrane in LSB; None: those of the converter, -128 and 127, if ordered, else none.
            Without an order there is one clamp, before the noise.
        order: as for `Serial`; a permutation is of all K operands, of which each chunk takes its own in that order.
            Sorted orders sort what a chunk is sent, all times together.
        leak, synapse_limit, synapse_decay: as for `Serial`, the limit in LSB; only if ordered.
        gradient: ``"straight_through"``: of the plain contraction times *gn*, as published; ``"masked"``: as clamps and
            leak make it.

    A chunk and output o of O is element ``c * O + o`` of the noise of a row, stream ``"read"``; neuron r of R is the
    draw ``draw * R + r``.

    Raises:
        ValueError: inputs or weights out of range (on other devices than the CPU they become NaN); parameters too.

    Source: the mock mode of hxtorch, the software of BrainScaleS-2. The ordered form is this project's own.

    Example:
        >>> import noisykernels as nk
        >>> x, w = torch.full((1, 4), 31.0), torch.tensor([[63.0, 63.0, -63.0, -60.0]])
        >>> nk.linear(x, w, hardware=[BrainScaleS2(noise_std=0.0)]), 0.002 * 31 * 3
        (tensor([[0.]]), 0.186)
        >>> nk.linear(x, w, hardware=[BrainScaleS2(gain=0.05, noise_std=0.0, ordered=True)])
        tensor([[-64.]])
    """

    operands = ("read",)
    level_names = ("noise_std",)
    of_array = True

    def __init__(
        self,
        gain: float = 0.002,
        noise_std: float | Tensor = 2.0,
        *,
        num_sends: int = 1,
        avg: int = 1,
        input_limit: float | str | None = None,
        ordered: bool = False,
        low: float | None = None,
        high: float | None = None,
        order: str | Tensor | list[int] = "natural",
        leak: float = 1.0,
        synapse_limit: float | None = None,
        synapse_decay: float = 0.0,
        gradient: str = "straight_through",
    ) -> None:
        name = type(self).__name__
        self.gain = float(number(name, "gain", gain, positive=True))
        self.noise_std = number(name, "noise_std", noise_std)
        self.num_sends = in_range(name, "num_sends", num_sends, whole(1, 64))  # sums below 2^24
        self.avg = in_range(name, "avg", avg, whole(1, 2**16))
        if input_limit is not None and input_limit != "row":
            if isinstance(input_limit, str):
                raise ValueError(f"{name}: input_limit must be None, a number or 'row', got {input_limit!r}")
            input_limit = float(number(name, "input_limit", input_limit, positive=True))
        self.input_limit = input_limit
        self.ordered = flag("BrainScaleS2", "ordered", ordered)
        self.low = (ADC_LOW if self.ordered else -math.inf) if low is None else low
        self.high = (ADC_HIGH if self.ordered else math.inf) if high is None else high
        self.leak, self.synapse_limit, self.synapse_decay = leak, synapse_limit, synapse_decay
        self.gradient = one_of(name, "gradient", gradient, GRADIENTS)
        self.order = order
        try:
            checked = Serial(
                order=order,
                low=self.low,
                high=self.high,
                leak=leak,
                synapse_limit=synapse_limit,
                synapse_decay=synapse_decay,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("Serial", name)) from None
        self.low, self.high, self.order = checked.low, checked.high, checked.order
        self._prepare()

    def _prepare(self) -> None:
        """What depends on the type of the sums: *gn* as it holds it, and the membrane's limits in units of products."""
        self._factor: dict[torch.dtype, float] = {}
        self._limits: dict[torch.dtype, tuple[float, float]] = {}
        self._limited = math.isfinite(self.low) or math.isfinite(self.high)
        for kept, kind in ((torch.float32, np.float32), (torch.float64, np.float64)):
            self._factor[kept] = float(kind(self.gain * self.num_sends))
            low, high = (_at_least(limit, self._factor[kept], self.num_sends, kind) for limit in (-self.low, self.high))
            self._limits[kept] = -low, high

    def unordered(self) -> BrainScaleS2:
        """The twin without an order: the same parameters, one clamp for the membrane at the end.

        Example:
            >>> BrainScaleS2(ordered=True).unordered()
            BrainScaleS2(low=-128.0, high=127.0)
        """
        made = copy.copy(self)
        made.ordered = False
        return made

    def unlimited(self) -> BrainScaleS2:
        """The same order, with neither a membrane nor synapses that saturate; the converter still does.

        Example:
            >>> BrainScaleS2(ordered=True).unlimited()
            BrainScaleS2(ordered=True, low=-inf, high=inf)
        """
        made = copy.copy(self)
        made.low, made.high = -math.inf, math.inf
        made.synapse_limit = None if self.synapse_limit is None else math.inf
        made._prepare()
        return made

    # -------------------------------------------------------------------------------------------- as a device

    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        """The results (rows, ...), in LSB or in units of the sum of products."""
        kind, kept = x.dtype, kept_type(x)
        x, weight = x.to(kept), weight.to(kept)
        masked = self.gradient == "masked"
        with torch.set_grad_enabled(masked and torch.is_grad_enabled()):
            sent, held, unit = self._codes(x, weight, draw)
            y = self._read(self._sums(sent, held, draw), draw)
            if unit is not None:
                y = y * unit.reshape(-1, *[1] * (y.dim() - 1))
        if not masked and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            plain = draw.contraction(x, weight)
            y = straight_through(y, plain * self._factor[kept] if unit is None else plain)
        return y.to(kind)

    def add_bias(self, y: Tensor, bias: Tensor, draw: Draw) -> Tensor:
        """In LSB, the digital sum of two numbers of 8 bits."""
        both = y + draw.channels(bias.to(y.dtype), y)
        if self.input_limit is not None:
            return both
        rounded = y.floor() + draw.channels(bias.to(y.dtype).floor().clamp(ADC_LOW, ADC_HIGH), y)
        return straight_through(rounded.clamp(ADC_LOW, ADC_HIGH), both)

    def _codes(self, x: Tensor, weight: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is sent and what the array holds, in whole numbers, and the unit of the result."""
        if self.input_limit is None:
            op = draw.contraction.name
            return _within(op, "inputs", x, 0, INPUT_MAX), _within(op, "weights", weight, -WEIGHT_MAX, WEIGHT_MAX), None
        if isinstance(self.input_limit, str):
            limit = torch.linalg.vector_norm(x.detach().flatten(1), math.inf, 1)
        else:
            limit = x.new_tensor([self.input_limit])
        largest = draw.largest(weight, "layer")
        of_input = INPUT_MAX / torch.where(limit == 0, 1, limit)
        of_weight = WEIGHT_MAX / torch.where(largest == 0, 1, largest)
        sent = _rounded(x * of_input.reshape(-1, *[1] * (x.dim() - 1))).clamp(0, INPUT_MAX)
        held = _rounded(weight * of_weight).clamp(-WEIGHT_MAX, WEIGHT_MAX)
        return sent, held, 1 / (of_input * of_weight * self._factor[x.dtype])

    def _sums(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        """The sums of products of each chunk: (rows, chunks, ...)."""
        contraction = draw.contraction
        if contraction.geometry is None:
            parts = self._chunks(x, weight, draw)
            return torch.stack(parts, 1)
        a, b, shape = operands_of(contraction, x, weight)
        windows = b.reshape(shape[0], len(a), *b.shape[1:]).transpose(2, 3)  # (rows, groups, positions, K)
        groups = [self._chunks(windows[:, g], a[g], draw) for g in range(len(a))]
        parts = [torch.cat(chunk, -1).transpose(1, 2).reshape(shape) for chunk in zip(*groups, strict=True)]
        return torch.stack(parts, 1)

    def _chunks(self, x: Tensor, weight: Tensor, draw: Draw) -> list[Tensor]:
        """For each chunk, x (rows, ..., K) times weight (N, K): (rows, ..., N)."""
        steps, parts = weight.shape[1], []
        if isinstance(self.order, Tensor) and len(self.order) != steps:
            raise ValueError(
                f"{draw.contraction.name}: order must be a permutation of {steps} operands, got {len(self.order)}"
            )
        alone = replace(draw, contraction=Contraction(draw.contraction.name))
        for first in range(0, max(steps, 1), ROWS):
            part = slice(first, first + ROWS)
            if not self.ordered:
                parts.append(alone.contraction(x[..., part], weight[:, part]))
                continue
            n = self.num_sends
            count = weight[:, part].shape[1]
            order = self.order
            if isinstance(order, Tensor):
                own = order[torch.argsort(order // ROWS, stable=True)][part] - first
                order = torch.cat([own + i * count for i in range(n)])
            sent, held = x[..., part], weight[:, part]
            if n > 1:
                sent, held = sent.repeat(*[1] * (x.dim() - 1), n), held.repeat(1, n)
            total = self._serial(order, x.dtype).contract(sent, held, alone)
            parts.append(total / n)
        return parts

    def _serial(self, order: Any, kept: torch.dtype) -> Serial:
        """The ordered sum of a chunk, in units in which products are whole numbers."""
        low, high = self._limits[kept]
        synapse = None if self.synapse_limit is None else self.synapse_limit * self.num_sends / self._factor[kept]
        made = Serial(
            low=low,
            high=high,
            leak=self.leak,
            synapse_limit=synapse,
            synapse_decay=self.synapse_decay,
            gradient=self.gradient,
        )
        made.order = order  # checked before
        return made

    def _read(self, sums: Tensor, draw: Draw) -> Tensor:
        """From the sums of chunks (rows, chunks, ...) to results (rows, ...)."""
        v = sums * self._factor[sums.dtype]
        if self._limited:
            limited = v.clamp(self.low, self.high)
            # A sum at a limit may lie beyond it by a rounding, which floor would make a code.
            v = straight_through(limited, v) if self.ordered else limited
        silent = can_look(self.noise_std) and self.noise_std == 0
        if silent:
            return self._digital(v)
        level = self.noise_std.to(v.device, v.dtype)
        total = None
        for r in range(self.avg):
            neuron = draw
            if self.avg > 1:
                place = draw.key.seed.device
                before = torch.zeros(1, dtype=torch.int64, device=place) if draw.id is None else draw.id
                neuron = replace(draw, key=draw.key.of_draws(before * self.avg + r))
            one = self._digital(v + neuron.fresh(v, "read") * level)
            total = one if total is None else total + one
        assert total is not None
        return total / self.avg if self.avg > 1 else total

    def _digital(self, v: Tensor) -> Tensor:
        codes = straight_through(v.floor(), v).clamp(ADC_LOW, ADC_HIGH)
        return codes.sum(1).clamp(ADC_LOW, ADC_HIGH)

    def __repr__(self) -> str:
        usual: dict[str, Any] = {
            "gain": 0.002, "num_sends": 1, "avg": 1, "input_limit": None, "ordered": False,
            "low": ADC_LOW if self.ordered else -math.inf, "high": ADC_HIGH if self.ordered else math.inf,
            "leak": 1.0, "synapse_limit": None, "synapse_decay": 0.0, "gradient": "straight_through",
        }  # fmt: skip
        given = [f"{name}={getattr(self, name)!r}" for name in usual if getattr(self, name) != usual[name]]
        if isinstance(self.order, Tensor):
            given.append(f"order={shown_order(self.order)}")
        elif self.order != "natural":
            given.append(f"order={self.order!r}")
        if not can_look(self.noise_std) or self.noise_std != 2:
            given.append(f"noise_std={self.noise_std.item() if can_look(self.noise_std) else '<[]>'}")
        return f"BrainScaleS2({', '.join(given)})"


def _rounded(x: Tensor) -> Tensor:
    """Rounded, ties to even."""
    return straight_through(x.round(), x)


def _within(op: str, name: str, x: Tensor, low: int, high: int) -> Tensor:
    """Whole numbers in a range."""
    codes = _rounded(x)
    if not can_look(x):
        return torch.where((codes >= low) & (codes <= high), codes, math.nan)
    if x.numel() > 0:
        smallest, largest = (float(value) for value in torch.aminmax(codes.detach()))
        if not (smallest >= low and largest <= high):
            raise ValueError(
                f"{op}: BrainScaleS2 takes {name} from {low} to {high}, got {smallest:g} to {largest:g} "
                "(input_limit= scales to this range)"
            )
    return codes


def _at_least(limit: float, factor: float, times: int, kind: Any) -> float:
    """The smallest number of the type that, shared by so many times and times the factor, is not below a limit."""
    value = kind(limit * times / factor)
    while value / kind(times) * kind(factor) < kind(limit):
        value = np.nextafter(value, kind(math.inf))
    return float(value)
