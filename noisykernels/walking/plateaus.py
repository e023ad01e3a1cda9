"""Cells of a grid that need not be run in full, because what is measured lies on a plateau.

*Proved*: no prediction can flip at a level (`_engine.proofs`).

*Settled*: the interval of the level's mean that some rows give lies within a share of (clean - floor) around the clean
value or around the floor. Then that is what its cells report. Near the clean value the interval is that of the
difference, from the rows that flip (Wilson's for either direction).

A level is looked at once or more often, at four times as many rows each time, which hold those seen before; every draw
has rows of its own. How many looks there are follows from the grid alone. They share an error probability of 5 %, so
that all intervals of a level hold together in 95 % of the cases, and looking may end with the first that settles it.
What was seen says whether a further look could: a level that surely lies on the slope is left after few rows, one near
the edge of a plateau gets many.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.request import Advance, Answer, Evaluate, Request
from noisykernels.stats.intervals import wilson
from noisykernels.stats.records import Record
from noisykernels.walking.cells import Cells

__all__ = ["settled"]

ROWS = 2000  # that the first look sees of a level, in all draws together
MORE = 4  # times as many are seen by the next
ERROR = 0.05  # of all looks at a level together
# So many of the first look's rows come before the others; a level whose interval of that confidence lies beyond both
# plateaus is left then. That settles nothing, so it takes no part of the error: a wrong guess costs time.
GLANCE, BEYOND = 500, 0.998


def settled(
    grid: Sequence[Request], limits: Sequence[float], evaluate: Evaluate, cells: Cells, share: float, advance: Advance
) -> list[Request]:
    """Puts the cells on plateaus into `cells`, and gives requests for all others.

    Args:
        grid: what would have to be evaluated: all rows, in an order of their own; all under the same draws.
        limits: for each, the level up to which no prediction can flip.
        evaluate: evaluates requests.
        cells: knows the rows' numbers without noise, and the floor.
        share: of (clean - floor): distance from either that counts as none.
        advance: called with the levels that need no further work.
    """
    rest = []
    for request, limit in zip(grid, limits, strict=True):
        proved = [v for v in request.levels if v <= limit]
        cells.prove(request, proved)
        advance(len(proved))
        if len(proved) < len(request.levels):
            rest.append(replace(request, levels=tuple(v for v in request.levels if v > limit)))
    if not rest:
        return []
    judge, steps = _Judge(cells, share), _steps(rest[0].rows, rest[0].draws)
    levels = [[_Level(r, v, np.zeros((len(r.draws), 4), int)) for v in r.levels] for r in rest]
    for step in steps:
        _look(levels, step, evaluate, cells)
        for one in (v for of_site in levels for v in of_site if v.open):
            judge.after(one, step, steps[-1])
            advance(one.done)
    left = [tuple(v.level for v in of_site if not v.done) for of_site in levels]
    return [replace(r, levels=mine) for r, mine in zip(rest, left, strict=True) if mine]


# ------------------------------------------------------------------------------------------- looking


@dataclass
class _Level:
    """A level of a request, and what has been seen of it."""

    request: Request
    level: float
    counts: NDArray[Any]  # [draws, 4]: rows, those right, those that the noise made right, and wrong
    open: bool = True  # to be looked at further
    done: bool = False  # settled


@dataclass(frozen=True)
class _Step:
    """Rows that are looked at next: those of draw j are `rows` from `start + j * stride` on."""

    start: int
    stride: int
    rows: int
    seen: int  # in all draws, with these
    confidence: float | None  # of the interval then; None: it settles nothing


def _steps(rows: int, draws: Sequence[int]) -> list[_Step]:
    """The looks at each level of a grid: no row twice, and no more than half of what all cells of the level take."""
    count = len(draws)
    if rows < count:
        return []  # too few to tell
    sizes = [min(rows, ROWS) // count]  # of each draw
    while MORE * sizes[-1] <= min(rows // count, rows // 2):
        sizes.append(MORE * sizes[-1])
    confidence = 1 - ERROR / len(sizes)
    first, glance = sizes[0], GLANCE // count
    steps = [_Step(0, first, first, first * count, confidence)]
    if 4 * GLANCE <= first * count and glance:
        rest = replace(steps[0], start=glance, rows=first - glance)
        steps = [_Step(0, first, glance, glance * count, None), rest]
    for last, size in itertools.pairwise(sizes):
        steps.append(_Step(last * count, size - last, size - last, size * count, confidence))
    return steps


def _look(levels: Sequence[Sequence[_Level]], step: _Step, evaluate: Evaluate, cells: Cells) -> None:
    """Takes a step at the levels that are open."""
    mine = [still for of_site in levels if (still := [v for v in of_site if v.open])]
    asked = [
        replace(one[0].request, levels=tuple(v.level for v in one), draws=(draw,), start=step.start + j * step.stride,
                rows=step.rows)
        for one in mine for j, draw in enumerate(one[0].request.draws)
    ]  # fmt: skip
    answers = iter(evaluate.answers(asked))
    for one in mine:
        for j in range(len(one[0].request.draws)):
            start = step.start + j * step.stride
            _count(one, j, cells.clean[start : start + step.rows].astype(bool), next(answers), cells)


def _count(levels: Sequence[_Level], draw: int, before: NDArray[np.bool_], answer: Answer, cells: Cells) -> None:
    """Counts the rows of a draw at some levels of a site."""
    law = cells.metric.law
    cells.evaluations[levels[0].request.which] += answer.size
    for one, numbers, missing in zip(levels, law.numbers(answer)[:, 0], law.missing(answer)[:, 0], strict=True):
        after = numbers.astype(bool)
        flips = (after & ~before).sum(), (before & ~after).sum()
        one.counts[draw] += (after.size, after.sum(), *flips)
        one.open &= not missing.any()  # else it is run in full, with a warning


# ------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class _Judge:
    """Says of levels what has been seen of them."""

    cells: Cells
    share: float

    @property
    def near(self) -> float:
        """The distance from a plateau that counts as none."""
        return self.share * (self.cells.clean_value - self.cells.known_floor)

    def after(self, one: _Level, step: _Step, last: _Step) -> None:
        """Settles a level, or says whether it is to be looked at further."""
        seen = one.counts.sum(0)
        if step.confidence is None:
            one.open = not self._beyond(seen)
            return
        at_clean, at_floor = self._within(seen, step.confidence)
        if at_clean or at_floor:
            for draw, counts in zip(one.request.draws, one.counts.tolist(), strict=True):
                self.cells.put(one.request.which, self._record(one, draw, counts, at_clean))
            one.open, one.done = False, True
        else:  # as it was seen, seen as often as it can be
            one.open = step is not last and any(self._within(seen * (last.seen / step.seen), step.confidence))

    def _off(self, counts: Any, confidence: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The interval of a level's distance from the clean value; from the floor."""
        rows, right, better, worse = counts
        floor, (low, high) = self.cells.known_floor, wilson(right, rows, confidence)
        return _of_flips(rows, better, worse, confidence), (float(low - floor), float(high - floor))

    def _within(self, counts: Any, confidence: float) -> tuple[bool, bool]:
        """Whether the interval lies on the plateau of the clean value; of the floor."""
        at_clean, at_floor = (max(-low, high) <= self.near for low, high in self._off(counts, confidence))
        return at_clean, at_floor

    def _beyond(self, counts: Any) -> bool:
        """Whether the interval has no part of either."""
        return all(low > self.near or high < -self.near for low, high in self._off(counts, BEYOND))

    def _record(self, one: _Level, draw: int, counts: Sequence[int], at_clean: bool) -> Record:
        """That of a settled cell."""
        rows, right, better, worse = counts
        site = one.request.site
        record = Record.counted(site.name, site.index, one.level, draw, rows, right, "settled")
        if not at_clean:
            return record
        # Rows that are easier or harder than all do not matter for the difference.
        clean, (low, high) = self.cells.clean_value, _of_flips(rows, better, worse)
        values = clean + (better - worse) / rows, clean + low, clean + high
        mean, below, above = (min(1.0, max(0.0, v)) for v in values)
        return record._replace(accuracy=mean, low=below, high=above)


def _of_flips(rows: float, better: float, worse: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two means of the same rows."""
    either = (1 + confidence) / 2
    better_low, better_high = wilson(better, rows, either)
    worse_low, worse_high = wilson(worse, rows, either)
    return float(better_low - worse_high), float(better_high - worse_low)
