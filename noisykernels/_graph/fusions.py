"""What runs as one once the levels have parted: a contraction with an evaluating batch norm folded into its weights,
what is added to its result and a rectifier in place; a rectifier with a max-pool.

On a CPU convolutions of float32 that are not narrow hold their values channels_last: the library computes in that
order, and turns what comes otherwise, which costs as much again where there are few channels. Only strides differ;
`channels_last` makes a value so before it meets one, and `Suffix` lays it out anew where it is viewed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._graph.linearity import (
    ADDS,
    CONTRACTIONS,
    CONV2D,
    DROPOUTS,
    LINEAR,
    MAX_POOL,
    RELU,
    SUMS,
    norm_arguments,
    norm_scale,
    takes_first,
)
from noisykernels._graph.tape import Step, Tape
from noisykernels._graph.winograd import Winograd

__all__ = ["Fused", "Fusions", "channels_last", "is_channels_last", "plain"]

_ALIKE = SUMS | RELU | {F.batch_norm}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of a contraction's arguments
NARROW = 16  # channels below which the library computes in the usual order
_ops = torch.ops.noisykernels


@dataclass
class Fused:
    """Steps that run as one once the levels have parted."""

    run: Callable[..., Tensor]
    input: int
    output: int
    through: tuple[Step, ...]  # the steps that it stands for
    other: int | None = None  # what is added
    pools: bool = False  # by our kernel
    channels_last: bool = False  # takes and gives values so


class Fusions:
    """The fusions of some steps, which read each other's results.

    Args:
        tape: of the model, which keeps what was prepared: suffixes share it.
        steps: of a suffix.
    """

    def __init__(self, tape: Tape, steps: list[Step]) -> None:
        self.tape, self.steps = tape, steps
        self.places = {step: i for i, step in enumerate(steps)}
        self.made = {n: i for i, step in enumerate(steps) for n in step.outputs}  # by which step
        self.takers: dict[int, list[Step]] = {}  # of each value
        for step in steps:
            for n in step.inputs:
                self.takers.setdefault(n, []).append(step)

    def of(self, step: Step) -> Fused | None:
        """What begins with a step."""
        if step.function in CONTRACTIONS and len(step.inputs) == 1 and takes_first(step):
            return self._contraction(step)
        if step.function in RELU and (then := self._only_taker(step)) is not None:
            return self._pool((step, then), relu=True)
        return self._pool((step,), relu=False) if step.function in MAX_POOL else None

    def wide(self, fused: Iterable[Fused]) -> set[int]:
        """The values that are held channels_last: what contractions read so, and what goes into and comes from sums,
        norms and rectifiers of these.
        """
        found = {one.input for one in fused if one.channels_last}
        alike = [(*s.inputs, *s.outputs) for s in self.steps if s.function in _ALIKE]
        while more := {n for values in alike if not found.isdisjoint(values) for n in values} - found:
            found |= more
        return found

    def _only_taker(self, step: Step) -> Step | None:
        if len(step.outputs) != 1 or step.outputs[0] == self.tape.result:
            return None
        takers = self.takers.get(step.outputs[0], [])
        return takers[0] if len(takers) == 1 else None

    def _contraction(self, step: Step) -> Fused | None:
        through, norm = [step], None
        if "transpose" in step.name or len(step.args) > len(_NAMES):
            return None
        weight = _given(step)["weight"]
        norm_is_last = step.function in LINEAR and len(self.tape.shapes[step.outputs[0]]) > 2  # not of these channels
        if (then := self._only_taker(step)) is not None and then.function is F.batch_norm and not norm_is_last:
            norm = norm_arguments(then) if weight.dtype in (torch.float32, torch.float64) else None
            through += [then] if norm is not None else []
        other = self._added(step, through)
        if (then := self._only_taker(through[-1])) is not None and then.function in RELU:
            after = self._only_taker(then)
            if after is None or self._pooling(after) is None:  # that pair runs as one by itself
                through.append(then)
        wide = self._is_wide(step, weight)
        if len(through) == 1 and not wide:
            return None
        key = tuple(through)
        if key not in self.tape.prepared:
            self.tape.prepared[key] = self._prepared(key, norm, other, wide)
        found: Fused = self.tape.prepared[key]
        return found

    def _added(self, first: Step, through: list[Step]) -> int | None:
        """What is added to the result of steps that run as one, if it is as large and known before the first runs; then
        the sum is one of them, with dropouts before it (which drop nothing, or all).
        """
        then, between = self._only_taker(through[-1]), list[Step]()
        while then is not None and then.function in DROPOUTS:
            between.append(then)
            then = self._only_taker(then)
        if then is None or then.function not in ADDS or then.kwargs or len(then.args) != 2 or len(then.inputs) != 2:
            return None
        (result,) = (between or through)[-1].outputs
        (other,) = (n for n in then.inputs if n != result)
        like = [(self.tape.shapes[n], self.tape.row_dims[n], self.tape.outer.get(n, 1)) for n in (result, other)]
        if like[0] != like[1] or self.made.get(other, -1) >= self.places[first]:
            return None
        through += [*between, then]
        return other

    def _prepared(self, through: tuple[Step, ...], norm: dict[str, Any] | None, other: int | None, wide: bool) -> Fused:
        """A contraction with its norm, with what is added, and a rectifier if that is the last."""
        step, relu, given = through[0], through[-1].function in RELU, _given(through[0])
        weight, bias = given["weight"], given.get("bias")
        rest = {n: a for n, a in given.items() if n not in ("input", "weight", "bias")}
        dropouts = [s for s in through if s.function in DROPOUTS]
        if norm is not None:
            scale, shift = norm_scale(norm)
            bias = shift if bias is None else torch.addcmul(shift, bias, scale)
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        if wide:
            weight = channels_last(weight)

        def run(x: Tensor, added: Tensor | None = None) -> Tensor:
            y = step.function(channels_last(x) if wide else x, weight, bias, **rest)
            for drop in dropouts:
                args, kwargs = drop.arguments({drop.inputs[0]: y}, 0)
                y = drop.function(*args, **kwargs)
            if added is not None:
                y = y.add_(added) if added.dtype == y.dtype else y + added
            return torch.relu_(y) if relu else y

        quick: Callable[..., Tensor] = run
        if wide and not dropouts and self._has_winograd(step, weight, rest):
            quick = Winograd(weight, bias, relu, run)
        return Fused(quick, step.inputs[0], through[-1].outputs[0], through, other, channels_last=wide)

    def _is_wide(self, step: Step, weight: Tensor) -> bool:
        """Whether a contraction holds its values channels_last."""
        if (
            step.function not in CONV2D
            or len(self.tape.shapes[step.inputs[0]]) != 4
            or _given(step).get("groups", 1) != 1
        ):
            return False
        return weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape[:2]) >= NARROW

    def _has_winograd(self, step: Step, weight: Tensor, rest: dict[str, Any]) -> bool:
        ones = all(_pair(rest.get(n, usual)) == [1, 1] for n, usual in (("stride", 1), ("padding", 0), ("dilation", 1)))
        return ones and weight.shape[2:] == (3, 3) and Winograd.pays(weight, *self.tape.shapes[step.inputs[0]][2:])

    def _pooling(self, step: Step) -> tuple[list[int], list[int], list[int]] | None:
        """Kernel, stride and padding, where our kernel can do it."""
        if step.function not in MAX_POOL or len(step.outputs) != 1:
            return None
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
        if given.get("ceil_mode") or given.get("return_indices") or given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
            return None
        if len(self.tape.shapes[step.inputs[0]]) != 4:
            return None
        kernel = _pair(given["kernel_size"])
        return kernel, _pair(given.get("stride") or kernel), _pair(given.get("padding", 0))

    def _pool(self, through: tuple[Step, ...], relu: bool) -> Fused | None:
        if (pooling := self._pooling(through[-1])) is None:
            return None
        zero = torch.zeros(1)

        def run(x: Tensor, direction: Tensor | None = None, levels: Tensor = zero) -> Tensor:
            if direction is None and is_channels_last(x):
                return _pooled_channels_last(x, relu, *pooling)
            levels = levels.to(x.device, non_blocking=True)
            out: Tensor = _ops.expand_levels_max_pool2d.default(x, direction, levels, relu, *pooling)
            return out

        return Fused(run, through[0].inputs[0], through[-1].outputs[0], through, pools=True)


def _pooled_channels_last(x: Tensor, relu: bool, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """The library also tells where the largest are: comparing lines takes half as long where windows are apart."""
    if kernel != stride or any(padding):
        y = F.max_pool2d(x, kernel, stride, padding)
    else:
        y = x.movedim(1, -1)
        for dim, size in ((1, kernel[0]), (2, kernel[1])):
            first, *more = y.narrow(dim, 0, y.shape[dim] // size * size).unflatten(dim, (-1, size)).unbind(dim + 1)
            y = torch.maximum(first, more[0]) if more else first.clone()
            for line in more[1:]:
                torch.maximum(y, line, out=y)
        y = y.movedim(-1, 1)
    return torch.relu_(y) if relu else y


def plain(x: Tensor) -> bool:
    """Whether our kernels take a value."""
    return x.dtype == torch.float32 and x.device.type in ("cpu", "cuda")


def channels_last(x: Tensor) -> Tensor:
    """A value so."""
    return x.contiguous(memory_format=torch.channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether a value is so, and not in the usual order as well."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _given(step: Step) -> dict[str, Any]:
    """Arguments of a contraction by name."""
    return {**dict(zip(_NAMES, step.args, strict=False)), **step.kwargs}


def _pair(v: Any) -> list[Any]:
    return list(v) if isinstance(v, tuple | list) else [v, v]
