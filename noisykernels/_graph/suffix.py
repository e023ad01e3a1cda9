"""What follows a site, run for many levels at once.

Noise at a site is ``x + A d`` with d free of the level A (``x + A d1 + A^2 d2`` for order ``add_mul``). A linear
operation makes of that ``f(x) + A f0(d)``, f0 being f without its bias, so it is applied to the directions once per
draw and not once per level; f(x) is the clean value, known already. At the first operation that is not linear the
levels part: from there on a value has (levels x draws x rows) rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._graph.directions import Mixture, Term
from noisykernels._graph.linearity import (
    CONTRACTIONS,
    LINEAR,
    MAX_POOL,
    RELU,
    direction_of,
    norm_arguments,
    norm_scale,
    takes_first,
)
from noisykernels._graph.tape import Step, Tape, joined, repeated

__all__ = ["Suffix", "noisy", "row_bytes"]

_ops = torch.ops.noisykernels


# ------------------------------------------------------------------------------- after the levels part


@dataclass
class _Fused:
    """Steps that run as one once the levels have parted."""

    run: Callable[[Tensor], Tensor]
    input: int
    output: int
    through: tuple[int, ...]  # indices of the steps that it stands for
    pools: bool = False  # by our kernel


@dataclass(frozen=True)
class Carried:
    """How far directions at a site could be carried."""

    values: dict[int, dict[Term, Tensor]]  # those of each value that is read after
    rest: list[int]  # the steps that follow


def row_bytes(tape: Tape, number: int) -> int:
    """What a row of a value takes, as float32."""
    return max(1, 4 * math.prod(tape.shapes[number]) // tape.rows)


class Suffix:
    """The steps after a site, prepared once.

    Args:
        tape: of the model.
        number: value at the site.
    """

    def __init__(self, tape: Tape, number: int) -> None:
        self.tape, self.number = tape, number
        self.steps = tape.suffix(number)
        self.last: dict[int, int] = {}  # index of the step that reads a value last
        self.takers: dict[int, list[int]] = {}  # of those that read it
        for i, step in enumerate(self.steps):
            for n in step.inputs:
                self.last[n] = i
                self.takers.setdefault(n, []).append(i)
        self.fused = self._fusions()
        self.values = {number} | {n for step in self.steps for n in (*step.inputs, *step.outputs)}
        made = {number} | {n for step in self.steps for n in step.outputs}
        # Bytes of a row: of the largest value that the levels may part at, and of a step's arguments and results.
        self.near = max(row_bytes(tape, n) for n in made)
        steps = (sum(row_bytes(tape, n) for n in (*s.inputs, *s.outputs)) for s in self.steps)
        self.peak = max(steps, default=self.near)

    def _only_consumer(self, step: Step) -> int | None:
        if len(step.outputs) != 1 or step.outputs[0] == self.tape.result:
            return None
        takers = self.takers.get(step.outputs[0], [])
        return takers[0] if len(takers) == 1 else None

    def _fusions(self) -> dict[int, _Fused]:
        found: dict[int, _Fused] = {}
        for i, step in enumerate(self.steps):
            if step.function in CONTRACTIONS and len(step.inputs) == 1 and takes_first(step):
                fused = self._contraction(i, step)
            elif step.function in RELU and (j := self._only_consumer(step)) is not None:
                fused = self._pool((i, j), step.inputs[0], self.steps[j], relu=True)
            else:
                fused = self._pool((i,), step.inputs[0], step, relu=False) if step.function in MAX_POOL else None
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
        channels_last = step.function in LINEAR and len(self.tape.shapes[step.outputs[0]]) > 2  # not those of the norm
        if (j := self._only_consumer(last)) is not None and self.steps[j].function is F.batch_norm:
            norm = norm_arguments(self.steps[j])
            if norm is not None and not channels_last and weight.dtype in (torch.float32, torch.float64):
                scale, shift = norm_scale(norm)
                bias = shift if bias is None else torch.addcmul(shift, bias, scale)
                weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
                through.append(j)
                last = self.steps[j]
        relu = False
        if (j := self._only_consumer(last)) is not None and self.steps[j].function in RELU:
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
        if step.function not in MAX_POOL or len(step.outputs) != 1:
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
            out: Tensor = _ops.expand_levels_max_pool2d.default(x, direction, _beside(x, levels), relu, *pooling)
            return out

        return _Fused(run, number, step.outputs[0], through, pools=True)

    def carry(self, toward: dict[Term, Tensor], draws: int, rows: int, half: bool = False) -> Carried:
        """Carries directions at the site through all operations that are linear in them. None is where the site's value
        is of a half type: the noise rounds it.
        """
        carried = [{self.number: d} for d in toward.values()]
        rest: list[int] = []
        beyond: set[int] = set()  # values after an operation that is not linear
        read = {self.tape.result}  # values that steps after one read
        for i, step in enumerate(self.steps):
            results: list[Tensor | None] = [None]
            if not half and not any(n in beyond for n in step.inputs) and any(n in carried[0] for n in step.inputs):
                results = [direction_of(step, c, self.tape, draws, rows) for c in carried]
            if any(r is None for r in results):
                rest.append(i)
                read |= set(step.inputs)
                beyond |= set(step.outputs)
                continue
            for c, r in zip(carried, results, strict=True):
                c[step.outputs[0]] = r  # type: ignore[assignment]
            for n in step.inputs:
                if self.last[n] <= i and n not in read:
                    for c in carried:
                        c.pop(n, None)
        table = {n: {term: c[n] for term, c in zip(toward, carried, strict=True)} for n in read if n in carried[0]}
        return Carried(table, rest)

    def scores(
        self, clean: dict[int, Any], carried: Carried, mixture: Mixture, levels: Tensor, draws: int, rows: int
    ) -> Tensor:
        """Scores for every level, draw and row: (levels x draws x rows, classes), in this order.

        Args:
            clean: the values without noise that these steps need.
            carried: what `carry` gave.
            mixture: how the noise is made of the directions carried.
            levels: float64 vector.
        """
        toward = {n: mixture.of(directions) for n, directions in carried.values.items()}
        levels = levels * mixture.factor
        parted: dict[int, Tensor] = {}
        copies = len(levels) * draws
        skip: set[int] = set()
        made = {n for i in carried.rest for n in self.steps[i].outputs}

        def part(n: int, relu: bool = False, pool: _Fused | None = None) -> Tensor:
            return self._part(n, clean[n], toward[n], levels, draws, relu, pool)

        def value(n: int) -> Tensor:
            if n not in parted:
                assert n not in made  # else it was forgotten too early, and the clean one would be wrong
                parted[n] = part(n) if n in toward else repeated(self.tape, n, clean[n], copies, rows)
            return parted[n]

        for i in carried.rest:
            if i in skip:
                continue
            step, fused = self.steps[i], self.fused.get(i)
            n = step.inputs[0]
            parts_here = n in toward and n not in parted and self.tape.row_dims[n] == 0 and _plain(clean[n])
            if fused is not None and (not fused.pools or parts_here or _plain(value(n))):
                parted[fused.output] = part(n, pool=fused) if fused.pools and parts_here else fused.run(value(n))
                skip |= set(fused.through)
            elif step.function in RELU and parts_here:
                parted[step.outputs[0]] = part(n, relu=True)
            else:
                table = {n: value(n) for n in step.inputs}
                step.run(table, copies * rows)
                parted |= {n: table[n] for n in step.outputs}
            for n in step.inputs:
                if self.last[n] <= i and n != self.tape.result:
                    parted.pop(n, None)
        return value(self.tape.result)

    def of_value(self, value: Tensor, clean: dict[int, Any], copies: int, rows: int) -> Tensor:
        """Scores from a value at the site that holds so many copies of the rows, copy by copy."""
        values: dict[int, Any] = {self.number: value}
        for i, step in enumerate(self.steps):
            for n in step.inputs:
                if n not in values:
                    fixed = self.tape.fixed.get(n)
                    values[n] = repeated(self.tape, n, clean[n], copies, rows) if fixed is None else fixed
            step.run(values, copies * rows)
            for n in step.inputs:
                if self.last[n] <= i and n != self.tape.result:
                    values.pop(n, None)
        scores: Tensor = values[self.tape.result]
        return scores

    def _part(
        self, n: int, x: Tensor, toward: list[Tensor], levels: Tensor, draws: int, relu: bool, pool: _Fused | None
    ) -> Tensor:
        """A value for every level: x + A d, or x + A (d1 + A d2)."""
        if (
            self.tape.row_dims[n] != 0
            or n in self.tape.outer
            or not _plain(x)
            or any(d.dtype != x.dtype for d in toward)
        ):
            x = x if draws == 1 else joined(self.tape, n, [x] * draws)
            y = joined(self.tape, n, [noisy(x, toward, a) for a in levels.to(toward[0].dtype)])
            if pool is not None:
                return pool.run(y)
            return torch.relu_(y) if relu else y

        def one(direction: Tensor, some: Tensor) -> Tensor:
            if pool is not None:
                return pool.run(x, direction, some.float())  # type: ignore[call-arg]
            out: Tensor = _ops.expand_levels.default(x, direction, _beside(x, some.float()), relu)
            return out

        if len(toward) == 1:
            return one(toward[0], levels)
        return torch.cat([one(torch.add(toward[0], toward[1], alpha=float(a)), a[None]) for a in levels])


def noisy(x: Tensor, toward: list[Tensor], level: Any) -> Tensor:
    """x + A d, or x + A (d1 + A d2)."""
    direction = toward[0] if len(toward) == 1 else toward[0] + level * toward[1]
    value: Tensor = (x + level * direction).to(x.dtype)
    return value


def _plain(x: Tensor) -> bool:
    """Whether our kernels take a value."""
    return x.dtype == torch.float32 and x.device.type in ("cpu", "cuda")


def _beside(x: Tensor, levels: Tensor) -> Tensor:
    """Levels where the value is, without waiting for its device."""
    return levels.to(x.device, non_blocking=True)
