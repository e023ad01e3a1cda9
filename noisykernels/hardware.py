"""Noise and non-idealities inside a contraction, where analog hardware has them: on its inputs, its weights, its
products and its outputs.

A list of devices says what happens at a linear layer or a convolution. The noise of weights and of products has kernels
of its own; any other device is a subclass of `Device` in plain torch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels.contraction import Arithmetic, Contraction, Device, Draw, as_autocast, as_given, largest_of
from noisykernels.macs import MacNoise, deviation, explicit_products
from noisykernels.noise import ID_LIMIT, OPERANDS, Noise, level_tensor
from noisykernels.sites import SITE_LIMIT

__all__ = ["InputNoise", "WeightNoise", "checked", "run", "with_arithmetic"]

_ops = torch.ops.noisykernels


def _one_term(name: str, noise: Noise) -> Noise:
    if noise.mode in ("mul_add", "add_mul"):
        raise ValueError(f"{name}: give add or mul, or both with fold=True, got {noise!r}")
    return noise


class InputNoise(Device):
    """Noise on what goes into a contraction: ``x + a*eps`` or ``x * (1 + m*eps)``, new for every row.

    Args:
        add, mul, kind, fold: as for `Noise`; both levels only with ``fold=True``.

    Example:
        >>> InputNoise(add=0.1)
        InputNoise(add=0.1)
    """

    operands = ("input",)

    def __init__(
        self, add: float | Tensor = 0.0, mul: float | Tensor = 0.0, *, kind: str = "gaussian", fold: bool = False
    ) -> None:
        self.noise = _one_term("InputNoise", Noise(add, mul, kind=kind, fold=fold))

    def scaled(self, factor: float | Tensor) -> InputNoise:
        """This noise with its levels multiplied."""
        made = copy.copy(self)
        made.noise = self.noise.scaled(factor)
        return made

    def input(self, x: Tensor, draw: Draw) -> Tensor:
        """x with noise."""
        return self.perturbed(x, draw.seed, draw.site, draw.id, False, draw.rows, draw.first_row)

    def perturbed(
        self, x: Tensor, seed: Tensor, site: int, draws: Tensor | None, shared: bool, rows: Tensor | None, first: int
    ) -> Tensor:
        """x (rows, ...) with the noise of several draws."""
        return _perturb(x, self.noise, "input", (seed, draws, rows, first, site), shared)

    def __repr__(self) -> str:
        return f"Input{self.noise!r}"


class WeightNoise(Device):
    r"""Noise on the weights, drawn once for each draw and shared by all rows and positions: a draw is a chip.

    .. math:: W + a s \epsilon \qquad\text{or}\qquad W (1 + m \epsilon)

    with *s* = 1, max|W| of the layer, or max|W| of each output channel.

    Args:
        add: level *a*: in units of the weights, or of what ``relative`` says.
        mul: level *m*.
        relative: None; ``"layer"``: *a* is a share of max|W| of the layer; ``"channel"``: of that of each output
            channel. The maximum takes part in no gradient.
        kind, fold: as for `Noise`; both levels only with ``fold=True``.

    Raises:
        ValueError: bad levels, or an unknown ``relative``.

    Source: Joshi et al. 2020 (Nature Communications) for levels relative to max|W|; SAMSON (arXiv 2211.11561).

    Example:
        >>> import noisykernels as nk
        >>> w = torch.eye(3)
        >>> y = nk.linear(torch.eye(3).repeat(2, 1), w, hardware=[WeightNoise(add=0.1, relative="layer")], seed=1)
        >>> bool((y[:3] == y[3:]).all())  # all rows see the same weights
        True
    """

    operands = ("weight",)

    def __init__(
        self,
        add: float | Tensor = 0.0,
        mul: float | Tensor = 0.0,
        *,
        relative: str | None = None,
        kind: str = "gaussian",
        fold: bool = False,
    ) -> None:
        self._hold(Noise(add, mul, kind=kind, fold=fold), relative)

    def _hold(self, noise: Noise, relative: str | None) -> None:
        if relative not in (None, "layer", "channel"):
            raise ValueError(f"WeightNoise: relative must be None, 'layer' or 'channel', got {relative!r}")
        if relative is not None and noise.add is None:
            raise ValueError(f"WeightNoise: relative={relative!r} is about the level add, which is not given")
        self.noise, self.relative = _one_term("WeightNoise", noise), relative

    @classmethod
    def of(cls, noise: Noise, relative: str | None = None) -> WeightNoise:
        """Weights with a noise of one term.

        Example:
            >>> WeightNoise.of(Noise(mul=0.1))
            WeightNoise(mul=0.1)
        """
        made = object.__new__(cls)
        made._hold(noise, relative)
        return made

    def scaled(self, factor: float | Tensor) -> WeightNoise:
        """This noise with its levels multiplied."""
        made = copy.copy(self)
        made.noise = self.noise.scaled(factor)
        return made

    def levels(self, contraction: Contraction, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Levels as the operators take them for a weight."""
        noise = self.noise
        add = level_tensor(contraction.name, "add", noise.add, weight, noise.trusted)
        mul = level_tensor(contraction.name, "mul", noise.mul, weight, noise.trusted)
        if add is None or self.relative is None:
            return add, mul
        if self.relative == "layer":
            return add * largest_of(weight).double(), mul
        of_each = contraction.beside_weight(contraction.largest(weight), weight)
        return add * of_each.to(torch.float64).unsqueeze(0), mul

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """The weight with noise."""
        add, mul = self.levels(draw.contraction, weight)
        key = (draw.seed, draw.id, None, 0, draw.site)
        numbers = (OPERANDS.index("weight"), add, mul)
        return _ops.perturb.default(weight, *numbers, *key, self.noise.mode_index, self.noise.kind_index, True)

    def __repr__(self) -> str:
        inner = repr(self.noise).removeprefix("Noise(").removesuffix(")")
        return f"WeightNoise({inner}{f', relative={self.relative!r}' if self.relative else ''})"


def _perturb(x: Tensor, noise: Noise, operand: str, key: tuple[Any, ...], shared: bool) -> Tensor:
    add = level_tensor(operand, "add", noise.add, x, noise.trusted)
    mul = level_tensor(operand, "mul", noise.mul, x, noise.trusted)
    number = OPERANDS.index(operand)
    return _ops.perturb.default(x, number, add, mul, *key, noise.mode_index, noise.kind_index, shared)


# ------------------------------------------------------------------------------------------- running a contraction


def run(
    contraction: Contraction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hardware: Sequence[Device],
    *,
    seed: Tensor,
    site: int,
    draws: Tensor | None,
    shared: bool,
    rows: Tensor | None,
    first_row: int,
) -> Tensor:
    """A contraction of x (rows, ...) as the devices make it: (D * B, ...) with D draws."""
    devices = checked(contraction.name, hardware)
    count = 1 if draws is None else draws.shape[0]
    if not shared and count > 0 and x.shape[0] % count:
        raise ValueError(
            f"{contraction.name}: dimension 0 holds draws x rows and must be a multiple of {count} draws, got "
            f"{x.shape[0]} (shared=True gives every draw the same rows)"
        )
    each = x.shape[0] if shared or count == 0 else x.shape[0] // count
    if rows is not None and rows.shape[0] != each:
        raise ValueError(f"{contraction.name}: rows must hold one id for each of {each} rows, got {rows.shape[0]}")
    if rows is None and isinstance(first_row, int) and first_row + each > ID_LIMIT:
        raise ValueError(f"{contraction.name}: first_row and the {each} rows from it on must lie in [0, 2^32)")
    if not 0 <= site < SITE_LIMIT:
        raise ValueError(f"{contraction.name}: site must lie in [0, 2^24), got {site}")
    macs = next((d for d in devices if isinstance(d, MacNoise) and d.noisy), None)
    native = macs is None or (
        contraction.geometry is None
        and not macs.explicit
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    if native and all(type(d) in (InputNoise, WeightNoise, MacNoise) for d in devices):
        for device in devices:
            if isinstance(device, InputNoise):
                x = device.perturbed(x, seed, site, draws, shared, rows, first_row)
                shared = False
        noise = next((d for d in devices if isinstance(d, WeightNoise)), None)
        return _analog(contraction, x, weight, bias, noise, macs, seed, site, draws, shared, rows, first_row)
    arithmetic = next((d for d in devices if isinstance(d, Arithmetic)), None)
    whole = Draw(contraction, seed, site, None, rows, first_row, x.device)
    parts = []
    for d in range(count):
        draw = whole if draws is None else replace(whole, id=draws.narrow(0, d, 1))
        value, held = (x if shared or count == 1 else x.narrow(0, d * each, each)), weight
        for device in devices:
            value, held = device.input(value, draw), device.weight(held, draw)
        value, held = as_autocast(value), as_autocast(held)
        with as_given(x.device):
            if macs is not None and macs.explicit:
                y = explicit_products(macs.levels(contraction, weight), contraction, value, held, draw)
            elif arithmetic is not None:
                contraction.check(value, held)
                y = arithmetic.contract(value, held, draw)
            else:
                y = contraction(value, held)
                if macs is not None:
                    spread = deviation(macs.levels(contraction, weight), contraction, value, held)
                    mean = y.to(spread.dtype)
                    y = torch.addcmul(mean, spread, draw.fresh(mean, "per_product")).to(y.dtype)
        for device in devices:
            y = device.output(y, draw)
        if bias is not None:
            given = bias.to(y.dtype)  # autocast: y is of a half type
            y = y + draw.channels(given, y) if arithmetic is None else arithmetic.add_bias(y, given, draw)
        parts.append(y)
    if not parts:
        return contraction(x[:0], weight, bias)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def checked(op: str, hardware: Sequence[Device]) -> tuple[Device, ...]:
    """The devices, no two of which draw from the same stream: they would have the same noise."""
    devices = (hardware,) if isinstance(hardware, Device) else hardware
    if not isinstance(devices, list | tuple) or not all(isinstance(d, Device) for d in devices):
        raise TypeError(f"{op}: hardware must be a list of devices, got {hardware!r}")
    drawn = [name for device in devices for name in device.operands]
    if len(set(drawn)) < len(drawn):
        twice = next(name for name in drawn if drawn.count(name) > 1)
        sharing = [d for d in devices if twice in d.operands]
        raise ValueError(f"{op}: hardware must have at most one device that draws {twice!r}, got {sharing!r}")
    ways = [d for d in devices if isinstance(d, Arithmetic | MacNoise)]
    if len(ways) > 1 and any(isinstance(d, Arithmetic) for d in ways):
        raise ValueError(f"{op}: hardware must say at most once how products are added up, got {ways!r}")
    return tuple(devices)


def with_arithmetic(op: str, hardware: Any, arithmetic: Arithmetic | None) -> Any:
    """The devices with the arithmetic among them."""
    if arithmetic is None:
        return hardware
    if not isinstance(arithmetic, Arithmetic):
        raise TypeError(f"{op}: arithmetic must be an Arithmetic, such as Serial(...), got {arithmetic!r}")
    if hardware is None:
        return (arithmetic,)
    if isinstance(hardware, dict) or (callable(hardware) and not isinstance(hardware, Device)):
        raise ValueError(f"{op}: put the arithmetic into the lists of hardware, where these differ from layer to layer")
    return checked(op, (*checked(op, hardware), arithmetic))


def _analog(
    contraction: Contraction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise: WeightNoise | None,
    macs: MacNoise | None,
    seed: Tensor,
    site: int,
    draws: Tensor | None,
    shared: bool,
    rows: Tensor | None,
    first_row: int,
) -> Tensor:
    """By the kernels: noisy weights in panels, and one eps for each output."""
    of_weight: tuple[Any, ...] = (None, None, -1, 0)
    if noise is not None:
        of_weight = (*noise.levels(contraction, weight), noise.noise.mode_index, noise.noise.kind_index)
    if contraction.geometry is not None:
        return _ops.analog_convolution.default(
            x, weight, bias, *contraction.geometry, *of_weight, seed, draws, site, shared
        )
    of_macs = (None, None, None) if macs is None else macs.levels(contraction, weight)
    return _ops.analog_linear.default(x, weight, bias, *of_weight, *of_macs, seed, draws, rows, first_row, site, shared)
