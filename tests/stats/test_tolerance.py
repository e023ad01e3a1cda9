"""Tolerances: crossings of any measure in either direction, their intervals by law, and what cannot be averaged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_grids import made_loss

from noisykernels.stats import Keep, Value, band, fit_tolerance
from noisykernels.stats.midpoint import described, restored

LEVELS = np.logspace(-2, 1, 13)
LOSS = 0.3 + 0.2 * LEVELS**2  # crosses 0.5 at level 1, and goes on to 20


def found(values=LOSS, levels=LEVELS, **options):
    """Of a loss with clean value 0.3 that rises by 0.2."""
    values = np.asarray(values, float)
    values = values if values.ndim == 2 else values[:, None]
    options = {"at": "drop:0.2", "clean": 0.3, "rows": 10**6, "law": "real", "higher_is_better": False,
               "spread": np.full(values.shape, 0.1)} | options  # fmt: skip
    return fit_tolerance(levels, values, **options)


def test_the_crossing_and_its_names():
    m = found()
    assert (m.status, m.word, m.at, m.target) == ("ok", "tolerance", "drop:0.2", 0.5) and math.isnan(m.floor)
    assert m.crossing == 1 and m.level == pytest.approx(1) and 0.9 < m.level < 1.1 and m.low < 1 < m.high
    assert m.slope == pytest.approx(2, abs=0.3)  # the loss grows with the square
    half = found(at="half", floor=0.7)
    assert half.word == "midpoint" and half.level == m.level  # of the curve itself: a loss is no logistic
    assert half.slope == pytest.approx(2 * m.slope * math.log(10))  # k of a logistic as steep


@pytest.mark.parametrize("count", [5, 7, 13])
def test_the_level_is_of_a_smooth_curve(count):
    """On few levels a straight line between them errs by more."""
    levels = 10 ** np.linspace(-1.04, 0.96, count)
    m = found(0.3 + 0.2 * levels**2, levels=levels)
    assert abs(math.log(m.level)) < 0.6 * abs(math.log(m.crossing)) and m.low < 1 < m.high


def test_a_better_one_turned_upside_down_is_the_same():
    """Accuracy falls, loss rises: one code."""
    up = found()
    down = found(-LOSS, clean=-0.3, higher_is_better=True, at=Value(-0.5))
    assert replace(down, at=up.at, target=up.target, clean=up.clean) == replace(up, floor=down.floor)


def test_several_questions_of_one_curve_and_keep_needs_a_floor():
    low, high = found(at=Keep(0.9), floor=2.3), found(at=Keep(0.5), floor=2.3)
    assert low.level < high.level and found(at=Keep(0.5), floor=2.3).word == "tolerance"
    with pytest.raises(ValueError, match="fit_tolerance: value has no floor of its own"):
        found(at=Keep(0.9))


def test_never_and_already():
    never, already = found(at="drop:100"), found(at="drop:1e-6")
    assert (never.status, never.low, never.high) == ("none", LEVELS[-1], math.inf) and math.isnan(never.level)
    assert (already.status, already.low) == ("below", 0.0) and already.high <= LEVELS[2]


def test_all_crossings_are_told():
    curve = [0.3, 0.6, 0.35, 0.7, 0.9]
    m = found(curve, levels=[1.0, 2.0, 3.0, 4.0, 5.0], axis="linear")
    assert len(m.crossings) == 3 and m.crossings[0] == m.crossing and list(m.crossings) == sorted(m.crossings)


def test_a_level_with_a_row_that_is_no_number_is_beyond_and_not_averaged():
    values = np.stack([LOSS, LOSS], 1)
    values[9:, 1] = np.inf  # from level 1.78 on
    m = found(values, at="drop:1.2")
    assert m.low == pytest.approx(LEVELS[8]) and m.high == pytest.approx(LEVELS[9]) and m.low < m.level < m.high
    mean, low, high = band(values, 100, law="real")
    assert np.isinf(mean[9:]).all() and np.isfinite(mean[:9]).all() and (low[9:] == np.inf).all() and (high > 0).all()
    assert found(np.where(np.isinf(values), -np.inf, values), at="drop:1.2") == m  # of whichever sign


@pytest.mark.parametrize("axis", ["log", "linear"])
def test_rising_is_turned_round(axis):
    """The measure gets better with the level, as with a saturation limit."""
    levels = np.linspace(1, 9, 9)
    curve = 0.3 + 0.2 * (5 / levels) ** 2
    m = found(curve, levels=levels, axis=axis, rising=True)
    assert m.status == "ok" and m.rising and 4.9 < m.level < 5.1 and m.low < 5 < m.high
    assert found(curve + 9, levels=levels, axis=axis, rising=True).status == "below"


def test_one_draw_without_a_spread_says_nothing():
    m = found(spread=None)
    assert (m.low, m.high) == (0.0, math.inf) and m.status == "ok"
    assert (m.crossing_low, m.crossing_high) == (0.0, math.inf)
    two = found(np.stack([LOSS, LOSS * 1.001], 1), spread=None)
    assert 0 < two.low < two.level < two.high < math.inf


def test_a_step_between_levels_is_known_no_better_than_the_levels():
    step = np.where(LEVELS < 1.2, 0.3, 2.0)
    m = found(step)
    assert m.low <= LEVELS[8] + 1e-12 and m.high >= LEVELS[9] - 1e-12
    m = found([0.3, 2.0], levels=[1.0, 2.0])
    assert (m.low, m.high) == (1.0, 2.0)


def test_binary_bands_are_wilsons():
    accuracy = np.array([[0.9, 0.9], [0.7, 0.72], [0.3, 0.32]])
    m = fit_tolerance([0.1, 1.0, 10.0], accuracy, at="keep:0.5", clean=0.9, floor=0.1, rows=200)
    _, low, high = band(accuracy, 200)
    assert (
        m.method == "rows" and (low[1] > 0.5) == (m.crossing_low == 1.0) and (high[2] <= 0.5) == (m.crossing_high == 10)
    )


def test_kept_as_json_and_back():
    for m in (found(), found(at="drop:100"), found(at="half", floor=0.7)):
        assert str(restored(described(replace(m, site="s", site_index=0)))) == str(replace(m, site="s", site_index=0))
    assert "at" not in described(found(at="half", floor=0.7))
    with pytest.raises(ValueError, match="midpoints: at must be"):
        restored(described(replace(found(), site="s", site_index=0)) | {"at": "most"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spread": [[0.1]]}, "spread must be"), ({"spread": np.full((13, 1), -1.0)}, "spread must be"),
        ({"law": "normal"}, "law must be"), ({"clean": math.nan}, "clean"), ({"at": "drop:x"}, "at must be"),
        ({"levels": [1.0]}, "levels must be 13 numbers"), ({"rows": 0}, "rows must be"),
    ],
)  # fmt: skip
def test_bad_input(change, said):
    with pytest.raises(ValueError, match=said):
        found(**change)


@pytest.mark.parametrize(("law", "draws"), [("heavy", 1), ("skewed", 2), ("shared", 4)])
def test_intervals_hold_the_truth(law, draws):
    """At least 93 %: of 60 studies 52 would be two and a half sigma below."""
    both = [made_loss(law, draws, seed) for seed in range(60)]
    assert sum(m.low <= truth <= m.high for m, truth in both) >= 52
    assert sum(m.crossing_low <= truth <= m.crossing_high for m, truth in both) >= 55
