"""Cells of a grid that need not be run in full, because what is measured lies on a plateau.

*Proved*: no prediction can flip at a level (`_engine.proofs`).

*Settled*: each draw of a level is evaluated on a block of rows of its own, some 2,000 rows for all draws together. If
the 95 % interval of the level's mean that they give lies within a share of (clean - floor) around the clean value or
around the floor, that is what its cells report. Near the clean value the interval is that of the difference, from the
rows that flip (Wilson's for either direction, at 97.5 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from noisykernels._engine.request import Advance, Answer, Evaluate, Request
from noisykernels.stats.intervals import wilson
from noisykernels.walking.cells import Cells, counted

__all__ = ["settled"]

ROWS = 2000  # that are looked at for a level, in all draws together


def settled(
    grid: Sequence[Request], limits: Sequence[float], evaluate: Evaluate, cells: Cells, share: float, advance: Advance
) -> list[Request]:
    """Puts the cells on plateaus into `cells`, and gives requests for all others.

    Args:
        grid: what would have to be evaluated: all rows, in an order of their own.
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
    found = [r for r in rest if r.rows < len(r.draws)]  # too few to tell
    rest = [r for r in rest if r.rows >= len(r.draws)]
    for request, looked in zip(rest, _looks(rest, evaluate, cells), strict=True):
        open_levels = [v for v, answer in looked if not _put_settled(request, v, answer, cells, share)]
        advance(len(looked) - len(open_levels))
        if open_levels:
            found.append(replace(request, levels=tuple(open_levels)))
    return found


# ------------------------------------------------------------------------------------------- settled


def _looks(rest: Sequence[Request], evaluate: Evaluate, cells: Cells) -> list[list[tuple[float, Answer]]]:
    """For each request and level: the answer [draws, rows], every draw on a block of rows of its own."""
    asked = []
    for r in rest:
        size = min(r.rows, ROWS) // len(r.draws)
        asked += [replace(r, draws=(draw,), start=j * size, rows=size) for j, draw in enumerate(r.draws)]
    given = iter(evaluate.answers(asked))
    found = []
    for r in rest:
        parts = np.concatenate([next(given) for _ in r.draws], 1)  # [levels, draws, rows of a block]
        cells.evaluations[r.which] += parts.size
        found.append(list(zip(r.levels, parts, strict=True)))
    return found


def _put_settled(request: Request, level: float, answer: Answer, cells: Cells, share: float) -> bool:
    """Records a level's cells if they are settled; whether they are."""
    if cells.metric.law.missing(answer).any():
        return False  # it is run in full, with a warning
    hits = cells.metric.law.numbers(answer).astype(bool)
    before = cells.clean[: hits.size].reshape(hits.shape).astype(bool)
    clean, floor = cells.clean_value, cells.known_floor
    near = share * (clean - floor)
    low, high = _of_flips(before, hits)
    at_clean = max(-low, high) <= near
    if not at_clean:
        low, high = wilson(int(hits.sum()), hits.size)
        if max(high - floor, floor - low) > near:
            return False
    for draw, was, now in zip(request.draws, before, hits, strict=True):
        record = counted(request, level, draw, now, "settled")
        if at_clean:  # rows that are easier or harder than all do not matter for the difference
            lower, upper = _of_flips(was, now)
            values = clean + (int(now.sum()) - int(was.sum())) / len(now), clean + lower, clean + upper
            mean, below, above = (min(1.0, max(0.0, v)) for v in values)
            record = record._replace(accuracy=mean, low=below, high=above)
        cells.put(request.which, record)
    return True


def _of_flips(before: Any, after: Any) -> tuple[float, float]:
    """95 % interval of the difference of two means of the same rows."""
    better_low, better_high = wilson(int((after & ~before).sum()), after.size, 0.975)
    worse_low, worse_high = wilson(int((before & ~after).sum()), after.size, 0.975)
    return float(better_low - worse_high), float(better_high - worse_low)
