"""The contraction at a site of a tape: its weight and input, and its value or direction under noise inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels._graph.linearity import CONTRACTIONS, takes_first, without_bias
from noisykernels._graph.tape import Step, Tape, Value, joined
from noisykernels._util.tensors import kept_type
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Device
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.kinds import CONTRACTION_KINDS
from noisykernels.noise.arguments import Key
from noisykernels.noise.functional import eps

__all__ = ["direction_at", "input_of", "step_of", "value_at"]


def step_of(tape: Tape, site: str) -> Step | None:
    """The contraction whose result is a site's value; None: its weight is not constant, or it is not one step."""
    number = tape.sites.get(site)
    if number is None or number not in tape.producers:
        return None
    step = tape.steps[tape.producers[number]]
    if step.function not in CONTRACTIONS or len(step.inputs) != 1 or not takes_first(step):
        return None
    return step if isinstance(_weight(step), Tensor) else None


def _weight(step: Step) -> Any:
    return step.args[1] if len(step.args) > 1 else step.kwargs.get("weight")


def _contraction(step: Step) -> Contraction:
    """As far as the features of the weight are concerned."""
    if _weight(step).dim() == 2:
        return Contraction(step.name)
    groups = step.args[6] if len(step.args) > 6 else step.kwargs.get("groups", 1)
    return Contraction(step.name, ([], [], [], "transpose" in step.name, [], groups))


def direction_at(tape: Tape, noise: WeightNoise, step: Step, x: Tensor, key: Key) -> Tensor:
    """What noise of level 1 on the weight adds to the output, for every draw: (draws x rows), draw by draw.

    Args:
        tape: of the model.
        noise: at level 1.
        step: the contraction.
        x: its input.
        key: of the site; a weight has no rows of the data.
    """
    weight = _weight(step).detach()
    add, mul = noise.levels(_contraction(step), weight)
    kept = kept_type(weight)
    of_weight = None if mul is None else weight.to(kept) * mul.to(weight.device, kept)
    size = None if add is None else add.to(weight.device, kept)
    if size is not None and size.dim() > weight.dim():
        size = size.squeeze(0)
    if of_weight is not None:
        size = of_weight if size is None else torch.hypot(of_weight, size)
    assert size is not None
    args, kwargs = without_bias(step)  # after the input
    parts = []
    of_all: dict[str, Any] = {"kind": noise.noise.kind, "operand": "weight", "device": weight.device}
    for draw in key.draw_ids:
        drawn = eps(weight.shape, seed=key.seed, site=key.site, draw=draw, **of_all)
        moved = (drawn.to(kept) * size).to(weight.dtype)
        if args:
            parts.append(step.function(x, moved, *args[1:], **kwargs))
        else:
            parts.append(step.function(x, **{**kwargs, "weight": moved}))
    return parts[0] if len(parts) == 1 else joined(tape, step.outputs[0], parts)


def value_at(devices: Sequence[Device], step: Step, kind: str, x: Tensor, dims: tuple[int, int], key: Key) -> Tensor:
    """What a contraction gives on hardware, for every draw: (draws x rows), draw by draw.

    Args:
        devices: the hardware.
        step: the contraction.
        kind: of its site.
        x: its input.
        dims: dimension of rows of its input and of its output.
        key: of the site.
    """
    op = CONTRACTION_KINDS[kind]
    x, args, kwargs = x.movedim(dims[0], 0), step.args[1:], step.kwargs
    return op(x, *args, **kwargs, hardware=devices, shared=True, **key._asdict()).movedim(0, dims[1])


def input_of(step: Step) -> int:
    """The value that a contraction takes."""
    first = step.args[0]
    assert isinstance(first, Value)
    return first.number
