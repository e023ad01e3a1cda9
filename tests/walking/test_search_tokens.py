"""Searches of rows that are means over many places, such as tokens: fewer rows say as much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from made_curves import SITE, Giving
from scipy import stats

from noisykernels import Ratio
from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import Real
from noisykernels.walking import search as walking_search
from noisykernels.walking.aim import Aim
from noisykernels.walking.search import SiteSearch

ROWS, POSITIONS = 400, 64
RATIO = 1.05  # of a perplexity


class MadeWindows:
    """Windows of tokens whose losses grow by ``level^2 h w``: h a token's, w one draw's, both skewed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(1)
        self.tokens = rng.gamma(0.7, 4.0, (ROWS, POSITIONS))
        self.growth = rng.gamma(1.0, 1.0, (ROWS, POSITIONS))
        self.clean = self.tokens.mean(1)
        self.seed = seed

    def tolerance(self) -> float:
        return math.sqrt(math.log(RATIO) / float(self.growth.mean()))

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for r in requests:
            answer = np.zeros((len(r.levels), len(r.draws), r.rows), np.float32)
            for j, draw in enumerate(r.draws):
                w = np.exp(np.random.default_rng((self.seed, draw)).standard_normal(self.growth.shape) - 0.5)
                grown = (self.growth * w).mean(1)[r.start : r.end]
                for i, level in enumerate(r.levels):
                    answer[i, j] = self.clean[r.start : r.end] + level**2 * grown
            answers.append(answer)
        return answers


def searched(seed: int, positions: int) -> SiteSearch:
    made = MadeWindows(seed)
    aim = Aim(
        Real(), made.clean, None, Ratio(RATIO), higher_is_better=False, value=np.exp, said=("walk", "perplexity"),
        positions=positions,
    )  # fmt: skip
    one = SiteSearch(SITE, 1.0, aim, 0.05)
    walking_search.seek([one], Giving(made))
    return one


def test_intervals_hold_the_truth_for_a_few_passes() -> None:
    """So many of 40 that true coverage of 93 % would give fewer once in ten thousand."""
    hits, costs = 0, []
    for seed in range(40):
        one = searched(seed, POSITIONS)
        assert one.found is not None and one.found.status == "ok"
        hits += one.found.low <= MadeWindows(seed).tolerance() <= one.found.high
        assert one.found.high / one.found.low < 1.12
        costs.append(one.evaluations / ROWS)
    assert hits >= stats.binom.ppf(1e-4, 40, 0.93)
    assert np.median(costs) < 20  # passes of all rows


def test_rows_of_one_place_are_searched_as_they_were() -> None:
    many, few = searched(0, 1), searched(0, POSITIONS)
    assert many.evaluations > 3 * few.evaluations
    assert many.found is not None and few.found is not None
    assert few.found.low < many.found.high and many.found.low < few.found.high


@pytest.mark.parametrize(("rows", "least", "positions", "wanted"), [
    (800, 8, 1, 800), (800, 8, 64, 13), (800, 8, 1000, 8), (400, 32, 64, 32), (5, 8, 1, 5), (5, 8, 64, 5),
])  # fmt: skip
def test_rows_that_say_as_much(rows: int, least: int, positions: int, wanted: int) -> None:
    assert (
        Aim(Real(), np.ones(3), None, Ratio(2), higher_is_better=False, positions=positions).rows_for(rows, least)
        == wanted
    )
