"""Voting: every count against all subsets listed, estimates without bias, and the whole against single executions."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

import noisykernels as nk
from noisykernels import data, models
from noisykernels.ballots import _subsets
from noisykernels.train import train
from noisykernels.voting import KINDS, VoteCurve, executions_needed, majority, mean_scores, vote

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
        subsets, share = _subsets(7, int(n), 9, 5)
        hits = listed_mean(scores, labels, subsets, kind)
        assert accuracy == pytest.approx(hits.mean(), abs=1e-12)
        a, mean = hits.mean(0), hits.mean()
        bound = math.sqrt(share * mean * (1 - mean) / 11)
        tight = math.sqrt((a * (1 - a)).sum() * share / (1 - share)) / 11 if share < 1 else math.inf
        assert error == pytest.approx(min(bound, tight), abs=1e-12)
        assert np.array_equal(mean_scores(scores, labels, int(n), kind, subsets=9, seed=5).accuracy, [accuracy])


@pytest.mark.parametrize(
    ("draws", "n", "subsets"), [(50, 7, 20), (12, 5, 0), (12, 6, 3), (9, 8, 4), (9, 8, 20), (5, 5, 9)]
)
def test_subsets_are_blocks_then_random_partitions_or_all(draws, n, subsets) -> None:
    found, share = _subsets(draws, n, subsets, 3)
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
    assert [s.tolist() for s in _subsets(draws, n, subsets, 3)[0]] == [list(s) for s in sets]
    if subsets:
        assert [s.tolist() for s in _subsets(draws, n, subsets, 4)[0]] != [list(s) for s in sets]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_random_subsets_have_the_mean_of_all(n) -> None:
    """Over 400 seeds; 6 standard errors is a false alarm in 5e8."""
    rng = np.random.default_rng(6)
    scores, labels = rng.normal(size=(8, 40, 3)), rng.integers(0, 3, 40)
    every = listed_mean(scores, labels, list(itertools.combinations(range(8), n)), "logit").mean()
    k, orders = 8 // n, -(-6 // (8 // n))
    blocks = mean_scores(scores, labels, n, subsets=0).accuracy[0]
    found = [mean_scores(scores, labels, n, subsets=6, seed=s).accuracy[0] for s in range(400)]
    expected = (blocks + orders * every) / (1 + orders)
    assert len(_subsets(8, n, 6, 0)[0]) == k * (1 + orders)
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
        found.append(curve.accuracy)
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
    assert mean_scores(scores, [1, 1, 1]).accuracy.tolist() == [5 / 6, 2 / 3]
    assert mean_scores(scores, [1, 1, 1], kind="probability").accuracy.tolist() == [5 / 6, 2 / 3]
    assert mean_scores([[[inf, 0.0]], [[-inf, 0.0]]], [0], 2).accuracy.tolist() == [0]
    assert mean_scores([[[1e4, 0.0]], [[0.0, 1e4]]], [0], kind="probability").accuracy.tolist() == [0.5, 0.5]
    assert mean_scores([[[1, 1, 0]]], [0]).accuracy.tolist() == [0.5]  # ties, whole numbers
    assert mean_scores([[[3.0]], [[1.0]]], [0]).accuracy.tolist() == [1, 1]  # one class


def test_kinds_differ_as_they_should() -> None:
    """One loud execution outweighs two in the mean of logits, not in the other votes."""
    scores = np.array([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])
    assert mean_scores(scores, [0], 3, "logit").accuracy.tolist() == [1]
    assert mean_scores(scores, [0], 3, "probability").accuracy.tolist() == [0]
    assert majority(scores.argmax(2), [0], 2, 3).tolist() == [0]


def test_executions_needed() -> None:
    curve = VoteCurve(np.array([9, 1, 5]), np.array([0.9, 0.7, 0.85]), np.zeros(3))
    assert [executions_needed(curve, a) for a in (0.7, 0.8, 0.86, 0.95)] == [1, 5, 9, None]
    assert executions_needed([0.5, 0.9, 0.8], 0.8) == 2 and executions_needed([math.nan], 0.0) is None


# ------------------------------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model = models.MLP(64, 10, width=32, hidden=2)
    train(model, data.load("digits", "train"), epochs=8, lr=5e-3)
    x, y = data.load("digits", "test")
    return model, (x[:300], y[:300])


def one_by_one(model, pairs, noise, where, seed, ids, rows) -> np.ndarray:
    """Scores [D, rows, classes], one execution after the other."""
    out = []
    for d in ids:
        with nk.inject(model, noise, where), nk.noise_state(model, seed=seed, draws=[d], rows=rows):
            with torch.inference_mode():
                out.append(model.eval()(pairs[0]))
    return torch.stack(out).numpy()


def test_vote_equals_executions_one_by_one(digits) -> None:
    model, (x, y) = digits
    noise, ids, rows = nk.Noise(add=1.0), [3, 0, 9, 4], list(range(1000, 1300))
    model.train()
    votes = vote(model, (x, y), noise=noise, draws=ids, seed=5, rows=rows, batch_rows=300, draws_per_pass=1, subsets=3)
    assert model.training and not votes.clean < 0.8
    scores, labels = one_by_one(model, (x, y), noise, None, 5, ids, rows), y.numpy()
    assert np.array_equal(votes.curves["majority"].accuracy, majority(scores.argmax(2), labels, 10))
    for kind in KINDS[1:]:
        expected = mean_scores(scores, labels, kind=kind, subsets=3, seed=5)
        assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(votes.curves[kind], expected, strict=True))
    with torch.no_grad():
        assert votes.clean == (model(x).argmax(1) == y).double().mean()
    # other plans may move a prediction at a boundary, no more
    other = vote(model, (x, y), noise=noise, draws=ids, seed=5, rows=rows, batch_rows=70, draws_per_pass=3, subsets=3)
    for kind in KINDS:
        assert np.abs(other.curves[kind].accuracy - votes.curves[kind].accuracy).max() < 2 / 300


def test_voting_helps_and_only_the_kinds_asked_for_are_there(digits) -> None:
    model, pairs = digits
    steps = []
    votes = vote(model, pairs, noise=nk.Noise(add=1.5), draws=21, seed=1, progress=lambda i, n: steps.append((i, n)))
    for kind in KINDS:
        c = votes.curves[kind]
        assert c.accuracy[20] > c.accuracy[4] > c.accuracy[0] + 3 * c.error[0]
        assert 0 < c.error.min() and c.error.max() < 0.03
        assert executions_needed(c, c.accuracy[0] + 0.05) > 1
    first = [votes.curves[kind].accuracy[0] for kind in KINDS]
    assert first == pytest.approx([first[0]] * 3, abs=1e-12)
    assert steps == [(i, 3) for i in (1, 2, 3)]
    alone = vote(model, pairs, noise=nk.Noise(add=1.5), draws=21, seed=1, kinds=["logit"])
    assert list(alone.curves) == ["logit"]
    assert np.array_equal(alone.curves["logit"].accuracy, votes.curves["logit"].accuracy)


def test_where_and_how_often(digits) -> None:
    model, (x, y) = digits
    common = dict(draws=3, seed=2, kinds="majority", batch_rows=300)

    def accuracy(noise, **options):
        return vote(model, (x, y), noise=noise, **common, **options).curves["majority"].accuracy

    loud = nk.Noise(add=4.0)
    by_name = accuracy(loud, sites="relu*")
    indices = [s.index for s in nk.sites(model, x[:2]) if s.kind == "relu"]
    assert np.array_equal(by_name, accuracy(loud, sites=indices))
    assert np.array_equal(by_name, accuracy({"relu*": loud}))
    everywhere = accuracy(loud)
    assert everywhere[0] < by_name[0] and everywhere[0] < accuracy(loud, repeats=16)[0]
    assert np.array_equal(accuracy(loud, repeats=4), accuracy(nk.Noise(add=2.0)))  # 4 / sqrt(4)
    clean = vote(model, (x, y), noise=nk.Noise(), draws=3, seed=2)
    assert all(np.array_equal(c.accuracy, [clean.clean] * 3) for c in clean.curves.values())


def test_layers_of_the_model_keep_their_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nk.NoisyLinear(5, 3, noise=nk.Noise(add=3.0)))
    x = torch.randn(80, 5)
    y = (x @ model[0].weight.T + model[0].bias).argmax(1)
    votes = vote(model, (x, y), noise=None, draws=9, seed=0)
    assert votes.clean == 1 and 0.34 < votes.curves["logit"].accuracy[0] < 0.9


def test_nan_votes_for_nobody() -> None:
    class Odd(nn.Module):
        """NaN for rows whose noise is above a bound."""

        def forward(self, x):
            return torch.cat([x, torch.where(x > 0.5, torch.nan, -x)], 1)

    x, y = torch.full((200, 1), 0.1), torch.zeros(200, dtype=torch.int64)
    votes = vote(Odd(), (x, y), noise=nk.Noise(add=1.0), draws=5, seed=0, sites="input")
    with nk.inject(model := Odd(), nk.Noise(add=1.0), "input"), nk.noise_state(model, seed=0, draws=range(5)):
        scores = model(x).view(5, 200, 2).numpy()
    best = np.where(np.isnan(scores).any(2), -1, scores.argmax(2))
    assert (best == -1).any()
    assert np.array_equal(votes.curves["majority"].accuracy, majority(best, y.numpy(), 2))
    assert np.allclose(votes.curves["logit"].accuracy, mean_scores(scores, y.numpy(), seed=0).accuracy)


def test_table_frame_and_picture(digits, monkeypatch) -> None:
    model, pairs = digits
    votes = vote(model, pairs, noise=nk.Noise(add=1.0), draws=12, seed=0)
    lines = votes.table().splitlines()
    assert lines[0] == f"clean accuracy {votes.clean:.4f}, 300 rows, 12 draws, seed 0"
    assert lines[1].split() == ["executions", *KINDS] and len({len(line) for line in lines[1:]}) == 1
    assert [int(line.split()[0]) for line in lines[3:]] == [*range(1, 11), 12]
    assert float(lines[5].split()[4]) == round(votes.curves["logit"].accuracy[2], 4)
    pandas = pytest.importorskip("pandas")
    frame = votes.to_pandas()
    assert list(frame.columns) == ["kind", "executions", "accuracy", "error"] and len(frame) == 36
    assert frame[frame.kind == "logit"].accuracy.tolist() == votes.curves["logit"].accuracy.tolist()
    assert isinstance(frame, pandas.DataFrame)
    ax = Figure().subplots()
    assert votes.plot(ax) is ax.figure and isinstance(votes.plot(), Figure)
    drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(drawn) == list(KINDS) and len(ax.collections) == 3
    for kind, line in drawn.items():
        assert np.array_equal(line.get_ydata(), votes.curves[kind].accuracy)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(KINDS)
    assert "executions" in ax.get_xlabel() and "accuracy" in ax.get_ylabel()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"noisykernels\[table\]"):
        votes.to_pandas()


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
    (lambda: majority(ONE, [0, 1], 0), "majority: classes must be a whole number of at least 1, got 0"),
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
    (lambda: mean_scores(SCORES, [0, 0, 0], kind="sum"), "mean_scores: kind must be one of .*, got 'sum'"),
    (lambda: mean_scores(SCORES, [0, 0, 0], subsets=-1), "mean_scores: subsets must be a whole number .* got -1"),
    (lambda: mean_scores(SCORES, [0, 0, 0], seed=-1), "mean_scores: seed must be a whole number .* got -1"),
    (lambda: executions_needed([], 0.5), r"executions_needed: curve must be accuracies \[D\], got shape \[0\]"),
    (lambda: executions_needed([0.5], 2), r"executions_needed: accuracy must lie in \[0, 1\], got 2"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draws": 0}, ValueError, "vote: draws must be at least one"),
        ({"draws": [1, 1]}, ValueError, "vote: draws .* ids that differ"),
        ({"seed": -1}, ValueError, "vote: seed must lie in"),
        ({"kinds": []}, ValueError, "vote: kinds must be some of"),
        ({"kinds": ["logit", "logit"]}, ValueError, "vote: kinds .* each once"),
        ({"kinds": "plurality"}, ValueError, "vote: kinds must be some of .* got 'plurality'"),
        ({"noise": None}, ValueError, "vote: noise is None, there is no hardware, and the model has no noisy layer"),
        ({"noise": 0.1}, TypeError, "noise must be a Noise, .* got float"),
        ({"noise": {"input": nk.Noise(add=1.0)}, "sites": "input"}, ValueError, "vote: a dict of noises .* sites="),
        ({"noise": {"nothing": nk.Noise(add=1.0)}}, ValueError, "'nothing' matches no site"),
        ({"sites": ["nothing"]}, ValueError, "vote: no site 'nothing'; the model has 0 input"),
        ({"sites": 99}, ValueError, "vote: no site 99"),
        ({"batch_rows": 0}, ValueError, "vote: batch_rows must be a whole number of at least 1, got 0"),
        ({"draws_per_pass": 1.5}, ValueError, "vote: draws_per_pass .* got 1.5"),
        ({"subsets": -2}, ValueError, "vote: subsets .* got -2"),
        ({"rows": [0]}, ValueError, "vote: rows must hold one id for each of 6 rows, got 1"),
        ({"data": (torch.zeros(6, 4), torch.full((6,), 7))}, ValueError, "vote: labels must lie in 0..2, got 7..7"),
        ({"data": torch.zeros(6, 4)}, ValueError, "vote: data must be"),
        ({"model": nn.Sequential(nn.Unflatten(1, (2, 2)))}, ValueError, r"vote: the model must give scores of shape"),
    ],
)
def test_vote_refuses(options, error, message) -> None:
    model = models.MLP(4, 3, width=4)
    given = {"model": model, "data": (torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))}
    given |= {"noise": nk.Noise(add=1.0), "draws": 2, "seed": 0} | options
    with pytest.raises(error, match=message):
        vote(given.pop("model"), given.pop("data"), **given)
    assert type(model) is models.MLP  # nothing of the injection is left
