"""Contractions with a defined arithmetic: products added up one after the other, in a given order, with something done
at each step: saturation, leak, noise, or rounding to a number format.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.checks import Range, flag, in_range, one_of
from noisykernels._util.tensors import can_look, kept_type, straight_through
from noisykernels.arithmetic.formats import Format, check_holds, format_of
from noisykernels.arithmetic.operands import operands_of, pieces
from noisykernels.arithmetic.order import ORDERS, checked_order, shown_order, sorted_orders
from noisykernels.hardware.device import Arithmetic, Draw
from noisykernels.noise.arguments import Key, level_tensor
from noisykernels.noise.contract import OPERANDS
from noisykernels.noise.description import single_level

__all__ = ["GRADIENTS", "Serial"]

_ops = torch.ops.noisykernels

GRADIENTS = ("straight_through", "masked")


class Serial(Arithmetic):
    r"""Products added up one after the other, in a defined order. For ``arithmetic=`` or in the list ``hardware=``.

    For every output, with *v* = 0 at first, for each operand *k* in the order:

    .. math::
        p &= R_p(x_k w_k) \\
        i^\pm &\leftarrow \min(s, \beta i^\pm + \max(\pm p, 0)), \quad p \leftarrow i^+ - i^-
            \qquad\text{(with a synapse)} \\
        v &\leftarrow \mathrm{clamp}(R_s(\lambda v + p + a \epsilon_k), v_{min}, v_{max})

    Every operation is rounded to float32 (float64 for such data), none is contracted (but for the noise, added by one
    fused multiply-add), and R are roundings to number formats. Operands are first rounded to a format too, and the sum
    of result and bias is rounded as every sum.

    Args:
        fmt: format of operands, products and sums: a `Format` or a name (`as_format`); None: float32.
        operands, product, sum: formats of these where they differ from ``fmt``; ``"exact"``: none.
        order: of the operands: ``"natural"``, ``"reversed"``; an int64 permutation (K) of the weight's natural order;
            or for each output by its products: ``"positive_first"``, ``"negative_first"``, ``"ascending"``,
            ``"descending"`` in magnitude (ties in natural order; these sort: some hundred times slower).
        low, high: limits of the running sum; low <= 0 <= high.
        leak: factor :math:`\lambda` on the running sum before each step, in [0, 1].
        synapse_limit: *s*, where excitatory (positive) and inhibitory products pass synapses that saturate; None: they
            do not.
        synapse_decay: :math:`\beta`, what is left of the last synaptic input, in [0, 1].
        step_noise: level *a* of Gaussian noise of every step, in units of the output.
        gain: factor on the weights.
        ordered: False: the twin without an order: the library's contraction, noise of the same deviation, one rounding,
            one clamp; leak and synapses left out.
        gradient: ``"straight_through"``: of the plain contraction; ``"masked"``: as clamp and leak make it: operands
            before the last saturation get none (roundings, synapses and noise pass it through).

    Raises:
        ValueError: limits, factors or formats out of range; an order that is no permutation.

    Source: ordering and saturation: Klein, Kuhn et al., on the BrainScaleS-2 system; rounding after each operation:
    Hill et al. 2018 (arXiv 1808.02513).

    Example:
        >>> import noisykernels as nk
        >>> x, w = torch.ones(1, 4), torch.tensor([[3.0, 3.0, -3.0, -3.0]])
        >>> nk.linear(x, w, arithmetic=Serial(low=-4, high=4))
        tensor([[-2.]])
        >>> nk.linear(x, w, arithmetic=Serial(low=-4, high=4, order=[0, 2, 1, 3]))
        tensor([[0.]])
        >>> nk.linear(torch.full((1, 300), 1.0), torch.ones(1, 300), arithmetic=Serial("L8R8"))
        tensor([[255.9961]])
    """

    level_names = ("step_noise",)

    def __init__(
        self,
        fmt: str | Format | torch.dtype | None = None,
        *,
        operands: str | Format | torch.dtype | None = None,
        product: str | Format | torch.dtype | None = None,
        sum: str | Format | torch.dtype | None = None,
        order: str | Tensor | list[int] = "natural",
        low: float = -math.inf,
        high: float = math.inf,
        leak: float = 1.0,
        synapse_limit: float | None = None,
        synapse_decay: float = 0.0,
        step_noise: float | Tensor = 0.0,
        gain: float = 1.0,
        ordered: bool = True,
        gradient: str = "straight_through",
    ) -> None:
        whole = None if fmt is None else format_of("Serial", "fmt", fmt)
        self.format_of_operands, self.format_of_product, self.format_of_sum = (
            whole if given is None else None if given == "exact" else format_of("Serial", name, given)
            for name, given in (("operands", operands), ("product", product), ("sum", sum))
        )
        limit, share = Range(0, math.inf), Range(0, 1)
        self.low, self.high = _number("low", low, Range(-math.inf, 0)), _number("high", high, limit)
        self.leak = _number("leak", leak, share)
        self.synapse_limit = None if synapse_limit is None else _number("synapse_limit", synapse_limit, limit)
        self.synapse_decay = _number("synapse_decay", synapse_decay, share)
        self.gain = _number("gain", gain, Range())
        self.order = checked_order(order)
        self.step_noise = single_level("Serial", "step_noise", step_noise)
        self.ordered = flag("Serial", "ordered", ordered)
        self.gradient = one_of("Serial", "gradient", gradient, GRADIENTS)
        drawn = {"per_step": self.step_noise is not None}
        streams = {"rounding_product": self.format_of_product, "rounding_sum": self.format_of_sum}
        streams["spare"] = self.format_of_sum  # of the sum with the bias
        for operand, fmt_ in streams.items():
            drawn[operand] = fmt_ is not None and fmt_.stochastic
        of_operands = self.format_of_operands
        drawn["input"] = drawn["weight"] = of_operands is not None and of_operands.stochastic
        self.operands = tuple(name for name, draws in drawn.items() if draws)

    def unordered(self) -> Serial:
        """The twin without an order: the same parameters, one clamp at the end.

        Example:
            >>> Serial(low=-4, high=4).unordered()
            Serial(low=-4.0, high=4.0, ordered=False)
        """
        made = copy.copy(self)
        made.ordered = False
        return made

    # -------------------------------------------------------------------------------------------- as a device

    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        """The sums (rows, ...)."""
        contraction = draw.contraction
        kind = x.dtype
        for fmt in (self.format_of_operands, self.format_of_product, self.format_of_sum):
            check_holds(contraction.name, fmt, kind)
        kept = kept_type(x)
        x, weight = x.to(kept), weight.to(kept)
        if self.gain != 1:
            weight = weight * self.gain
        if self.format_of_operands is not None:
            x = _rounded(x, self.format_of_operands, draw.key, "input")
            weight = _rounded(weight, self.format_of_operands, draw.chip, "weight")
        y = self._ordered(x, weight, draw) if self.ordered else self._unordered(x, weight, draw)
        return y.to(kind)

    def add_bias(self, y: Tensor, bias: Tensor, draw: Draw) -> Tensor:
        """The sums with the bias, which is one more addition."""
        fmt, kept = self.format_of_sum, kept_type(y)
        sums = y.to(kept) + draw.channels(bias.to(kept), y)
        return (sums if fmt is None else _rounded(sums, fmt, draw.key, "spare")).to(y.dtype)

    def _unordered(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        y = draw.contraction(x, weight)
        if self.step_noise is not None:
            level = self._step_level(draw, y) * math.sqrt(draw.contraction.steps(weight))
            y = y + draw.fresh(y, "per_step") * level.to(y.device, y.dtype)
        if self.format_of_sum is not None:
            y = _rounded(y, self.format_of_sum, draw.key, "rounding_sum")
        free = self.low == -math.inf and self.high == math.inf
        return y if free else _clamped(y, self.low, self.high, self.gradient)

    def _ordered(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        contraction = draw.contraction
        steps = contraction.steps(weight)
        order = self.given_order(contraction.name, steps, x.device)
        parts = []
        for first, part in pieces(contraction, x, weight, laid_out=order is None and self.order in ORDERS[2:]):
            a, b, shape = operands_of(contraction, part, weight)
            outputs = math.prod(shape[1:])
            by_product = (
                order if order is not None or self.order in ORDERS[:2] else sorted_orders(a, b, str(self.order))
            )
            sums = _ops.serial.default(
                a,
                b,
                by_product,
                [] if self.format_of_product is None else self.format_of_product.numbers,
                [] if self.format_of_sum is None else self.format_of_sum.numbers,
                self.low,
                self.high,
                self.leak,
                math.inf if self.synapse_limit is None else self.synapse_limit,
                self.synapse_decay,
                self.synapse_limit is not None,
                self._step_level(draw, x),
                outputs,
                *draw.key.of_rows(first, len(part)),
                self.gradient == "masked",
                False,
            )
            parts.append(sums.reshape(shape))
        if not parts:
            return contraction(x, weight)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _step_level(self, draw: Draw, x: Tensor) -> Any:
        return level_tensor(draw.contraction.name, "step_noise", self.step_noise, x, False)

    def given_order(self, op: str, steps: int, device: torch.device) -> Tensor | None:
        """The order that all outputs share, int32 (K); None: the natural one, or each has its own."""
        if isinstance(self.order, Tensor):
            if len(self.order) != steps:
                raise ValueError(f"{op}: order must be a permutation of {steps} operands, got {len(self.order)}")
            return self.order.to(device, torch.int32)
        if self.order == "reversed":
            return torch.arange(steps - 1, -1, -1, dtype=torch.int32, device=device)
        return None

    def __repr__(self) -> str:
        given: list[str] = []
        for name, fmt in (
            ("operands", self.format_of_operands),
            ("product", self.format_of_product),
            ("sum", self.format_of_sum),
        ):
            if fmt is not None:
                given.append(f"{name}={fmt!r}")
        if len(given) == 3 and self.format_of_operands == self.format_of_product == self.format_of_sum:
            given = [repr(self.format_of_sum)]
        if isinstance(self.order, Tensor):
            given.append(f"order={shown_order(self.order)}")
        elif self.order != "natural":
            given.append(f"order={self.order!r}")
        defaults = {
            "low": -math.inf, "high": math.inf, "leak": 1.0, "synapse_limit": None, "synapse_decay": 0.0, "gain": 1.0,
            "ordered": True, "gradient": "straight_through",
        }  # fmt: skip
        given += [f"{name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual]
        if self.step_noise is not None:
            level = self.step_noise
            given.append(f"step_noise={level.item()!r}" if can_look(level) else "step_noise=<[]>")
        return f"Serial({', '.join(given)})"


# ---------------------------------------------------------------------------------------------- checks of arguments


def _number(name: str, value: Any, allowed: Range) -> float:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    found: float = in_range("Serial", name, value, allowed)
    return found


# ------------------------------------------------------------------------------------------------- pieces of the work


def _rounded(x: Tensor, fmt: Format, key: Key, operand: str) -> Tensor:
    out: Tensor = _ops.quantize.default(x, fmt.numbers, *key, OPERANDS.index(operand))
    return out


def _clamped(y: Tensor, low: float, high: float, gradient: str) -> Tensor:
    exact = y.clamp(low, high)
    if gradient == "masked":
        return exact
    passing = torch.where(y.isinf(), exact, straight_through(exact, y))
    return torch.where(exact == y, y, passing)  # which keeps the sign of zeros
