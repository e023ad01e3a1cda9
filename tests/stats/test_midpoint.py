"""Midpoints: the fit is the optimum, intervals cover, crossings are found, nothing is silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from noisykernels.stats import Midpoint, band, fit_midpoint, wilson
from noisykernels.stats.curve import DRAWS_FOR_BOOTSTRAP, crossings, replicates

CLEAN, FLOOR = 0.9, 0.1
LEVELS = np.logspace(-2, 2, 9)


def logistic(t: np.ndarray, mid: float, k: float, lo: float = FLOOR) -> np.ndarray:
    """The curve that the fit assumes."""
    return lo + (CLEAN - lo) / (1 + np.exp(k * (t - mid)))


def fitted(levels, curve, **options) -> Midpoint:
    """fit_midpoint of one noiseless curve [level], or of [level, draw]."""
    curve = np.asarray(curve, float)
    options = {"clean": CLEAN, "floor": FLOOR, "rows": 2000} | options
    return fit_midpoint(levels, curve if curve.ndim == 2 else curve[:, None], **options)


# The fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [FLOOR, None])
@pytest.mark.parametrize("k", [2.0, 5.0, 9.0])
def test_noiseless_logistic_is_recovered(floor, k):
    t = np.linspace(-3, 3, 25)
    m = fitted(10**t, logistic(t, 0.3, k), floor=floor)
    assert m.status == "ok"
    # the window ends 1e-5 of a grid step (1/4 of the gap 0.25) from the optimum; 30-fold margin
    assert math.log10(m.level) == pytest.approx(0.3, abs=2e-5)
    assert m.slope == pytest.approx(k, rel=1e-3) and m.floor == pytest.approx(FLOOR, abs=1e-3)


@pytest.mark.parametrize("free", [False, True])
def test_fit_is_the_weighted_least_squares_optimum(free):
    """An independent solver, started at our answer and far from it, finds nothing better."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        t = np.log10(LEVELS)
        acc = rng.binomial(300, logistic(t, rng.uniform(-1, 1), rng.uniform(3, 9)))[:, None] / 300
        m = fitted(LEVELS, acc, floor=None if free else FLOOR, rows=300)
        guess = (acc[:, 0] * 300 + 2) / 304
        root = np.sqrt(300 / (guess * (1 - guess)))

        def residual(v, t=t, acc=acc, root=root):
            lo = v[2] if free else FLOOR
            return root * (acc[:, 0] - lo - (CLEAN - lo) / (1 + np.exp(v[1] * (t - v[0]))))

        ours = [math.log10(m.level), m.slope, m.floor][: 3 if free else 2]
        cost = 0.5 * (residual(ours) ** 2).sum()
        for start in (ours, [0.0, 4.0, 0.2][: len(ours)]):
            best = optimize.least_squares(residual, start, xtol=1e-14, ftol=1e-14, gtol=1e-14)
            assert cost <= best.cost * (1 + 1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-6, 1e6), st.floats(-1, 1), st.sampled_from(["log", "linear"]),
       st.sampled_from([1, 6]), st.sampled_from([FLOOR, None]), st.integers(0, 99))  # fmt: skip
def test_scaling_the_levels_scales_the_midpoint(factor, mid, axis, draws, floor, seed):
    rng = np.random.default_rng(seed)
    levels = LEVELS if axis == "log" else np.linspace(0, 2, 9)
    t = np.log10(levels) if axis == "log" else levels - 1
    acc = rng.binomial(500, logistic(t, 0.5 * mid, 5.0)[:, None], (9, draws)) / 500
    a = fitted(levels, acc, axis=axis, floor=floor, rows=500)
    b = fitted(levels * factor, acc, axis=axis, floor=floor, rows=500)
    assert a.status == b.status == "ok"
    for name in ("level", "low", "high", "crossing", "crossing_low", "crossing_high"):
        # rounding of log10 at 1e-6 moves t by 1e-15; the window ends 1e-5 of 1/4 gap away
        assert getattr(b, name) == pytest.approx(factor * getattr(a, name), rel=2e-5), name


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(9)), st.permutations(range(3)))
def test_order_of_levels_and_draws_does_not_matter(levels, draws):
    rng = np.random.default_rng(0)
    acc = rng.binomial(500, logistic(np.log10(LEVELS), 0.2, 5.0)[:, None], (9, 3)) / 500
    a, b = fitted(LEVELS, acc), fitted(LEVELS[levels], acc[levels][:, draws])
    assert a.level == pytest.approx(b.level, rel=1e-6) and a.low == pytest.approx(b.low, rel=1e-6)


# Intervals ----------------------------------------------------------------------------------------


def simulated(rng, t, mid, k, rows, draws, how, lo=FLOOR):
    """Accuracies [level, draw] of a study whose true midpoint is mid.

    how: "common": a row's noise is the same at all levels, so the counts of levels move together
    (the hardest case for an interval); "mixed": so, and rows differ in difficulty (most like a
    network); "apart": levels independent; "shared": all rows of a draw share their noise.
    """
    if how == "shared":
        p = np.stack([logistic(t, mid + e, k, lo) for e in rng.normal(0, 0.08, draws)], 1)
        return rng.binomial(rows, p) / rows
    p = logistic(t, mid, k, lo)
    if how == "apart":
        return rng.binomial(rows, p[:, None], (len(t), draws)) / rows
    hard = 0.8 if how == "mixed" else 0.0
    z = stats.norm.ppf((np.arange(rows) + 0.5) / rows)
    u = stats.norm.cdf(hard * z + math.sqrt(1 - hard**2) * rng.standard_normal((draws, rows)))
    return (u[None] < p[:, None, None]).mean(-1)


FALSE_ALARM = 1e-4  # per coverage test below, were the coverage exactly 95 %


@pytest.mark.parametrize("floor", [FLOOR, None])
@pytest.mark.parametrize(
    ("how", "draws", "method", "studies"),
    [("common", 1, "rows", 120), ("common", 3, "rows", 120), ("apart", 3, "rows", 120),
     ("mixed", 3, "rows", 120), ("common", 5, "draws", 40), ("mixed", 8, "draws", 40),
     ("shared", 3, "draws", 40)],
)  # fmt: skip
def test_interval_covers_the_true_midpoint(how, draws, method, studies, floor):
    """Misses among many studies stay below the exact binomial bound for 5 %."""
    rng, t = np.random.default_rng(1), np.log10(LEVELS)
    missed, missed_crossing, errors, widths = 0, 0, [], []
    # A late fall shows little of the floor: the hard case when the floor is fitted.
    where = (0.8, 1.3) if floor is None and method == "rows" else (-0.8, 0.8)
    for _ in range(studies):
        mid = rng.uniform(*where)
        acc = simulated(rng, t, mid, 5.0, 400, draws, how)
        m = fitted(LEVELS, acc, rows=400, floor=floor, independent_rows=how != "shared")
        assert (m.status, m.method) == ("ok", method)
        assert m.low <= m.level <= m.high and m.crossing_low <= m.crossing <= m.crossing_high
        missed += not m.low <= 10**mid <= m.high
        missed_crossing += not m.crossing_low <= 10**mid <= m.crossing_high
        errors.append(math.log10(m.level) - mid)
        widths.append(math.log10(m.high / m.low))
    bound = stats.binom.ppf(1 - FALSE_ALARM, studies, 0.05)
    assert missed <= bound and missed_crossing <= bound
    # Nor safe by being useless: as wide as the errors ask for, about twice that for "rows", which
    # assumes any dependence of levels and rows as random as coins. `sure` <= sd found / true sd.
    sure = math.sqrt(stats.chi2.ppf(FALSE_ALARM, studies - 1) / (studies - 1))
    need = 2 * np.std(errors) * (1.96 if method == "rows" else stats.t.ppf(0.975, draws - 1))
    assert np.median(widths) < (2.2 if method == "rows" else 1.1) * need / sure


def test_interval_of_an_unresolved_step_is_the_gap():
    """No level within the fall: the midpoint may be anywhere between the two levels."""
    m = fitted([0.1, 1.0, 10.0, 100.0], [0.9, 0.9, 0.1, 0.1], rows=10**6)
    assert m.status == "ok" and (m.low, m.high) == (1.0, 10.0)
    assert (m.crossing_low, m.crossing_high) == (1.0, 10.0)


def test_bootstrap_is_a_function_of_its_seed():
    rng = np.random.default_rng(0)
    acc = rng.binomial(400, logistic(np.log10(LEVELS), 0.1, 5.0)[:, None], (9, 6)) / 400
    a, b, c = (fitted(LEVELS, acc, seed=s) for s in (0, 0, 1))
    assert a == b and a.method == "draws"
    assert a.level == c.level and a.low != c.low
    assert a.low == pytest.approx(c.low, rel=0.05)


@pytest.mark.parametrize("draws", [2, 3, 8])
def test_bootstrap_spreads_like_the_t_interval(draws):
    """Replicates of one level's mean: standard deviation s / sqrt(draws), times t / z."""
    acc = np.random.default_rng(4).uniform(0.4, 0.42, (1, draws))
    curves = replicates(acc, acc.mean(1), np.full_like(acc, 100), 0.95, seed=0)
    half = stats.t.ppf(0.975, draws - 1) * acc.std(ddof=1) / math.sqrt(draws)
    # the relative error of a standard deviation from 499 values is 3.2 %: four of them
    assert curves.std() == pytest.approx(half / stats.norm.ppf(0.975), rel=0.13)
    assert curves.mean() == pytest.approx(acc.mean(), abs=4 * curves.std() / math.sqrt(499))


def test_more_rows_and_more_confidence():
    curve = logistic(np.log10(LEVELS), 0.2, 5.0)
    few, many, sure = (fitted(LEVELS, curve, rows=n, confidence=c)
                       for n, c in ((200, 0.95), (20000, 0.95), (200, 0.999)))  # fmt: skip
    assert few.low < many.low < many.level < many.high < few.high
    assert sure.low < few.low and few.high < sure.high


def test_bands():
    assert wilson(0, 50)[0] == 0.0 and wilson(50, 50)[1] == 1.0
    for k in (0, 1, 25, 50):
        other = stats.binomtest(k, 50).proportion_ci(0.95, method="wilson")
        assert wilson(k, 50) == pytest.approx((other.low, other.high), abs=1e-12)
    acc = np.array([[0.5, 0.6, 0.7], [0.5, 0.5, 0.5]])
    mean, low, high = band(acc, 1000)
    assert np.allclose((low, high), wilson(mean * 3000, 3000), rtol=1e-12, atol=0)
    mean, low, high = band(acc, 1000, independent_rows=False)
    half = stats.t.ppf(0.975, 2) * acc[0].std(ddof=1) / math.sqrt(3)
    assert high[0] - mean[0] == pytest.approx(half) == mean[0] - low[0]
    assert (low[1], high[1]) == pytest.approx(wilson(1500, 3000))  # agreeing draws: no collapse
    mean, low, high = band([[0.5, np.nan], [np.nan, np.nan]], 100)
    assert (low[0], high[0]) == pytest.approx(wilson(50, 100)) and np.isnan([mean[1], low[1]]).all()


# Crossings and degenerate curves ------------------------------------------------------------------


def test_crossings_by_hand():
    assert crossings([0, 1], [1, 0], 0.25) == [(0.75, True)]
    found = crossings([0, 1, 2, 4], [0.9, 0.3, 0.7, 0.1], 0.5)
    assert [x for x, _ in found] == pytest.approx([2 / 3, 1.5, 2 + 2 / 3])
    assert [down for _, down in found] == [True, False, True]
    assert crossings([0, 1, 2], [0.9, 0.8, 0.7], 0.5) == []
    assert crossings([0, 1, 2], [0.0, 0.25, 0.75], 0.5) == [(1.5, False)]
    assert crossings([0, 1, 2], [0.9, 0.5, 0.9], 0.5) == [(1.0, True), (1.0, False)]


def test_non_monotone_curve_lists_every_crossing():
    m = fitted([1.0, 10.0, 100.0, 1000.0], [0.9, 0.3, 0.7, 0.1])
    assert m.status == "ok" and m.crossing == m.crossings[0]
    # by hand: 0.5 is 2/3 of the way from 0.9 to 0.3, 1/2 from 0.3 to 0.7, 1/3 from 0.7 to 0.1
    assert np.log10(m.crossings) == pytest.approx([2 / 3, 1.5, 2 + 1 / 3])


DEGENERATE = {
    "flat": ([1, 2, 3], [0.9, 0.9, 0.9], "none", 3.0),
    "flat noisy": ([1, 2, 3], [0.895, 0.903, 0.897], "none", 3.0),
    "rising": ([1, 2, 3], [0.9, 0.95, 0.99], "none", 3.0),
    "not far enough": ([1, 2, 3, 4], [0.9, 0.9, 0.8, 0.6], "none", 4.0),
    "one level": ([2], [0.9], "none", 2.0),
    "one level, fallen": ([2], [0.2], "below", 2.0),
    "fallen from the start": ([1, 2, 3], [0.3, 0.1, 0.1], "below", 1.0),
    "all at the floor": ([1, 2, 3], [0.1, 0.1, 0.1], "below", 1.0),
    "all wrong": ([1, 2, 3], [0.0, 0.0, 0.0], "below", 1.0),
    "fallen, then rising": ([1, 2, 3], [0.2, 0.5, 0.9], "below", 1.0),
}


@pytest.mark.parametrize("draws", [1, 2, 6])
@pytest.mark.parametrize("axis", ["log", "linear"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_curves_without_a_midpoint(name, axis, draws):
    levels, curve, status, bound = DEGENERATE[name]
    m = fitted(levels, np.tile(np.array(curve)[:, None], draws), axis=axis)
    assert m.status == status and math.isnan(m.level) and math.isnan(m.crossing)
    expected = (bound, math.inf) if status == "none" else (0.0, bound)
    assert (m.low, m.high) == (m.crossing_low, m.crossing_high) == expected


@pytest.mark.parametrize("floor", [FLOOR, None])
@pytest.mark.parametrize("draws", [1, 2, 6])
@pytest.mark.parametrize("axis", ["log", "linear"])
def test_any_legal_curve_gives_a_labelled_answer(axis, draws, floor):
    """Random curves of 1 to 6 levels: no exception, no warning, numbers where the label says so."""
    rng = np.random.default_rng(0)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(30):
            count = rng.integers(1, 7)
            levels = np.sort(rng.choice([0.0, 1e-4, 0.1, 1.0, 2.0, 7.0, 1e3, 1e16], count, False))
            if axis == "log" and levels.max() == 0:
                continue
            acc = rng.choice([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], (count, draws))
            m = fitted(levels, acc, axis=axis, floor=floor, rows=int(rng.choice([1, 7, 10000])))
            assert not math.isnan(m.low) and not math.isnan(m.high) and 0 <= m.floor <= CLEAN + 0.1
            if m.status == "ok":
                assert m.low <= m.level <= m.high
                assert m.crossing_low <= m.crossing <= m.crossing_high
            else:
                assert math.isnan(m.level) and (m.high == math.inf or m.low == 0)


def test_borderline_interval_is_open():
    """The mean just falls half-way, but the band does not: no upper bound."""
    m = fitted([1, 2, 3, 4], [0.9, 0.85, 0.7, 0.495], rows=500)
    assert m.status == "ok" and m.high == m.crossing_high == math.inf and 3 < m.crossing < 4
    m = fitted([1, 2, 3, 4], [0.505, 0.3, 0.1, 0.1], rows=500)
    assert m.status == "ok" and m.low == m.crossing_low == 0.0


def test_plateau_above_the_floor():
    """A curve that settles at 0.6: half-way to chance is never reached, half-way to 0.6 is."""
    t = np.linspace(-2, 2, 17)
    curve = logistic(t, 0.0, 6.0, lo=0.6)
    assert fitted(10**t, curve).status == "none"
    free = fitted(10**t, curve, floor=None)
    assert free.status == "ok" and free.floor == pytest.approx(0.6, abs=1e-3)
    assert free.level == pytest.approx(1.0, rel=1e-3) and free.crossing == pytest.approx(1.0, rel=0.02)
    assert fitted(10**t, curve, floor=0.55).floor == 0.55


def test_free_floor_needs_a_real_fall():
    rng = np.random.default_rng(0)
    for _ in range(50):
        acc = rng.binomial(2000, 0.9, (13, 3)) / 2000
        m = fitted(np.logspace(-2, 4, 13), acc, floor=None)
        assert m.status == "none" and m.low == 1e4 and m.crossings == ()


def test_level_zero_and_missing_cells():
    curve = logistic(np.log10(LEVELS), 0.2, 5.0)[:, None] * [1, 1]
    a = fitted(LEVELS, curve)
    assert fitted([0.0, *LEVELS], np.vstack([[CLEAN, CLEAN], curve])) == a  # log axis: left out
    hole = np.vstack([curve, [[math.nan, math.nan]]])
    assert fitted([*LEVELS, 1e9], hole) == a
    hole = curve.copy()
    hole[3, 1] = math.nan
    assert fitted(LEVELS, hole).level == pytest.approx(a.level, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"clean": 0.1}, "no better than its floor"), ({"clean": 0.05}, "no better than its floor"),
     ({"clean": 0.0, "floor": None}, "clean"), ({"clean": math.nan}, "clean"),
     ({"floor": math.nan}, "floor"), ({"axis": "ln"}, "axis"), ({"confidence": 1.0}, "confidence"),
     ({"rows": 0}, "rows"), ({"levels": [1, 1]}, "levels must differ from each other, got"),
     ({"levels": [-1, 1]}, "levels must be finite and not negative, got"),
     ({"levels": [1000.0, np.nextafter(1000.0, 2000.0)]}, "differ on a log axis, got 1000.0 and 1000.0000000000001"),
     ({"levels": [1, math.inf]}, "finite"), ({"levels": [1, 2, 3]}, "shape"),
     ({"accuracy": [[0.5], [1.5]]}, "accuracy must be from 0 to 1"), ({"accuracy": [0.5, 0.2]}, r"\[level, draw\]"),
     ({"accuracy": [[math.nan], [math.nan]]}, "levels must hold one on a log axis that was evaluated")],
)  # fmt: skip
def test_errors_say_what_is_wrong(change, text):
    good = {"levels": [1, 2], "accuracy": [[0.9], [0.2]], "clean": 0.9, "floor": 0.1, "rows": 10}
    assert fit_midpoint(**good).status == "ok"
    with pytest.raises(ValueError, match=text):
        fit_midpoint(**(good | change))


def test_levels_that_only_a_linear_axis_tells_apart():
    levels = [0.0, 1000.0, np.nextafter(1000.0, 2000.0)]
    assert fit_midpoint(levels, [[0.9], [0.9], [0.2]], clean=0.9, floor=0.1, rows=10, axis="linear").slope > 0


def test_switch_between_the_two_intervals():
    acc = np.tile(logistic(np.log10(LEVELS), 0, 5.0)[:, None], DRAWS_FOR_BOOTSTRAP)
    acc = acc + np.linspace(-0.01, 0.01, acc.shape[1])
    acc = acc.clip(0, 1)
    assert fitted(LEVELS, acc).method == "draws" and fitted(LEVELS, acc[:, 1:]).method == "rows"
    assert fitted(LEVELS, acc[:, :2], independent_rows=False).method == "draws"
    assert fitted(LEVELS, acc[:, :1], independent_rows=False).method == "rows"


@pytest.mark.parametrize(("correct", "rows", "text"), [
    (5, 0, "rows"), (-5, 10, "correct"), (20, 10, "correct must be numbers from 0 to rows, got 20 of 10"),
    (1, -10, "rows"), ([1, 11], [10, 10], "correct"), (5, math.nan, "rows"), (5, math.inf, "rows"), (0.2, 0.5, "rows"),
])  # fmt: skip
def test_counts_that_cannot_be(correct, rows, text):
    with pytest.raises(ValueError, match=text):
        wilson(correct, rows)
    assert np.isnan(wilson([math.nan, 5], 10)[0]).tolist() == [True, False]  # no count stays none


@pytest.mark.parametrize(("accuracy", "rows", "text"), [
    ([[2.0]], [[10]], "accuracy"), ([[-0.1, 0.5]], 10, "accuracy"), ([[0.5]], 0, "rows"), ([[0.5]], [[0.5]], "rows"),
])  # fmt: skip
def test_curves_that_cannot_be(accuracy, rows, text):
    with pytest.raises(ValueError, match=text):
        band(accuracy, rows)
