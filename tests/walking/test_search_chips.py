"""The search over chips: its intervals hold the truth where rows share their noise, and its blocks are all rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from made_curves import Flat, MadeChips, search, seek
from scipy import stats

from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import NAN


def hits_of(chips: bool, rows: int, chip: float, studies: int) -> int:
    """In how many studies the interval holds the truth; each as narrow as asked for."""
    truth, hits = MadeChips(0, rows, chip).midpoint(), 0
    for seed in range(studies):
        made = MadeChips(seed, rows, chip)
        one = search(made, chips=chips)
        asked = seek([one], made)
        assert one.found is not None and one.found.status == "ok" and one.evaluations == made.asked
        hits += one.found.low <= truth <= one.found.high
        if chips:
            assert (one.found.high - one.found.low) / 2 / one.found.level <= 0.055
            last = [r for r, _ in asked if r.levels == asked[-1][0].levels]
            draws = [d for r in last for d in r.draws]
            assert len(set(draws)) == len(draws) >= 8 and all(r.rows >= min(rows, 250) for r in last)
    return hits


@pytest.mark.parametrize("rows", [120, 490, 1500])
@pytest.mark.parametrize("chip", [0.05, 0.2])
def test_intervals_over_chips_hold_the_truth(chip: float, rows: int) -> None:
    """Of 60 studies at least so many that true coverage of 93 % would give fewer once in a million. 490 rows: those
    beyond the first 250 must be seen too."""
    assert hits_of(True, rows, chip, 60) >= stats.binom.ppf(1e-6, 60, 0.93)


def test_intervals_over_rows_do_not_where_rows_share_their_noise() -> None:
    """The same law, each row taken for itself: so the test above can fail."""
    assert hits_of(False, 1500, 0.2, 60) < stats.binom.ppf(1e-6, 60, 0.93)


def test_blocks_of_chips_are_all_rows_and_their_draws_are_new() -> None:
    for rows in (90, 250, 499, 500, 777, 5000):
        made = MadeChips(2, rows)
        one = search(made, chips=True)
        one.centre, one.want, one.phase = 1.0, 60, "measure"
        requests = one.requests()
        ends = [(r.start, r.end) for r in requests]
        assert ends[0][0] == 0 and ends[-1][1] == rows and all(a[1] == b[0] for a, b in itertools.pairwise(ends))
        assert sorted(d for r in requests for d in r.draws) == list(range(4, 64))  # 0 to 3 were the first phases'
        assert {len(r.draws) for r in requests} <= {60 // len(requests), 60 // len(requests) + 1}
        one.learn(requests, made(requests))
        assert min(d for r in one.requests() for d in r.draws) == 64 or one.found is not None


def test_chips_that_are_nan_or_all_alike() -> None:
    made = MadeChips(5)

    def with_nan(requests: Sequence[Request]) -> list[Answer]:
        return [np.where(a == 0, np.int8(NAN), a) for a in made(requests)]

    one, other = search(made, chips=True), search(made, chips=True)
    seek([one], made)
    seek([other], with_nan)
    assert one.found == other.found
    for value, status in ((0.9, "none"), (0.1, "below")):
        flat = Flat(value)
        one = search(flat, chips=True)
        seek([one], flat)
        assert one.found is not None and one.found.status == status
