"""What follows a site, run for many levels at once.

Noise at a site is ``x + A d`` with d free of the level A (``x + A d1 + A^2 d2`` for order ``add_mul``). A linear
operation makes of that ``f(x) + A f0(d)``, f0 being f without its bias, so it is applied to the directions once per
draw and not once per level; f(x) is the clean value, known already. At the first operation that is not linear the
levels part: from there on a value has (levels x draws x rows) rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.mode import offered
from noisykernels.noise import Noise
from noisykernels.ops import eps
from noisykernels.tape import Step, Tape, Value, repeated

__all__ = ["Suffix", "directions"]

_ops = torch.ops.noisykernels


def _functions(names: str) -> frozenset[Any]:
    return frozenset(f for name in names.split() for f in offered(name))


# ------------------------------------------------------------------------------ directions at a site


def directions(
    noise: Noise, x: Tensor, row_dim: int, *, seed: int, site: int, draws: Sequence[int], rows: Tensor
) -> list[Tensor]:
    """The noise at level A as ``sum_k A^k d_k``, k = 1, 2: each direction holds (draws x rows), draw by draw."""
    value = x.movedim(row_dim, 0)

    def drawn(operand: str, level: Tensor) -> Tensor:
        key: dict[str, Any] = {"kind": noise.kind, "seed": seed, "site": site, "operand": operand, "rows": rows}
        each = torch.cat([eps(value.shape, draw=d, **key, device=x.device) for d in draws])
        if level.dim() > 0:
            level = level.expand(len(draws), *value.shape).reshape(each.shape)
        return each * level.to(torch.float64 if x.dtype == torch.float64 else torch.float32)

    tiled = value if len(draws) == 1 else torch.cat([value] * len(draws))
    additive = None if noise.add is None else drawn("add", noise.add)
    if noise.mode == "add":
        assert additive is not None
        found = [additive]
    elif noise.mode == "fold":
        assert noise.mul is not None and noise.add is not None
        found = [drawn("add", torch.ones(())) * torch.hypot(tiled * noise.mul, noise.add.to(tiled.dtype))]
    else:
        assert noise.mul is not None
        factor = drawn("mul", noise.mul)
        found = [factor * tiled if additive is None else torch.addcmul(additive, factor, tiled)]
        if noise.mode == "add_mul":
            assert additive is not None
            found.append(additive * factor)
    return [d.to(x.dtype).movedim(0, row_dim) for d in found]


# --------------------------------------------------------------------------------------- linear rules
# A rule gives the direction of a step's result from those of its arguments, or None where the step is not linear.

_HOMOGENEOUS = _functions(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d flatten reshape "
    "view permute transpose contiguous squeeze unsqueeze movedim unflatten neg mean sum pixel_shuffle select narrow "
    "clone detach mul __mul__ __rmul__ div __truediv__ true_divide cat stack"
)
_SUMS = _functions("add __add__ __radd__ sub __sub__ __rsub__")
_NEGATES_SECOND = _functions("sub __sub__")
_NEGATES_FIRST = _functions("__rsub__")
_CONTRACTIONS = _functions("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
_RELU = _functions("relu")
_MAX_POOL = _functions("max_pool2d")


class _Zero:
    """The direction of a value that carries none."""


def _direction(step: Step, carried: dict[int, Tensor], tape: Tape, copies: int, rows: int) -> Tensor | None:
    if len(step.outputs) != 1 and step.function not in _HOMOGENEOUS:
        return None
    if step.function in _SUMS:
        return _direction_of_sum(step, carried, tape, copies * rows)
    first = step.args[0] if step.args else None
    if step.function is F.batch_norm:
        return _direction_of_norm(step, carried)
    if step.function in _CONTRACTIONS:
        if not isinstance(first, Value) or len(step.inputs) != 1:
            return None
        args, kwargs = _without_bias(step)
        return step.function(carried[first.number], *args, **kwargs)
    if step.function not in _HOMOGENEOUS or any(n not in carried for n in step.inputs) or len(step.outputs) != 1:
        return None
    if len(step.inputs) > 1 and step.function not in _functions("cat stack"):
        return None  # a product of two values
    args, kwargs = step.arguments(carried, copies * rows)
    return step.function(*args, **kwargs)


def _without_bias(step: Step) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = list(step.args[1:]), dict(step.kwargs)
    if len(args) > 1:
        args[1] = None
    elif "bias" in kwargs:
        kwargs["bias"] = None
    return tuple(args), kwargs


def _norm_arguments(step: Step) -> dict[str, Any] | None:
    """Arguments of an evaluating batch norm by name; None if it is not one of constants."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
    if given.get("training") or given.get("running_mean") is None or len(step.inputs) != 1:
        return None
    return given


def _norm_scale(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel."""
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    scale = scale if given.get("weight") is None else scale * given["weight"]
    shift = -given["running_mean"] * scale
    return scale, shift if given.get("bias") is None else shift + given["bias"]


def _direction_of_norm(step: Step, carried: dict[int, Tensor]) -> Tensor | None:
    if (given := _norm_arguments(step)) is None:
        return None
    direction = carried[step.inputs[0]]
    scale, _ = _norm_scale(given)
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
    shape = list(tape.shapes[step.outputs[0]])
    dim = tape.row_dims[step.outputs[0]]
    assert dim is not None
    shape[dim] = shape[dim] // tape.rows * rows
    return total if list(total.shape) == shape else total.expand(shape).contiguous()


# ------------------------------------------------------------------------------- after the levels part


@dataclass
class _Fused:
    """Steps that run as one once the levels have parted."""

    run: Callable[[Tensor], Tensor]
    input: int
    output: int
    through: tuple[int, ...]  # indices of the steps that it stands for


class Suffix:
    """The steps after a site, prepared once.

    Args:
        tape: of the model.
        number: value at the site.
    """

    def __init__(self, tape: Tape, number: int) -> None:
        self.tape, self.number = tape, number
        self.steps = tape.suffix(number)
        self.last = {n: i for i, step in enumerate(self.steps) for n in step.inputs}
        self.fused = self._fusions()
        self.peak = max((self._bytes(s) for s in self.steps), default=1)

    def _bytes(self, step: Step) -> int:
        """What a row of a step's arguments and results takes."""
        total = 0
        for n in (*step.inputs, *step.outputs):
            items = 1
            for size in self.tape.shapes[n]:
                items *= size
            total += 4 * items // self.tape.rows
        return max(1, total)

    def _only_consumer(self, step: Step) -> int | None:
        if len(step.outputs) != 1 or step.outputs[0] == self.tape.result:
            return None
        takers = [i for i, s in enumerate(self.steps) if step.outputs[0] in s.inputs]
        return takers[0] if len(takers) == 1 else None

    def _fusions(self) -> dict[int, _Fused]:
        found: dict[int, _Fused] = {}
        for i, step in enumerate(self.steps):
            if step.function in _CONTRACTIONS and len(step.inputs) == 1 and isinstance(step.args[0], Value):
                fused = self._contraction(i, step)
            elif step.function in _RELU and (j := self._only_consumer(step)) is not None:
                fused = self._pool((i, j), step.inputs[0], self.steps[j], relu=True)
            else:
                fused = self._pool((i,), step.inputs[0], step, relu=False) if step.function in _MAX_POOL else None
            if fused is not None:
                found[i] = fused
        return found

    def _contraction(self, i: int, step: Step) -> _Fused | None:
        """Contraction with an evaluating batch norm folded into its weights, and a rectifier in place."""
        through, last = [i], step
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        if "transpose" in step.name or len(step.args) > len(names):
            return None
        given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
        weight, bias = given["weight"], given.get("bias")
        if (j := self._only_consumer(last)) is not None and self.steps[j].function is F.batch_norm:
            norm = _norm_arguments(self.steps[j])
            if norm is not None:
                scale, shift = _norm_scale(norm)
                bias = shift if bias is None else torch.addcmul(shift, bias, scale)
                weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
                through.append(j)
                last = self.steps[j]
        relu = False
        if (j := self._only_consumer(last)) is not None and self.steps[j].function in _RELU:
            k = self._only_consumer(self.steps[j])
            if k is None or self._pooling(self.steps[k]) is None:  # that pair runs as one by itself
                relu = True
                through.append(j)
                last = self.steps[j]
        rest = {n: a for n, a in given.items() if n not in ("input", "weight", "bias")}

        def run(x: Tensor) -> Tensor:
            y = step.function(x, weight, bias, **rest)
            return torch.relu_(y) if relu else y

        return _Fused(run, step.inputs[0], last.outputs[0], tuple(through)) if len(through) > 1 else None

    def _pooling(self, step: Step) -> tuple[list[int], list[int], list[int]] | None:
        """Kernel, stride and padding, where our kernel can do it."""
        if step.function not in _MAX_POOL or len(step.outputs) != 1:
            return None
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
        if given.get("ceil_mode") or given.get("return_indices") or given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
            return None
        if len(self.tape.shapes[step.inputs[0]]) != 4:
            return None

        def pair(v: Any) -> list[int]:
            return [v, v] if isinstance(v, int) else list(v)

        kernel = pair(given["kernel_size"])
        return kernel, pair(given.get("stride") or kernel), pair(given.get("padding", 0))

    def _pool(self, through: tuple[int, ...], number: int, step: Step, relu: bool) -> _Fused | None:
        if (pooling := self._pooling(step)) is None:
            return None
        zero = torch.zeros(1)

        def run(x: Tensor, direction: Tensor | None = None, levels: Tensor = zero) -> Tensor:
            return _ops.separate_max_pool2d.default(x, direction, levels, relu, *pooling)

        return _Fused(run, number, step.outputs[0], through)

    def scores(self, clean: dict[int, Any], toward: list[Tensor], levels: Tensor, draws: int, rows: int) -> Tensor:
        """Scores for every level, draw and row: (levels x draws x rows, classes), in this order.

        Args:
            clean: the values without noise that these steps need.
            toward: directions at the site, for each power of the level.
            levels: float64 vector.
        """
        carried: list[dict[int, Tensor]] = [{self.number: d} for d in toward]
        parted: dict[int, Tensor] = {}
        copies = len(levels) * draws
        skip: set[int] = set()
        fast = toward[0].dtype == torch.float32 and toward[0].device.type == "cpu"

        def part(n: int, relu: bool = False, pool: _Fused | None = None) -> Tensor:
            return self._part(n, clean, [c[n] for c in carried], levels, draws, relu, pool, fast)

        def value(n: int) -> Tensor:
            if n not in parted:
                parted[n] = part(n) if n in carried[0] else repeated(self.tape, n, clean[n], copies)
            return parted[n]

        for i, step in enumerate(self.steps):
            if i in skip:
                continue
            if not any(n in parted for n in step.inputs):
                results = [_direction(step, c, self.tape, draws, rows) for c in carried]
                if all(r is not None for r in results):
                    for c, r in zip(carried, results, strict=True):
                        c[step.outputs[0]] = r  # type: ignore[assignment]
                    self._forget(i, step, parted, carried)
                    continue
            fused = self.fused.get(i) if fast else None
            if fused is not None:
                n = fused.input
                pooled = self.steps[fused.through[-1]].function in _MAX_POOL
                if pooled and n in carried[0] and n not in parted and self.tape.row_dims[n] == 0:
                    out = part(n, pool=fused)
                else:
                    out = fused.run(value(n))
                parted[fused.output] = out
                skip |= set(fused.through)
                self._forget(fused.through[-1], self.steps[fused.through[-1]], parted, carried)
                if self.last.get(n, -1) <= i:
                    parted.pop(n, None)
                continue
            n = step.inputs[0]
            if step.function in _RELU and n in carried[0] and n not in parted and fast and self.tape.row_dims[n] == 0:
                parted[step.outputs[0]] = part(n, relu=True)
            else:
                table = {n: value(n) for n in step.inputs}
                step.run(table, copies * rows)
                parted |= {n: table[n] for n in step.outputs}
            self._forget(i, step, parted, carried)
        return value(self.tape.result)

    def _forget(self, i: int, step: Step, parted: dict[int, Tensor], carried: list[dict[int, Tensor]]) -> None:
        for n in step.inputs:
            if self.last.get(n, -1) <= i and n != self.tape.result:
                parted.pop(n, None)
                for c in carried:
                    c.pop(n, None)

    def _part(
        self, n: int, clean: dict[int, Any], toward: list[Tensor], levels: Tensor, draws: int, relu: bool,
        pool: _Fused | None, fast: bool,
    ) -> Tensor:  # fmt: skip
        """A value for every level: x + A d, or x + A (d1 + A d2)."""
        x, dim = clean[n], self.tape.row_dims[n]
        assert dim is not None
        if not fast or dim != 0:
            x = repeated(self.tape, n, x, draws)
            each = [x + a * (toward[0] if len(toward) == 1 else toward[0] + a * toward[1]) for a in levels.to(x.dtype)]
            return torch.cat(each, dim)

        def one(direction: Tensor, some: Tensor) -> Tensor:
            if pool is not None:
                return pool.run(x, direction, some.float())  # type: ignore[call-arg]
            return _ops.separate.default(x, direction, some.float(), relu)

        if len(toward) == 1:
            return one(toward[0], levels)
        return torch.cat([one(torch.add(toward[0], toward[1], alpha=float(a)), a[None]) for a in levels])
