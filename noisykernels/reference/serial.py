"""Number formats and ordered sums stated a second time, in NumPy: the naive reference of `quantize` and `Serial`.

Written from the definitions, not from the C++, and free of the compiled module. One step after the other, vectorised
over outputs only; rounding is exact arithmetic in float64, in which all values and grid steps are exact.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisykernels.reference.noise import KINDS, Reals, Words, block_words, fma32, fma64, words

Indices = npt.NDArray[np.int64]

# ------------------------------------------------------------------------------------------ formats


def quantize(values: npt.ArrayLike, fmt: Any, random: Words | None = None) -> Reals:
    """Values rounded to a format.

    Args:
        values: float32 or float64.
        fmt: a `noisykernels.FloatFormat` or `FixedFormat`, of which the fields are read and nothing computed.
        random: for stochastic rounding, the 32-bit word of each value.

    Returns:
        The shape and type of the values.

    Example:
        >>> from noisykernels.arithmetic import FloatFormat
        >>> quantize(np.float32([1.3, -1e9]), FloatFormat(2, 4))
        array([   1.25, -448.  ], dtype=float32)
    """
    v = np.asarray(values)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = v.astype(np.float64)
    magnitude = np.abs(np.where(np.isfinite(wide), wide, 1.0))
    magnitude = np.where(magnitude == 0, 0.0, np.maximum(magnitude, 2.0**-900))  # as far below every step as less is
    least, step, largest, infinite, subnormals = _grid(fmt, magnitude)
    with np.errstate(over="ignore", invalid="ignore"):
        count = magnitude / step  # exact: a step is a power of two
        whole = np.floor(count)
        fraction = np.where(count < 2.0**53, count - whole, 0.0)
        odd = whole % 2 == 1
    if fmt.rounding == "truncate":
        up = np.zeros(v.shape, bool)
    elif fmt.rounding == "nearest":
        up = (fraction > 0.5) | ((fraction == 0.5) & odd)
    else:
        assert random is not None
        up = (random >> np.uint32(8)).astype(np.float64) * 2.0**-24 < fraction
    rounded = np.where(fraction == 0, magnitude, (whole + up) * step)
    if not subnormals:
        rounded = np.where(rounded < least, 0.0, rounded)
    rounded = np.where(np.isinf(wide), np.inf, rounded)
    rounded = np.where(rounded > largest, np.inf if infinite else largest, rounded)
    return np.where(np.isnan(wide), np.nan, np.copysign(rounded, wide)).astype(v.dtype)


def _grid(fmt: Any, magnitude: Reals) -> tuple[float, Reals, float, bool, bool]:
    """Of a format: least normal value, distance of its values around each magnitude, largest value, whether larger
    ones become infinite, whether there are values below the least normal one."""
    if hasattr(fmt, "left"):
        step = np.full(magnitude.shape, 2.0**-fmt.right)
        return 0.0, step, 2.0**fmt.left - 2.0**-fmt.right, False, True
    bias = 2 ** (fmt.exponent - 1) - 1 if fmt.bias is None else fmt.bias
    infinite = fmt.overflow == "infinity"
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, 1 - bias)
    top = min(2**fmt.exponent - (2 if infinite else 1) - bias, 127)
    largest = (2 - 2.0**-fmt.mantissa) * 2.0**top if fmt.largest is None else fmt.largest
    return 2.0 ** (1 - bias), np.ldexp(1.0, exponent - fmt.mantissa), largest, infinite, fmt.subnormals


def quantized(
    x: Tensor, fmt: Any, *, seed: int = 0, site: int = 0, operand: str = "rounding_sum", draw: int = 0,
    rows: Sequence[int] | None = None, first_row: int = 0,
) -> Tensor:  # fmt: skip
    """`noisykernels.quantize`, exactly: half types by way of float32."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.detach().to(compute).contiguous().numpy()
    random = None
    if v.size == 0:
        return x.detach().clone()
    if fmt.rounding == "stochastic":
        items = v.reshape(len(v) if v.ndim else 1, -1)
        ids = first_row + np.arange(len(items)) if rows is None else np.asarray(rows, np.int64)
        random = words(seed, site, operand, draw, ids[:, None], np.arange(items.shape[1])).reshape(v.shape)
    return torch.from_numpy(quantize(v, fmt, random)).reshape(x.shape).to(x.dtype)


# ------------------------------------------------------------------------------------- ordered sums


@dataclass(frozen=True)
class Steps:
    """What happens at every step of an ordered sum, and which random numbers it takes.

    Args:
        product, sum: formats to which products and sums are rounded; None: none.
        order: of the operands: None, (K), or for each output (T, I, J, K).
        low, high, leak, synapse_limit, synapse_decay: as for `noisykernels.Serial`.
        step_noise: level; 0: none.
        outputs: of a row: output L belongs to row L // outputs and is its output L % outputs.
        seed, site, draw, rows, first_row: of the random numbers.
    """

    product: Any = None
    sum: Any = None
    order: npt.ArrayLike | None = None
    low: float = -math.inf
    high: float = math.inf
    leak: float = 1.0
    synapse_limit: float | None = None
    synapse_decay: float = 0.0
    step_noise: float = 0.0
    outputs: int = 1
    seed: int = 0
    site: int = 0
    draw: int = 0
    rows: npt.ArrayLike | None = None
    first_row: int = 0

    def run(self, a: Reals, b: Reals) -> Iterator[tuple[Indices, Reals, npt.NDArray[np.bool_]]]:
        """The steps one by one: which operand each output takes, the sums, and which of them were clamped.

        Output (t, i, j) adds up ``a[t % Ta, i, k] * b[t % Tb, k, j]``; all operations are of the operands' type.
        """
        kind = a.dtype.type
        t, i, j = np.ogrid[: max(len(a), len(b)), : a.shape[1], : b.shape[2]]
        shape, count = (t.size, i.size, j.size), a.shape[2]
        index = np.arange(math.prod(shape)).reshape(shape)
        at, output = index // self.outputs, index % self.outputs
        row = self.first_row + at if self.rows is None else np.asarray(self.rows, np.int64)[at]
        orders = np.arange(count) if self.order is None else np.asarray(self.order, np.int64)
        v, plus, minus = np.zeros(shape, kind), np.zeros(shape, kind), np.zeros(shape, kind)
        fma = fma64 if kind is np.float64 else fma32
        for step in range(count):
            k = np.broadcast_to(orders[..., step], shape)
            of_step = functools.partial(self._words, row, output * count + k)
            with np.errstate(all="ignore"):
                p = a[t % len(a), i, k] * b[t % len(b), k, j]
                if self.product is not None:
                    p = quantize(p, self.product, of_step("rounding_product", self.product.rounding))
                if self.synapse_limit is not None:
                    plus = self._synapse(plus, np.where(p < 0, kind(0), p))
                    minus = self._synapse(minus, np.where(p > 0, kind(0), -p))
                    p = plus - minus
                s = v * kind(self.leak) + p
                if self.step_noise:
                    s = fma(kind(self.step_noise), self._eps(row, output * count + k).astype(kind), s)
                if self.sum is not None:
                    s = quantize(s, self.sum, of_step("rounding_sum", self.sum.rounding))
                below, above = s < kind(self.low), s > kind(self.high)
                v = np.where(below, kind(self.low), np.where(above, kind(self.high), s))
            yield k, v, below | above

    def _synapse(self, current: Reals, given: Reals) -> Reals:
        kind = current.dtype.type
        after = kind(self.synapse_decay) * current + given
        held: Reals = np.where(after > kind(self.synapse_limit), kind(self.synapse_limit), after)
        return held

    def _words(self, row: Indices, element: Indices, operand: str, rounding: str) -> Words | None:
        return words(self.seed, self.site, operand, self.draw, row, element) if rounding == "stochastic" else None

    def _eps(self, row: Indices, element: Indices) -> Reals:
        four = KINDS["gaussian"](block_words(self.seed, self.site, "per_step", self.draw, row, element // 4))
        return np.take_along_axis(four, (element % 4)[..., None], -1)[..., 0]


def serial(a: npt.ArrayLike, b: npt.ArrayLike, **how: Any) -> Reals:
    """The ordered sums (T, I, J) of a (Ta, I, K) and b (Tb, K, J), T the larger of Ta and Tb.

    Args:
        a, b: operands, float32 or float64.
        how: the fields of `Steps`.

    Example:
        >>> serial(np.float32([[[1, 1, 1]]]), np.float32([[[3], [3], [-3]]]), high=4)
        array([[[1.]]], dtype=float32)
    """
    *_, last = itertools.chain(_nothing(a, b), running_sums(a, b, **how))
    return last


def running_sums(a: npt.ArrayLike, b: npt.ArrayLike, **how: Any) -> Iterator[Reals]:
    """The sums of `serial` after each step."""
    for _, v, _ in Steps(**how).run(np.asarray(a), np.asarray(b)):
        yield v


def _nothing(a: npt.ArrayLike, b: npt.ArrayLike) -> Iterator[Reals]:
    a, b = np.asarray(a), np.asarray(b)
    yield np.zeros((max(len(a), len(b)), a.shape[1], b.shape[2]), a.dtype)


def masked_gradient(a: npt.ArrayLike, b: npt.ArrayLike, along: npt.ArrayLike, **how: Any) -> tuple[Reals, Reals]:
    """The gradients of a and b as clamp and leak make them, in float64: an operand at position t of K gets
    leak^(K-1-t) times that of the plain sum if no sum from t on was clamped, else none."""
    a, b = np.asarray(a), np.asarray(b)
    steps = Steps(**how)
    taken = [(k, clamped) for k, _, clamped in steps.run(a, b)]
    given = np.asarray(along, np.float64)
    t, i, j = np.ogrid[: given.shape[0], : given.shape[1], : given.shape[2]]
    of_a, of_b = np.zeros(a.shape), np.zeros(b.shape)
    factor = np.ones(given.shape)
    for k, clamped in reversed(taken):
        factor = np.where(clamped, 0.0, factor)
        one, other = (t % len(a), i, k), (t % len(b), k, j)
        np.add.at(of_a, one, given * factor * b[other])
        np.add.at(of_b, other, given * factor * a[one])
        factor = factor * np.float64(a.dtype.type(steps.leak))
    return of_a, of_b


# ------------------------------------------------------------------------------------- contractions


def contract(
    x: Tensor, weight: Tensor, bias: Tensor | None, how: Any, geometry: dict[str, Any] | None = None, *, seed: int,
    site: int = 0, draws: Sequence[int] | None = None, shared: bool = False, rows: Sequence[int] | None = None,
    first_row: int = 0,
) -> Tensor:  # fmt: skip
    """`noisykernels.linear` or a convolution with ``arithmetic=how``, a `noisykernels.Serial` that is ordered.

    Args:
        x: (B, ...), or (D * B, ...) with D draws that are not shared.
        weight, bias: as for the operator.
        how: of which the parameters are read and nothing computed.
        geometry: of a convolution: stride, padding, dilation, groups, transposed, output_padding, as far as they are
            not torch's defaults; None: linear.
        seed, site, draws, shared, rows, first_row: as for the operator.

    Example:
        >>> from noisykernels.arithmetic import Serial
        >>> contract(torch.ones(1, 4), torch.tensor([[3.0, 3, -3, -3]]), None, Serial(low=-4, high=4), seed=0)
        tensor([[-2.]])
    """
    kind = x.dtype
    compute = torch.float64 if kind == torch.float64 else torch.float32
    ids = [0] if draws is None else [int(d) for d in draws]
    batch = len(x) if shared else len(x) // len(ids)
    kept = weight.detach().to(compute) * torch.tensor(how.gain, dtype=compute)
    parts = []
    for n, draw in enumerate(ids):
        key: dict[str, Any] = dict(seed=seed, site=site, draw=draw)
        of_rows: dict[str, Any] = dict(key, rows=rows, first_row=first_row)
        value, held = x.detach().to(compute), kept
        if not shared:
            value = value[n * batch : (n + 1) * batch]
        if how.format_of_operands is not None:
            value = quantized(value, how.format_of_operands, operand="input", **of_rows)
            held = quantized(held, how.format_of_operands, operand="weight", **key)
        a, b, shape = operands(value.contiguous().numpy(), held.contiguous().numpy(), geometry)
        sums = serial(
            a, b, product=how.format_of_product, sum=how.format_of_sum, order=_order(how.order, a, b),
            low=how.low, high=how.high, leak=how.leak, synapse_limit=how.synapse_limit,
            synapse_decay=how.synapse_decay, step_noise=0.0 if how.step_noise is None else float(how.step_noise),
            outputs=math.prod(shape[1:]), **of_rows,
        )  # fmt: skip
        y = torch.from_numpy(sums).reshape(shape).to(kind)
        if bias is not None:
            y = y.to(compute) + (bias if geometry is None else bias.reshape(-1, *[1] * (y.dim() - 2))).detach()
            if how.format_of_sum is not None:
                y = quantized(y, how.format_of_sum, operand="spare", **of_rows)
            y = y.to(kind)
        parts.append(y)
    return torch.cat(parts)


def _order(order: Any, a: Reals, b: Reals) -> npt.NDArray[Any] | None:
    """By its name; those by products give (T, I, J, K)."""
    count = a.shape[2]
    if isinstance(order, Tensor):
        return order.cpu().numpy()
    if order == "natural":
        return None
    if order == "reversed":
        return np.arange(count)[::-1]
    t = np.arange(max(len(a), len(b)))
    with np.errstate(all="ignore"):
        products = a[t % len(a)][:, :, None, :] * b[t % len(b)].swapaxes(1, 2)[:, None]
    keys = {
        "positive_first": products < 0,
        "negative_first": ~(products < 0),
        "ascending": np.abs(products),
        "descending": -np.abs(products),
    }[order]
    return np.argsort(keys, axis=-1, kind="stable")


def operands(x: Reals, weight: Reals, geometry: dict[str, Any] | None) -> tuple[Reals, Reals, list[int]]:
    """The operands of every output, a (Ta, I, K) and b (Tb, K, J), and the outputs' shape: by looking up, for each tap
    of the kernel and each position, which input it meets; 0 where none."""
    if geometry is None:
        return x.reshape(1, -1, x.shape[-1]), weight.T[None], [*x.shape[:-1], len(weight)]
    dims = weight.ndim - 2

    def each(name: str, usual: int) -> list[int]:
        given = geometry.get(name, usual)
        return [given] * dims if isinstance(given, int) else list(given)

    stride, padding, dilation = each("stride", 1), each("padding", 0), each("dilation", 1)
    extra, groups, transposed = each("output_padding", 0), geometry.get("groups", 1), geometry.get("transposed", False)
    sizes, found, inside = [], np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for d in range(dims):  # reached: which input of this dimension, (taps, positions)
        size, taps = x.shape[2 + d], weight.shape[2 + d]
        tap = np.arange(taps)[:, None] * dilation[d]
        if transposed:
            sizes.append((size - 1) * stride[d] - 2 * padding[d] + dilation[d] * (taps - 1) + extra[d] + 1)
            reached = np.arange(sizes[-1]) + padding[d] - tap
            meets, reached = reached % stride[d] == 0, reached // stride[d]
        else:
            sizes.append((size + 2 * padding[d] - dilation[d] * (taps - 1) - 1) // stride[d] + 1)
            reached = np.arange(sizes[-1]) * stride[d] - padding[d] + tap
            meets = np.ones(reached.shape, bool)
        meets = meets & (reached >= 0) & (reached < size)
        many = (len(found) * taps, -1)  # of the dimensions up to this one
        found = (found[:, None, :, None] * size + reached[:, None]).reshape(many)
        inside = (inside[:, None, :, None] & meets[:, None]).reshape(many)
    flat = np.concatenate([x.reshape(len(x), x.shape[1], -1), np.zeros((len(x), x.shape[1], 1), x.dtype)], 2)
    patches = flat[:, :, np.where(inside, found, flat.shape[2] - 1)]  # (rows, inputs, taps, positions)
    b = patches.reshape(len(x) * groups, -1, found.shape[1])
    if transposed:
        weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    a = weight.reshape(groups, -1, b.shape[1])
    return a, b, [len(x), a.shape[0] * a.shape[1], *sizes]
