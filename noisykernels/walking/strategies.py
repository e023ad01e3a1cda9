"""How a walk looks: at every cell of a grid, at those off the plateaus, or where the midpoints are searched.

A strategy decides from answers, and from facts of the model that are known before any: so neither workers nor a resumed
study change what is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

from noisykernels._engine.request import Evaluate, Facts, Request
from noisykernels._util.checks import in_range
from noisykernels._util.progress import progress_of
from noisykernels._util.warning import warn_user
from noisykernels.metrics.base import Metric, is_share
from noisykernels.metrics.law import ALL
from noisykernels.walking.aim import Aim
from noisykernels.walking.cells import Cells
from noisykernels.walking.measuring import BESIDE, LEAST
from noisykernels.walking.plateaus import settled
from noisykernels.walking.search import FIRST, FIRST_OF_ROW, SiteSearch, needed_row_draws, quantile, seek

__all__ = ["Found", "Grid", "Progress", "Search", "Strategy"]

Found = list[list[dict[str, Any]]]  # of each target, what a search has found at each site; empty for a grid
Progress = bool | Callable[[int, int], object]

# What a search is held against: the published grid of 49 levels and 5 draws, on a curve that falls from 95 to 5 % over
# two decades, as usual ones do.
OF_GRID = 49 * 5
USUAL_SLOPE = math.log(19) / math.log(10) / 4  # of accuracy at half-way, against ln(level), per (clean - floor)


class Strategy(Protocol):
    """A way to look."""

    @property
    def levels(self) -> Sequence[float]:
        """Those of a grid."""

    @property
    def draws(self) -> Sequence[int]:
        """Those of a grid."""

    @property
    def shuffled(self) -> bool:
        """Whether the first rows must be a random part of all."""

    def described(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What a study's plan says of it, and of what it has found."""

    def check(self, op: str, metric: Metric) -> None:
        """Refuses a measure that cannot be looked at so: ValueError."""

    @property
    def whole(self) -> bool:
        """Whether every level and draw is looked at on all rows, as is known before."""

    def run(self, evaluate: Evaluate, facts: Facts, cells: Cells, progress: Progress) -> Found:
        """Fills the cells.

        Args:
            evaluate: gives answers.
            facts: what is known of the model before any answer.
        """


@dataclass(frozen=True)
class Grid:
    """Every site, level and draw on all rows, but for levels on plateaus, where a share says which those are."""

    levels: tuple[float, ...]
    draws: tuple[int, ...]
    plateaus: float | None = None

    @property
    def shuffled(self) -> bool:
        """See `Strategy`."""
        return self.plateaus is not None

    def described(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Strategy`."""
        return {} if self.plateaus is None else {"plateaus": self.plateaus}

    def check(self, op: str, metric: Metric) -> None:
        """Plateaus are of shares: a number may change where no prediction does."""
        if self.plateaus is not None and not is_share(metric):
            raise ValueError(f"{op}: plateaus are for shares of rows, such as the accuracy, got metric {metric.name}")

    @property
    def whole(self) -> bool:
        """See `Strategy`."""
        return self.plateaus is None

    def run(self, evaluate: Evaluate, facts: Facts, cells: Cells, progress: Progress) -> Found:
        """See `Strategy`."""
        rows = cells.rows
        grid = [Request(s, self.levels, self.draws, rows, which=k) for s in cells.sites for k in range(cells.targets)]
        with progress_of(cells.op, progress, len(grid) * len(self.levels)) as advance:
            for idle in (r for r in grid if r.site.name in facts.idle):
                cells.prove(idle, self.levels)
                advance(len(self.levels))
            grid = [r for r in grid if r.site.name not in facts.idle]
            if self.plateaus is not None:
                grid = settled(grid, facts.proved(grid), evaluate, cells, self.plateaus, advance)
            for request, answer in zip(grid, evaluate.answers(grid, advance), strict=True):
                cells.take(request, answer)
        return [[] for _ in range(cells.targets)]


@dataclass(frozen=True)
class Search:
    """Brackets the midpoint of each site and spends rows and draws until its interval is short enough.

    Args:
        rel_ci: half-width of the 95 % interval wanted, relative to the midpoint.
        most: evaluations (a row under a draw at a level) that a site may cost. What they do not settle has a longer
            interval, or is "open" (see `Midpoint`), and is counted in the study's table. None: ``1_000_000 + 5_000 /
            rel_ci**2``, three million for 5 %, where most sites take some ten thousands.

    Raises:
        ValueError: `rel_ci` outside of (0, 1), `most` below 1.
        TypeError: `most` is no whole number.

    Example:
        >>> Search(rel_ci=0.02)
        Search(rel_ci=0.02, most=None)
    """

    rel_ci: float = 0.05
    most: SupportsIndex | None = None
    levels = ()
    draws = ()
    shuffled = True
    whole = False

    def __post_init__(self) -> None:
        """Checks both."""
        if not (isinstance(self.rel_ci, float | int) and 0 < self.rel_ci < 1):
            raise ValueError(f"Search: rel_ci must lie between 0 and 1, got {self.rel_ci}")
        if self.most is not None:
            object.__setattr__(self, "most", in_range("Search", "most", self.most))

    def check(self, op: str, metric: Metric) -> None:
        """A search spends rows: it needs a number of each, or sums over them."""
        if metric.law.block == ALL:
            raise ValueError(
                f"{op}: a search needs a number of each row, or sums over rows, which {metric.name} does not give: it "
                "is of a whole pass; give levels and draws for a grid"
            )

    def described(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Strategy`."""
        return {"most": self._most} if any(midpoint["method"] == "stopped" for midpoint in found) else {}

    @property
    def _most(self) -> int:
        return 1_000_000 + math.ceil(5_000 / self.rel_ci**2) if self.most is None else int(self.most)

    def run(self, evaluate: Evaluate, facts: Facts, cells: Cells, progress: Progress) -> Found:
        """See `Strategy`."""
        metric, block = cells.metric, min(cells.rows, cells.metric.law.block)
        aim = Aim(
            metric.law, cells.clean, cells.floor, cells.question, higher_is_better=metric.higher_is_better,
            value=metric.value, positions=facts.positions * block, weights=cells.weights,
            said=(cells.op, metric.name),
        )  # fmt: skip
        most = self._most * len(aim.clean) // cells.rows  # rows, or blocks of them
        if aim.usual and not facts.shares_rows(0):
            self._warn_of_few_rows(cells, aim)
        searches = []
        for which in range(cells.targets):
            scales = facts.scales(cells.sites, which)
            chips = facts.shares_rows(which)
            searches += [
                SiteSearch(s, scales.get(s.name, 1.0), aim, self.rel_ci, most=most, which=which, chips=chips)
                for s in cells.sites
            ]
        with progress_of(cells.op, progress, len(searches)) as advance:
            for idle in (s for s in searches if s.site.name in facts.idle):
                cells.prove(looked := aim.in_rows(idle.stand()), looked.levels)
                advance(1)
            for request, answer in seek(searches, evaluate, advance):
                cells.take(request, answer)
        return [[s.described() for s in searches if s.which == which] for which in range(cells.targets)]

    def _warn_of_few_rows(self, cells: Cells, aim: Aim) -> None:
        """A search repeats few rows under so many draws that a whole grid would cost less."""
        rows, law = len(cells.clean), cells.metric.law
        slope = USUAL_SLOPE * 2 * aim.depth
        wanted = needed_row_draws(quantile(0.95, 1), law.largest_variance, self.rel_ci * slope)
        measured = wanted + 2 * max(wanted / BESIDE, LEAST)
        enough = math.ceil(min(measured / (OF_GRID - FIRST_OF_ROW), (measured + FIRST) / OF_GRID))
        if rows >= enough:
            return
        allowed = max(rows * (OF_GRID - FIRST_OF_ROW), rows * OF_GRID - FIRST)  # for a measurement that costs no more
        left = min(allowed / (1 + 2 / BESIDE), allowed - 2 * LEAST)
        within = self.rel_ci * math.sqrt(wanted / left) if left > 0 else 1.0
        warn_user(
            f"{cells.op}: {rows} rows are few for midpoints within {100 * self.rel_ci:.2g} %: each row is run under "
            f"some {wanted // rows} draws, which costs a site more than a grid of 49 levels and 5 draws. It would cost "
            f"less from {enough} rows on" + (f", or within {100 * within:.2g} %" if within < 1 else ""),
        )
