"""The search on curves that saturate above half-way, come near it, or recover."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_curves import FLOOR, ROWS, Made, Plateau, search, seek


@pytest.mark.parametrize("chips", [False, True])
def test_a_curve_that_saturates_above_half_way_is_given_up_early(chips: bool) -> None:
    """Answers that no longer change with the level say so; before, the search went on to levels of 1e18."""
    for seed in range(10):
        made = Plateau(seed, 0.7)
        one = search(made, chips=chips)
        asked = seek([one], made)
        assert one.found is not None and one.found.status == "none" and one.found.low >= 1e5
        assert one.evaluations == made.asked <= (2 * 8 * 200 * 4 + 2 * 150 * 250 if chips else 2 * 8 * 200)
        assert max(r.levels[-1] for r, _ in asked) <= 1e9


def test_what_noise_does_not_move_is_no_plateau() -> None:
    """A site of a network that was trained with noise stands level 1e5 as if there were none, and then falls."""
    made = Made(3, centre=math.log(1e7), spread=0.3)
    one = search(made)
    seek([one], made)
    assert one.found is not None and one.found.low < made.midpoint() * 1.05 and one.found.high > made.midpoint() / 1.05


@pytest.mark.parametrize("rows", [48, ROWS])
@pytest.mark.parametrize("off", [-0.01, 0.0, 0.003, 0.03, 0.06])
def test_a_plateau_near_half_way_costs_little_and_is_not_taken_for_a_midpoint(off: float, rows: int) -> None:
    """On few rows it looks like a fall. Before, such a site could take 23 million evaluations, to end in "none"."""
    for seed in range(12):
        made = Plateau(seed, 0.0, rows)
        made.end = (made.clean.mean() + FLOOR) / 2 + off
        one = search(made, most=10**6)
        seek([one], made)
        assert one.found is not None and one.evaluations <= (10**6 if off < 0 else 300_000)
        if off >= 0:
            assert one.found.status in ("none", "open") and one.found.high == math.inf
        elif one.found.status == "open":
            assert one.found.low < made.midpoint() < one.found.high
        else:
            assert abs(math.log(made.midpoint() / one.found.level)) < 3 * math.log(one.found.high / one.found.level)
        if off >= 0.03:
            assert one.found.status == "none" and one.evaluations <= 150_000


class Dips(Plateau):
    """Falls below half-way and recovers: large noise at a site of a real network may do so."""

    def probability(self, level: float, rows: int = ROWS) -> Any:
        back = 1 / (1 + np.exp(-3 * (math.log(level) - 4)))
        return super().probability(level, rows) + 0.12 * back


@pytest.mark.parametrize("rows", [48, 400, ROWS])
def test_a_curve_that_recovers_is_not_said_never_to_fall(rows: int) -> None:
    for seed in range(12):
        made = Dips(seed, 0.0, rows)
        made.end = (made.clean.mean() + FLOOR) / 2 - 0.06
        one = search(made, rel_ci=0.1, most=10**6)
        seek([one], made)
        assert one.found is not None and one.found.status in ("ok", "open")
        assert one.found.status == "open" or abs(math.log(one.found.level / 2.6)) < 1
        assert one.found.low < 10
