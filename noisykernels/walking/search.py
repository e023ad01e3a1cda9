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

What a site may cost is bounded. Where the located slope cannot be told from a flat curve's, the first measurement is a
small one, so that nothing large is spent on a fall that is none. A bracket ends where answers no longer change with
the level, for value and noise then grow alike. Accuracy there, or at the end of all levels, must surely be above
half-way for "none": where few rows do not tell, more are looked at, far out. What the evaluations allowed have not
settled is said with the interval that they give, or is "open".

What is asked may be another crossing than half-way, and of any measure: see `Aim`. Curves are followed only as far as
the question needs: what lies farther beyond the target than the clean value lies above it counts as so far, and a row
without a finite number makes its level one that is beyond.

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

from noisykernels._engine.request import Advance, Answer, Evaluate, Request, unheard
from noisykernels.injection.site import Site
from noisykernels.stats.curve import crossings
from noisykernels.stats.intervals import Floats, t_for, t_quantile, wilson
from noisykernels.stats.midpoint import Midpoint, Status, described
from noisykernels.stats.questions import HALF
from noisykernels.walking.aim import Aim
from noisykernels.walking.fall import Fall, fall_of

__all__ = ["SiteSearch", "needed_row_draws", "quantile", "seek"]


BRACKET_ROWS, LOCATE_ROWS = 200, 800
MORE = 4  # times as many, where the fall asked for may be a small one
BRACKET_STEP = math.log(10) / 2
LOWEST, HIGHEST = 1e-12, 1e18  # levels that are looked at, in units of the scale
LARGEST = 1e25  # level that is looked at: float32 ends at 3e38
LOCATIONS = 3  # brackets that may turn out to be wrong before a curve counts as one that never falls half-way
WINDOW = 0.25  # of ln(level), on either side of the located midpoint
MEASUREMENTS = 6
# Rows of a measurement are at least so many: the normal approximation of the interval needs them.
LEAST_ROWS = 400
# What counts rows here is for rows of one number; of those with many (tokens) fewer do, but never fewer than these: in
# the first two phases, and in a measurement.
FEWEST, FEWEST_MEASURED = 8, 32
# Chips of the first two phases, and of a measurement at least; rows that each of the latter is measured on, at least.
# These few add little to the chips' own spread, and other chips see other rows.
FIRST_CHIPS, LEAST_CHIPS, CHIP_ROWS = 4, 8, 250
# Of a measurement where the curve may be flat, and of what is looked at far out: row-draws at each level; chips.
PILOT, PILOT_CHIPS = 10_000, 150
FLAT = 0.07  # of accuracy against ln(level): half-way is not surely within reach of so slow a fall
SURE = 3  # standard errors by which a slope, or a distance from half-way, counts as one


@dataclass
class SiteSearch:
    """One site's way to its midpoint.

    Args:
        site: the site.
        scale: where to begin to look: the level at which the noise is as large as the values.
        aim: what is searched.
        rel_ci: the interval's half-width wanted, relative to the midpoint.
        confidence: of the interval.
        most: evaluations that may be spent.
        chips: whether the rows of a draw share their noise.
    """

    site: Site
    scale: float
    aim: Aim
    rel_ci: float
    confidence: float = 0.95
    most: int = 2**62
    which: int = 0  # of the study's targets
    chips: bool = False  # the rows of a draw share their noise
    phase: str = "bracket"
    known: dict[float, float] = field(default_factory=dict)  # the bracket's levels and means
    centre: float = math.nan
    slope: float = math.nan  # of mean against ln(level), at the centre
    flat: bool = False  # the slope located may be none
    locations: int = 0  # brackets that were wrong
    misses: int = 0  # measurements without a midpoint in reach
    measurement: int = 0
    measured: tuple[float, ...] = ()  # levels of the last measurement
    dip: float = math.nan  # the level at which accuracy was lowest
    far: float = math.nan  # the level that is looked at to tell whether accuracy falls half-way at all
    want: int = 0  # row-draws of the next measurement; of chips: draws
    next_draw: int = field(init=False)  # those before are the bracket's and the locator's
    evaluations: int = 0
    found: Midpoint | None = None

    def __post_init__(self) -> None:
        self.total = len(self.aim.clean)
        self.next_draw = len(self._first_draws(LOCATE_ROWS))
        self.target = self.aim.target
        # A power of the level is no parabola: what that errs by grows with the cube of the window.
        self.window = WINDOW if self.aim.usual else min(WINDOW, (0.1 * self.rel_ci) ** (1 / 3))
        # Of each level: mean, of how many independent rows, and the variance of one.
        self.looks: dict[float, tuple[float, float, float]] = {}

    # --------------------------------------------------------------------------------------- asking

    def requests(self) -> list[Request]:
        """What to evaluate next; nothing: found, or given up."""
        asked = [] if self.found is not None else self._next()
        if sum(r.cells for r in asked) > self.most - self.evaluations:
            self._leave_open()
            return []
        return asked

    def _next(self) -> list[Request]:
        if self.phase == "bracket":
            return [self._first(self._bracket_levels(), BRACKET_ROWS)]
        if self.phase == "locate":
            low, high = self._bracket
            levels = np.exp(np.linspace(math.log(low), math.log(high), 7))
            return [self._first(levels, LOCATE_ROWS)]
        if self.phase == "far":
            return self._sampled(sorted({self.dip, self.far}), PILOT_CHIPS if self.chips else self._pilot)
        return self._sampled(self.centre * np.exp(np.linspace(-self.window, self.window, 3)), self.want)

    def _sampled(self, levels: Sequence[float] | Floats, want: int) -> list[Request]:
        """Levels under new draws, as many row-draws (of chips: draws) of each as wanted or still allowed."""
        left = (self.most - self.evaluations) / len(levels)
        if self.chips:
            blocks = max(1, self.total // CHIP_ROWS)  # all rows are in one
            starts = [b * self.total // blocks for b in range(blocks + 1)]
            count = max(LEAST_CHIPS, int(min(want, left // -(-self.total // blocks))))
            draws = range(self.next_draw, self.next_draw + count)
            parts = [(b, tuple(d for d in draws if d % blocks == b)) for b in range(blocks)]
            return [self._asked(levels, ids, starts[b + 1] - starts[b], starts[b]) for b, ids in parts if ids]
        least = self.aim.rows_for(LEAST_ROWS, FEWEST_MEASURED)
        rows = min(self.total, max(least, math.ceil(min(want, left - 1) / 2)))
        count = max(2, int(min(math.ceil(want / rows), left // rows)))
        return [self._asked(levels, tuple(range(self.next_draw, self.next_draw + count)), rows)]

    def _first(self, levels: Iterable[float], rows: int) -> Request:
        """Of the first two phases: few rows under one draw, or under a few where there are fewer yet."""
        return self._asked(levels, self._first_draws(rows), min(self.total, self._wanted(rows)))

    def _wanted(self, rows: int) -> int:
        """Rows of the first two phases."""
        return rows if self.aim.usual else self.aim.rows_for(rows * MORE, FEWEST)

    @property
    def _pilot(self) -> int:
        """Row-draws of a measurement where the curve may be flat."""
        return self.aim.rows_for(PILOT, FEWEST_MEASURED)

    def _first_draws(self, rows: int) -> tuple[int, ...]:
        if self.chips:
            return tuple(range(FIRST_CHIPS))
        return tuple(range(1 if self.aim.usual else min(MORE, math.ceil(self._wanted(rows) / self.total))))

    def _asked(self, levels: Iterable[float], draws: tuple[int, ...], rows: int, start: int = 0) -> Request:
        return Request(self.site, tuple(map(float, levels)), draws, rows, start, self.which)

    def _bracket_levels(self) -> list[float]:
        if not self.known:
            return [self.scale * math.exp(BRACKET_STEP * k) for k in range(-3, 5)]
        low, high = min(self.known), max(self.known)
        up = all(a > self.aim.target_of(self.known_rows) for a in self.known.values())
        edge, sign = (high, 1) if up else (low, -1)
        return [edge * math.exp(sign * BRACKET_STEP * k) for k in range(1, 9)]

    # ------------------------------------------------------------------------------------- learning

    def learn(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Takes the answers to `requests`."""
        self.evaluations += sum(answer.size for answer in answers)
        numbers = [self.aim.numbers(answer) for answer in answers]
        self._look(requests, numbers)
        if self.phase == "measure":
            self._learn_measurement(requests, numbers)
        elif self.phase == "locate":
            self._learn_location(requests[0], numbers[0])
        elif self.phase == "far":
            self._learn_far(requests)
        else:
            self._learn_bracket(requests[0], numbers[0])

    def _look(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Keeps of each level the largest look at it. Independent are draws of chips, and else rows of one draw, or of
        all where all rows are looked at: other draws of some rows tell nothing of the rest."""
        draws, rows = sum(len(r.draws) for r in requests), requests[0].rows
        size = draws if self.chips else rows * draws if rows == self.total else rows
        means = np.concatenate([a.mean(2) - self._off(r) for r, a in zip(requests, answers, strict=True)], 1)
        for i, (level, mean) in enumerate(zip(requests[0].levels, means.mean(1).tolist(), strict=True)):
            if size >= self.looks.get(level, (0, 0))[1]:
                variance = math.nan
                if not self.aim.usual and math.isfinite(mean):
                    of_rows = self.aim.variance(answers[0][i : i + 1], requests[0].start)
                    variance = float(means[i].var(ddof=1)) if self.chips else of_rows
                self.looks[level] = mean, size, variance

    def _off(self, request: Request) -> float:
        """By how much the clean value of a request's rows is above that of all."""
        return 0.0 if self.aim.usual else float(self.aim.clean[request.start : request.end].mean()) - self.aim.top

    def _learn_bracket(self, request: Request, answer: Answer) -> None:
        further = bool(self.known)
        self.known |= dict(zip(request.levels, answer.mean((1, 2)).tolist(), strict=True))
        self.known_rows = request.rows
        target = self.aim.target_of(request.rows)
        levels = sorted(self.known)
        above = [self.known[v] > target for v in levels]
        fall = next((i for i in range(1, len(levels)) if above[i - 1] and not above[i]), None)
        if fall is not None:
            # One level more on either side: few rows are a coarse measure.
            self._bracket = levels[max(0, fall - 2)], levels[min(len(levels) - 1, fall + 1)]
            self.phase = "locate"
        elif above[0] and (
            levels[-1] / self.scale >= HIGHEST or levels[-1] >= LARGEST or (further and self._saturated(answer))
        ):
            if self._surely(min(self.known.values()) - target, answer):
                self._give_up("none", levels[-1])
            else:
                self._look_far(levels[-1])
        elif not above[0] and levels[0] / self.scale <= LOWEST:
            self._give_up("below", levels[0])

    def _saturated(self, answer: Answer) -> bool:
        """Whether the noise moves predictions, and no more so with its level."""
        moved = answer[0] - self.aim.clean[: answer.shape[2]]
        if self.aim.law.name == "binary":
            return bool((answer == answer[:1]).all() and moved.any())
        alike = float(np.ptp(answer.mean((1, 2)))) < 1e-3 * self.aim.depth
        return alike and bool((np.abs(moved) > 1e-6 * self.aim.depth).any())

    def _surely(self, above: float, answer: Answer) -> bool:
        """Whether a mean of an answer is above something by more than its rows, and its chips, may err."""
        variance = self.aim.variance(answer) / answer.shape[2]
        if self.chips:
            variance += float(answer.mean(2).var(1, ddof=1).max()) / answer.shape[1]
        return above > SURE * math.sqrt(variance)

    def _learn_far(self, requests: Sequence[Request]) -> None:
        """Accuracy never falls half-way if many rows say so far out, where it was lowest, and where it was measured: a
        curve may recover after it has fallen. They may also leave it open."""
        self.next_draw += sum(len(r.draws) for r in requests)
        ends = self._ends()
        if all(ends[v][0] > self.target for v in (self.dip, self.far, *self.measured)):
            self._give_up("none", self.far)
        elif math.isfinite(self.centre) and (ends[self.far][0] > self.target or ends[self.far][1] < self.target):
            self.phase = "measure"
        else:
            self._leave_open()

    def _ends(self) -> dict[float, tuple[float, float]]:
        """The interval of each level looked at; all of them hold together."""
        share = 1 - (1 - self.confidence) / len(self.looks) if self.looks else 0.0
        if self.aim.usual:
            return {v: wilson(mean * size, size, share) for v, (mean, size, _) in self.looks.items()}
        ends = {}
        for v, (mean, size, variance) in self.looks.items():
            known = math.isfinite(mean)
            half = float(t_quantile(share, max(1, size - 1))) * math.sqrt(variance / size) if known else 0.0
            ends[v] = mean - half, mean + half
        return ends

    def _bounds(self) -> tuple[float, float]:
        """Of the levels looked at: the highest that is surely above half-way before any that may not be, and the first
        one after it that is surely not."""
        ends, fallen = (
            self._ends(),
            min((v for v, (mean, *_) in self.looks.items() if mean <= self.target), default=None),
        )
        low = max((v for v, (a, _) in ends.items() if a > self.target and (fallen is None or v < fallen)), default=0.0)
        return low, min((v for v, (_, b) in ends.items() if b < self.target and v > low), default=math.inf)

    def _learn_location(self, request: Request, answer: Answer) -> None:
        t, mean = np.log(request.levels), answer.mean((1, 2))
        target = self.aim.target_of(request.rows)
        smooth = np.minimum.accumulate(mean)
        falls = [x for x, down in crossings(t, smooth, target) if down]
        if not falls:  # few rows have misled the bracket: it goes on from here with what more rows say
            self.locations += 1
            if self.locations == LOCATIONS:
                if mean[0] > target:
                    self._look_far(request.levels[-1])
                else:
                    self._give_up("below", request.levels[0])
                return
            self.known = dict(zip(request.levels, mean.tolist(), strict=True))
            self.known_rows = request.rows
            self.phase = "bracket"
            return
        self.centre = math.exp(falls[0])
        near = np.argsort(np.abs(t - falls[0]))[:4]
        self.slope = min(-0.02 * self.aim.unit, float(np.polyfit(t[near], self.aim.near(mean)[near], 1)[0]))
        at = slice(None) if self.aim.usual else near[:2]  # a loss may vary ten times as much one level on
        variance = self.aim.variance(answer[at])
        if self.chips:
            variance = float(self.aim.near(answer.mean(2))[at].var(1, ddof=1).mean())
        self.want = needed_row_draws(quantile(self.confidence, 1), variance, self.rel_ci * self.slope)
        variance /= len(request.draws) if self.chips else request.rows
        surely = SURE * math.sqrt(variance / float(t[near].var() * len(near)))
        self.flat = -self.slope < max(FLAT * self.aim.unit, surely)
        if self.flat:
            self.want = min(self.want, PILOT_CHIPS if self.chips else self._pilot)
        self.phase = "measure"

    def _learn_measurement(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        self.measurement += 1
        self.measured = requests[0].levels
        draws = sum(len(r.draws) for r in requests)
        self.next_draw += draws
        z = quantile(self.confidence, self.measurement)
        if self.chips:  # whose variance is estimated from few
            z = t_for(z, draws - 1)
        x = np.log(np.array(requests[0].levels) / self.centre)
        fall = Fall(False, None)
        if all(np.isfinite(answer).all() for answer in answers):
            parts = [self.aim.clean[r.start : r.end] for r in requests]
            fall = fall_of(x, self.target, self.aim.clean, parts, answers, self.chips, skewed=not self.aim.usual)
        more = self.measurement < MEASUREMENTS
        if fall.root is None or abs(fall.root) > 1.5 * self.window:
            if more:
                self._learn_miss(fall)
            else:
                self._leave_open()
            return
        self.slope = min(-1e-3 * self.aim.unit, fall.slope)
        half = z * fall.error / -self.slope
        spent = sum(r.cells for r in requests)
        if half > self.rel_ci and more and 1.5 * spent <= self.most - self.evaluations:
            self.centre *= math.exp(fall.root)
            samples = draws * (1 if self.chips else requests[0].rows)
            larger = 1.25 * (half * quantile(self.confidence, self.measurement + 1) / z / self.rel_ci) ** 2
            self.want = math.ceil(samples * max(1.5, larger))
            self.flat = -fall.slope < max(FLAT * self.aim.unit, SURE * fall.slope_error)
            if self.flat:
                self._look_far(1e6 * self.centre)
            return
        if half > max(self.rel_ci, 1.5 * self.window):  # beyond what a parabola through the levels can tell
            self._leave_open()
            return
        level = self.centre * math.exp(fall.root)
        # k of a logistic as steep, or the power with which the loss grows.
        steepness = -self.slope / self.aim.depth
        if self.aim.question == HALF:
            steepness *= 2 * math.log(10)
        if self.aim.usual:  # to the bit as it always was
            assert self.aim.floor is not None
            steepness = -4 * self.slope / (self.aim.told_clean - self.aim.floor) * math.log(10)
        self._settle(level, level * math.exp(-half), level * math.exp(half), steepness, "ok", half > self.rel_ci)

    def _learn_miss(self, fall: Fall) -> None:
        """A measurement without a midpoint in reach: it lies elsewhere, or nowhere."""
        self.misses += 1
        if fall.above and (self.flat or self.misses > 1):
            self._look_far(1e6 * self.centre)
        if fall.root is not None:
            step = float(np.clip(fall.root, -1, 1))
        else:  # a flat curve is not left by small steps
            step = self.window * (4 if self.flat else 1) * (1 if fall.above else -1)
        self.centre *= math.exp(step)

    def _look_far(self, level: float) -> None:
        """Asks, once, whether accuracy falls half-way at all."""
        if math.isnan(self.far):
            self.phase, self.far = "far", min(level, LARGEST)
            self.dip = min(self.looks, key=lambda v: self.looks[v][0])

    def described(self) -> dict[str, Any]:
        """What was found, as JSON can hold it."""
        assert self.found is not None
        return described(self.found)

    def stand(self) -> Request:
        """Settles that no level moves anything; what need not be evaluated for that."""
        self._give_up("none", LARGEST)
        return self._asked([LARGEST], self._first_draws(LOCATE_ROWS), self.total)

    def _give_up(self, status: Literal["none", "below"], edge: float) -> None:
        low, high = (edge, math.inf) if status == "none" else (0.0, edge)
        self._settle(math.nan, low, high, math.nan, status)

    def _leave_open(self) -> None:
        self._settle(math.nan, *self._bounds(), math.nan, "open", True)

    def _settle(
        self, level: float, low: float, high: float, steepness: float, status: Status, stopped: bool = False
    ) -> None:
        self.found = Midpoint(
            level=level, low=low, high=high, crossing=level, crossing_low=low, crossing_high=high,
            crossings=() if math.isnan(level) else (level,), slope=steepness, clean=self.aim.told_clean,
            floor=math.nan if self.aim.floor is None else self.aim.floor, status=status,
            method="stopped" if stopped else "adaptive", confidence=self.confidence, site=self.site.name,
            site_index=self.site.index, at=str(self.aim.question), target=self.aim.told_target,
        )  # fmt: skip


def quantile(confidence: float, measurement: int) -> float:
    """Of the normal law, for the share of the error that a measurement may make."""
    alpha = (1 - confidence) * 0.8 * 0.2 ** (measurement - 1)
    return NormalDist().inv_cdf(1 - alpha / 2)


def needed_row_draws(z: float, variance: float, half: float) -> int:
    """Row-draws (of chips: draws) for the half-width wanted of a mean, with a quarter in reserve."""
    return math.ceil(1.25 * variance * (z / half) ** 2)


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
