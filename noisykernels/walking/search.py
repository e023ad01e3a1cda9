"""Where to look next: brackets the midpoint of every site, then measures it until its interval is as short as asked
for.

Pure decisions: everything here is a function of the answers so far, which come from a callback, so that neither
workers nor a resumed study change what is asked. Numbers are numpy's.

A site goes through three phases. *Bracket*: few rows, one draw, levels half a decade apart, further out until
accuracy has fallen half-way. *Locate*: more rows, levels within the bracket. *Measure*: new draws, as many rows and
draws at the located midpoint as the located slope asks for, and an eighth of them also on either side, which say how
steep and how bent the curve is there. A measurement whose interval is too long, or whose midpoint lies outside of its
levels, is followed by a larger one with draws of its own; the i-th has the error probability
``(1 - confidence) * 0.8 * 0.2**(i - 1)``, so that all together stay below ``1 - confidence`` however many there are.

What a site may cost is bounded. Where the located slope cannot be told from a flat curve's, the first measurement is a
small one, so that nothing large is spent on a fall that is none. A bracket ends where answers no longer change with
the level, for value and noise then grow alike. Accuracy there, or at the end of all levels, must surely be above
half-way for "none": where few rows do not tell, more are looked at, far out. What the evaluations allowed have not
settled is said with the interval that they give, or is "open".

What is asked may be another crossing than half-way, and of any measure: see `Aim`. Curves are followed only as far as
the question needs: what lies farther beyond the target than the clean value lies above it counts as so far, and a row
without a finite number makes its level one that is beyond.

Of sums over rows, blocks are what rows are elsewhere here, in requests as in answers, see `Aim`; measurements are of
all of them, for the value of some rows is not what is asked for.

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
from noisykernels.stats.intervals import Floats, t_for
from noisykernels.stats.midpoint import Midpoint, Status, described
from noisykernels.stats.questions import HALF
from noisykernels.walking.aim import Aim
from noisykernels.walking.fall import Fall, fall_of_chips, fall_of_rows
from noisykernels.walking.looks import Looks
from noisykernels.walking.measuring import LEAST, around, measured, needed

__all__ = ["FIRST", "FIRST_OF_ROW", "SiteSearch", "needed_row_draws", "quantile", "seek"]


BRACKET_ROWS, LOCATE_ROWS, LOCATE_CHIP_ROWS = 200, 250, 800
LOCATE_DRAWS = 2  # tell what the noise of a row varies by
MORE = 4  # times as many, where the fall asked for may be a small one
# What these phases cost where half-way is asked of shares: at most, and for each row where there are few.
FIRST, FIRST_OF_ROW = 8 * BRACKET_ROWS + 7 * LOCATE_ROWS * LOCATE_DRAWS, MORE * (8 + 7 * LOCATE_DRAWS)
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
    measured: tuple[float, ...] = ()  # levels of the last measurement that were looked at most
    dip: float = math.nan  # the level at which accuracy was lowest
    far: float = math.nan  # the level that is looked at to tell whether accuracy falls half-way at all
    want: int = 0  # row-draws of the next measurement; of chips: draws
    next_draw: int = field(init=False)  # those before are the bracket's and the locator's
    evaluations: int = 0
    found: Midpoint | None = None

    def __post_init__(self) -> None:
        self.total = len(self.aim.clean)
        self.next_draw = FIRST_CHIPS if self.chips else LOCATE_DRAWS * MORE
        self.target = self.aim.target
        # A power of the level is no parabola: what that errs by grows with the cube of the window.
        self.window = WINDOW if self.aim.usual else min(WINDOW, (0.1 * self.rel_ci) ** (1 / 3))
        self.looks = Looks(self.aim, self.chips)

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
            return [self._first(self._bracket_levels(), BRACKET_ROWS, 1)]
        if self.phase == "locate":
            low, high = self._bracket
            levels = np.exp(np.linspace(math.log(low), math.log(high), 7))
            return [self._first(levels, LOCATE_CHIP_ROWS if self.chips else LOCATE_ROWS, LOCATE_DRAWS)]
        if self.phase == "far":
            return self._sampled(sorted({self.dip, self.far}), PILOT_CHIPS if self.chips else self._pilot)
        levels = self.centre * np.exp(np.linspace(-self.window, self.window, 3))
        return self._sampled(levels, self.want) if self.chips else self._around(levels.tolist())

    def _around(self, levels: Sequence[float]) -> list[Request]:
        """A measurement as large as wanted or still allowed."""
        one, want = self._asked((), (self.next_draw,), self.total), self.want
        rows, beside = (self.aim.rows_for(count, FEWEST_MEASURED) for count in (LEAST_ROWS, LEAST))
        if self.aim.whole:  # and what it varies by is seen in draws
            rows, want = self.total, max(want, self.total + FEWEST_MEASURED)
        asked = around(one, levels, want, rows, beside)
        while sum(r.cells for r in asked) > self.most - self.evaluations and want > 1:
            want = want * 9 // 10
            asked = around(one, levels, want, rows, beside)
        return asked

    def _sampled(self, levels: Sequence[float] | Floats, want: int) -> list[Request]:
        """Levels under new draws, as many row-draws (of chips: draws) of each as wanted or still allowed."""
        left = (self.most - self.evaluations) / len(levels)
        if self.chips:
            blocks = 1 if self.aim.whole else max(1, self.total // CHIP_ROWS)  # all rows are in one
            starts = [b * self.total // blocks for b in range(blocks + 1)]
            count = max(LEAST_CHIPS, int(min(want, left // -(-self.total // blocks))))
            draws = range(self.next_draw, self.next_draw + count)
            parts = [(b, tuple(d for d in draws if d % blocks == b)) for b in range(blocks)]
            return [self._asked(levels, ids, starts[b + 1] - starts[b], starts[b]) for b, ids in parts if ids]
        least = self.total if self.aim.whole else self.aim.rows_for(LEAST_ROWS, FEWEST_MEASURED)
        rows = min(self.total, max(least, math.ceil(min(want, left - 1) / 2)))
        count = max(2, int(min(math.ceil(want / rows), left // rows)))
        return [self._asked(levels, tuple(range(self.next_draw, self.next_draw + count)), rows)]

    def _first(self, levels: Iterable[float], rows: int, draws: int) -> Request:
        """Of the first two phases: few rows under few draws, or under more where there are fewer yet."""
        wanted = rows if self.aim.usual else self.aim.rows_for(rows * MORE, FEWEST)
        have = min(self.total, max(wanted, self.aim.fewest))
        count = FIRST_CHIPS if self.chips else min(draws * MORE, -(-wanted * draws // have))
        return self._asked(levels, tuple(range(count)), have)

    @property
    def _pilot(self) -> int:
        """Row-draws of a measurement where the curve may be flat."""
        return self.aim.rows_for(PILOT, FEWEST_MEASURED)

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
        self.evaluations += sum(request.cells for request in requests)
        numbers = [self.aim.numbers(answer) for answer in answers]
        some = len(requests) if self.chips else 1  # of a measurement, where all levels were looked at
        self.looks.take(requests[:some], numbers[:some])
        if self.phase == "measure":
            self._learn_measurement(requests, numbers)
        elif self.phase == "locate":
            self._learn_location(requests[0], numbers[0])
        elif self.phase == "far":
            self._learn_far(requests)
        else:
            self._learn_bracket(requests[0], numbers[0])

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
            all_seen = not self.aim.whole or request.rows == self.total
            if all_seen and self._surely(min(self.known.values()) - target, answer):
                self._give_up("none", levels[-1])
            else:
                self._look_far(levels[-1])
        elif not above[0] and levels[0] / self.scale <= LOWEST:
            self._give_up("below", levels[0])

    def _saturated(self, answer: Answer) -> bool:
        """Whether the noise moves predictions, and no more so with its level."""
        moved = answer[0] - self.aim.part(0, answer.shape[2])
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
        ends = self.looks.ends(self.confidence)
        if all(ends[v][0] > self.target for v in (self.dip, self.far, *self.measured)):
            self._give_up("none", self.far)
        elif math.isfinite(self.centre) and (ends[self.far][0] > self.target or ends[self.far][1] < self.target):
            self.phase = "measure"
        else:
            self._leave_open()

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
        z, count = quantile(self.confidence, 1), len(request.draws)
        if self.chips:
            self.want = needed_row_draws(z, variance, self.rel_ci * self.slope)
        else:
            with np.errstate(invalid="ignore"):  # numbers without end have no variance
                within = min(variance, float(answer[near[:2]].var(1, ddof=1).mean()))
            steep = self._steepness(t, self.aim.near(smooth), falls[0])
            error, skewed = self.rel_ci * steep / z, not self.aim.usual
            self.want = needed(within, variance - within, error, self.total, skewed=skewed)
        variance /= count if self.chips else request.rows
        surely = SURE * math.sqrt(variance / float(t[near].var() * len(near)))
        self.flat = -self.slope < max(FLAT * self.aim.unit, surely)
        if self.flat:
            self.want = min(self.want, PILOT_CHIPS if self.chips else self._pilot)
        self.phase = "measure"

    def _steepness(self, t: Floats, mean: Floats, root: float) -> float:
        """Of the curve at its fall: the two levels around it are close, and err; four err less, but are far off."""
        i = int(np.clip(np.searchsorted(t, root), 1, len(t) - 1))
        return max(-self.slope, (-self.slope + float(mean[i - 1] - mean[i]) / float(t[i] - t[i - 1])) / 2)

    def _learn_measurement(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        self.measurement += 1
        self.measured = requests[0].levels if self.chips else requests[0].levels[1:2]  # those beside it on few rows
        draws = {draw for r in requests for draw in r.draws}
        self.next_draw += len(draws)
        z = quantile(self.confidence, self.measurement)
        if self.chips:  # whose variance is estimated from few
            z = t_for(z, len(draws) - 1)
        elif self.aim.whole:
            z = t_for(z, self.total * (len(draws) - 1))
        fall, samples = self._fall(requests, answers)
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

    def _fall(self, requests: Sequence[Request], answers: Sequence[Answer]) -> tuple[Fall, int]:
        """Of a measurement, and from how many row-draws of the middle (of chips: draws)."""
        skewed, clean, known = not self.aim.usual, self.aim.clean, all(np.isfinite(a).all() for a in answers)
        if self.chips:
            x = np.log(np.array(requests[0].levels) / self.centre)
            parts = [clean[r.start : r.end] for r in requests]
            fall = fall_of_chips(x, self.target, clean, parts, answers, skewed=skewed) if known else Fall(False, None)
            return fall, sum(len(r.draws) for r in requests)
        got = measured(requests, answers)
        every = got.first.size + got.rest.size
        if not known:
            return Fall(False, None), every
        size = every if got.rows == self.total else got.rows
        mean = float(got.middle.mean()) - self.looks.off(0, got.rows)
        self.looks.keep(requests[0].levels[1], mean, size, self.aim.variance(answers[0][1:2]))
        return fall_of_rows(self.window, self.target, clean, got, skewed=skewed), every

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
            self.dip = self.looks.lowest

    def described(self) -> dict[str, Any]:
        """What was found, as JSON can hold it."""
        assert self.found is not None
        return described(self.found)

    def stand(self) -> Request:
        """Settles that no level moves anything; what need not be evaluated for that."""
        self._give_up("none", LARGEST)
        return self._asked([LARGEST], (0,), self.total)

    def _give_up(self, status: Literal["none", "below"], edge: float) -> None:
        low, high = (edge, math.inf) if status == "none" else (0.0, edge)
        self._settle(math.nan, low, high, math.nan, status)

    def _leave_open(self) -> None:
        self._settle(math.nan, *self.looks.bounds(self.confidence), math.nan, "open", True)

    def _settle(
        self, level: float, low: float, high: float, steepness: float, status: Status, stopped: bool = False
    ) -> None:
        self.found = Midpoint(
            level=level, low=low, high=high, crossing=level, crossing_low=low, crossing_high=high,
            crossings=() if math.isnan(level) else self.looks.crossings(level, self.confidence),
            slope=steepness, clean=self.aim.told_clean,
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
        answers = iter(evaluate.answers([s.aim.in_rows(r) for s, requests in rounds for r in requests]))
        for search, requests in rounds:
            answered = [next(answers) for _ in requests]
            search.learn(requests, answered)
            asked += zip(map(search.aim.in_rows, requests), answered, strict=True)
        advance(sum(s.found is not None for s, _ in rounds))
