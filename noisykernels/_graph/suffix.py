"""What follows a site, run for many levels at once.

Noise at a site is ``x + A d`` with d free of the level A (``x + A d1 + A^2 d2`` for order ``add_mul``). A linear
operation makes of that ``f(x) + A f0(d)``, f0 being f without its bias, so it is applied to the directions once per
draw and not once per level; f(x) is the clean value, known already. At the first operation that is not linear the
levels part: from there on a value has (levels x draws x rows) rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._graph.directions import Mixture, Term
from noisykernels._graph.fusions import Fused, Fusions, channels_last, is_channels_last, plain
from noisykernels._graph.linearity import CONTRACTIONS, LINEAR, RELU, VIEWS, direction_of
from noisykernels._graph.tape import Step, Tape, is_symbol, joined, repeated

__all__ = ["Suffix", "noisy", "row_bytes"]

# Bytes of values that stay in a core's share of the last cache, and of what a step should move for each call of it.
# With passes of 24 MiB a transformer of width 64 takes 1.2 times as long; the library's convolutions gain by more rows.
CACHED, MOVED = 6 << 20, 2 << 20
_ops = torch.ops.noisykernels


# ------------------------------------------------------------------------------- after the levels part


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
        for i, step in enumerate(self.steps):
            self.last |= dict.fromkeys(step.inputs, i)
        fusions = Fusions(tape, self.steps)
        self.fused = {i: found for i, step in enumerate(self.steps) if (found := fusions.of(step)) is not None}
        self.wide = fusions.wide(self.fused.values())
        self.values = {number} | {n for step in self.steps for n in (*step.inputs, *step.outputs)}
        made = {number} | {n for step in self.steps for n in step.outputs}
        # Bytes of a row: of the largest value that the levels may part at, and of a step's arguments and results.
        self.near = max(row_bytes(tape, n) for n in made)
        each = [sum(row_bytes(tape, n) for n in (*s.inputs, *s.outputs)) for s in self.steps]
        self.peak = max(each, default=self.near)
        # Rows of a pass beyond which it only leaves the caches: steps move enough for a call, and for their weights.
        self.rows = math.inf
        if all(step.function not in CONTRACTIONS or step.function in LINEAR for step in self.steps):
            enough = [CACHED / self.peak, MOVED * len(each) / max(1, sum(each))]
            self.rows = max(1, *enough, *(_constant_bytes(s) / n for s, n in zip(self.steps, each, strict=True)))

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
        table = {
            n: {term: self._laid(n, c[n]) for term, c in zip(toward, carried, strict=True)}
            for n in read
            if n in carried[0]
        }
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
        skip: set[Step] = set()
        made = {n for i in carried.rest for n in self.steps[i].outputs}

        def part(n: int, relu: bool = False, pool: Fused | None = None) -> Tensor:
            return self._part(n, self._laid(n, clean[n]), toward[n], levels, draws, relu, pool)

        def value(n: int) -> Tensor:
            if n not in parted:
                assert n not in made  # else it was forgotten too early, and the clean one would be wrong
                parted[n] = part(n) if n in toward else repeated(self.tape, n, self._laid(n, clean[n]), copies, rows)
            return parted[n]

        for i in carried.rest:
            step, fused = self.steps[i], self.fused.get(i)
            n = step.inputs[0]
            parts_here = n in toward and n not in parted and self.tape.row_dims[n] == 0 and plain(clean[n])
            if step in skip:
                pass
            elif fused is not None and fused.pools and parts_here:
                parted[fused.output] = part(n, pool=fused)
                skip |= set(fused.through)
            elif fused is not None and (not fused.pools or plain(value(n))):
                added = () if fused.other is None else (value(fused.other),)
                parted[fused.output] = fused.run(value(n), *added)
                skip |= set(fused.through)
            elif step.function in RELU and parts_here:
                parted[step.outputs[0]] = part(n, relu=True)
            else:
                self._run(step, table := {n: value(n) for n in step.inputs}, copies * rows)
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

    def _run(self, step: Step, table: dict[int, Any], rows: int) -> None:
        """Runs a step on values whose strides may be others than recorded: what only looks at memory needs the usual
        ones.
        """
        if step.function in VIEWS:
            table |= {n: x.contiguous() for n, x in table.items() if is_channels_last(x)}
        step.run(table, rows)

    def _laid(self, n: int, x: Any) -> Any:
        """A value as the contractions that read it want it."""
        return channels_last(x) if n in self.wide and x.dim() == 4 else x

    def _part(
        self, n: int, x: Tensor, toward: list[Tensor], levels: Tensor, draws: int, relu: bool, pool: Fused | None
    ) -> Tensor:
        """A value for every level: x + A d, or x + A (d1 + A d2)."""
        if (
            self.tape.row_dims[n] != 0
            or n in self.tape.outer
            or not plain(x)
            or any(d.dtype != x.dtype for d in toward)
        ):
            x = x if draws == 1 else joined(self.tape, n, [x] * draws)
            y = joined(self.tape, n, [noisy(x, toward, a) for a in levels.to(toward[0].dtype)])
            if pool is not None:
                return pool.run(y)
            return torch.relu_(y) if relu else y

        def one(direction: Tensor, some: Tensor) -> Tensor:
            if pool is not None:
                return pool.run(x, direction, some.float())
            last = is_channels_last(x) and is_channels_last(direction)
            of, toward = (x.movedim(1, -1), direction.movedim(1, -1)) if last else (x, direction)
            out: Tensor = _ops.expand_levels.default(of, toward, _beside(x, some.float()), relu)
            return out.movedim(-1, 1) if last else out

        if len(toward) == 1:
            return one(toward[0], levels)
        return torch.cat([one(torch.add(toward[0], toward[1], alpha=float(a)), a[None]) for a in levels])


def noisy(x: Tensor, toward: list[Tensor], level: Any) -> Tensor:
    """x + A d, or x + A (d1 + A d2)."""
    direction = toward[0] if len(toward) == 1 else toward[0] + level * toward[1]
    value: Tensor = (x + level * direction).to(x.dtype)
    return value


def _constant_bytes(step: Step) -> int:
    """Of the tensors that a step takes beside values."""
    leaves = pytree.tree_leaves((step.args, step.kwargs), is_leaf=is_symbol)
    return sum(t.nbytes for t in leaves if isinstance(t, Tensor))


def _beside(x: Tensor, levels: Tensor) -> Tensor:
    """Levels where the value is, without waiting for its device."""
    return levels.to(x.device, non_blocking=True)
