"""Where to look next: brackets the midpoint of every site, then measures it until its interval is as short as asked
for.

Pure decisions: everything here is a function of the answers so far, which come from a callback, so that neither
workers nor a resumed study change what is asked. Numbers are numpy's.

A site goes through three phases. *Bracket*: few rows, one draw, levels half a decade apart, further out until
accuracy has fallen half-way. *Locate*: more rows, levels within the bracket. *Measure*: three levels around the
located midpoint, new draws, as many rows and draws as the located slope asks for. A measurement whose interval is too
long, or whose midpoint lies outside of its levels, is followed by a larger one with draws of its own; the i-th has
the error probability ``(1 - confidence) * 0.8 * 0.2**(i - 1)``, so that all together stay below ``1 - confidence``
however many there are.

Where a draw is a chip (noise on weights), its rows share their noise: then draws are what is counted, each on a block
of rows of its own, there are several in the first phases too, and their spread, with Student's quantiles, makes the
interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.request import Advance, Answer, Evaluate, Request, unheard
from noisykernels.injection.site import Site
from noisykernels.metrics.law import Law
from noisykernels.stats.intervals import Floats, t_for
from noisykernels.stats.midpoint import Midpoint, crossings, described
from noisykernels.stats.regression import adjusted, adjusted_chips, standard_error

__all__ = ["SiteSearch", "seek"]


BRACKET_ROWS, LOCATE_ROWS = 200, 800
BRACKET_STEP = math.log(10) / 2
LOWEST, HIGHEST = 1e-12, 1e18  # levels that are looked at, in units of the scale
LARGEST = 1e25  # level that is looked at: float32 ends at 3e38
LOCATIONS = 3  # brackets that may turn out to be wrong before a curve counts as one that never falls half-way
WINDOW = 0.25  # of ln(level), on either side of the located midpoint
MEASUREMENTS = 6
# Rows of a measurement are at least so many: the normal approximation of the interval needs them.
LEAST_ROWS = 400
# Chips of the first two phases, and of a measurement at least; rows that each of the latter is measured on, at least.
# These few add little to the chips' own spread, and other chips see other rows.
FIRST_CHIPS, LEAST_CHIPS, CHIP_ROWS = 4, 8, 250


@dataclass
class SiteSearch:
    """One site's way to its midpoint.

    Args:
        site: the site.
        scale: where to begin to look: the level at which the noise is as large as the values.
        clean: [rows], the number of each row without noise, in permuted order.
        floor: their mean under unbounded noise.
        rel_ci: the interval's half-width wanted, relative to the midpoint.
        confidence: of the interval.
        law: of the numbers of rows.
        chips: whether the rows of a draw share their noise.
    """

    site: Site
    scale: float
    clean: NDArray[Any]
    floor: float
    rel_ci: float
    law: Law
    confidence: float = 0.95
    which: int = 0  # of the study's targets
    chips: bool = False  # the rows of a draw share their noise
    phase: str = "bracket"
    known: dict[float, float] = field(default_factory=dict)  # the bracket's levels and means
    centre: float = math.nan
    slope: float = math.nan  # of mean against ln(level), at the centre
    locations: int = 0  # brackets that were wrong
    measurement: int = 0
    want: int = 0  # row-draws of the next measurement; of chips: draws
    next_draw: int = field(init=False)  # those before are the bracket's and the locator's
    evaluations: int = 0
    found: Midpoint | None = None

    def __post_init__(self) -> None:
        self.total = len(self.clean)
        self.next_draw = FIRST_CHIPS if self.chips else 1
        self.target = (float(self.clean.mean()) + self.floor) / 2

    # --------------------------------------------------------------------------------------- asking

    def requests(self) -> list[Request]:
        """What to evaluate next; nothing: found, or given up."""
        if self.found is not None:
            return []
        if self.phase == "bracket":
            return [self._asked(self._bracket_levels(), self._first_draws, min(self.total, BRACKET_ROWS))]
        if self.phase == "locate":
            low, high = self._bracket
            levels = np.exp(np.linspace(math.log(low), math.log(high), 7))
            return [self._asked(levels, self._first_draws, min(self.total, LOCATE_ROWS))]
        levels = self.centre * np.exp(np.linspace(-WINDOW, WINDOW, 3))
        if self.chips:
            blocks = max(1, self.total // CHIP_ROWS)  # all rows are in one
            starts = [b * self.total // blocks for b in range(blocks + 1)]
            draws = range(self.next_draw, self.next_draw + max(LEAST_CHIPS, self.want))
            parts = [(b, tuple(d for d in draws if d % blocks == b)) for b in range(blocks)]
            return [self._asked(levels, ids, starts[b + 1] - starts[b], starts[b]) for b, ids in parts if ids]
        rows = min(self.total, max(LEAST_ROWS, math.ceil(self.want / 2)))
        count = max(2, math.ceil(self.want / rows))
        return [self._asked(levels, tuple(range(self.next_draw, self.next_draw + count)), rows)]

    @property
    def _first_draws(self) -> tuple[int, ...]:
        return tuple(range(FIRST_CHIPS)) if self.chips else (0,)

    def _asked(self, levels: Iterable[float], draws: tuple[int, ...], rows: int, start: int = 0) -> Request:
        return Request(self.site, tuple(map(float, levels)), draws, rows, start, self.which)

    def _bracket_levels(self) -> list[float]:
        if not self.known:
            return [self.scale * math.exp(BRACKET_STEP * k) for k in range(-3, 5)]
        low, high = min(self.known), max(self.known)
        up = all(a > self._target_of(self.known_rows) for a in self.known.values())
        edge, sign = (high, 1) if up else (low, -1)
        return [edge * math.exp(sign * BRACKET_STEP * k) for k in range(1, 9)]

    def _target_of(self, rows: int) -> float:
        """Half-way of the first rows alone: the small phases must not mistake easy rows for robust ones."""
        return (float(self.clean[:rows].mean()) + self.floor) / 2

    # ------------------------------------------------------------------------------------- learning

    def learn(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Takes the answers to `requests`."""
        self.evaluations += sum(answer.size for answer in answers)
        numbers = [self.law.numbers(answer) for answer in answers]
        if self.phase == "measure":
            self._learn_measurement(requests, numbers)
        elif self.phase == "locate":
            self._learn_location(requests[0], numbers[0])
        else:
            self._learn_bracket(requests[0], numbers[0].mean((1, 2)))

    def _learn_bracket(self, request: Request, mean: Floats) -> None:
        self.known |= dict(zip(request.levels, mean.tolist(), strict=True))
        self.known_rows = request.rows
        target = self._target_of(request.rows)
        levels = sorted(self.known)
        above = [self.known[v] > target for v in levels]
        fall = next((i for i in range(1, len(levels)) if above[i - 1] and not above[i]), None)
        if fall is not None:
            # One level more on either side: few rows are a coarse measure.
            self._bracket = levels[max(0, fall - 2)], levels[min(len(levels) - 1, fall + 1)]
            self.phase = "locate"
        elif above[0] and (levels[-1] / self.scale >= HIGHEST or levels[-1] >= LARGEST):
            self._give_up("none", levels[-1])
        elif not above[0] and levels[0] / self.scale <= LOWEST:
            self._give_up("below", levels[0])

    def _learn_location(self, request: Request, answer: Answer) -> None:
        t, mean = np.log(request.levels), answer.mean((1, 2))
        target = self._target_of(request.rows)
        smooth = np.minimum.accumulate(mean)
        falls = [x for x, down in crossings(t, smooth, target) if down]
        if not falls:  # few rows have misled the bracket: it goes on from here with what more rows say
            self.locations += 1
            if self.locations == LOCATIONS:
                above = mean[0] > target
                self._give_up("none" if above else "below", request.levels[-1 if above else 0])
                return
            self.known = dict(zip(request.levels, mean.tolist(), strict=True))
            self.known_rows = request.rows
            self.phase = "bracket"
            return
        self.centre = math.exp(falls[0])
        near = np.argsort(np.abs(t - falls[0]))[:4]
        self.slope = min(-0.02, float(np.polyfit(t[near], mean[near], 1)[0]))
        variance = float(answer.mean(2).var(1, ddof=1).mean()) if self.chips else self.law.largest_variance
        self.want = self._needed(self._quantile(1), variance)
        self.phase = "measure"

    def _quantile(self, measurement: int) -> float:
        alpha = (1 - self.confidence) * 0.8 * 0.2 ** (measurement - 1)
        return NormalDist().inv_cdf(1 - alpha / 2)

    def _needed(self, z: float, variance: float) -> int:
        """Row-draws (of chips: draws) for the half-width wanted, with a quarter in reserve."""
        return math.ceil(1.25 * variance * (z / (self.rel_ci * self.slope)) ** 2)

    def _learn_measurement(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        self.measurement += 1
        draws = sum(len(r.draws) for r in requests)
        self.next_draw += draws
        z = self._quantile(self.measurement)
        if self.chips:  # whose variance is estimated from few
            z = t_for(z, draws - 1)
        x = np.log(np.array(requests[0].levels) / self.centre)
        project = np.linalg.pinv(np.stack([np.ones_like(x), x, x * x], 1))  # least squares: (a, b, c)
        parts = [self.clean[r.start : r.end] for r in requests]
        of_chips = adjusted_chips(self.clean, parts, answers) if self.chips else None
        mean = adjusted(self.clean, answers[0]) if of_chips is None else of_chips.mean(1)
        a, b, c = project @ mean
        root = _root(a - self.target, b, c)
        more = self.measurement < MEASUREMENTS
        if root is None or abs(root) > 1.5 * WINDOW:
            step = WINDOW if root is None else float(np.clip(root, -1, 1))
            if root is None and a < self.target:
                step = -step
            if not more:
                self._give_up("none", self.centre)
                return
            self.centre *= math.exp(step)
            return
        slope = min(-1e-3, b + 2 * c * root)
        weights = np.array([1.0, root, root * root]) @ project
        if of_chips is None:
            error = standard_error(self.clean, answers[0], weights)
        else:
            error = float((weights @ of_chips).std(ddof=1)) / math.sqrt(draws)
        half = z * error / -slope
        self.slope = slope
        if half > self.rel_ci and more:
            self.centre *= math.exp(root)
            samples = draws * (1 if self.chips else requests[0].rows)
            self.want = math.ceil(samples * max(1.5, 1.25 * (half * self._quantile(self.measurement + 1) / z
                                                             / self.rel_ci) ** 2))  # fmt: skip
            return
        level = self.centre * math.exp(root)
        steepness = -4 * slope / (float(self.clean.mean()) - self.floor) * math.log(10)
        self._settle(level, level * math.exp(-half), level * math.exp(half), steepness, "ok")

    def described(self) -> dict[str, Any]:
        """What was found, as JSON can hold it."""
        assert self.found is not None
        return described(self.found)

    def stand(self) -> Request:
        """Settles that no level moves anything; what need not be evaluated for that."""
        self._give_up("none", LARGEST)
        return self._asked([LARGEST], self._first_draws, self.total)

    def _give_up(self, status: Literal["none", "below"], edge: float) -> None:
        low, high = (edge, math.inf) if status == "none" else (0.0, edge)
        self._settle(math.nan, low, high, math.nan, status)

    def _settle(
        self, level: float, low: float, high: float, steepness: float, status: Literal["ok", "none", "below"]
    ) -> None:
        self.found = Midpoint(
            level=level, low=low, high=high, crossing=level, crossing_low=low, crossing_high=high,
            crossings=() if math.isnan(level) else (level,), slope=steepness, clean=float(self.clean.mean()),
            floor=self.floor, status=status, method="adaptive", confidence=self.confidence,
            site=self.site.name, site_index=self.site.index,
        )  # fmt: skip


def _root(a: float, b: float, c: float) -> float | None:
    """The root of a + b x + c x^2 at which it falls that is nearest to 0."""
    roots = np.roots([c, b, a]) if abs(c) > 1e-12 else np.array([-a / b]) if b else np.array([])
    falling = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and b + 2 * c * r.real < 0]
    return min(falling, key=abs) if falling else None


def seek(
    searches: Sequence[SiteSearch],
    evaluate: Evaluate,
    advance: Advance = unheard,
) -> list[tuple[Request, Answer]]:
    """Runs all searches to their end, in rounds; a round's requests are evaluated together.

    Args:
        searches: one for each site; their `found` is set.
        evaluate: gives the answers to a round's requests.
        advance: called after every round with the number of sites that it has settled.

    Returns:
        Everything that was evaluated, in order.
    """
    asked: list[tuple[Request, Answer]] = []
    while True:
        rounds = [(s, requests) for s in searches if (requests := s.requests())]
        if not rounds:
            return asked
        answers = iter(evaluate.answers([r for _, requests in rounds for r in requests]))
        for search, requests in rounds:
            answered = [next(answers) for _ in requests]
            search.learn(requests, answered)
            asked += zip(requests, answered, strict=True)
        advance(sum(s.found is not None for s, _ in rounds))
