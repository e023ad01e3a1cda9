"""Searches of other questions than half-way, and of numbers without bounds: coverage, and how far they look."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from made_curves import FLOOR, SITE, Made, MadeLoss, search_loss, seek
from scipy import optimize, stats

from noisykernels import Drop, Keep, Ratio, Value
from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import BINARY, Real
from noisykernels.stats.questions import HALF, Question
from noisykernels.walking.aim import Aim
from noisykernels.walking.search import SiteSearch

CLEAN = float(MadeLoss(0).clean.mean())
LOSSES = [
    ("skewed", Drop(0.2), 0.2, None, {}), ("heavy", Ratio(1.05), 0.05 * CLEAN, None, {}),
    ("heavy", Keep(0.99), 0.01 * (2.3 - CLEAN), 2.3, {}), ("skewed", HALF, (2.3 - CLEAN) / 2, 2.3, {}),
    ("skewed", Value(CLEAN + 5), 5.0, None, {"chip": 0.4}),
]  # fmt: skip


@pytest.mark.parametrize(("law", "asked", "depth", "floor", "more"), LOSSES, ids=lambda v: str(v))
def test_intervals_of_losses_hold_the_truth(law: str, asked: Question, depth: float, floor: float | None, more) -> None:
    """So many of 40 that true coverage of 93 % would give fewer once in ten thousand; `bench/question_coverage.py` has
    more. Nothing is spent on how large the loss is far out."""
    hits, costs = 0, []
    for seed in range(40):
        made = MadeLoss(seed, law, **more)
        one = search_loss(made, asked, floor, chips=bool(more))
        seek([one], made)
        assert one.found is not None and one.found.status == "ok" and one.found.word == asked.word
        assert one.found.at == str(asked) and one.found.target == pytest.approx(CLEAN + depth)
        hits += one.found.low <= made.tolerance(depth) <= one.found.high
        assert one.found.high / one.found.low < 1.12
        power = one.found.slope / (2 * math.log(10) if asked == HALF else 1)
        assert power == pytest.approx(2, abs=0.4)  # with which the loss grows
        costs.append(one.evaluations)
    assert hits >= stats.binom.ppf(1e-4, 40, 0.93)
    assert np.median(costs) < 400_000


@pytest.mark.parametrize("asked", [Drop(0.05), Keep(0.95), Value(0.8)], ids=str)
def test_tolerances_of_accuracies_hold_the_truth(asked: Question) -> None:
    hits = 0
    for seed in range(30):
        made = Made(seed)
        one = SiteSearch(SITE, 1.0, Aim(BINARY, made.clean, FLOOR, asked), 0.05)
        seek([one], made)
        assert one.found is not None and one.found.status == "ok"
        target = one.aim.told_target
        truth = math.exp(optimize.brentq(lambda t, m=made, y=target: m.probability(math.exp(t)).mean() - y, -30, 30))
        hits += one.found.low <= truth <= one.found.high
    assert hits >= stats.binom.ppf(1e-4, 30, 0.93)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_finds_tolerances_far_from_where_it_begins(scale: float) -> None:
    """A loss of 1e11 at the first levels looked at does not ruin it."""
    made = MadeLoss(3)
    one = search_loss(made, Drop(0.2), scale=scale)
    seek([one], made)
    assert one.found is not None and abs(math.log(one.found.level / made.tolerance(0.2))) < 0.1


def changed(made: MadeLoss, change: Callable[[np.ndarray, Request], np.ndarray]):
    """What the rows give, changed."""

    def give(requests: Sequence[Request]) -> list[Answer]:
        return [change(a, r).astype(np.float32) for a, r in zip(made(requests), requests, strict=True)]

    return give


def found(asked: Question, change: Callable[[np.ndarray, Request], np.ndarray]):
    made = MadeLoss(1)
    one = search_loss(made, asked)
    seek([one], changed(made, change))
    assert one.found is not None
    return one


def beyond(value: float) -> Callable[[np.ndarray, Request], np.ndarray]:
    """Some rows have no number from level 20 on."""
    return lambda a, r: np.where((np.array(r.levels)[:, None, None] > 20) & (np.arange(r.rows) % 100 == 7), value, a)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_without_a_number_are_beyond_every_target(value: float) -> None:
    """Where they do not matter they change nothing; a target behind them is never averaged to."""
    made, other = found(Drop(0.2), beyond(value)), found(Drop(0.2), lambda a, r: a)
    assert str(made.found) == str(other.found) and made.evaluations == other.evaluations
    far = found(Drop(1000.0), beyond(value)).found
    assert far.status == "open" and 10 < far.low < 20.0 < far.high < 30
    none = found(Drop(0.2), lambda a, r: a * value)
    assert none.found.status == "below" and none.found.high < 1e-9 and none.evaluations < 100_000


def test_losses_that_stay_below_the_target_are_told_so() -> None:
    bound = 0.05  # no more than so much is ever lost
    one = found(Drop(0.3), lambda a, r: np.minimum(a, MadeLoss(1).clean[r.start : r.end] + bound))
    assert one.found.status == "none" and one.found.low >= 1e5 and one.evaluations < 100_000
    one = found(Drop(0.01), lambda a, r: np.minimum(a, MadeLoss(1).clean[r.start : r.end] + bound))
    assert one.found.status == "ok"
    one = found(Drop(0.3), lambda a, r: np.broadcast_to(MadeLoss(1).clean[r.start : r.end], a.shape))
    assert one.found.status == "none" and one.evaluations < 100_000


def test_few_rows_are_looked_at_under_several_draws() -> None:
    made = MadeLoss(2, "heavy", rows=120)
    one = search_loss(made, Drop(0.2))
    seek([one], made)
    assert one.found is not None and one.found.status == "ok"
    assert one.found.low <= made.tolerance(0.2) <= one.found.high


@pytest.mark.parametrize(
    ("value", "higher", "asked", "target"),
    [  # a perplexity, decibels of a signal, and of an error: the mean of rows that each asks for
        (np.exp, False, Ratio(1.05), 0.2 + math.log(1.05)),
        (lambda mean: -10 * np.log10(mean), True, Drop(3.0), 0.2 * 10**0.3),
        (lambda mean: 10 * np.log10(mean), False, Drop(3.0), 0.2 * 10**0.3),
        (lambda mean: mean, False, Value(0.3), 0.3),
    ],
)
def test_a_value_that_is_made_of_the_mean(value, higher: bool, asked: Question, target: float) -> None:
    clean = np.linspace(0.1, 0.3, 11)
    aim = Aim(Real(), clean, None, asked, higher_is_better=higher, value=value)
    assert aim.sign == -1 and -aim.target == pytest.approx(target, rel=1e-9)
    assert aim.target_of(11) == pytest.approx(aim.target, rel=1e-9) and aim.target_of(3) > aim.target


def test_a_question_that_the_clean_value_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^walk: the clean loss .*at=nk.Value\(0.1\).*nk.Ratio\(1.05\) has one"):
        search_loss(MadeLoss(0), Value(0.1))
    with pytest.raises(ValueError, match=r"^walk: loss has no floor of its own"):
        search_loss(MadeLoss(0), Keep(0.9))
    with pytest.raises(ValueError, match="accuracy is never as low"):
        Aim(BINARY, np.ones(10, np.int8), 0.1, Drop(1.5))
