"""Which operations are linear, and what they make of a direction: ``f(x + A d) = f(x) + A f0(d)``, f0 without bias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._graph.tape import Step, Tape, Value
from noisykernels.injection.kinds import offered


def functions(names: str) -> frozenset[Any]:
    """All functions and methods of torch that go by some names."""
    return frozenset(f for name in names.split() for f in offered(name))


_HOMOGENEOUS = functions(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d flatten reshape "
    "view permute transpose contiguous squeeze unsqueeze movedim unflatten neg mean sum pixel_shuffle select narrow "
    "clone detach dropout dropout1d dropout2d dropout3d"
)
_JOINS = functions("cat stack")
_PRODUCTS = functions("mul __mul__ __rmul__")
_QUOTIENTS = functions("div __truediv__ true_divide")
SUMS = functions("add __add__ __radd__ sub __sub__ __rsub__")
ADDS = functions("add __add__ __radd__")
_NEGATES_SECOND = functions("sub __sub__")
_NEGATES_FIRST = functions("__rsub__")
CONTRACTIONS = functions("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
LINEAR = functions("linear")
DROPOUTS = functions("dropout dropout1d dropout2d dropout3d")
CONV2D = functions("conv2d")
VIEWS = functions("view view_as as_strided")
RELU = functions("relu")
MAX_POOL = functions("max_pool2d")


def direction_of(step: Step, carried: dict[int, Tensor], tape: Tape, copies: int, rows: int) -> Tensor | None:
    """The direction of a step's result from those of its arguments; None: the step is not linear in them."""
    if step.function in SUMS:
        return _direction_of_sum(step, carried, tape, copies * rows)
    first = step.args[0] if step.args else None
    if step.function is F.batch_norm:
        return _direction_of_norm(step, carried)
    made: Tensor
    if step.function in CONTRACTIONS:
        if len(step.inputs) != 1 or not takes_first(step):
            return None
        assert isinstance(first, Value)
        args, kwargs = without_bias(step)
        made = step.function(carried[first.number], *args, **kwargs)
        return made
    if len(step.outputs) != 1 or any(n not in carried for n in step.inputs) or not _is_homogeneous(step):
        return None
    args, kwargs = step.arguments(carried, copies * rows)
    made = step.function(*args, **kwargs)
    return made


def _is_homogeneous(step: Step) -> bool:
    """Whether a step of values that all carry a direction makes of the directions what it makes of the values."""
    if step.function in _JOINS:
        return True
    places = [i for i, a in enumerate(step.args) if isinstance(a, Value)]
    if step.function in _PRODUCTS:  # with a constant on either side; `x * x` is not linear
        return len(places) == 1 and not step.kwargs
    if step.function in _QUOTIENTS:  # by a constant, and not rounded
        return places == [0] and not step.kwargs
    return step.function in _HOMOGENEOUS and len(step.inputs) == 1


def takes_first(step: Step) -> bool:
    """Whether its first argument is a value, not a keyword's."""
    return bool(step.args) and isinstance(step.args[0], Value)


def without_bias(step: Step) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a contraction after the first."""
    args, kwargs = list(step.args[1:]), dict(step.kwargs)
    if len(args) > 1:
        args[1] = None
    elif "bias" in kwargs:
        kwargs["bias"] = None
    return tuple(args), kwargs


def norm_arguments(step: Step) -> dict[str, Any] | None:
    """Arguments of an evaluating batch norm by name; None if it is not one of constants."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
    if given.get("training") or given.get("running_mean") is None or len(step.inputs) != 1:
        return None
    return given


def norm_scale(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel."""
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    scale = scale if given.get("weight") is None else scale * given["weight"]
    shift = -given["running_mean"] * scale
    return scale, shift if given.get("bias") is None else shift + given["bias"]


def _direction_of_norm(step: Step, carried: dict[int, Tensor]) -> Tensor | None:
    if (given := norm_arguments(step)) is None:
        return None
    direction = carried[step.inputs[0]]
    scale, _ = norm_scale(given)
    return direction * scale.view(1, -1, *[1] * (direction.dim() - 2))


def _direction_of_sum(step: Step, carried: dict[int, Tensor], tape: Tape, rows: int) -> Tensor | None:
    if step.kwargs or len(step.args) != 2:
        return None
    parts = []
    for position, a in enumerate(step.args):
        if isinstance(a, Value) and a.number in carried:
            negative = step.function in (_NEGATES_FIRST if position == 0 else _NEGATES_SECOND)
            parts.append(-carried[a.number] if negative else carried[a.number])
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    shape = sum_shape(step, tape, rows)
    return total if list(total.shape) == shape else total.expand(shape).contiguous()


def sum_shape(step: Step, tape: Tape, rows: int) -> list[int]:
    """Shape of a sum for so many rows: its terms may be smaller."""
    shape, dim = list(tape.shapes[step.outputs[0]]), tape.row_dims[step.outputs[0]]
    assert dim is not None
    shape[dim] = shape[dim] // tape.rows * rows
    return shape
