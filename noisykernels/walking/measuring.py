"""One measurement of a curve around a level, where each row has noise of its own: what it asks, and how its answers
are put together.

The level in the middle tells where the curve is, on as many rows as there are: a row more tells as much as a draw more,
and of its own difficulty besides. The levels beside it tell how steep and how bent the curve is, which matters as
little as the middle is off the crossing that is looked for: they have some of the rows. These have two draws at least,
which tell the noise from what rows differ by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from noisykernels._engine.request import Answer, Request

__all__ = ["BESIDE", "LEAST", "Measured", "around", "measured", "needed"]

BESIDE = 8  # of the levels beside: one in so many of the middle's row-draws
LEAST = 800  # which are enough for a slope, where a row has one number
RESERVE = 1.25  # of what is needed: a measurement that is too coarse is followed by one that is larger yet


def needed(within: float, between: float, error: float, rows: int, *, skewed: bool = False) -> int:
    """Row-draws for a standard error of the mean of all rows.

    Args:
        within: variance of a row's number over draws, on average.
        between: variance of what rows differ by.
        error: that is wanted.
        rows: of the data.
        skewed: see `stats.regression.paired_error`.
    """
    of_rows = (within + between) / (error**2 + (0.0 if skewed else between / rows))  # each row once
    return math.ceil(RESERVE * (of_rows if of_rows <= rows else within / error**2))


def around(one: Request, levels: Sequence[float], want: int, least_rows: int, least: int) -> list[Request]:
    """The requests of a measurement.

    Args:
        one: of the site, on all rows, under the first draw.
        levels: one before the middle, the middle, and one beyond.
        want: row-draws of the middle.
        least_rows: that a level is looked at on, where there are so many.
        least: row-draws of the levels beside, at least.
    """
    rows = min(one.rows, max(least_rows, want))
    draws = -(-want // rows)
    wanted = max(want / BESIDE, least)
    few = max(2, min(draws, round(wanted / rows)))
    part = min(rows, max(least_rows, math.ceil(wanted / few)))
    ids = tuple(range(one.draws[0], one.draws[0] + max(draws, few)))
    middle = replace(one, levels=tuple(levels[1:2]), rows=rows)
    asked = [
        replace(one, levels=tuple(levels), draws=ids[:few], rows=part),
        replace(middle, draws=ids[: min(draws, few)], start=part, rows=rows - part),
        replace(middle, draws=ids[few:draws]),
    ]
    return [request for request in asked if request.cells]


class Measured(NamedTuple):
    """The answers of a measurement.

    beside: numbers of all three levels, [3, draws, rows], of the first rows. first: numbers [draws, rows] of the middle
    on the same rows; rest: on the others, of which there may be none.
    """

    beside: Answer
    first: Answer
    rest: Answer

    @property
    def rows(self) -> int:
        """Of the middle."""
        return int(self.first.shape[1] + self.rest.shape[1])

    @property
    def middle(self) -> Answer:
        """[rows], the mean of each row's draws."""
        return np.concatenate([self.first.mean(0), self.rest.mean(0)])


def measured(requests: Sequence[Request], answers: Sequence[Answer]) -> Measured:
    """The answers [levels, draws, rows] to the requests of a measurement."""
    beside, part = answers[0], requests[0].rows
    first, rest = [beside[1]], [beside[1, :, :0]]
    for r, (answer,) in zip(requests[1:], answers[1:], strict=True):
        if r.start:
            rest = [answer]
        else:
            first.append(answer[:, :part])
            rest.append(answer[:, part:])
    return Measured(beside, np.concatenate(first), np.concatenate(rest))
