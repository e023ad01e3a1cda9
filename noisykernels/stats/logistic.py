"""Midpoints of accuracy curves: at which noise level has accuracy fallen half-way, by a logistic, and how surely.

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
    before,
    crossings,
    first,
    first_fall,
    in_order,
    inner_quantiles,
    replicates,
    turned,
)
from noisykernels.stats.intervals import Floats, band, cells, one_of_equal
from noisykernels.stats.midpoint import Axis, Midpoint

__all__ = ["fit_midpoint"]


def fit_midpoint(
    levels: ArrayLike,
    accuracy: ArrayLike,
    *,
    clean: float,
    floor: float | None,
    rows: ArrayLike,
    axis: Axis = "log",
    confidence: float = 0.95,
    independent_rows: bool = True,
    seed: int = 0,
    rising: bool = False,
) -> Midpoint:
    """Midpoint of an accuracy curve by a scaled logistic, and the model-free crossing.

    `acc(t) = lo + (clean - lo) / (1 + exp(k (t - t_mid)))`, t = log10(level) or level; least
    squares over the levels, weighted by the binomial variance of each mean, k > 0, t_mid within
    the tested levels.

    Intervals speak of the noise's randomness on the given data. Fewer than 5 draws, rows
    independent ("rows"): each level may err as far as `band` says, all at once in the direction
    that moves the midpoint most; the same draws are used at every level, so errors of
    neighbouring levels are not independent, and this covers any dependence. Otherwise ("draws"):
    a bootstrap that resamples whole draws, which keeps the dependence as it is, with Gaussian
    multipliers scaled to Student's t (resampling three draws by index would give intervals far
    too narrow). One draw of noise shared by all rows falls back to "rows", which is then too
    narrow. Either interval is widened to the two levels around the crossing if no level lies
    within the fall (between 5 and 95 % of it): the data say no more. In simulated studies 95 %
    intervals covered 93 % and more; with a single level within the fall, where the slope is hardly
    known, "draws" fell to 88-94 %. `crossing_low..crossing_high` covered 99 % and more.

    Args:
        levels: [level], >= 0, distinct (also on the axis), any order. Level 0 is left out of a log axis.
        accuracy: [level, draw], fractions; nan where a cell was not evaluated.
        clean: accuracy without noise, the fixed upper plateau.
        floor: lower plateau, below `clean`; None fits it. A fitted floor needs three levels
            (else: the lowest mean) and a fall of twice the half-width of the band (else "none").
        rows: rows behind each cell, scalar or [level, draw].
        axis: "log" (additive and mixed noise) or "linear" (multiplicative noise).
        confidence: two-sided.
        independent_rows: False for noise shared by all rows of a draw.
        seed: of the bootstrap; the result is a pure function of the arguments.
        rising: accuracy rises with the level, as with a saturation limit: the curve is turned round, 1 / level on a
            log axis and a constant minus the level on a linear one, and the midpoint turned back.

    Returns:
        The midpoint. Any legal curve gives one; see `Midpoint.status`.

    Raises:
        ValueError: illegal levels, accuracies, rows, or clean <= floor.

    Example:
        >>> levels = [0.1, 0.3, 1.0, 3.0, 10.0]
        >>> m = fit_midpoint(
        ...     levels, [[0.9], [0.8], [0.5], [0.2], [0.1]], clean=0.9, floor=0.1, rows=1000)
        >>> m.status, m.method, round(m.level, 2), m.low < 1 < m.high
        ('ok', 'rows', 0.98, True)
    """
    check_arguments(fit_midpoint, locals())
    acc, n = cells("fit_midpoint", accuracy, rows)
    _check_plateaus(clean, floor)
    order, t = in_order("fit_midpoint", levels, n.sum(1) > 0, axis)
    level, acc, n = np.asarray(levels, np.float64)[order], acc[order], n[order]
    if rising:
        falling, back_again = turned(level, axis)
        common: dict[str, Any] = {"clean": clean, "floor": floor, "axis": axis, "confidence": confidence}
        found = fit_midpoint(falling, acc, rows=n, independent_rows=independent_rows, seed=seed, **common)
        return back_again(found)
    if not independent_rows:
        acc, n = one_of_equal(acc, n)
    mean, low, high = band(acc, n, confidence=confidence, independent_rows=independent_rows)
    total = n.sum(1)
    guess = (mean * total + 2) / (total + 4)  # keeps the variance above 0 at accuracy 0 and 1
    weights = total / (guess * (1 - guess))

    def solve(curves: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """t_mid, k, floor of each curve [B, level], and its first crossing (-inf, inf: none)."""
        if floor is None and len(t) < 3:
            lo = curves.min(1)
        else:
            lo = np.full(len(curves), np.nan if floor is None else floor)
        mid, k, lo = _least_squares(t, curves, weights, clean, lo)
        cross = first_fall(t, curves, (clean + lo) / 2)
        return np.where(np.isinf(cross), cross, mid), k, lo, cross

    def back(x: float) -> float:
        """The level at x; exactly a tested level where x is one."""
        if (t == x).any():
            return float(level[t == x][0])
        return float(10.0**x) if axis == "log" else max(float(x), 0.0)

    mid, k, lo, cross = (float(v[0]) for v in solve(mean[None]))
    many = bool((acc.shape[1] > 1) and ((n > 0).sum(1) > 1).all())
    enough = acc.shape[1] >= DRAWS_FOR_BOOTSTRAP if independent_rows else acc.shape[1] > 1
    method: Literal["rows", "draws"] = "draws" if many and enough else "rows"
    if method == "draws":
        curves = np.clip(replicates(acc, mean, n, confidence, seed), 0, 1)
    else:
        curves = _extremes(t, low, high, weights, clean, (mid, k, lo), floor is None)
    mids, _, los, _ = solve(curves)
    tail = (1 - confidence) / 2 if method == "draws" else 0.0
    mid_low, mid_high = inner_quantiles(mids, tail)
    # Model-free: the last level surely above half-way and the first surely not; no interpolation.
    lo_low, lo_high = inner_quantiles(los, tail)
    cross_low = before(t, low <= (clean + max(lo, lo_high)) / 2)
    cross_high = first(t, high <= (clean + min(lo, lo_low)) / 2)

    worst = int(mean.argmin())
    unsure = floor is None and clean - mean[worst] <= 2 * (high[worst] - mean[worst])
    if unsure:  # nothing but noise: no fall whose floor and crossings could be stated
        lo = float(mean[worst])
    crossed = [] if unsure else crossings(t, mean, (clean + lo) / 2)
    common = {
        "crossings": tuple(back(x) for x, _ in crossed), "clean": float(clean), "floor": lo,
        "method": method, "confidence": confidence,
    }  # fmt: skip
    nan = math.nan
    if unsure or cross == math.inf:
        bound = float(level[-1]) if unsure else back(cross_low)
        return Midpoint(nan, bound, math.inf, nan, bound, math.inf, slope=nan, status="none",
                        **common)  # fmt: skip
    if cross == -math.inf:
        bound = back(cross_high)
        return Midpoint(nan, 0.0, bound, nan, 0.0, bound, slope=nan, status="below", **common)
    left, right = (lo + p * (clean - lo) for p in (0.95, 0.05))
    if not ((mean < left) & (mean > right)).any():
        fallen = mean <= (clean + lo) / 2
        mid_low, mid_high = min(mid_low, before(t, fallen)), max(mid_high, first(t, fallen))
    return Midpoint(
        back(mid), back(min(mid, mid_low)), back(max(mid, mid_high)),
        back(cross), back(cross_low), back(cross_high),
        slope=k, status="ok", **common,
    )  # fmt: skip


def _check_plateaus(clean: float, floor: float | None) -> None:
    """Between which a curve can fall."""
    if not 0 < clean <= 1:
        raise ValueError(f"fit_midpoint: clean must be an accuracy above 0 and up to 1, got {clean}")
    if floor is not None and not 0 <= floor < clean:
        raise ValueError(
            f"fit_midpoint: floor must be from 0 to below the clean accuracy {clean}, got {floor}; "
            "a network no better than its floor has no midpoint"
        )


def _least_squares(t: Floats, curves: Floats, w: Floats, clean: float, lo: Floats) -> tuple[Floats, Floats, Floats]:
    """t_mid, k, lo of the best logistic for each curve [B, level]; lo nan: fitted in [0, clean].

    A grid over (t_mid, log k), then a window that shrinks around the best point. For 1,000
    bootstrap curves at once this is a hundred times faster than a solver call per curve, and it
    has no starting value to get wrong. k is bounded by 20 per smallest gap (a step).
    """
    if len(t) == 1:
        return np.full(len(curves), t[0]), np.full(len(curves), np.nan), lo
    place, span, gap = np.arange(len(t)), t[-1] - t[0], np.diff(t).min()
    ends = float(len(t) - 1)  # t_mid is searched as a position among the levels, 1 per gap
    grid_u = np.linspace(0, ends, min(4 * (len(t) - 1), 64) + 1)
    grid_k = np.linspace(math.log(0.5 / span), math.log(20 / gap), 13)

    def best(u: Floats, log_k: Floats) -> tuple[Floats, Floats, Floats]:
        """Of candidates [B or 1, G], the best for each curve."""
        mid = np.interp(u, place, t)
        s = 0.5 - 0.5 * np.tanh(0.5 * np.exp(log_k)[..., None] * (t - mid[..., None]))
        # cost = sum w (y - clean s - lo (1 - s))^2, expanded so that a shared grid needs matmuls
        a, b = clean * s, 1 - s
        wy = (w * curves)[:, :, None]
        ya, yb = np.matmul(a, wy)[..., 0], np.matmul(b, wy)[..., 0]
        aa, ab, bb = (a * a) @ w, (a * b) @ w, (b * b) @ w
        fitted = np.clip((yb - ab) / np.maximum(bb, 1e-300), 0, clean)
        f = np.where(np.isnan(lo)[:, None], fitted, lo[:, None])
        i = (aa - 2 * ya + f * (f * bb + 2 * ab - 2 * yb)).argmin(1)[:, None]
        pick = (np.take_along_axis(np.broadcast_to(v, f.shape), i, 1) for v in (u, log_k, f))
        return next(pick)[:, 0], next(pick)[:, 0], next(pick)[:, 0]

    grid = np.meshgrid(grid_u, grid_k)
    u, log_k, floor = best(grid[0].reshape(1, -1), grid[1].reshape(1, -1))
    step_u, step_k = grid_u[1] - grid_u[0], grid_k[1] - grid_k[0]
    off_u, off_k = (v.reshape(1, -1) for v in np.meshgrid(*[(-1, 0, 1)] * 2))
    for _ in range(32):  # 0.7^32 = 1e-5 of a grid step
        u, log_k, floor = best(
            np.clip(u[:, None] + step_u * off_u, 0, ends),
            np.clip(log_k[:, None] + step_k * off_k, grid_k[0], grid_k[-1]),
        )
        step_u, step_k = 0.7 * step_u, 0.7 * step_k
    return np.interp(u, place, t), np.exp(log_k), floor


def _extremes(
    t: Floats, low: Floats, high: Floats, w: Floats, clean: float,
    fit: tuple[float, float, float], free: bool,
) -> Floats:  # fmt: skip
    """The band's edges and the curves within it that move the midpoint most: [2 or 4, level]."""
    mid, k, lo = fit
    edges = [low, high]
    if math.isfinite(mid) and math.isfinite(k):
        s = 0.5 - 0.5 * np.tanh(0.5 * k * (t - mid))
        bump = (clean - lo) * s * (1 - s)
        columns = [bump, -k * (t - mid) * bump] + ([1 - s] if free else [])
        j = np.stack(columns, 1) * np.sqrt(w)[:, None]
        influence = np.linalg.pinv(j, rcond=1e-8)[0]  # of each level's error on k t_mid
        edges += [np.where(influence > 0, low, high), np.where(influence > 0, high, low)]
    return np.stack(edges)
