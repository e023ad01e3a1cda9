"""Runs a contraction through a list of devices: on its inputs, its weights, its products and its outputs.

A list of devices says what happens at a linear layer or a convolution. The noise of weights and of products has kernels
of its own; any other device is a subclass of `Device` in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.runtime import as_autocast, as_given
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.macs import MacNoise, deviation, explicit_products
from noisykernels.hardware.noises import InputNoise, WeightNoise
from noisykernels.noise.arguments import Chip, Key, word
from noisykernels.noise.contract import ID_LIMIT, SITE_LIMIT
from noisykernels.noise.operands import check_operands

__all__ = ["checked", "draws_for_rows", "run", "with_arithmetic"]

_ops = torch.ops.noisykernels


# ------------------------------------------------------------------------------------------- running a contraction


def run(
    contraction: Contraction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hardware: Sequence[Device],
    key: Key,
    shared: bool,
    array: Chip,
) -> Tensor:
    """A contraction of x (rows, ...) as the devices make it: (D * B, ...) with D draws."""
    draws, site = key.draws, key.site
    devices = checked(contraction.name, hardware)
    if contraction.of_values:
        devices = tuple(d for d in devices if not d.of_array)
    check_operands(contraction.name, {"x": x, "weight": weight, "bias": bias})
    count = 1 if draws is None else draws.shape[0]
    array_id = site if array.id is None else array.id
    each = _rows_of_draw(contraction.name, x, key, count, shared, array_id)
    macs = next((d for d in devices if isinstance(d, MacNoise) and d.noisy), None)
    native = macs is None or (
        contraction.geometry is None
        and not macs.explicit
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    noise = next((d for d in devices if isinstance(d, WeightNoise)), None)
    own = array_id != site or array.seed is not None
    apart = own and noise is not None and macs is not None  # the kernel has one key for both
    native = native and not apart and contraction.layout is None and not contraction.of_values
    if native and all(type(d) in (InputNoise, WeightNoise, MacNoise) for d in devices):
        for device in devices:
            if isinstance(device, InputNoise):
                x = device.perturbed(x, key, shared)
                shared = False
        if noise is not None:
            key = key._replace(site=array_id, seed=array.seed_of(key))
        return _analog(contraction, x, weight, bias, noise, macs, key, shared)
    arithmetic = next((d for d in devices if isinstance(d, Arithmetic)), None)
    parts = []
    for d in range(count):
        draw = Draw(contraction, key if draws is None else key.of_draws(draws.narrow(0, d, 1)), x.device, array)
        value, held = (x if shared or count == 1 else x.narrow(0, d * each, each)), weight
        if contraction.of_values:
            partner = weight if len(weight) != count * each or count == 1 else weight.narrow(0, d * each, each)
            value, held = _both_inputs(devices, value, partner, draw)
        else:
            for device in devices:
                value, held = device.input(value, draw), device.weight(held, draw)
        held, draw = contraction.matrix(held), replace(draw, contraction=contraction.laid_out)
        value, held = as_autocast(value), as_autocast(held)
        with as_given(x.device):
            if macs is not None and macs.explicit:
                y = explicit_products(macs.levels(contraction, weight), draw.contraction, value, held, draw)
            elif arithmetic is not None:
                draw.contraction.check(value, held)
                y = arithmetic.contract(value, held, draw)
            else:
                y = draw.contraction(value, held)
                if macs is not None:
                    spread = deviation(macs.levels(contraction, weight), draw.contraction, value, held)
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


def _rows_of_draw(op: str, x: Tensor, key: Key, count: int, shared: bool, array: int) -> int:
    """How many rows of x each draw has; an error where the key does not fit them."""
    _, _, rows, first_row, site = key
    if not shared and count > 0 and x.shape[0] % count:
        raise ValueError(
            f"{op}: dimension 0 holds draws x rows and must be a multiple of {count} draws, got "
            f"{x.shape[0]} (shared=True gives every draw the same rows)"
        )
    each = x.shape[0] if shared or count == 0 else x.shape[0] // count
    if rows is not None and rows.shape[0] != each:
        raise ValueError(f"{op}: rows must hold one id for each of {each} rows, got {rows.shape[0]}")
    if rows is None and isinstance(first_row, int) and first_row + each > ID_LIMIT:
        raise ValueError(f"{op}: first_row and the {each} rows from it on must lie in [0, 2^32)")
    word(op, "array", array)
    for name, number in (("site", site), ("array", array)):
        if not 0 <= number < SITE_LIMIT:
            raise ValueError(f"{op}: {name} must lie in [0, 2^24), got {number}")
    return each


def _both_inputs(devices: Sequence[Device], x: Tensor, y: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Both operands of a product of values (rows, ...), as they go in. What draws noise sees them as one value, x
    before y, so that each has its own."""
    for device in devices:
        if not device.operands:
            x, y = device.input(x, draw), device.input(y, draw)
            continue
        y = y.expand(len(x), *y.shape[1:])
        x = x.expand(len(y), *x.shape[1:])
        size = x[:1].numel()
        both = device.input(torch.cat([x.flatten(1), y.flatten(1)], 1), draw)
        x, y = both[:, :size].view(x.shape), both[:, size:].view(y.shape)
    return x, y


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
    if len(ways) > 1:
        raise ValueError(f"{op}: hardware must say at most once how products are added up, got {ways!r}")
    return tuple(devices)


def draws_for_rows(devices: Sequence[Device]) -> bool:
    """Whether devices of ours draw for each row, and not for the chip alone; of a user's own it is not known."""
    return any(isinstance(d, InputNoise | MacNoise | Arithmetic) and bool(d.operands) for d in devices)


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
    key: Key,
    shared: bool,
) -> Tensor:
    """By the kernels: noisy weights in panels, and one eps for each output."""
    of_weight: tuple[Any, ...] = (None, None, -1, 0)
    if noise is not None:
        of_weight = (*noise.levels(contraction, weight), noise.noise.mode_index, noise.noise.kind_index)
    out: Tensor
    if contraction.geometry is not None:
        seed, draws, *_, site = key
        out = _ops.analog_convolution.default(
            x, weight, bias, *contraction.geometry, *of_weight, seed, draws, site, shared
        )
    else:
        of_macs = (None, None, None) if macs is None else macs.levels(contraction, weight)
        out = _ops.analog_linear.default(x, weight, bias, *of_weight, *of_macs, *key, shared)
    return out
