"""What a search is after: the value that a curve is to cross, in the numbers of rows, turned so that curves fall.

Sums over rows come as those of blocks. A block's number is its share in the value of all that one draw was looked at
on: their mean is that value, and they scatter as the blocks do. So a block is to a search what a row of many numbers
is; but the value of some rows is another quantity than that of all, and is not what a measurement may rest on.

Numbers in, numbers out: this file must not know torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.request import Request
from noisykernels.metrics.law import Answer, Law
from noisykernels.stats.intervals import Floats
from noisykernels.stats.pseudo import shares_of_sums
from noisykernels.stats.questions import HALF, Question, of_part, targeted
from noisykernels.stats.regression import RowWeights, least_spread, spread_given

__all__ = ["Aim"]


class Aim:
    """A question of the mean of a law's numbers, where a smaller one is worse: others are negated.

    Args:
        law: of the numbers.
        clean: [rows], the number of each row without noise, in permuted order; of sums [blocks, width].
        floor: what is measured under unbounded noise; None: it is not known.
        question: what is asked.
        higher_is_better: the direction of what is measured.
        value: what is measured, from a mean of numbers, or from sums over all rows.
        positions: how many numbers that of a row, or block, is the mean of: tokens, pixels.
        weights: of the rows; None: all count alike. Of blocks always, by how many rows they have.
        said: what errors speak of: the function that was called, and the name of what is measured.

    Raises:
        ValueError: the clean value leaves the question no answer; what is measured depends on how many rows there are.
    """

    def __init__(
        self, law: Law, clean: NDArray[Any], floor: float | None, question: Question = HALF, *,
        higher_is_better: bool = True, value: Callable[[Any], Any] = float, positions: int = 1,
        weights: RowWeights | None = None, said: tuple[str, str] = ("walk", "accuracy"),
    ) -> None:  # fmt: skip
        self.weights, self.positions, (self.op, metric) = weights, positions, said
        self.law, self.floor, self.question, self.higher_is_better = law, floor, question, higher_is_better
        self.whole = law.block > 1  # whether only all rows together have what is measured
        self.sums, self.of_sums = clean, value  # of blocks, and of sums over all
        self.value: Callable[[Any], Any] = float if self.whole else value
        mean = float(value(law.pooled(clean))) if self.whole else float(clean.mean())
        if self.whole and not self._same_of_twice(mean):
            raise ValueError(
                f"{self.op}: a search looks at some rows first, but {metric} of the same rows twice is another than of "
                "these rows once: it depends on how many there are; give levels and draws for a grid"
            )
        clean = self._shares(clean) if self.whole else clean
        self.told_clean = float(self.value(mean))
        self.told_target = targeted(
            self.op, question, self.told_clean, floor, metric=metric, higher_is_better=higher_is_better,
            worst=None if law.worst is None else float(self.value(law.worst)),
        )  # fmt: skip
        nudged = mean + 1e-3 * (abs(mean) or 1)
        self.is_mean = self.told_clean == mean and float(self.value(nudged)) == nudged
        self.sign = 1 if (float(self.value(nudged)) > self.told_clean) == higher_is_better else -1
        self.clean = clean if self.sign > 0 else -clean
        self.top = float(self.clean.mean())
        self.target = self._of_told(self.told_target, mean)
        # Half-way of shares of rows is searched as it always was. Else constants are in units of the fall asked for,
        # and what the noise changes is looked at beside the clean number of the same row: it may be little.
        self.usual = law.name == "binary" and question == HALF and self.sign > 0
        self.depth = self.top - self.target
        self.unit = 1.0 if self.usual else 2 * self.depth

    def _of_told(self, told: float, start: float) -> float:
        """The mean, turned, at which so much is measured: that itself, or what halving finds on the worse side of a
        mean that is better."""
        if self.is_mean:
            return self.sign * told
        way = 1 if self.higher_is_better else -1

        def is_better(mean: float) -> bool:
            return bool(way * float(self.value(mean)) > way * told)

        better, step = start, -self.sign * 1e-3 * (abs(start) or 1)
        while is_better(better + step):
            better, step = better + step, 2 * step
            if not math.isfinite(better):
                raise ValueError(f"{self.op}: no mean of the rows' numbers has the value {told:g} that at= asks for")
        far = better + step
        for _ in range(100):
            middle = (better + far) / 2
            better, far = (middle, far) if is_better(middle) else (better, middle)
        return self.sign * far

    def part(self, start: int, end: int) -> NDArray[Any]:
        """The clean numbers, turned, of some entries; of sums in the value of these alone."""
        if not self.whole or end - start == len(self.clean):
            return self.clean[start:end]
        return self.sign * self._shares(self.sums[start:end], start)

    def _same_of_twice(self, once: float) -> bool:
        """Whether all rows there twice have the same value, but for what corrects a variance for its few rows."""
        assert self.weights is not None
        few = 2 / float(self.weights.shares.sum())
        twice = float(self.of_sums(2 * self.law.pooled(self.sums)))
        return math.isclose(twice, once, rel_tol=few, abs_tol=1e-9) or math.isnan(once)

    def _shares(self, sums: NDArray[Any], start: int = 0) -> NDArray[Any]:
        """Of sums of blocks [blocks, width] from one on, in their value."""
        assert self.weights is not None
        return shares_of_sums(sums, self.of_sums, self.weights.shares[start : start + len(sums)])

    @cached_property
    def fewest(self) -> int:
        """Entries of which the first have a value, be there as many as that or more: of sums, classes may be rare."""
        if not self.whole:
            return 1
        with np.errstate(all="ignore"):
            none = np.flatnonzero(~np.isfinite(self.of_sums(self.sums.cumsum(0))))
        return int(none[-1]) + 2 if len(none) else 1

    def in_rows(self, request: Request) -> Request:
        """What is asked of the engine for a request of so many entries: of sums, their rows."""
        if not self.whole or self.weights is None:
            return request
        rows = int(self.weights.shares[request.start : request.end].sum())
        return replace(request, start=request.start * self.law.block, rows=rows)

    def target_of(self, rows: int) -> float:
        """That of the first rows alone: the small phases must not mistake easy rows for robust ones."""
        part = self.sign * float(self.part(0, rows).mean())
        told = of_part(
            self.question, float(self.value(part)), self.told_clean, self.floor, higher_is_better=self.higher_is_better
        )
        return self._of_told(told, part)

    def rows_for(self, rows: int, least: int) -> int:
        """How many rows say as much as so many of one number each: a row of tokens is the mean of many. At least a few,
        whose spread tells how far their mean may err."""
        return max(min(rows, least), math.ceil(rows / self.positions))

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """Of the rows of an answer; one without a number is farther than any question asks for."""
        numbers = self.law.numbers(answer)
        if self.whole:
            numbers = np.array([[self._shares(draw) for draw in draws] for draws in numbers])
        if self.law.name == "binary":
            return numbers if self.sign > 0 else -numbers
        return np.where(np.isnan(numbers), -np.inf, self.sign * numbers)

    def near(self, means: Floats) -> Floats:
        """Means no farther beyond the target than the clean one is above it: more is not asked for."""
        return means if self.usual else np.maximum(means, self.target - self.depth)

    def variance(self, numbers: NDArray[Any], start: int = 0) -> float:
        """Of a row's number, at most, as the levels [levels, draws, rows] have it that have numbers."""
        if self.usual:
            return self.law.largest_variance
        rows = numbers.shape[2]
        least = 1 / rows if self.law.name == "binary" else (0.1 * self.depth) ** 2
        finite = numbers[np.isfinite(numbers).all((1, 2))].astype(np.float64)
        if not len(finite):
            return least
        some = slice(start, start + rows)
        clean = self.part(start, start + rows)
        shares = None if self.weights is None or self.whole else self.weights.shares[some]
        if shares is not None and self.weights is not None and self.weights.bounds is not None:
            low, high = sorted(self.sign * end for end in self.weights.bounds)
            least = max(least, *(least_spread(float(m), low, high, shares) ** 2 for m in finite.mean((1, 2))))
        found = float((spread_given(clean, finite, shares) ** 2).mean(1).max())
        if self.whole and finite.shape[1] > 1:  # there may be few blocks: draws tell as much
            found = max(float(finite.var(1, ddof=1).mean(1).max()), found)
        return max(least, found)
