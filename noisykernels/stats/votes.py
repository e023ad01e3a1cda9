"""Counting votes: from D executions of a noisy machine, the accuracy of n that vote, for n <= D.

Majorities are counted exactly, mean scores are sampled. Numbers in, numbers out: no torch here.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, in_range
from noisykernels.stats.intervals import Floats

KINDS = ("majority", "logit", "probability")
MOST_DRAWS = 1000  # C(1000, 500) is still a float64
ROWS_AT_ONCE = 2048
Ints = NDArray[np.int64]


class VoteCurve(NamedTuple):
    """What is measured, such as the accuracy, and its standard error against the number of executions: arrays
    [len(executions)]."""

    executions: Ints
    values: Floats
    error: Floats


def majority(predictions: ArrayLike, labels: ArrayLike, classes: int, n: int | Sequence[int] | None = None) -> Floats:
    """Accuracy of the majority of n executions, the exact mean over all C(D, n) subsets of D draws.

    `sum over rows and subsets [label has t-fold the most votes] / t / (rows C(D, n))`: of t classes with most votes
    one is taken at random. Subsets are counted, not listed: with c_j votes of D for class j,
    `prod_j (1 + z)^c_j` with the powers of the votes kept apart, all counts whole numbers below C(D, n), which float64
    holds exactly up to D = 56 and to its rounding beyond; nothing is ever subtracted.

    Args:
        predictions: [D, rows], class of each row in each draw; -1: none (a machine that gave NaN), a vote for nobody.
        labels: [rows], 0..classes - 1.
        classes: number of classes.
        n: executions, 1..D: one number or several; None: 1, 2, ..., D.

    Returns:
        [len(n)] accuracies.

    Raises:
        ValueError: shapes, classes, labels or predictions that do not fit together, more than 1000 draws,
            n not in 1..D.

    Source: subsets without replacement are multivariate hypergeometric; the mean over all of them is Hoeffding's
    U-statistic, Ann. Math. Stat. 19 (1948) 293-325.

    Example:
        >>> majority([[0, 1], [0, 1], [1, 0]], [0, 0], classes=2).round(3)
        array([0.5, 0.5, 0.5])
    """
    check_arguments(majority, locals())
    return majority_curve("majority", predictions, labels, classes, n).values


def majority_curve(op: str, predictions: ArrayLike, labels: ArrayLike, classes: int, n: Any) -> VoteCurve:
    """`majority` with standard errors."""
    votes = _whole(op, "predictions", predictions, 2)
    draws, rows = votes.shape
    if draws > MOST_DRAWS:
        raise ValueError(f"{op}: predictions must hold at most {MOST_DRAWS} draws, got {draws}")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ValueError(f"{op}: classes must be a whole number of at least 1, got {classes!r}")
    truth, executions = _labels(op, labels, rows, classes), _executions(op, n, draws)
    if votes.min() < -1 or votes.max() >= classes:
        raise ValueError(f"{op}: predictions must lie in 0..{classes - 1} (-1: none), got {votes.min()}..{votes.max()}")
    counts = np.zeros((rows, classes + 1), np.int64)  # the last column takes the -1
    np.add.at(counts, (np.arange(rows), votes), 1)
    own = np.take_along_axis(counts, truth[:, None], 1)
    np.put_along_axis(counts, truth[:, None], 0, 1)
    others = -np.sort(-counts[:, :classes], 1)[:, : max(classes - 1, 1)]  # which class has how many does not matter
    vectors, times = np.unique(np.hstack([own, others]), axis=0, return_counts=True)
    hits = np.concatenate([_shares(part, draws) for part in np.array_split(vectors, len(vectors) // ROWS_AT_ONCE + 1)])
    hits = np.minimum(hits[:, executions], 1)
    mean, mixed = times @ hits / rows, times @ (hits * (1 - hits)) / rows
    return VoteCurve(executions, mean, _error(mean, mixed, executions / draws, rows))


def _shares(vectors: Ints, draws: int) -> Floats:
    """For distinct count vectors [U, 1 + others], label first, others falling: share of wins [U, 0..draws]."""
    own, others = vectors[:, 0], vectors[:, 1:]
    choose = _binomials(draws)
    wins = np.zeros((len(vectors), draws + 1))
    for v in range(1, int(own.max(initial=0)) + 1):  # votes of the label
        rivals = (others >= v).sum(1)  # classes that could tie or win; at most draws / v of them
        for r in np.unique(rivals[own >= v]):
            mine = np.flatnonzero((own >= v) & (rivals == r))
            # ways[:, t, m]: of the first rivals t have v votes, the rest fewer, m votes together
            ways = np.zeros((len(mine), r + 1, r * v + 1))
            ways[:, 0, 0] = 1
            for j in range(r):
                c = others[mine, j]
                before, m = ways[:, : j + 1, : j * v + 1].copy(), j * v + 1
                ways[:, : j + 1, :m] = 0
                for k in range(v + 1):
                    at = int(k == v)
                    ways[:, at : at + j + 1, k : k + m] += choose[c, k][:, None, None] * before
            tied = np.tensordot(ways, 1 / np.arange(1, r + 2), (1, 0)) * choose[own[mine], v][:, None]
            free = draws - own[mine] - others[mine, :r].sum(1)  # draws whose votes cannot reach v
            add = np.zeros((len(mine), draws + 1))
            for m in range(min(r * v, draws - v) + 1):
                add[:, v + m :] += tied[:, m, None] * choose[free, : draws + 1 - v - m]
            wins[mine] += add
    share: Floats = wins / choose[draws]
    return share


@functools.lru_cache(maxsize=4)
def _binomials(draws: int) -> Floats:
    """C(c, k) for c, k = 0..draws."""
    table = np.zeros((draws + 1, draws + 1))
    table[:, 0] = 1
    for c in range(1, draws + 1):
        table[c, 1:] = table[c - 1, 1:] + table[c - 1, :-1]
    return table


def _error(mean: Floats, mixed: Floats, share: Any, rows: int) -> Floats:
    """Standard error of an average over subsets due to the noise, rows independent; an upper bound, see `mean_scores`.

    A subset's hit h in [0, 1] of row r has variance at most p_r (1 - p_r); the average of many has at most `share` of
    it, share = n / D over all subsets (Hoeffding), 1 / floor(D / n) over whole partitions. mean: of p_r over rows;
    mixed: of the averages' own a (1 - a), whose expectation is at least (1 - share) p_r (1 - p_r).
    """
    share = np.asarray(share, np.float64)
    pooled = share * mean * (1 - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(share < 1, share / (1 - share) * mixed, np.inf)
    error: Floats = np.sqrt(np.maximum(np.minimum(pooled, inner), 0) / rows)
    return error


def mean_scores(
    scores: ArrayLike,
    labels: ArrayLike,
    n: int | Sequence[int] | None = None,
    kind: Literal["logit", "probability"] = "logit",
    *,
    subsets: int = 20,
    seed: int = 0,
) -> VoteCurve:
    """Accuracy of the class with the highest mean score of n executions, averaged over subsets of D draws.

    `mean over subsets S of [s_label = max_j s_j] / ties, s = mean over S of scores (softmax(scores))`. The subsets are
    the floor(D / n) disjoint blocks in the order of the draws, and those of seeded random orders until at least
    `subsets` more are had; all C(D, n) where that is no more. Each has the right expectation, so the average has.
    Scores with NaN are wrong.

    The standard error speaks of the noise on the given data, the noise of different rows independent (noise on
    activations): `sqrt(sum_r a_r (1 - a_r) / (k - 1)) / rows`, a_r the row's average hit, k = floor(D / n) blocks
    (D / n over all subsets), and never more than `sqrt(a (1 - a) / (k rows))`, which alone is left where k = 1. Both
    bound the variance from above, because averaging over partitions cannot raise it.

    Args:
        scores: [D, rows, classes], the outputs (logits).
        labels: [rows], 0..classes - 1.
        n: executions, 1..D: one number or several; None: 1, 2, ..., D.
        kind: ``"logit"``: mean of the scores; ``"probability"``: mean of their softmax.
        subsets: at least this many random subsets beside the blocks; 0: blocks alone.
        seed: of the random orders; the result for one n does not depend on the others asked for.

    Returns:
        A `VoteCurve`: executions, values, error, [len(n)] each.

    Raises:
        ValueError: shapes or labels that do not fit together, n not in 1..D, another kind, subsets or seed negative.

    Source: W. Hoeffding, Ann. Math. Stat. 19 (1948) 293-325 (averages over subsets).

    Example:
        >>> mean_scores([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]], [0], kind="logit").values.round(3)
        array([0.333, 0.667, 0.5  ])
    """
    check_arguments(mean_scores, locals())
    return Means("mean_scores", n, subsets, seed).add(scores, labels, (kind,)).curves()[kind]


class Means:
    """Sums over rows of the hits of mean scores, so that the scores of one batch are enough at a time."""

    def __init__(self, op: str, n: Any, subsets: int, seed: int) -> None:
        for name, value in (("subsets", subsets), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{op}: {name} must be a whole number of at least 0, got {value!r}")
        self.op, self.n, self.subsets, self.seed = op, n, subsets, seed
        self.rows = 0
        self.sums: dict[str, Floats] = {}  # of the hits a and of a (1 - a): [2, len(n)] for each kind
        self.plan: list[tuple[list[Ints], float]] = []

    def add(self, scores: ArrayLike, labels: ArrayLike, kinds: Sequence[str]) -> Means:
        """Counts further rows: scores [D, rows, classes]."""
        values = np.asarray(scores)
        if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "fiu":
            raise ValueError(
                f"{self.op}: scores must be numbers [D, rows, classes], not empty, "
                f"got {values.dtype} of shape {list(values.shape)}"
            )
        draws, rows, classes = values.shape
        truth = _labels(self.op, labels, rows, classes)
        for kind in kinds:
            if kind not in KINDS[1:]:
                raise ValueError(f"{self.op}: kind must be one of {KINDS[1:]}, got {kind!r}")
        if not self.plan:
            self.executions = _executions(self.op, self.n, draws)
            self.plan = [subsets_of(draws, int(k), self.subsets, self.seed) for k in self.executions]
        step = max(1, 2**18 // (draws * classes))  # 2 MiB of float64, to stay in the cache
        with np.errstate(all="ignore"):  # inf - inf is NaN, which is wrong
            for first in range(0, rows, step):
                logits, own = values[:, first : first + step].astype(np.float64), truth[first : first + step]
                for kind in kinds:
                    part = logits if kind == "logit" else _softmax(logits)
                    sums = self.sums.setdefault(kind, np.zeros((2, len(self.plan))))
                    for i, (chosen, _) in enumerate(self.plan):
                        hit = np.zeros(len(own))
                        for subset in chosen:
                            hit += _hit(part[subset].sum(0), own)
                        hit /= len(chosen)
                        sums[:, i] += hit.sum(), (hit * (1 - hit)).sum()
        self.rows += rows
        return self

    def curves(self) -> dict[str, VoteCurve]:
        """The curve of each kind."""
        share, out = np.array([s for _, s in self.plan]), {}
        for kind, sums in self.sums.items():
            mean, mixed = np.clip(sums / self.rows, 0, 1)
            out[kind] = VoteCurve(self.executions, mean, _error(mean, mixed, share, self.rows))
        return out


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(2, keepdims=True))
    shares: Floats = e / e.sum(2, keepdims=True)
    return shares


def _hit(total: Floats, labels: Ints) -> Floats:
    """1 / t for rows whose label is among the t classes with the highest score, else 0: [rows]."""
    best = total.max(1)
    own = np.take_along_axis(total, labels[:, None], 1)[:, 0]
    hit: Floats = (own == best) / np.maximum((total == best[:, None]).sum(1), 1)
    return hit


def subsets_of(draws: int, n: int, subsets: int, seed: int) -> tuple[list[Ints], float]:
    """The subsets averaged over, and the share of one subset's variance that the average has at most."""
    blocks = draws // n
    if math.comb(draws, n) <= blocks + subsets:
        return [np.array(s) for s in itertools.combinations(range(draws), n)], n / draws
    rng = np.random.default_rng([seed, n])
    orders = [np.arange(draws), *(rng.permutation(draws) for _ in range(-(-subsets // blocks)))]
    return [np.sort(order[i * n : (i + 1) * n]) for order in orders for i in range(blocks)], 1 / blocks


def executions_needed(
    curve: VoteCurve | ArrayLike, value: float, *, higher_is_better: bool = True
) -> int | None:  # fmt: skip
    """Smallest number of executions that reach a value, such as an accuracy; None if none does.

    `min {n : curve(n) >= value}`, `<=` where lower is better. Curves need not rise: an even majority can tie.

    Args:
        curve: a `VoteCurve`, or values [D] of n = 1, 2, ..., D.
        value: what is to be reached.
        higher_is_better: the direction of what is measured.

    Raises:
        ValueError: not a curve, or not a number.

    Example:
        >>> executions_needed([0.7, 0.7, 0.8, 0.81], 0.8), executions_needed([0.7], 0.8)
        (3, None)
        >>> executions_needed([2.0, 1.5, 1.1], 1.2, higher_is_better=False)
        3
    """
    check_arguments(executions_needed, locals())
    if isinstance(curve, VoteCurve):
        order = np.argsort(curve.executions)
        n, values = curve.executions[order], curve.values[order]
    else:
        values = np.asarray(curve, np.float64)
        n = np.arange(1, values.size + 1)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"executions_needed: curve must be values [D], got shape {list(values.shape)}")
    wanted, sign = in_range("executions_needed", "value", value, Range()), 1 if higher_is_better else -1
    return next((int(k) for k, v in zip(n, values, strict=True) if sign * v >= sign * wanted), None)


def _whole(op: str, name: str, values: ArrayLike, dims: int) -> Ints:
    """Whole numbers of a given number of dimensions, not empty."""
    array = np.asarray(values)
    if array.dtype.kind == "b":  # no and yes, of two classes
        array = array.astype(np.int64)
    if array.ndim != dims or array.size == 0 or array.dtype.kind not in "iu":
        shape = {1: "[rows]", 2: "[D, rows]"}[dims]
        raise ValueError(
            f"{op}: {name} must be whole numbers {shape}, not empty, got {array.dtype} of shape {list(array.shape)}"
        )
    return array.astype(np.int64)


def _labels(op: str, labels: ArrayLike, rows: int, classes: int) -> Ints:
    truth = _whole(op, "labels", labels, 1)
    if len(truth) != rows:
        raise ValueError(f"{op}: labels must hold one class for each of {rows} rows, got {len(truth)}")
    if truth.min() < 0 or truth.max() >= classes:
        raise ValueError(f"{op}: labels must lie in 0..{classes - 1}, got {truth.min()}..{truth.max()}")
    return truth


def _executions(op: str, n: Any, draws: int) -> Ints:
    """The numbers of executions asked for."""
    if n is None:
        return np.arange(1, draws + 1)
    try:
        found = [operator.index(k) for k in np.atleast_1d(np.asarray(n, object))]
    except TypeError:
        found = []
    if not found or not all(1 <= k <= draws for k in found):
        raise ValueError(f"{op}: n must lie in 1..{draws}, the number of draws, got {n!r}")
    return np.array(found)
