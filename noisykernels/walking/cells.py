"""What a walk has found so far of each cell: site, level and draw under one of its targets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.request import Answer, Request
from noisykernels._util.warning import warn_user
from noisykernels.injection.site import Site
from noisykernels.metrics.base import Metric, is_share
from noisykernels.metrics.law import block_rows
from noisykernels.stats.intervals import t_quantile
from noisykernels.stats.pseudo import spread_of
from noisykernels.stats.questions import HALF, Question, targeted
from noisykernels.stats.records import Measured, Record
from noisykernels.stats.regression import RowWeights, least_spread

__all__ = ["Cells", "counted"]


def counted(request: Request, level: float, draw: int, numbers: NDArray[Any], status: str = "evaluated") -> Record:
    """The record of one cell of a request, from which of its rows are right."""
    site = request.site
    return Record.counted(site.name, site.index, level, draw, len(numbers), int(numbers.sum()), status)


def measured(
    request: Request, level: float, draw: int, answer: Answer, clean: NDArray[Any], metric: Metric,
    shares: NDArray[np.float64] | None = None,
) -> Measured:  # fmt: skip
    """The record of one cell of a request, from the answer [entries] of its rows.

    Args:
        clean: the numbers of these entries without noise.
        metric: that measures them.
        shares: of these rows in all weights; None: all count alike.
    """
    law, site, rows = metric.law, request.site, request.rows
    numbers, sums = law.numbers(answer), law.block > 1
    there = np.isfinite(numbers.reshape(len(numbers), -1)).all(1)
    value, missing = float(metric.value(law.pooled(numbers, shares))), int(law.missing(answer).sum())
    if sums and not math.isfinite(value):
        missing = len(numbers)  # together they have none
    blocks = block_rows(rows, law.block)[there]  # requests start where blocks do
    known = int(blocks.sum())
    if shares is not None:
        shares = shares[there]
    spread = spread_of(clean[there], numbers[there], metric.value, rows=blocks if sums else None, shares=shares)
    if shares is not None and law.worst is not None:
        spread = max(spread, _least(metric, value, shares))
    half = float(t_quantile(0.95, max(1, known - 1))) * spread / math.sqrt(known) if known else math.nan
    low, high = (math.nan, math.nan) if math.isnan(half) else (value - half, value + half)
    return Measured(
        site.name, site.index, level, draw, rows, missing, value, spread, "evaluated", low, high
    )  # fmt: skip


def _least(metric: Metric, value: float, shares: NDArray[np.float64]) -> float:
    """The spread, at least, of rows with weights whose numbers have bounds."""
    bounds = metric.bounds  # type: ignore[attr-defined]  # which all have that have weights and a worst number
    return least_spread(value, bounds.low, bounds.high, shares)


class Cells:
    """Records of cells; of one evaluated twice, that with more rows.

    Args:
        sites: those walked.
        targets: how many targets are walked.
        clean: [rows], or [blocks, width], the numbers without noise.
        floor: what is measured under unbounded noise; None: it is not known.
        metric: of which they are.
        rows: of the data.
        question: what is asked of the curves.
        shares: of each row in all weights; None: all count alike.
        op: the function that was called, for errors.
    """

    def __init__(
        self, sites: Sequence[Site], targets: int, clean: NDArray[Any], floor: float | None, metric: Metric, rows: int,
        question: Question = HALF, shares: NDArray[np.float64] | None = None, op: str = "walk",
    ) -> None:  # fmt: skip
        self.question, self.shares, self.op = question, shares, op
        self.sites, self.targets, self.clean, self.floor, self.metric = list(sites), targets, clean, floor, metric
        self.rows = rows
        self.evaluations: Counter[int] = Counter()  # numbers looked at, under each target
        self._found: dict[tuple[int, str, float, int], Record | Measured] = {}

    @property
    def weights(self) -> RowWeights | None:
        """Of the rows; None: all count alike. Of blocks, how many rows each has."""
        if self.metric.law.block > 1:
            return RowWeights(block_rows(self.rows, self.metric.law.block).astype(np.float64))
        bounds = getattr(self.metric, "bounds", None)
        ends = None if bounds is None else (bounds.low, bounds.high)
        return None if self.shares is None else RowWeights(self.shares, ends)

    @property
    def clean_value(self) -> float:
        """What is measured without noise."""
        return float(self.metric.value(self.metric.law.pooled(self.clean)))

    @property
    def known_floor(self) -> float:
        """The floor, where one is needed: ValueError."""
        if self.floor is None:
            raise ValueError(f"{self.op}: {self.metric.name} has no floor of its own: give floor=")
        return self.floor

    def check_question(self, *, searched: bool) -> None:
        """Refuses a question without an answer: ValueError. A grid that is asked for half-way only is run all the same:
        it can be asked others."""
        if searched or self.question != HALF:
            metric, worst = self.metric, self.metric.law.worst
            targeted(
                self.op, self.question, self.clean_value, self.floor, metric=metric.name,
                higher_is_better=metric.higher_is_better,
                worst=None if worst is None else float(metric.value(np.array(worst))),
            )  # fmt: skip

    def take(self, request: Request, answer: Answer) -> None:
        """Takes the answer to a request, a record for each cell."""
        self.evaluations[request.which] += request.cells
        law, low = self.metric.law, request.start // self.metric.law.block
        clean = self.clean[low : low + answer.shape[2]]
        shares = None if self.shares is None or law.block > 1 else self.shares[low : low + answer.shape[2]]
        for level, of_level in zip(request.levels, answer, strict=True):
            lacking = 0
            for draw, of_draw in zip(request.draws, of_level, strict=True):
                if is_share(self.metric):
                    record: Record | Measured = counted(request, level, draw, law.numbers(of_draw))
                    lacking += int(law.missing(of_draw).sum())
                else:
                    record = measured(request, level, draw, of_draw, clean, self.metric, shares)
                    lacking += record.missing
                self.put(request.which, record)
            if lacking:
                said = f"{lacking} of {self._said_of(of_level)}"
                warn_user(f"{self.op}: site {request.site.name} at level {level:g}: {said}")

    def _said_of(self, answer: Answer) -> str:
        """What becomes of the entries of an answer [draws, entries] that have no number."""
        law, name = self.metric.law, self.metric.name
        if law.name == "binary":
            return f"{answer.size} rows of scores hold NaN and count as wrong"
        count, what = answer.shape[0] * answer.shape[1], "rows" if law.block == 1 else "blocks of rows"
        become = "count with the worst" if law.name == "bounded" else "are left out"
        return f"{count} {what} have an infinite or no {name} and {become}"

    def prove(self, request: Request, levels: Sequence[float]) -> None:
        """Takes it that at some levels of a request on all rows no prediction flips: the counts are the clean ones."""
        for level in levels:
            for draw in request.draws:
                self.put(request.which, self._of_clean(request, level, draw))

    def _of_clean(self, request: Request, level: float, draw: int) -> Record | Measured:
        if is_share(self.metric):
            return counted(request, level, draw, self.clean, "proved")
        site, value = request.site, self.clean_value
        return Measured(
            site.name, site.index, level, draw, request.rows, 0, value, 0.0, "proved", value, value
        )  # fmt: skip

    def put(self, which: int, record: Record | Measured) -> None:
        """Takes a record."""
        key = which, record.site, record.level, record.draw
        if key not in self._found or self._found[key].rows < record.rows:
            self._found[key] = record

    def records(self, which: int) -> list[Record | Measured]:
        """The records under one of the targets."""
        return [record for (target, *_), record in self._found.items() if target == which]
