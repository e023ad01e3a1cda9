"""The search for midpoints: coverage of its intervals, what it gives up on, and that it depends on answers only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from made_curves import Flat, Made, search, seek
from scipy import stats

from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import NAN


def test_intervals_hold_the_truth() -> None:
    """Of 300 studies at least so many that true coverage of 93 % would give fewer once in a million."""
    hits, widths = 0, []
    for seed in range(300):
        made = Made(seed)
        one = search(made)
        seek([one], made)
        assert one.found is not None and one.found.status == "ok"
        hits += one.found.low <= made.midpoint() <= one.found.high
        widths.append((one.found.high - one.found.low) / 2 / one.found.level)
    assert hits >= stats.binom.ppf(1e-6, 300, 0.93)
    assert max(widths) <= 0.055  # asked for 5 % in ln(level); of the level itself that is a little more


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("centre", [-9.0, 0.3, 12.0])
def test_finds_midpoints_far_from_where_it_begins(centre: float, scale: float) -> None:
    made = Made(3, centre)
    one = search(made, scale=scale)
    seek([one], made)
    assert one.found is not None
    # Five times the half-width asked for.
    assert abs(math.log(one.found.level / made.midpoint())) < 0.25
    assert one.evaluations == made.asked


def test_precision_is_what_was_asked_for() -> None:
    costs = []
    for rel_ci in (0.2, 0.05, 0.02):
        made = Made(4)
        one = search(made, rel_ci=rel_ci)
        seek([one], made)
        assert one.found is not None and (one.found.high - one.found.low) / 2 / one.found.level <= 1.1 * rel_ci
        costs.append(one.evaluations)
    assert costs == sorted(costs)


@pytest.mark.parametrize(("value", "status"), [(0.9, "none"), (0.1, "below")])
def test_gives_up_where_there_is_no_midpoint(value: float, status: str) -> None:
    made = Flat(value)
    one = search(made)
    seek([one], made)
    assert one.found is not None and one.found.status == status and math.isnan(one.found.level)
    assert one.found.low >= 1e6 if status == "none" else one.found.high < 1e-9


def test_nan_counts_as_wrong() -> None:
    made = Made(5)

    def with_nan(requests: Sequence[Request]) -> list[Answer]:
        return [np.where(a == 0, np.int8(NAN), a) for a in made(requests)]

    one, other = search(made), search(made)
    seek([one], made)
    seek([other], with_nan)
    assert one.found == other.found


def test_sites_do_not_influence_each_other() -> None:
    """The rounds of several sites are evaluated together; each asks what it asks alone."""
    centres = (0.0, 2.0)
    together = [search(Made(7, c), which=k) for k, c in enumerate(centres)]
    made = [Made(7, c) for c in centres]

    def evaluate(requests: Sequence[Request]) -> list[Answer]:
        return [made[r.which]([r])[0] for r in requests]

    seek(together, evaluate)
    for one, centre in zip(together, centres, strict=True):
        alone = search(Made(7, centre))
        seek([alone], Made(7, centre))
        assert alone.found == one.found and alone.evaluations == one.evaluations
