"""What is known of a site before a forward reaches it: found once for each placement, not at every call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisykernels.hardware.device import Device
from noisykernels.injection.placement import Placement
from noisykernels.injection.rows import Rows
from noisykernels.injection.values import Change
from noisykernels.noise.arguments import FLOAT32_MAX
from noisykernels.noise.description import Noise

__all__ = ["Spot", "scale_and_repeats", "spot_of"]


@dataclass(slots=True)
class Spot:
    """What is placed at a site, under which id.

    Args:
        noise, hardware: in the modes in which they enter.
        id: of the site; 0 where nothing enters.
        dim: the dimension that counts rows, and nothing else.
        args: the noise as operators take it, levels and all: add, mul, mode, kind; None: it depends on the call.
        plain: the same with the id, as kernels take it, where rows come first; None otherwise.
    """

    noise: Noise | Change | None
    hardware: Sequence[Device] | None
    id: int
    dim: int | None
    args: tuple[Tensor | None, Tensor | None, int, int] | None
    plain: tuple[Tensor | None, Tensor | None, int, int, int] | None = None


def scale_and_repeats(noise: Noise, repeats: int, scale: float = 1.0) -> tuple[float, int]:
    """A factor of levels with the mean of repeats in it, and the repeats that must be drawn one by one."""
    if noise.mode != "add_mul" and noise.kind == "gaussian":  # else the mean of R is no noise of the same kind
        return scale / math.sqrt(repeats), 1
    return scale, repeats


def spot_of(
    placement: Placement,
    name: str,
    module: nn.Module,
    id_of: Callable[[str], int],
    rows_of: Callable[[str], Rows | None],
) -> Spot:
    """The spot of the site with this name, whose innermost module is `module`."""
    noise, hardware = placement.at(name, module), placement.hardware_at(name, module)
    noise = noise.at(name) if isinstance(noise, Noise) else noise
    if noise is None and hardware is None:
        return Spot(None, None, 0, None, None)
    args = None
    # Levels from numbers have been looked at, and are 0-d and on the CPU whatever the value is. Of compiled code they
    # are arguments, of which nothing is known: it would be made anew for other numbers.
    known = not torch.compiler.is_compiling()
    if known and isinstance(noise, Noise) and noise.trusted and noise.largest <= FLOAT32_MAX and noise.relative is None:
        scale, repeats = scale_and_repeats(noise, placement.repeats_at(name))
        if repeats == 1:
            same = noise if scale == 1.0 else noise.scaled(scale)
            args = same.add, same.mul, same.mode_index, same.kind_index
    rows, number = rows_of(name), id_of(name)
    dim = None if rows is None or rows.outer != 1 or rows.folded else rows.dim
    return Spot(noise, hardware, number, dim, args, None if args is None or dim != 0 else (*args, number))
