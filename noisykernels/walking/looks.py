"""What a search has seen of a curve, level by level: the largest look at each, and how surely it tells the mean there.

Numbers in, numbers out: this file must not know torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from noisykernels._engine.request import Request
from noisykernels.metrics.law import Answer
from noisykernels.stats.curve import crossings
from noisykernels.stats.intervals import t_quantile, wilson
from noisykernels.walking.aim import Aim

__all__ = ["Looks"]


class Looks:
    """The looks of one site's search.

    Args:
        aim: what is searched.
        chips: whether the rows of a draw share their noise.
    """

    def __init__(self, aim: Aim, chips: bool) -> None:
        self.aim, self.chips, self.total = aim, chips, len(aim.clean)
        # Of each level: mean, of how many independent rows, and the variance of one.
        self.of: dict[float, tuple[float, float, float]] = {}

    @property
    def lowest(self) -> float:
        """The level of the lowest mean."""
        return min(self.of, key=lambda v: self.of[v][0])

    def take(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Takes the numbers of requests at the same levels. Independent are draws of chips, and else rows of one draw,
        or of all where all rows are looked at: other draws of some rows tell nothing of the rest."""
        draws, rows = sum(len(r.draws) for r in requests), requests[0].rows
        size = draws if self.chips else rows * draws if rows == self.total else rows
        means = np.concatenate(
            [a.mean(2) - self.off(r.start, r.end) for r, a in zip(requests, answers, strict=True)], 1
        )
        for i, (level, mean) in enumerate(zip(requests[0].levels, means.mean(1).tolist(), strict=True)):
            variance = math.nan
            if not self.aim.usual and math.isfinite(mean):
                of_rows = self.aim.variance(answers[0][i : i + 1], requests[0].start)
                variance = float(means[i].var(ddof=1)) if self.chips else of_rows
            self.keep(level, mean, size, variance)

    def keep(self, level: float, mean: float, size: int, variance: float) -> None:
        """Takes the mean at a level of so many independent rows, corrected by what they are `off`."""
        if size >= self.of.get(level, (0, 0))[1]:
            self.of[level] = mean, size, variance

    def off(self, start: int, end: int) -> float:
        """By how much the clean value of some rows is above that of all."""
        return 0.0 if self.aim.usual else float(self.aim.part(start, end).mean()) - self.aim.top

    def ends(self, confidence: float) -> dict[float, tuple[float, float]]:
        """The interval of each level looked at; all of them hold together."""
        share = 1 - (1 - confidence) / len(self.of) if self.of else 0.0
        if self.aim.usual:
            return {v: wilson(mean * size, size, share) for v, (mean, size, _) in self.of.items()}
        ends = {}
        for v, (mean, size, variance) in self.of.items():
            known = math.isfinite(mean)
            half = float(t_quantile(share, max(1, size - 1))) * math.sqrt(variance / size) if known else 0.0
            ends[v] = mean - half, mean + half
        return ends

    def crossings(self, level: float, confidence: float) -> tuple[float, ...]:
        """All of the curve, as far as it was looked at: a fall that was found at a level, and those between levels that
        are surely above the target and surely below it, interpolated."""
        ends, target = self.ends(confidence), self.aim.target
        sure = [v for v in sorted(self.of) if (ends[v][0] > target or ends[v][1] < target) and v > 0]
        means = self.aim.near(np.array([self.of[v][0] for v in sure]))
        found = [(math.exp(x), down) for x, down in crossings(np.log(sure), means, target)]
        falls = [v for v, down in found if down]
        mine = min(falls, key=lambda v: abs(math.log(v / level)), default=level)
        return tuple(sorted([level, *(v for v, _ in found if v != mine)]))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Of the levels looked at: the highest that is surely above the target before any that may not be, and the
        first one after it that is surely not."""
        ends, target = self.ends(confidence), self.aim.target
        fallen = min((v for v, (mean, *_) in self.of.items() if mean <= target), default=None)
        low = max((v for v, (a, _) in ends.items() if a > target and (fallen is None or v < fallen)), default=0.0)
        return low, min((v for v, (_, b) in ends.items() if b < target and v > low), default=math.inf)
