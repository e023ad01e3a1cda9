"""A search that may spend so much and no more: what it finds then."""

from __future__ import annotations

import math
from typing import Any

import pytest
from made_curves import Made, MadeChips, search, seek
from scipy import stats

import noisykernels as nk


def test_a_search_keeps_to_what_it_may_spend() -> None:
    """With what is known then: an interval that is honest and longer, or bounds, or nothing."""
    for most in (1, 1_000, 5_000, 8_000, 9_000, 10_000, 15_000, 20_000, 40_000):
        for chips in (False, True):
            made = MadeChips(1) if chips else Made(1, spread=1.5)
            one = search(made, chips=chips, most=most, rel_ci=0.02)
            seek([one], made)
            assert one.found is not None and one.evaluations == made.asked <= most
            assert one.found.method == "stopped" and one.found.status in ("ok", "open")
            assert one.found.low < made.midpoint() < one.found.high
            assert one.found.status == "open" or (one.found.high - one.found.low) / 2 / one.found.level > 0.02
            if most >= 20_000 and not chips:
                assert one.found.status == "ok" and one.evaluations > most / 2
            if most >= 5_000:
                assert chips or (one.found.low > 0 and one.found.high < math.inf)


def test_a_bound_that_is_not_met_changes_nothing() -> None:
    for chips in (False, True):
        found = []
        for most in (None, 10**7):
            made = MadeChips(3) if chips else Made(3)
            one = search(made, chips=chips, **({} if most is None else {"most": most}))
            seek([one], made)
            found.append((one.found, one.evaluations))
        assert found[0] == found[1]


@pytest.mark.parametrize("most", [9_000, 14_000])
def test_intervals_of_stopped_searches_hold_the_truth(most: int) -> None:
    """Half-way through the first phases, and in a measurement that is too small for what was asked."""
    hits, made = 0, Made(0)
    truth = made.midpoint()
    for seed in range(300):
        made = Made(seed)
        one = search(made, most=most, rel_ci=0.01)
        seek([one], made)
        assert one.found is not None and one.found.method == "stopped"
        hits += one.found.low <= truth <= one.found.high
    assert hits >= stats.binom.ppf(1e-6, 300, 0.93)


@pytest.mark.parametrize("most", [0, -1, 1.5, "many"])
def test_bounds_that_are_none_are_refused(most: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="Search: most must be a whole number from 1 to"):
        nk.Search(most=most)
