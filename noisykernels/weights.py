"""Walking over what is inside contractions: noise of the weight, and hardware of which a parameter is walked.

The noise of a weight is a direction at the output of its contraction, ``(W + A dW) x = W x + A (dW x)``: levels part
there, as those of noise on the output do. Hardware is not linear in its parameter: the contraction is run for each
value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisykernels.contraction import Contraction, Device
from noisykernels.hardware import WeightNoise, checked
from noisykernels.linearity import CONTRACTIONS, takes_first, without_bias
from noisykernels.noise import Noise
from noisykernels.operations import CONTRACTION_KINDS
from noisykernels.ops import eps
from noisykernels.sites import Site
from noisykernels.tape import Step, Tape, Value

__all__ = [
    "Varied",
    "Walked",
    "as_weight_noise",
    "direction_at",
    "has_weight",
    "identity",
    "input_of",
    "step_of",
    "value_at",
]


@dataclass(frozen=True, eq=False)
class Varied:
    """Hardware of a contraction that depends on a parameter.

    Args:
        make: the list of devices for a value of the parameter.
        name: of the parameter, with its unit.
        larger: ``"better"``: more of it is closer to the exact contraction; ``"worse"``.
    """

    make: Callable[[float], Sequence[Device] | Device]
    name: str
    larger: str

    def scaled(self, value: float) -> tuple[Device, ...]:
        """The devices for a value."""
        return checked("walk_parameter", self.make(value))  # type: ignore[arg-type]


Walked = Noise | WeightNoise | Varied  # what a walk is over


def identity(value: Any) -> str:
    """What a store tells devices apart by: how they print themselves and what they hold, tensors by a digest.

    The same in every process; what is only in the code of a device is not seen.

    Example:
        >>> from noisykernels.arithmetic import Serial
        >>> one, other = (identity([Serial(order=order)]) for order in ([0, 1, 2], [0, 2, 1]))
        >>> one == other, one == identity([Serial(order=[0, 1, 2])])
        (False, True)
    """
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{list(value.shape)} {value.dtype} {hashlib.sha256(held).hexdigest()[:16]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(identity, value))}]"
    said = re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # addresses change from run to run
    if not isinstance(value, Device):
        return said
    held_by = {n: v for n, v in vars(value).items() if isinstance(v, Tensor) or not n.startswith("_")}
    return f"{said} with {', '.join(f'{n}={identity(v)}' for n, v in sorted(held_by.items()))}"


def as_weight_noise(op: str, noise: Noise | WeightNoise) -> WeightNoise:
    """Noise for weights from what a walk is given; levels must be numbers, as they serve weights of any shape."""
    if not isinstance(noise, WeightNoise):
        noise = WeightNoise.of(noise)
    if any(level is not None and level.dim() > 0 for level in (noise.noise.add, noise.noise.mul)):
        raise ValueError(f"{op}: levels of noise on weights must be numbers, got {noise!r}")
    return noise


def has_weight(site: Site) -> bool:
    """Whether a site is that of a contraction with a weight."""
    return site.kind in CONTRACTION_KINDS


def step_of(tape: Tape, site: str) -> Step | None:
    """The contraction whose result is a site's value; None: its weight is not constant, or it is not one step."""
    number = tape.sites.get(site)
    step = next((s for s in tape.steps if number in s.outputs), None)
    if step is None or step.function not in CONTRACTIONS or len(step.inputs) != 1 or not takes_first(step):
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


def direction_at(
    noise: WeightNoise, step: Step, x: Tensor, row_dim: int, *, seed: int, site: int, draws: Sequence[int]
) -> Tensor:
    """What noise of level 1 on the weight adds to the output, for every draw: (draws x rows), draw by draw.

    Args:
        noise: at level 1.
        step: the contraction.
        x: its input.
        row_dim: dimension of rows of its output.
    """
    weight = _weight(step).detach()
    add, mul = noise.levels(_contraction(step), weight)
    kept = torch.float64 if weight.dtype == torch.float64 else torch.float32
    of_weight = None if mul is None else weight.to(kept) * mul.to(weight.device, kept)
    size = None if add is None else add.to(weight.device, kept)
    if size is not None and size.dim() > weight.dim():
        size = size.squeeze(0)
    if of_weight is not None:
        size = of_weight if size is None else torch.hypot(of_weight, size)
    assert size is not None
    args, kwargs = without_bias(step)  # after the input
    parts = []
    for draw in draws:
        key: dict[str, Any] = {"seed": seed, "site": site, "operand": "weight", "draw": draw}
        drawn = eps(weight.shape, kind=noise.noise.kind, **key, device=weight.device)
        moved = (drawn.to(kept) * size).to(weight.dtype)
        if args:
            parts.append(step.function(x, moved, *args[1:], **kwargs))
        else:
            parts.append(step.function(x, **{**kwargs, "weight": moved}))
    return parts[0] if len(parts) == 1 else torch.cat(parts, row_dim)


def value_at(devices: Sequence[Device], step: Step, site: Site, x: Tensor, dims: tuple[int, int], **key: Any) -> Tensor:
    """What a contraction gives on hardware, for every draw: (draws x rows), draw by draw.

    Args:
        devices: the hardware.
        step: the contraction.
        site: its site.
        x: its input.
        dims: dimension of rows of its input and of its output.
        key: seed, draws and rows.
    """
    op = CONTRACTION_KINDS[site.kind]
    x, args, kwargs = x.movedim(dims[0], 0), step.args[1:], step.kwargs
    return op(x, *args, **kwargs, hardware=devices, site=site.id, shared=True, **key).movedim(0, dims[1])


def input_of(step: Step) -> int:
    """The value that a contraction takes."""
    first = step.args[0]
    assert isinstance(first, Value)
    return first.number
