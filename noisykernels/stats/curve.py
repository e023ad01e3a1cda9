"""Curves of means against a level: where they cross a value, turned round, and drawn again by a bootstrap.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.checks import shown
from noisykernels.stats.intervals import Floats, t_quantile, widening
from noisykernels.stats.midpoint import Axis, Midpoint

__all__ = [
    "DRAWS_FOR_BOOTSTRAP", "SKEWED_DRAWS_FOR_BOOTSTRAP", "before", "crossings", "first", "first_fall", "in_order",
    "inner_quantiles", "replicates", "turned",
]  # fmt: skip

# From this many draws on the interval of a midpoint comes from the spread of the draws. With fewer
# a badly known spread makes it longer than the one from the binomial bound: in simulated studies
# (500 rows, k = 5) the mean lengths cross at 3 draws where rows differ much in difficulty and at
# 6 where they do not differ at all.
DRAWS_FOR_BOOTSTRAP = 5
# Draws of numbers may be skewed, which few of them do not show: where the rows' own spread is known, that is taken for
# longer. With 8 draws of 300 rows, a twentieth of which has nine tenths of the weight, they held the truth in 91 %.
SKEWED_DRAWS_FOR_BOOTSTRAP = 16
REPLICATES = 499


def crossings(x: ArrayLike, y: ArrayLike, target: float) -> list[tuple[float, bool]]:
    """Every crossing of the polyline (x, y) through a target, in order.

    Args:
        x: [n], increasing.
        y: [n].
        target: the value crossed.

    Returns:
        (position, downward) per crossing; a value equal to the target counts as fallen.

    Example:
        >>> crossings([0, 1, 2, 3], [1.0, 0.0, 1.0, 0.5], 0.5)
        [(0.5, True), (1.5, False), (3.0, True)]
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    above = y > target
    found = []
    for i in np.flatnonzero(above[1:] != above[:-1]):
        part = (y[i] - target) / (y[i] - y[i + 1])
        found.append((float(x[i] + part * (x[i + 1] - x[i])), bool(above[i])))
    return found


def in_order(op: str, levels: ArrayLike, evaluated: NDArray[np.bool_], axis: str) -> tuple[NDArray[np.intp], Floats]:
    """Which levels make a curve, in increasing order, and their places on the axis; refuses what is not a curve."""
    level = np.asarray(levels, np.float64)
    if level.shape != evaluated.shape:
        raise ValueError(f"{op}: levels must be {len(evaluated)} numbers, as accuracy, got shape {list(level.shape)}")
    if not (np.isfinite(level).all() and (level >= 0).all()):
        raise ValueError(f"{op}: levels must be finite and not negative, got {shown(levels)}")
    if len(np.unique(level)) < len(level):
        raise ValueError(f"{op}: levels must differ from each other, got {shown(levels)}")
    keep = np.flatnonzero(evaluated & ((level > 0) | (axis == "linear")))
    if not len(keep):
        raise ValueError(f"{op}: levels must hold one on a {axis} axis that was evaluated, got none")
    order = keep[np.argsort(level[keep])]
    place = np.log10(level[order]) if axis == "log" else level[order]
    if same := np.flatnonzero(np.diff(place) <= 0).tolist():  # equal by rounding: no slope between them
        pair = level[order][same[0] : same[0] + 2].tolist()
        raise ValueError(f"{op}: levels must differ on a {axis} axis, got {pair[0]!r} and {pair[1]!r}")
    return order, place


def turned(level: Floats, axis: Axis) -> tuple[Floats, Callable[[Midpoint], Midpoint]]:
    """Levels in which a rising curve falls, all above 0, and what turns a midpoint of them back."""
    top = 2 * float(level[-1])
    falling = 1 / level if axis == "log" else top - level
    tested: dict[float, float] = dict(zip(falling.tolist(), level.tolist(), strict=True))

    def one(value: float) -> float:
        """0 and inf, no bound, change places; what was tested comes back to the bit."""
        if value in tested or math.isnan(value):
            return tested.get(value, value)
        if value == 0 or math.isinf(value):
            return math.inf if value == 0 else 0.0
        return 1 / value if axis == "log" else max(top - value, 0.0)

    def back(m: Midpoint) -> Midpoint:
        return replace(
            m, level=one(m.level), low=one(m.high), high=one(m.low), crossing=one(m.crossing),
            crossing_low=one(m.crossing_high), crossing_high=one(m.crossing_low),
            crossings=tuple(one(c) for c in reversed(m.crossings)), rising=True,
        )  # fmt: skip

    return falling, back


def first_fall(t: Floats, curves: Floats, target: Floats) -> Floats:
    """First downward crossing of each curve; -inf if it starts fallen, inf if it never falls."""
    above = curves > target[:, None]
    fallen = ~above
    i = np.maximum(fallen.argmax(1), 1)
    row = np.arange(len(curves))
    j = np.minimum(i, len(t) - 1)
    y0, y1 = curves[row, j - 1], curves[row, j]
    with np.errstate(invalid="ignore"):  # of levels of which nothing is known, all are infinite
        part = (y0 - target) / np.where(y0 == y1, 1.0, y0 - y1)
    inside = t[j - 1] + part * (t[j] - t[j - 1])
    return np.where(fallen[:, 0], -np.inf, np.where(fallen.any(1), inside, np.inf))


def first(t: Floats, fallen: NDArray[np.bool_]) -> float:
    """The first fallen level; inf if there is none."""
    return float(t[fallen.argmax()]) if fallen.any() else math.inf


def before(t: Floats, fallen: NDArray[np.bool_]) -> float:
    """The level before the first fallen one; -inf if that is the first, the last if none is."""
    i = int(fallen.argmax()) if fallen.any() else len(t)
    return float(t[i - 1]) if i else -math.inf


def replicates(acc: Floats, mean: Floats, n: Floats, confidence: float, seed: int, *, skewed: bool = False) -> Floats:
    """Bootstrap curves [REPLICATES, level]: mean + sum over draws of g_d (acc_d - mean), scaled; where draws may be
    skewed, wider by that."""
    draws = acc.shape[1]
    spread = np.where(n > 0, np.nan_to_num(acc) - mean[:, None], 0.0)
    d = (n > 0).sum(1)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    quantile = t_quantile(confidence, d - 1)
    scale = quantile / z / np.sqrt(d * (d - 1))
    if skewed:
        scale = scale * widening(spread, d, quantile)
    g = np.random.default_rng(seed).standard_normal((REPLICATES, draws))
    curves: Floats = mean + scale * (g @ spread.T)
    return curves


def inner_quantiles(values: Floats, tail: float) -> tuple[float, float]:
    """The tail and 1 - tail quantiles, outward to a sample so that inf stays inf."""
    ordered: Sequence[float] = np.sort(values).tolist()
    i = math.floor(tail * (len(ordered) - 1))
    return ordered[i], ordered[len(ordered) - 1 - i]
