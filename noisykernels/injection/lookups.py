"""Embeddings on hardware: a look-up in an array, as its devices hold it and its converters read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels.hardware.contraction import Contraction, Layout
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.macs import MacNoise, looked_up
from noisykernels.injection.recurrent import Running, held_by
from noisykernels.injection.rows import Rows, apart, together
from noisykernels.injection.site import kind_of

__all__ = ["acts_on_entries", "lookup_on_hardware", "table_of"]

_OF_TABLE = Contraction("embedding", None, Layout((1, 0), 0, 1))  # an array (entries, features)


def table_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str | int, Tensor]:
    """Where among the arguments of a look-up the table is, and the table."""
    if "weight" in kwargs:
        return "weight", kwargs["weight"]
    first = 0 if args[0].is_floating_point() else 1
    return first, args[first]


def acts_on_entries(device: Device, several: bool) -> bool:
    """Whether a device acts at a look-up, which converts no input and adds up nothing but `several` entries of a bag:
    on what the array holds, on the reading of an entry, or on the result."""
    if isinstance(device, MacNoise):
        return device.noisy and not several
    if isinstance(device, Arithmetic):
        return False
    return type(device).weight is not Device.weight or type(device).output is not Device.output


def lookup_on_hardware(
    mode: Running, name: str, hardware: Sequence[Device], func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
    rows: Rows | None,
) -> Any:  # fmt: skip
    """What is looked up; None where the rows of several draws, or of what converters draw, are not known."""
    where, table = table_of(args, kwargs)
    hardware = [d for d in mode.at_level(name, hardware) if acts_on_entries(d, "bag" in kind_of(name))]
    macs = next((d for d in hardware if isinstance(d, MacNoise)), None)
    parts = []
    key, array = mode.part_key(name, "", None, table)
    count = 1 if key.draws is None else len(key.draws)
    found: Any = None
    for number in range(count):
        held = held_by(mode, name, "", table, hardware, number, _OF_TABLE)
        given: Any = [held if i == where else a for i, a in enumerate(args)]
        found = func(*given, **{k: held if k == where else v for k, v in kwargs.items()})
        y = found[0] if isinstance(found, tuple) else found
        if rows is None or (split := apart(y, rows, 1 if rows.outer == 0 else mode.batch)) is None:
            outputs = (d for d in hardware if d is macs or type(d).output is not Device.output)
            fresh = (bool(d.operands) and not d.of_array for d in outputs)
            if count > 1 or any(fresh):
                return None
            split = y.unsqueeze(0)
        mine = split if count == 1 else split.chunk(count)[number]
        of_draw = key if key.draws is None else key.of_draws(key.draws.narrow(0, number, 1))
        draw = Draw(replace(_OF_TABLE, layout=None), of_draw, y.device, array)
        if macs is not None:
            mine = looked_up(macs, _OF_TABLE, held, mine, draw)
        for device in hardware:
            mine = device.output(mine, draw)
        parts.append(mine)
    joined = torch.cat(parts) if count > 1 else parts[0]
    like = found[0] if isinstance(found, tuple) else found
    out = joined.squeeze(0) if rows is None or (joined.dim() > like.dim() and len(joined) == 1) else joined
    out = out if out.shape == like.shape or rows is None else together(joined, rows, like)
    return (out, *found[1:]) if isinstance(found, tuple) else out
