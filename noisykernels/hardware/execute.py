"""Runs a contraction through a list of devices: on its inputs, its weights, its products and its outputs.

A list of devices says what happens at a linear layer or a convolution. The noise of weights and of products has kernels
of its own; any other device is a subclass of `Device` in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.runtime import as_autocast, as_given
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.macs import Levels, MacNoise, deviation, explicit_products
from noisykernels.hardware.noises import InputNoise, WeightNoise
from noisykernels.hardware.panels import LARGE, held_by, through_cells
from noisykernels.noise.arguments import Chip, Key, word
from noisykernels.noise.contract import ID_LIMIT, OPERANDS, SITE_LIMIT, stream_number
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
    native = native and not contraction.beyond_library(weight)
    if noise is not None and noise.by_part and macs is None:  # whose levels take more than the weight, as a whole
        native = native and weight.numel() < LARGE
    if native and all(type(d) in (InputNoise, WeightNoise, MacNoise) for d in devices):
        for device in devices:
            if isinstance(device, InputNoise):
                x = device.perturbed(x, key, shared)
                shared = False
        if noise is not None:
            key = key._replace(site=array_id, seed=array.seed_of(key))
        return _analog(contraction, x, weight, bias, noise, macs, key, shared)
    arithmetic = next((d for d in devices if isinstance(d, Arithmetic)), None)
    streams = tuple(name for device in devices for name in device.operands if name not in OPERANDS)
    parts = []
    for d in range(count):
        draw = Draw(
            contraction, key if draws is None else key.of_draws(draws.narrow(0, d, 1)), x.device, array, streams
        )
        value, held, y = (x if shared or count == 1 else x.narrow(0, d * each, each)), None, None
        if contraction.of_values:
            partner = weight if len(weight) != count * each or count == 1 else weight.narrow(0, d * each, each)
            value, held = _both_inputs(devices, value, partner, draw)
        else:
            for device in devices:
                value = device.input(value, draw)
        value = as_autocast(value)
        if held is None and macs is None and arithmetic is None:
            y = through_cells(devices, value, weight, draw)
        if y is None:
            held = held_by(devices, weight, draw) if held is None else held
            held, draw = as_autocast(contraction.matrix(held)), replace(draw, contraction=contraction.laid_out)
            with as_given(x.device):
                levels = None if macs is None else macs.levels(contraction, weight)
                y = _contracted(arithmetic, levels, macs is not None and macs.explicit, value, held, draw)
        for device in devices:
            y = device.output(y, draw)
            if device.unseen is not None:
                y = y * torch.where(device.unseen == 1, 1.0, math.nan).to(y.device, y.dtype)
        if bias is not None:
            given = bias.to(y.dtype)  # autocast: y is of a half type
            y = y + draw.channels(given, y) if arithmetic is None else arithmetic.add_bias(y, given, draw)
        parts.append(y)
    if not parts:
        return contraction(x[:0], weight, bias)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _contracted(
    arithmetic: Arithmetic | None, levels: Levels | None, explicit: bool, x: Tensor, held: Tensor, draw: Draw
) -> Tensor:
    """The sums of products of x with what is held, which have noise of these levels, drawn one by one or together."""
    contraction = draw.contraction
    if levels is not None and explicit:
        return explicit_products(levels, contraction, x, held, draw)
    if arithmetic is not None:
        contraction.check(x, held)
        return arithmetic.contract(x, held, draw)
    y = contraction(x, held)
    if levels is None:
        return y
    spread = deviation(levels, contraction, x, held)
    mean = y.to(spread.dtype)
    return torch.addcmul(mean, spread, draw.fresh(mean, "per_product")).to(y.dtype)


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
    _check_streams(op, devices)
    ways = [d for d in devices if isinstance(d, Arithmetic | MacNoise)]
    if len(ways) > 1:
        raise ValueError(f"{op}: hardware must say at most once how products are added up, got {ways!r}")
    _check_order(op, devices)
    return tuple(devices)


def _is_sum(device: Device) -> bool:
    """Whether a device is about products and their sums."""
    return isinstance(device, Arithmetic | MacNoise)


def _acts_before(device: Device) -> bool:
    """Whether a device is about what goes into the products: inputs, weights."""
    made = type(device)
    return not _is_sum(device) and (made.input is not Device.input or made.weight is not Device.weight)


def _acts_after(device: Device) -> bool:
    """Whether a device is about the sums that come out."""
    return not _is_sum(device) and type(device).output is not Device.output


def _check_order(op: str, devices: Sequence[Device]) -> None:
    """Refuses a list in an order in which no signal can pass: it would be run in another."""
    latest: Device | None = None  # of those that nothing before the products can follow
    for device in devices:
        before, after = _acts_before(device), _acts_after(device)
        if latest is not None and (_is_sum(device) or (before and (not after or _is_sum(latest)))):
            raise ValueError(
                f"{op}: hardware must list devices in the order in which a signal passes them: those of inputs and "
                f"weights, the arithmetic or `MacNoise`, those of outputs; got {device!r} after {latest!r}"
            )
        if _is_sum(device) or (after and not before):
            latest = device


def _check_streams(op: str, devices: Sequence[Device]) -> None:
    """Refuses devices that would have the same noise: that draw from one stream, or from two of one number."""
    drawn = [name for device in devices for name in device.operands]
    if len(set(drawn)) < len(drawn):
        twice = next(name for name in drawn if drawn.count(name) > 1)
        sharing = [d for d in devices if twice in d.operands]
        raise ValueError(f"{op}: hardware must have at most one device that draws {twice!r}, got {sharing!r}")
    numbers: dict[int, str] = {}
    for name in drawn:
        other = numbers.setdefault(stream_number(name), name)
        if other != name:
            raise ValueError(
                f"{op}: hardware must draw from streams of different numbers, got {other!r} and {name!r}, which have "
                f"{stream_number(name)}: name one of them otherwise"
            )


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
    devices = checked(op, hardware)
    place = next((i for i, d in enumerate(devices) if _acts_after(d) and not _acts_before(d)), len(devices))
    return checked(op, (*devices[:place], arithmetic, *devices[place:]))


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
