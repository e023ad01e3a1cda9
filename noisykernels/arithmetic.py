"""Contractions with a defined arithmetic: products added up one after the other, in a given order, with something done
at each step: saturation, leak, noise, or rounding to a number format.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.contraction import Arithmetic, Contraction, Draw
from noisykernels.devices import straight_through
from noisykernels.formats import Format, as_format, check_holds
from noisykernels.noise import OPERANDS, Noise, can_look, level_tensor

__all__ = ["ORDERS", "Serial", "random_order"]

_ops = torch.ops.noisykernels

ORDERS = ("natural", "reversed", "positive_first", "negative_first", "ascending", "descending")
GRADIENTS = ("straight_through", "masked")

_ELEMENTS = 1 << 24  # of operands or orders that are laid out at once


def random_order(steps: int, seed: int) -> Tensor:
    """A random permutation of the operands of a contraction, the same on every machine.

    Args:
        steps: number of products, the *K* of the weight.
        seed: of the permutation.

    Returns:
        int64 tensor (K), for ``Serial(order=...)``.

    Example:
        >>> random_order(5, seed=1).sort().values.tolist()
        [0, 1, 2, 3, 4]
    """
    drawn = eps((1, steps), kind="uniform", seed=seed, operand="spare")
    return torch.argsort(drawn[0], stable=True)


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
        fmt: str | Format | None = None,
        *,
        operands: str | Format | None = None,
        product: str | Format | None = None,
        sum: str | Format | None = None,
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
        whole = None if fmt is None else as_format(fmt)
        self.format_of_operands, self.format_of_product, self.format_of_sum = (
            whole if given is None else None if given == "exact" else as_format(given)
            for given in (operands, product, sum)
        )
        self.low, self.high = _number("low", low, -math.inf, 0.0), _number("high", high, 0.0, math.inf)
        self.leak = _number("leak", leak, 0.0, 1.0)
        self.synapse_limit = None if synapse_limit is None else _number("synapse_limit", synapse_limit, 0.0, math.inf)
        self.synapse_decay = _number("synapse_decay", synapse_decay, 0.0, 1.0)
        self.gain = _number("gain", gain, -math.inf, math.inf)
        if not math.isfinite(self.gain):
            raise ValueError(f"Serial: gain must be finite, got {gain!r}")
        self.order = _order(order)
        self.step_noise = _level(step_noise)
        self.ordered = bool(ordered)
        if gradient not in GRADIENTS:
            raise ValueError(f"Serial: gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        self.gradient = gradient
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
        kept = torch.float64 if kind == torch.float64 else torch.float32
        x, weight = x.to(kept), weight.to(kept)
        if self.gain != 1:
            weight = weight * self.gain
        if self.format_of_operands is not None:
            x = _rounded(x, self.format_of_operands, draw, "input", draw.rows, draw.first_row)
            weight = _rounded(weight, self.format_of_operands, draw, "weight", None, 0)
        y = self._ordered(x, weight, draw) if self.ordered else self._unordered(x, weight, draw)
        return y.to(kind)

    def add_bias(self, y: Tensor, bias: Tensor, draw: Draw) -> Tensor:
        """The sums with the bias, which is one more addition."""
        fmt, kept = self.format_of_sum, torch.float64 if y.dtype == torch.float64 else torch.float32
        sums = y.to(kept) + draw.channels(bias.to(kept), y)
        return (sums if fmt is None else _rounded(sums, fmt, draw, "spare", draw.rows, draw.first_row)).to(y.dtype)

    def _unordered(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        y = draw.contraction(x, weight)
        if self.step_noise is not None:
            level = self._step_level(draw, y) * math.sqrt(draw.contraction.steps(weight))
            y = y + draw.fresh(y, "per_step") * level.to(y.device, y.dtype)
        if self.format_of_sum is not None:
            y = _rounded(y, self.format_of_sum, draw, "rounding_sum", draw.rows, draw.first_row)
        free = self.low == -math.inf and self.high == math.inf
        return y if free else _clamped(y, self.low, self.high, self.gradient)

    def _ordered(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        contraction = draw.contraction
        steps = contraction.steps(weight)
        order = self.given_order(contraction.name, steps, x.device)
        parts = []
        for first, part in _pieces(contraction, x, weight, laid_out=order is None and self.order in ORDERS[2:]):
            a, b, shape = operands_of(contraction, part, weight)
            outputs = math.prod(shape[1:])
            by_product = (
                order if order is not None or self.order in ORDERS[:2] else sorted_orders(a, b, str(self.order))
            )
            rows = None if draw.rows is None else draw.rows.narrow(0, first, len(part))
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
                draw.seed,
                draw.id,
                rows,
                draw.first_row + (first if rows is None else 0),
                draw.site,
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


def shown_order(order: Tensor) -> str:
    """A permutation, in a word by which the keys of stored studies tell it from others."""
    return f"<{len(order)} operands, {hashlib.blake2b(order.cpu().numpy().tobytes(), digest_size=4).hexdigest()}>"


# ---------------------------------------------------------------------------------------------- checks of arguments


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"Serial: {name} must be a number from {low} to {high}, got {value!r}")
    return float(value)


def _level(value: float | Tensor) -> Tensor | None:
    try:
        level = Noise(value).add
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("Noise: add", "Serial: step_noise")) from None
    assert level is not None
    if level.dim() != 0:
        raise ValueError(f"Serial: step_noise must be a number or a 0-d tensor, got shape {list(level.shape)}")
    return None if not isinstance(value, Tensor) and value == 0 else level.double()


def _order(order: Any) -> str | Tensor:
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"Serial: order must be one of {', '.join(ORDERS)} or a permutation, got {order!r}")
        return order
    try:
        given = torch.as_tensor(order).detach().clone()  # what happens to the caller's tensor is not checked
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"Serial: order must be a name or a permutation, got {order!r}") from None
    if given.numel() == 0:
        given = given.long()  # an empty list has no type
    whole = given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if given.dim() != 1 or not whole or not torch.equal(given.long().sort().values.cpu(), torch.arange(len(given))):
        raise ValueError(f"Serial: order must be a permutation of 0 ... K-1, got {given.flatten()[:8].tolist()} ...")
    return given.long()


# ------------------------------------------------------------------------------------------------- pieces of the work


def _rounded(x: Tensor, fmt: Format, draw: Draw, operand: str, rows: Tensor | None, first_row: int) -> Tensor:
    number = OPERANDS.index(operand)
    return _ops.quantize.default(x, fmt.numbers, draw.seed, draw.id, rows, first_row, draw.site, number)


def _clamped(y: Tensor, low: float, high: float, gradient: str) -> Tensor:
    exact = y.clamp(low, high)
    if gradient == "masked":
        return exact
    passing = torch.where(y.isinf(), exact, straight_through(exact, y))
    return torch.where(exact == y, y, passing)  # which keeps the sign of zeros


def _pieces(contraction: Contraction, x: Tensor, weight: Tensor, laid_out: bool) -> Iterator[tuple[int, Tensor]]:
    """The rows in parts whose operands, or orders, are not too many to be laid out at once."""
    if x.shape[0] == 0 or x.numel() == 0:
        return
    steps, of_row = contraction.steps(weight), 1
    if contraction.geometry is not None:
        of_row = math.prod(_positions(contraction, x, weight)) * steps * contraction.groups
    elif laid_out:
        of_row = x.numel() // x.shape[0]
    of_row *= contraction.features(weight) // contraction.groups if laid_out else 1
    some = max(1, _ELEMENTS // max(1, of_row))
    if (contraction.geometry is None and not laid_out) or x.shape[0] <= some:  # of any size under torch.compile
        yield 0, x
        return
    for first in range(0, x.shape[0], some):
        yield first, x.narrow(0, first, min(some, x.shape[0] - first))


def sorted_orders(a: Tensor, b: Tensor, order: str) -> Tensor:
    """For each output, its operands sorted by their products: int32 (T, I, J, K)."""
    with torch.no_grad():
        count = max(a.shape[0], b.shape[0])
        wide = a.repeat(count // a.shape[0], 1, 1), b.repeat(count // b.shape[0], 1, 1)
        products = wide[0].unsqueeze(2) * wide[1].transpose(1, 2).unsqueeze(1)
        if order in ("positive_first", "negative_first"):
            keys = ((products < 0) if order == "positive_first" else (products >= 0)).to(torch.uint8)
        else:
            keys = products.abs()
        by = torch.argsort(keys, stable=True, descending=order == "descending")
        return by.to(torch.int32, memory_format=torch.contiguous_format)


def _positions(contraction: Contraction, x: Tensor, weight: Tensor) -> list[int]:
    """Sizes of the output of a convolution."""
    assert contraction.geometry is not None
    stride, padding, dilation, transposed, output_padding, _ = contraction.geometry
    found = []
    for d, size in enumerate(x.shape[2:]):
        reach = dilation[d] * (weight.shape[2 + d] - 1)
        if transposed:
            found.append((size - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1)
        else:
            found.append((size + 2 * padding[d] - reach - 1) // stride[d] + 1)
    return found


def operands_of(contraction: Contraction, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The operands of every output of a contraction, as matrices, and the shape of the outputs.

    Output (t, i, j) is the sum over k of ``a[t % Ta, i, k] * b[t % Tb, k, j]``, k in the weight's natural order, with
    zeros for padding.

    Args:
        contraction: of x (rows, ...) and weight.

    Returns:
        a (Ta, I, K), b (Tb, K, J), and the shape, rows first, into which (T, I, J) is to be put.
    """
    if contraction.geometry is None:
        return x.reshape(1, -1, x.shape[-1]), weight.t().unsqueeze(0), [*x.shape[:-1], weight.shape[0]]
    stride, padding, dilation, transposed, output_padding, groups = contraction.geometry
    dims, rows = weight.dim() - 2, x.shape[0]
    kernel, sizes = list(weight.shape[2:]), _positions(contraction, x, weight)
    if min(sizes) <= 0:
        raise ValueError(f"{contraction.name}: the kernel is larger than the padded input of shape {list(x.shape)}")
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
    pads = [side for d in range(dims - 1, -1, -1) for side in (before[d], after[d])]
    if any(pads):
        x = F.pad(x, pads)
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
    b = windows.reshape(rows * groups, -1, math.prod(sizes))
    a = weight.reshape(groups, -1, b.shape[1])
    return a, b, [rows, a.shape[0] * a.shape[1], *sizes]
