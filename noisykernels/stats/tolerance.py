"""Tolerances: at which level a curve crosses what is asked of it, without a model of the curve, and how surely.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from noisykernels._util.arguments import check_arguments
from noisykernels.stats.curve import (
    DRAWS_FOR_BOOTSTRAP,
    SKEWED_DRAWS_FOR_BOOTSTRAP,
    before,
    crossings,
    first,
    first_fall,
    in_order,
    inner_quantiles,
    replicates,
    turned,
)
from noisykernels.stats.intervals import Floats, LawName, band, cells, one_of_equal, spreads
from noisykernels.stats.midpoint import Axis, Midpoint
from noisykernels.stats.questions import HALF, At, question, targeted

__all__ = ["fit_tolerance"]


def fit_tolerance(
    levels: ArrayLike,
    values: ArrayLike,
    *,
    at: At,
    clean: float,
    floor: float | None = None,
    rows: ArrayLike,
    law: LawName = "binary",
    higher_is_better: bool = True,
    spread: ArrayLike | None = None,
    axis: Axis = "log",
    confidence: float = 0.95,
    independent_rows: bool = True,
    seed: int = 0,
    rising: bool = False,
) -> Midpoint:
    """Where the mean curve of any measure first crosses what a question asks for: `level` on a smooth curve through the
    means, `crossing` on straight lines between them.

    Intervals speak of the noise's randomness on the given data: the ends of `band` at all levels at once with fewer
    than 5 draws ("rows"), else a bootstrap of whole draws ("draws"), as in `fit_midpoint`. Either is widened by what
    interpolation may err by, as the chords on both sides of the crossing, carried on, tell of the curve's bend. A level
    that holds a row without a finite number counts as farther than any question asks for.

    Args:
        levels: [level], >= 0, distinct (also on the axis), any order. Level 0 is left out of a log axis.
        values: [level, draw], means over rows; nan where a cell was not evaluated, inf or -inf where a row had no
            finite number.
        at: the question.
        clean: value without noise.
        floor: value under unbounded noise; None: not known.
        rows, law, spread, independent_rows: as for `band`.
        higher_is_better: the direction of what is measured.
        axis: "log" or "linear", on which is interpolated.
        confidence: two-sided.
        seed: of the bootstrap; the result is a pure function of the arguments.
        rising: the measure gets better with the level, as with a saturation limit: see `fit_midpoint`.

    Returns:
        The crossing, as a `Midpoint` whose `at` is the question.

    Raises:
        TypeError, ValueError: illegal levels, values, rows; a question that the clean value leaves no answer.

    Example:
        >>> levels, nll = [0.1, 0.3, 1.0, 3.0], [[0.30], [0.31], [0.40], [1.50]]
        >>> found = fit_tolerance(levels, nll, at="ratio:1.1", clean=0.3, rows=500, law="real", spread=[[0.01]] * 4,
        ...                       higher_is_better=False)
        >>> found.word, round(found.level, 2), found.low < found.level < found.high
        ('tolerance', 0.5, True)
    """
    check_arguments(fit_tolerance, locals())
    asked = question("fit_tolerance", at)
    acc, n = cells("fit_tolerance", values, rows, law)
    sd = spreads("fit_tolerance", spread, acc)
    sign = 1.0 if higher_is_better else -1.0
    target = targeted(
        "fit_tolerance", asked, clean, floor, higher_is_better=higher_is_better,
        metric="accuracy" if law == "binary" else "value",
    )  # fmt: skip
    acc = np.where(np.isinf(acc), -sign * np.inf, acc)  # of whichever sign, it is beyond
    order, t = in_order("fit_tolerance", levels, n.sum(1) > 0, axis)
    level, acc, n, sd = np.asarray(levels, np.float64)[order], acc[order], n[order], sd[order]
    if rising:
        falling, back_again = turned(level, axis)
        found = fit_tolerance(
            falling, acc, at=at, clean=clean, floor=floor, rows=np.where(n > 0, n, 1), law=law, spread=sd, axis=axis,
            higher_is_better=higher_is_better, confidence=confidence, independent_rows=independent_rows, seed=seed,
        )  # fmt: skip
        return back_again(found)
    if not independent_rows:
        acc, n, sd = one_of_equal(acc, n, sd)
    ends = band(
        acc, np.where(n > 0, n, 1), confidence=confidence, independent_rows=independent_rows, law=law, spread=sd
    )
    wanted, top = sign * target, sign * clean
    mean, low, high = ends if higher_is_better else (-ends[0], -ends[2], -ends[1])  # curves that fall
    beyond = np.isinf(mean)
    far = wanted - (top - wanted)  # a place for what has none
    mean, low, high = (np.where(beyond, far, v) for v in (mean, low, high))
    turned_acc = np.where(beyond[:, None], far, sign * acc)
    cross = float(first_fall(t, mean[None], np.array([wanted]))[0])

    many = bool((acc.shape[1] > 1) and ((n > 0).sum(1) > 1).all())
    few = DRAWS_FOR_BOOTSTRAP if law == "binary" or np.isnan(sd).any() else SKEWED_DRAWS_FOR_BOOTSTRAP
    enough = acc.shape[1] >= few if independent_rows else acc.shape[1] > 1
    method: Literal["rows", "draws"] = "draws" if many and enough else "rows"
    if method == "draws":
        curves = replicates(turned_acc, mean, n, confidence, seed, skewed=law != "binary")
    else:
        curves = np.stack([low, high])
    tail = (1 - confidence) / 2 if method == "draws" else 0.0
    left, right = inner_quantiles(first_fall(t, curves, np.full(len(curves), wanted)), tail)

    def back(x: float) -> float:
        """The level at x; exactly a tested level where x is one."""
        if (t == x).any():
            return float(level[t == x][0])
        return float(10.0**x) if axis == "log" else max(float(x), 0.0)

    cross_low, cross_high = before(t, low <= wanted), first(t, high <= wanted)
    common: dict[str, Any] = {
        "crossings": tuple(back(x) for x, _ in crossings(t, mean, wanted)), "clean": float(clean),
        "floor": math.nan if floor is None else float(floor), "method": method, "confidence": confidence,
        "at": str(asked), "target": target,
    }  # fmt: skip
    nan = math.nan
    if cross == math.inf:
        bound = back(cross_low) if cross_low > -math.inf else 0.0
        return Midpoint(nan, bound, math.inf, nan, bound, math.inf, slope=nan, status="none", **common)
    if cross == -math.inf:
        bound = back(cross_high) if cross_high < math.inf else math.inf
        return Midpoint(nan, 0.0, bound, nan, 0.0, bound, slope=nan, status="below", **common)
    j = int((mean <= wanted).argmax())
    bend_low, bend_high = (t[j - 1], t[j]) if beyond[j] else _bend(t, mean, wanted, j)
    level_at = _smooth_crossing(t, mean, wanted, j)
    bend_low, bend_high = min(bend_low, level_at), max(bend_high, level_at)
    left, right = min(left, cross), max(right, cross)
    left = min(left, max(t[j - 1], left - max(0.0, cross - bend_low)))
    right = max(right, min(t[j], right + max(0.0, bend_high - cross)))
    losses = top - mean[j - 1 : j + 1]
    power = (losses[1] - losses[0]) / (t[j] - t[j - 1]) / max(losses.mean(), (top - wanted) / 2)
    if asked == HALF:  # k of the logistic that is as steep there
        slope = 2 * power
    else:
        slope = power / math.log(10) if axis == "log" else power * back(cross)
    return Midpoint(
        back(level_at), back(left), back(right), back(cross), back(cross_low), back(cross_high),
        slope=float(slope), status="ok", **common,
    )  # fmt: skip


def _smooth_crossing(t: Floats, mean: Floats, wanted: float, j: int) -> float:
    """Where a curve crosses between levels j - 1 and j, if between levels it is a cubic that keeps its direction there,
    smooth at them (Fritsch and Carlson, SIAM Journal on numerical analysis 17 (1980) 238-246)."""
    step = np.diff(t)
    slope = np.diff(mean) / step
    ends = []
    for k in (j - 1, j):
        if k in (0, len(t) - 1):
            ends.append(slope[0 if k == 0 else -1])
        elif slope[k - 1] * slope[k] <= 0:
            ends.append(0.0)
        else:
            w = np.array([2 * step[k] + step[k - 1], step[k] + 2 * step[k - 1]])
            ends.append(float(w.sum() / (w / slope[k - 1 : k + 1]).sum()))
    h, low, high = step[j - 1], 0.0, 1.0
    for _ in range(60):
        s = (low + high) / 2
        value = (1 + 2 * s) * (1 - s) ** 2 * mean[j - 1] + s * s * (3 - 2 * s) * mean[j]
        value += h * s * (1 - s) * ((1 - s) * ends[0] - s * ends[1])
        low, high = (s, high) if value > wanted else (low, s)
    return float(t[j - 1] + high * h)


def _bend(t: Floats, mean: Floats, wanted: float, j: int) -> tuple[float, float]:
    """Where a curve may cross between levels j - 1 and j, from how it bends: between its chord there and those on
    either side, carried on; a curve that bends one way only lies between them."""
    i = j - 1
    found = [t[i] + (mean[i] - wanted) / (mean[i] - mean[j]) * (t[j] - t[i])]
    for at, other, end in ((i, i - 1, t[j]), (j, j + 1, t[i])):
        if 0 <= other < len(t):
            slope = (mean[other] - mean[at]) / (t[other] - t[at])
            found.append(t[at] + (wanted - mean[at]) / slope if slope < 0 else end)
    if len(found) == 1:  # two levels tell nothing of a bend
        return float(t[i]), float(t[j])
    return float(max(min(found), t[i])), float(min(max(found), t[j]))
