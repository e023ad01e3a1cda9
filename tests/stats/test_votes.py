"""Votes: every count against all subsets listed, estimates without bias."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisykernels.stats import VoteCurve, executions_needed, majority, mean_scores
from noisykernels.stats.votes import subsets_of

# ------------------------------------------------------------------------------------------- oracles


def listed_majority(predictions, labels, classes, n) -> float:
    """Every subset of n draws, every row."""
    total = []
    for subset in itertools.combinations(range(len(predictions)), n):
        for row, label in enumerate(labels):
            votes = [sum(int(predictions[d][row] == c) for d in subset) for c in range(classes)]
            top = [c for c in range(classes) if votes[c] == max(votes) > 0]
            total.append((label in top) / max(len(top), 1))
    return math.fsum(total) / len(total)


def listed_mean(scores, labels, subsets, kind) -> np.ndarray:
    """Hit of each subset and row: [subsets, rows]."""
    scores = np.asarray(scores, np.float64)
    if kind == "probability":
        scores = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    out = []
    for subset in subsets:
        mean = [np.mean([scores[d, r] for d in subset], 0) for r in range(len(labels))]
        out.append([(m[y] == m.max()) / (m == m.max()).sum() for m, y in zip(mean, labels, strict=True)])
    return np.array(out)


# ----------------------------------------------------------------------------------------- majorities


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_majority_equals_all_subsets(data) -> None:
    draws, rows, classes = (data.draw(st.integers(1, most)) for most in (7, 4, 5))
    line = st.lists(st.integers(-1, classes - 1), min_size=rows, max_size=rows)
    predictions = data.draw(st.lists(line, min_size=draws, max_size=draws))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    expected = [listed_majority(predictions, labels, classes, n) for n in range(1, draws + 1)]
    assert majority(predictions, labels, classes) == pytest.approx(expected, abs=1e-13)


def test_majority_of_more_draws_equals_all_subsets() -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 3, (12, 3)), [0, 1, 2]
    found = majority(predictions, labels, 3)
    for n in (2, 5, 6, 9, 12):
        assert found[n - 1] == pytest.approx(listed_majority(predictions, labels, 3, n), abs=1e-13)


@pytest.mark.parametrize("draws", [50, 56, 301])
def test_two_classes_follow_the_hypergeometric_law(draws) -> None:
    """float64 holds the counts exactly up to 56 draws; beyond, relative rounding adds up to some 1e-13."""
    for right in (0, draws // 3, draws // 2, draws - 1, draws):
        predictions = [[0]] * right + [[1]] * (draws - right)
        n = np.arange(1, draws + 1)
        law = stats.hypergeom(draws, right, n)
        expected = law.sf(n // 2) + np.where(n % 2 == 0, law.pmf(n // 2) / 2, 0)
        assert majority(predictions, [0], 2) == pytest.approx(expected, rel=1e-9, abs=1e-12)  # scipy's own rounding


def test_full_size() -> None:
    """50 draws, 10 classes, 10,000 rows; one execution and all of them have simple answers."""
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 10, 10_000), rng.integers(0, 10, (50, 10_000))
    predictions = np.where(rng.random((50, 10_000)) < 0.3, labels, predictions)
    found = majority(predictions, labels, 10)
    counts = (predictions[:, :, None] == np.arange(10)).sum(0)
    best = counts == counts.max(1, keepdims=True)
    assert found[0] == pytest.approx((predictions == labels).mean(), abs=1e-12)
    assert found[1] == pytest.approx(found[0], abs=1e-12)  # of two that differ, one is as good as the other
    assert found[-1] == pytest.approx((best[np.arange(10_000), labels] / best.sum(1)).mean(), abs=1e-12)
    assert (np.diff(found[::2]) > 0).all() and found.shape == (50,)


def test_ties_and_edges() -> None:
    assert majority([[0], [1]], [0], 2).tolist() == [0.5, 0.5]
    assert majority([[0], [1], [2]], [0], 3) == pytest.approx([1 / 3] * 3)
    assert majority([[0], [0], [1], [1], [2]], [0], 3, n=5).tolist() == [0.5]
    assert majority([[2, 0]], [2, 1], 3).tolist() == [0.5]  # one draw
    assert majority([[0], [0]], [0], 1).tolist() == [1, 1]  # one class
    assert majority([[-1], [-1]], [0], 1).tolist() == [0, 0]  # nobody votes
    assert majority([[-1], [0], [1], [0]], [0], 2, n=[4, 1]).tolist() == [1, 0.5]
    assert majority(np.full((300, 2), 4, np.uint8), np.array([4, 3], np.int32), 5).tolist() == [0.5] * 300


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_draws_and_names_of_classes_do_not_matter(seed) -> None:
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(0, 4, (9, 20)), rng.integers(0, 4, 20)
    found, names = majority(predictions, labels, 4), rng.permutation(4)
    assert np.array_equal(majority(rng.permutation(predictions), labels, 4), found)
    assert np.array_equal(majority(names[predictions], names[labels], 4), found)


# ---------------------------------------------------------------------------------------- mean scores


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_mean_scores_equal_their_subsets_listed(kind) -> None:
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=(7, 11, 3)), rng.integers(0, 3, 11)
    found = mean_scores(scores, labels, kind=kind, subsets=9, seed=5)
    assert found.executions.tolist() == list(range(1, 8))
    for n, accuracy, error in zip(*found, strict=True):
        subsets, share = subsets_of(7, int(n), 9, 5)
        hits = listed_mean(scores, labels, subsets, kind)
        assert accuracy == pytest.approx(hits.mean(), abs=1e-12)
        a, mean = hits.mean(0), hits.mean()
        bound = math.sqrt(share * mean * (1 - mean) / 11)
        tight = math.sqrt((a * (1 - a)).sum() * share / (1 - share)) / 11 if share < 1 else math.inf
        assert error == pytest.approx(min(bound, tight), abs=1e-12)
        assert np.array_equal(mean_scores(scores, labels, int(n), kind, subsets=9, seed=5).values, [accuracy])


@pytest.mark.parametrize(
    ("draws", "n", "subsets"), [(50, 7, 20), (12, 5, 0), (12, 6, 3), (9, 8, 4), (9, 8, 20), (5, 5, 9)]
)
def test_subsets_are_blocks_then_random_partitions_or_all(draws, n, subsets) -> None:
    found, share = subsets_of(draws, n, subsets, 3)
    sets = [tuple(s.tolist()) for s in found]
    assert all(len(set(s)) == n and 0 <= min(s) <= max(s) < draws for s in sets)
    if math.comb(draws, n) <= draws // n + subsets:
        assert sets == list(itertools.combinations(range(draws), n)) and share == n / draws
        return
    k = draws // n
    assert share == 1 / k and len(sets) % k == 0 and k + subsets <= len(sets) < 2 * k + subsets
    assert sets[:k] == [tuple(range(i * n, (i + 1) * n)) for i in range(k)]
    for i in range(0, len(sets), k):
        assert len(set().union(*sets[i : i + k])) == k * n  # disjoint
    assert [s.tolist() for s in subsets_of(draws, n, subsets, 3)[0]] == [list(s) for s in sets]
    if subsets:
        assert [s.tolist() for s in subsets_of(draws, n, subsets, 4)[0]] != [list(s) for s in sets]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_random_subsets_have_the_mean_of_all(n) -> None:
    """Over 400 seeds; 6 standard errors is a false alarm in 5e8."""
    rng = np.random.default_rng(6)
    scores, labels = rng.normal(size=(8, 40, 3)), rng.integers(0, 3, 40)
    every = listed_mean(scores, labels, list(itertools.combinations(range(8), n)), "logit").mean()
    k, orders = 8 // n, -(-6 // (8 // n))
    blocks = mean_scores(scores, labels, n, subsets=0).values[0]
    found = [mean_scores(scores, labels, n, subsets=6, seed=s).values[0] for s in range(400)]
    expected = (blocks + orders * every) / (1 + orders)
    assert len(subsets_of(8, n, 6, 0)[0]) == k * (1 + orders)
    assert abs(np.mean(found) - expected) < 6 * np.std(found) / 20
    assert np.std(found) > 0


def test_without_bias_and_errors_hold() -> None:
    """Fresh noise 600 times: means hit the true accuracy, stated errors cover the spread, and not by far in the middle.

    Scores of two classes are 0 and a_r + N(0, 1): one execution is right with Phi(a_r), a mean of n with
    Phi(a_r sqrt(n)), a majority of 3 with p^2 (3 - 2 p). Tolerances: 6 standard errors of the mean; the spread of 600
    is known to 3 %, 6 of which are 18 %.
    """
    rng = np.random.default_rng(7)
    a = np.repeat([-0.4, 0.1, 0.5, 1.5], 30)
    labels, times, draws = np.ones(len(a), int), 600, 7
    truth = {n: stats.norm.cdf(a * math.sqrt(n)).mean() for n in range(1, 8)}
    p = stats.norm.cdf(a)
    found, errors, votes = [], [], []
    for i in range(times):
        scores = np.zeros((draws, len(a), 2))
        scores[:, :, 1] = a + rng.normal(size=(draws, len(a)))
        curve = mean_scores(scores, labels, subsets=4, seed=i)
        found.append(curve.values)
        errors.append(curve.error**2)
        votes.append(majority(scores.argmax(2), labels, 2, n=[1, 3]))
    found, stated = np.array(found), np.sqrt(np.mean(errors, 0))
    spread = found.std(0)
    for n in range(1, 8):
        assert abs(found[:, n - 1].mean() - truth[n]) < 6 * spread[n - 1] / math.sqrt(times)
        assert spread[n - 1] < 1.18 * stated[n - 1] < 1.18 * 2.2 * spread[n - 1]
    assert stated[0] == pytest.approx(spread[0], rel=0.18)  # n = 1: no slack
    for values, true in zip(np.transpose(votes), (p.mean(), (p**2 * (3 - 2 * p)).mean()), strict=True):
        assert abs(values.mean() - true) < 6 * values.std() / math.sqrt(times)


def test_scores_that_are_not_numbers_are_wrong_and_infinite_ones_count() -> None:
    nan, inf = math.nan, math.inf
    scores = [[[0.0, 1.0], [nan, 5.0], [-inf, 0.0]], [[0.0, 1.0], [0.0, 5.0], [-inf, 0.0]]]
    assert mean_scores(scores, [1, 1, 1]).values.tolist() == [5 / 6, 2 / 3]
    assert mean_scores(scores, [1, 1, 1], kind="probability").values.tolist() == [5 / 6, 2 / 3]
    assert mean_scores([[[inf, 0.0]], [[-inf, 0.0]]], [0], 2).values.tolist() == [0]
    assert mean_scores([[[1e4, 0.0]], [[0.0, 1e4]]], [0], kind="probability").values.tolist() == [0.5, 0.5]
    assert mean_scores([[[1, 1, 0]]], [0]).values.tolist() == [0.5]  # ties, whole numbers
    assert mean_scores([[[3.0]], [[1.0]]], [0]).values.tolist() == [1, 1]  # one class


def test_kinds_differ_as_they_should() -> None:
    """One loud execution outweighs two in the mean of logits, not in the other votes."""
    scores = np.array([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])
    assert mean_scores(scores, [0], 3, "logit").values.tolist() == [1]
    assert mean_scores(scores, [0], 3, "probability").values.tolist() == [0]
    assert majority(scores.argmax(2), [0], 2, 3).tolist() == [0]


def test_executions_needed() -> None:
    curve = VoteCurve(np.array([9, 1, 5]), np.array([0.9, 0.7, 0.85]), np.zeros(3))
    assert [executions_needed(curve, a) for a in (0.7, 0.8, 0.86, 0.95)] == [1, 5, 9, None]
    assert executions_needed([0.5, 0.9, 0.8], 0.8) == 2 and executions_needed([math.nan], 0.0) is None


# ------------------------------------------------------------------------------------------ bad input

ONE = [[0, 1]]
SCORES = np.zeros((2, 3, 4))
BAD = [
    (lambda: majority([0, 1], [0, 1], 2), r"majority: predictions must be whole numbers \[D, rows\], .* shape \[2\]"),
    (lambda: majority([[0.0]], [0], 2), "majority: predictions .* got float64"),
    (lambda: majority([[]], [], 2), "majority: predictions .* not empty"),
    (lambda: majority(ONE, [0], 2), "majority: labels must hold one class for each of 2 rows, got 1"),
    (lambda: majority(ONE, [0, 2], 2), r"majority: labels must lie in 0..1, got 0..2"),
    (lambda: majority(ONE, [0, 0.5], 2), "majority: labels must be whole numbers"),
    (lambda: majority([[0, 2]], [0, 1], 2), r"majority: predictions must lie in 0..1 \(-1: none\), got 0..2"),
    (lambda: majority([[-2, 1]], [0, 1], 2), r"majority: predictions .* got -2..1"),
    (lambda: majority(ONE, [0, 1], 0), "majority: classes must be a whole number from 1 to .*, got 0"),
    (lambda: majority(ONE, [0, 1], 2, n=2), "majority: n must lie in 1..1, the number of draws, got 2"),
    (lambda: majority(ONE, [0, 1], 2, n=0), "majority: n .* got 0"),
    (lambda: majority(ONE, [0, 1], 2, n=[]), r"majority: n .* got \[\]"),
    (lambda: majority(ONE, [0, 1], 2, n=1.0), "majority: n .* got 1.0"),
    (lambda: majority(ONE * 1001, [0, 1], 2), "majority: predictions must hold at most 1000 draws, got 1001"),
    (lambda: mean_scores(SCORES[0], [0, 0, 0]), r"mean_scores: scores must be numbers \[D, rows, classes\]"),
    (lambda: mean_scores(SCORES[:0], [0, 0, 0]), r"mean_scores: scores .* shape \[0, 3, 4\]"),
    (lambda: mean_scores(SCORES.astype(complex), [0, 0, 0]), "mean_scores: scores .* got complex"),
    (lambda: mean_scores(SCORES, [0, 0, 4]), "mean_scores: labels must lie in 0..3"),
    (lambda: mean_scores(SCORES, [0, 0, 0], 3), "mean_scores: n must lie in 1..2, the number of draws, got 3"),
    (
        lambda: mean_scores(SCORES, [0, 0, 0], kind="sum"),
        "mean_scores: kind must be 'logit' or 'probability', got 'sum'",
    ),
    (lambda: mean_scores(SCORES, [0, 0, 0], subsets=-1), "mean_scores: subsets must be a whole number .* got -1"),
    (lambda: mean_scores(SCORES, [0, 0, 0], seed=-1), "mean_scores: seed must be a whole number .* got -1"),
    (lambda: executions_needed([], 0.5), r"executions_needed: curve must be values \[D\], got shape \[0\]"),
    (lambda: executions_needed([0.5], math.nan), "executions_needed: value must be .*, got nan"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
