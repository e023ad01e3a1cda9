"""Noise of the single products, accumulation steps and readings of a contraction: folded into one eps for each output,
which is exact in distribution, and, as the reference, drawn one by one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.checks import flag
from noisykernels._util.tensors import can_look, kept_type
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Device, Draw
from noisykernels.noise.arguments import level_tensor
from noisykernels.noise.description import single_level

__all__ = ["MacNoise", "deviation", "explicit_products", "looked_up"]


Levels = tuple[Tensor | None, Tensor | None, Tensor | None]  # of products, steps, readings


class MacNoise(Device):
    r"""Gaussian noise of every multiply-accumulate, new for every row, output position and channel.

    .. math:: y = \sum_k \left[ x_k w_k (1 + m \epsilon_k) + a \epsilon'_k + s x_k \epsilon''_k \right]

    It is drawn as one eps for each output, which has the same distribution:

    .. math:: y = \sum_k x_k w_k + \sqrt{m^2 \sum_k x_k^2 w_k^2 + a^2 K + s^2 \sum_k x_k^2}\;\epsilon

    with *K* the number of products that are added up, those with padding counted.

    Args:
        per_product: level *m*, relative to each product.
        per_step: level *a* of each accumulation step, in units of the output.
        read: level *s* of a fresh reading of the array for every product, in units of the weights.
        relative: None; ``"layer"`` or ``"channel"``: *s* is a share of max|W| of the layer or of each output channel.
        explicit: draw every product's noise instead; hundreds of times slower, for comparison.

    Gradients differentiate mean and deviation with eps held; where the deviation is 0, its derivative is 0.

    Raises:
        ValueError: a negative, NaN or infinite level, or an unknown ``relative``.

    Source: the fold is that of Kingma, Salimans and Welling 2015 (arXiv 1506.02557).

    Example:
        >>> import noisykernels as nk
        >>> nk.linear(torch.ones(2, 4), torch.ones(3, 4), hardware=[MacNoise(per_product=0.1)], seed=1).shape
        torch.Size([2, 3])
    """

    level_names = ("per_product", "per_step", "read")

    def __init__(
        self,
        per_product: float | Tensor = 0.0,
        per_step: float | Tensor = 0.0,
        read: float | Tensor = 0.0,
        *,
        relative: str | None = None,
        explicit: bool = False,
    ) -> None:
        if relative not in (None, "layer", "channel"):
            raise ValueError(f"MacNoise: relative must be None, 'layer' or 'channel', got {relative!r}")
        if relative is not None and not isinstance(read, Tensor) and read == 0:
            raise ValueError(f"MacNoise: relative={relative!r} is about the level read, which is not given")
        self.relative, self.explicit = relative, flag("MacNoise", "explicit", explicit)
        self.per_product, self.per_step, self.read = (
            _level(name, value)
            for name, value in (("per_product", per_product), ("per_step", per_step), ("read", read))
        )
        given = tuple(name for name in self.level_names if getattr(self, name) is not None)
        self.operands = given if explicit else given and ("per_product",)  # one eps for all of them together

    @property
    def noisy(self) -> bool:
        """Whether any level is given."""
        return any(level is not None for level in (self.per_product, self.per_step, self.read))

    def levels(self, contraction: Contraction, weight: Tensor) -> Levels:
        """The levels of products, steps and readings: float64, 0-d or, of readings, (N)."""
        per_product, per_step, read = (
            level_tensor(contraction.name, name, getattr(self, name), weight, False) for name in self.level_names
        )
        if contraction.of_values:
            return per_product, per_step, None  # nothing is read
        if read is not None and self.relative is not None:
            largest = contraction.largest(weight)
            read = read.to(largest.device) * (largest.max() if self.relative == "layer" else largest).double()
        return per_product, per_step, read

    def __repr__(self) -> str:
        given = [(name, level) for name in self.level_names if (level := getattr(self, name)) is not None]
        parts = [f"{name}={level.item()!r}" if can_look(level) else f"{name}=<[]>" for name, level in given]
        parts += [f"relative={self.relative!r}"] if self.relative else []
        parts += ["explicit=True"] if self.explicit else []
        return f"MacNoise({', '.join(parts)})"


def _level(name: str, value: float | Tensor) -> Tensor | None:
    """A level as a 0-d float64 tensor on the CPU; None where there is none."""
    level = single_level("MacNoise", name, value)
    if level is not None and can_look(level) and not (0 <= float(level) < math.inf):
        raise ValueError(f"MacNoise: {name} must be finite and not negative, got {float(level)}")
    return level


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two just above each magnitude; 1 where that is 0 or not finite."""
    _, exponent = torch.frexp(largest)
    good = (largest > 0) & largest.isfinite()
    return torch.ldexp(torch.ones_like(largest), torch.where(good, exponent, 0).clamp(-126, 126))


def _good(level: Tensor) -> Tensor:
    """NaN for a level that is NaN, negative or infinite, as in the kernels."""
    return torch.where((level >= 0) & level.isfinite(), level, math.nan)


def _root(square: Tensor) -> Tensor:
    """Square root whose derivatives at 0 are 0."""
    if not square.requires_grad:
        return square.sqrt()
    some = square > 0
    return torch.where(some, torch.where(some, square, 1).sqrt(), square.detach())  # 0, or NaN


def deviation(levels: Levels, contraction: Contraction, x: Tensor, weight: Tensor) -> Tensor:
    """Standard deviation of the folded noise of each output, in float32 (float64 for such data).

    Squares are of values scaled by powers of two (of each row of x, of each output feature of the weight), so that they
    neither overflow nor vanish beside the largest.

    Args:
        levels: of products, steps and readings, from `MacNoise.levels`.
        contraction: of x and weight.
        x: (rows, ...).
        weight: as the array holds it.
    """
    kept = kept_type(x)
    x, weight = x.to(kept), weight.to(kept)
    per_product, per_step, read = (None if level is None else _good(level.to(x.device, kept)) for level in levels)
    linear = contraction.geometry is None
    item = (-1,) if linear else tuple(range(1, x.dim()))
    size_x = x.new_ones(()) if x.numel() == 0 else _power_of_two(x.detach().abs().amax(item, keepdim=True))
    square_x = (x / size_x).square()
    terms: list[tuple[Tensor, Tensor]] = []  # factor and square of which it multiplies the root
    if per_product is not None:
        size_w = _power_of_two(contraction.largest(weight))
        square_w = (weight / contraction.beside_weight(size_w, weight)).square()
        square = contraction(square_x, square_w)
        terms.append((per_product * contraction.beside_output(size_w, square) * size_x, square))
    if read is not None:
        if linear:
            square = square_x.sum(-1, keepdim=True)
        else:  # one output feature of each group will do
            ones = weight.new_ones(
                (weight.shape[0], 1) if contraction.transposed else (contraction.groups, weight.shape[1])
            )
            ones = ones.view(*ones.shape, *[1] * (weight.dim() - 2)).expand(*ones.shape, *weight.shape[2:])
            square = contraction(square_x, ones)
            square = square.repeat_interleave(contraction.features(weight) // contraction.groups, 1)
        level = contraction.beside_output(read, square) if read.dim() else read
        terms.append((level * size_x, square))
    if per_step is not None:
        terms.append((per_step * math.sqrt(contraction.steps(weight)), x.new_ones(())))
    if not terms:
        return contraction(x, weight).new_zeros(())
    if len(terms) == 1:
        factor, square = terms[0]
        return factor * _root(square)
    # sqrt(sum of factor^2 square), in units of the largest term.
    with torch.no_grad():
        unit = torch.stack(torch.broadcast_tensors(*(f * s.sqrt() for f, s in terms))).amax(0)
        unit = torch.where(unit > 0, unit, 1)
    total: Any = sum((factor / unit).square() * square for factor, square in terms)
    return unit * _root(total)


def looked_up(macs: MacNoise, contraction: Contraction, table: Tensor, y: Tensor, draw: Draw) -> Tensor:
    """Entries of an array with the noise of their one product, with 1, one step and one reading.

    Args:
        macs: the device.
        contraction: of the array.
        table: as the array holds it.
        y: entries (rows, ..., features).
        draw: whose noise it is.
    """
    kept = y.to(kept_type(y))
    given = macs.levels(contraction, table)
    per_product, per_step, read = (None if level is None else _good(level.to(y.device, kept.dtype)) for level in given)
    parts = {"per_product": None if per_product is None else per_product * kept, "per_step": per_step, "read": read}
    terms = {operand: part for operand, part in parts.items() if part is not None}
    if macs.explicit:
        noise: Any = sum(part * draw.fresh(kept, operand) for operand, part in terms.items())
    else:
        square: Any = sum(part.square() for part in terms.values())
        noise = _root(square) * draw.fresh(kept, "per_product")
    made: Tensor = kept + noise
    return made.to(y.dtype)


def explicit_products(
    given: Levels, contraction: Contraction, x: Tensor, weight: Tensor, draw: Draw, elements: int = 1 << 24
) -> Tensor:
    """The contraction with the noise of every product, step and reading drawn by itself, computed in float32 (float64
    for such data) and rounded once.

    The eps of product k of output i is element ``i * K + k`` of its row, k in the weight's natural order.

    Args:
        given: levels of products, steps and readings.
        contraction: of x (rows, ...) and weight.
        draw: whose noise it is.
        elements: products worked on at once.
    """
    kind, kept = x.dtype, kept_type(x)
    x, weight = x.to(kept), weight.to(kept)
    per_product, per_step, read = (None if level is None else _good(level.to(x.device, x.dtype)) for level in given)
    if x.numel() == 0:
        return contraction(x, weight).to(kind)
    clean = contraction(x[:1], weight)
    features, positions = contraction.features(weight), (clean[0].numel() // max(1, contraction.features(weight)))
    steps = contraction.steps(weight)
    # (N, K); of values: (rows, N, positions, K)
    held = weight.movedim(-2, 1) if contraction.of_values else contraction.by_feature(weight)
    some = max(1, elements // max(1, features * positions * steps))
    linear = contraction.geometry is None
    parts = []
    for first in range(0, len(x), some):
        part = x[first : first + some]
        here = replace(draw, key=draw.key.of_rows(first, len(part)))
        taken = _taken(contraction, part, weight, positions)  # (rows, N or 1, positions, K)
        outputs = (len(part), positions, features) if linear else (len(part), features, positions)
        zeros = taken.new_zeros((len(part), features * positions * steps))

        def eps(operand: str, here: Draw = here, zeros: Tensor = zeros, outputs: Any = outputs) -> Tensor:
            drawn = here.fresh(zeros, operand).view(*outputs, steps)
            return drawn.transpose(1, 2) if linear else drawn

        beside = held[:, None, :] if held.dim() == 2 else held[first : first + some] if len(held) > 1 else held
        if contraction.of_values:  # a partner of its own for each position
            beside = beside.repeat_interleave(positions // beside.shape[2], 2)
        clean_products = products = taken * beside
        if per_product is not None:
            products = products + per_product * clean_products * eps("per_product")
        if per_step is not None:
            products = products + per_step * eps("per_step")
        if read is not None:
            products = products + (read.view(-1, 1, 1) if read.dim() else read) * taken * eps("read")
        y = products.sum(-1)  # (rows, N, positions)
        parts.append((y.transpose(1, 2) if linear else y).reshape(len(part), *clean.shape[1:]))
    return (torch.cat(parts) if parts else contraction(x, weight)).to(kind)


def _taken(contraction: Contraction, x: Tensor, weight: Tensor, positions: int) -> Tensor:
    """The input value of each product: (rows, N, positions, K), or (rows, 1, positions, K) where features share it."""
    if contraction.geometry is None:
        return x.reshape(len(x), 1, positions, x.shape[-1])
    # As the outputs of a contraction with one-hot weights, one output feature for each product of a group.
    groups, steps = contraction.groups, contraction.steps(weight)
    inputs = steps // math.prod(weight.shape[2:])
    hot = torch.eye(steps, dtype=x.dtype, device=x.device).view(steps, inputs, *weight.shape[2:])
    if contraction.transposed:
        hot = hot.transpose(0, 1).repeat(groups, *[1] * (weight.dim() - 1))
    else:
        hot = hot.repeat(groups, *[1] * (weight.dim() - 1))
    found = contraction(x, hot).reshape(len(x), groups, steps, positions).transpose(2, 3)
    return found.repeat_interleave(contraction.features(weight) // groups, 1)
