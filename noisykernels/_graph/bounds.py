"""How far a bounded disturbance at a site can reach: the radius of a step's result from those of its arguments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from noisykernels._graph.linearity import (
    CONTRACTIONS,
    MAX_POOL,
    SUMS,
    functions,
    norm_arguments,
    norm_scale,
    sum_shape,
    without_bias,
)
from noisykernels._graph.tape import Step, Tape, Value

__all__ = ["radius"]

# Operations whose result is a sum of values with weights that are not negative.
_POSITIVE = functions(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d flatten reshape "
    "view permute transpose contiguous squeeze unsqueeze movedim unflatten mean sum pixel_shuffle select narrow clone "
    "detach dropout dropout1d dropout2d dropout3d"
)
# Activations with slopes of at most 1.
_GENTLE = functions("relu relu6 hardtanh tanh sigmoid softsign logsigmoid neg")


def radius(step: Step, radii: dict[int, Tensor], tape: Tape, rows: int) -> Tensor | None:
    """Radius of a step's result from those of its arguments; None where no bound is known."""
    f = step.function
    if len(step.outputs) != 1:
        return None
    own = [radii[n] for n in step.inputs if n in radii]
    if f in SUMS and not step.kwargs and len(step.args) == 2:
        parts = [radii[a.number] for a in step.args if isinstance(a, Value) and a.number in radii]
        return sum(parts[1:], parts[0]).expand(sum_shape(step, tape, rows))
    if len(step.inputs) != 1 or len(own) != 1:
        return None
    if f in _GENTLE:
        return own[0]
    if f is F.batch_norm:
        given = norm_arguments(step)
        if given is None:
            return None
        return own[0] * norm_scale(given)[0].abs().double().view(1, -1, *[1] * (own[0].dim() - 2))
    if f in CONTRACTIONS and step.args and isinstance(step.args[0], Value):
        args, kwargs = without_bias(step)
        weight, *more = args if args else (kwargs.pop("weight"),)
        radius: Tensor = f(own[0], weight.abs().double(), *more, **kwargs)
        return radius
    if "divisor_override" in step.kwargs or len(step.args) > 6:  # of a pool; it may be negative
        return None
    if f in _POSITIVE or f in MAX_POOL:
        args, kwargs = step.arguments(radii, rows)
        out = f(*args, **kwargs)
        return out if isinstance(out, Tensor) else None
    return None
