"""Midpoint statistics: at which noise level has accuracy fallen half-way, and how surely.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, in_range, one_of, shown
from noisykernels.stats.intervals import Floats, band, cells, one_of_equal, t_quantile

__all__ = ["Axis", "Midpoint", "Status", "crossings", "described", "fit_midpoint", "midpoint_cells", "restored"]


def midpoint_cells(p: Midpoint) -> list[str]:
    """midpoint, interval, crossing and status of a line of the table."""
    more = f" ({len(p.crossings)} crossings)" if len(p.crossings) > 1 else ""
    if p.status == "open":
        return ["?", f"{p.low:.4g} .. {p.high:.4g}", "", p.status]
    if p.status != "ok" and p.above:
        return [f"> {p.low:.4g}", "", "", f"{p.status}{more}"]
    if p.status != "ok":
        return [f"< {p.high:.4g}" if math.isfinite(p.high) else "?", "", "", f"{p.status}{more}"]
    return [f"{p.level:.4g}", f"{p.low:.4g} .. {p.high:.4g}", f"{p.crossing:.4g}", f"ok{more}"]


Axis = Literal["log", "linear"]
Status = Literal["ok", "none", "below", "open"]
Method = Literal["rows", "draws", "adaptive", "stopped"]

# From this many draws on the interval of a midpoint comes from the spread of the draws. With fewer
# a badly known spread makes it longer than the one from the binomial bound: in simulated studies
# (500 rows, k = 5) the mean lengths cross at 3 draws where rows differ much in difficulty and at
# 6 where they do not differ at all.
DRAWS_FOR_BOOTSTRAP = 5
REPLICATES = 499


@dataclass(frozen=True)
class Midpoint:
    """Where one accuracy curve has fallen half-way from its clean value to its floor.

    `level` is the centre of the fitted logistic and `low..high` its interval. `crossing` is where
    the mean curve first falls through `(clean + floor) / 2`, interpolated; `crossing_low` is the
    last tested level surely above half-way and `crossing_high` the first one surely not: no model,
    no interpolation. 0 and inf stand for "no bound from the tested levels". `crossings` lists
    every crossing of the mean curve, upward ones too. `slope` is k of the logistic, per decade on
    a log axis.

    status: "ok"; "none": never half-way on the tested levels (level and crossing are nan, `low` is
    a lower bound); "below": half-way or lower already at the smallest level (nan, `high` is an
    upper bound); "open": a search has not found it with the evaluations that it may spend (nan;
    `low` is the highest level looked at that is surely above half-way, before any that may not be,
    0: none, `high` the first after it that surely is not, inf: none). rising: accuracy rises with
    the level, so "none" has an upper bound, and "below", half-way or lower even at the largest
    level, a lower one. method: what the intervals rest on, "rows" (binomial), "draws" (bootstrap),
    "adaptive" (a search's own measurement), or "stopped" (a search's that ended before its
    interval was as short as asked for).
    """

    level: float
    low: float
    high: float
    crossing: float
    crossing_low: float
    crossing_high: float
    crossings: tuple[float, ...]
    slope: float
    clean: float
    floor: float
    status: Status
    method: Method
    confidence: float = 0.95
    site: str = ""
    site_index: int = -1
    rising: bool = False

    @property
    def above(self) -> bool:
        """Of a site without a midpoint: whether it lies above the tested levels, not below them."""
        return (self.status == "none") != self.rising


NUMBERS = ("level", "low", "high", "crossing", "crossing_low", "crossing_high", "slope", "clean", "floor", "confidence")


def described(midpoint: Midpoint) -> dict[str, Any]:
    """A midpoint as JSON can hold it: null for what is not a number or unbounded."""
    values = asdict(midpoint)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def restored(values: Mapping[str, Any]) -> Midpoint:
    """The counterpart of `described`.

    Raises:
        TypeError, ValueError, KeyError: what `described` has not written.
    """
    one_of("midpoints", "status", values["status"], get_args(Status))
    one_of("midpoints", "method", values["method"], get_args(Method))
    for name in NUMBERS:
        if values[name] is not None:
            in_range("midpoints", name, values[name], Range())
    for name, kind in (("site", str), ("site_index", int), ("rising", bool)):
        if type(values[name]) is not kind:
            raise TypeError(f"midpoints: {name} must be of type {kind.__name__}, got {shown(values[name])}")
    for crossing in values["crossings"]:
        in_range("midpoints", "crossings", crossing, Range())
    given: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
    for name in ("high", "crossing_high"):
        given[name] = math.inf if values[name] is None else values[name]
    given["crossings"] = tuple(values["crossings"])
    return Midpoint(**given)


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
    level, acc, n = _checked(levels, accuracy, rows, clean, floor, axis)
    if rising:
        turned, back_again = _turned(level, axis)
        common: dict[str, Any] = {"clean": clean, "floor": floor, "axis": axis, "confidence": confidence}
        found = fit_midpoint(turned, acc, rows=n, independent_rows=independent_rows, seed=seed, **common)
        return back_again(found)
    if not independent_rows:
        acc, n = one_of_equal(acc, n)
    t = np.log10(level) if axis == "log" else level
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
        cross = _first_fall(t, curves, (clean + lo) / 2)
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
        curves = _replicates(acc, mean, n, confidence, seed)
    else:
        curves = _extremes(t, low, high, weights, clean, (mid, k, lo), floor is None)
    mids, _, los, _ = solve(curves)
    tail = (1 - confidence) / 2 if method == "draws" else 0.0
    mid_low, mid_high = _inner_quantiles(mids, tail)
    # Model-free: the last level surely above half-way and the first surely not; no interpolation.
    lo_low, lo_high = _inner_quantiles(los, tail)
    cross_low = _before(t, low <= (clean + max(lo, lo_high)) / 2)
    cross_high = _first(t, high <= (clean + min(lo, lo_low)) / 2)

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
        mid_low, mid_high = min(mid_low, _before(t, fallen)), max(mid_high, _first(t, fallen))
    return Midpoint(
        back(mid), back(min(mid, mid_low)), back(max(mid, mid_high)),
        back(cross), back(cross_low), back(cross_high),
        slope=k, status="ok", **common,
    )  # fmt: skip


def _turned(level: Floats, axis: Axis) -> tuple[Floats, Callable[[Midpoint], Midpoint]]:
    """Levels in which a rising curve falls, all above 0, and what turns a midpoint of them back."""
    top = 2 * float(level[-1])
    turned = 1 / level if axis == "log" else top - level
    tested: dict[float, float] = dict(zip(turned.tolist(), level.tolist(), strict=True))

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

    return turned, back


def _checked(
    levels: ArrayLike, accuracy: ArrayLike, rows: ArrayLike, clean: float, floor: float | None,
    axis: str,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """Levels in increasing order with their cells; refuses what is not a curve."""
    acc, n = cells("fit_midpoint", accuracy, rows)
    level = np.asarray(levels, np.float64)
    if level.shape != acc.shape[:1]:
        raise ValueError(f"fit_midpoint: levels must be {len(acc)} numbers, as accuracy, got shape {list(level.shape)}")
    if not (np.isfinite(level).all() and (level >= 0).all()):
        raise ValueError(f"fit_midpoint: levels must be finite and not negative, got {shown(levels)}")
    if len(np.unique(level)) < len(level):
        raise ValueError(f"fit_midpoint: levels must differ from each other, got {shown(levels)}")
    if not 0 < clean <= 1:
        raise ValueError(f"fit_midpoint: clean must be an accuracy above 0 and up to 1, got {clean}")
    if floor is not None and not 0 <= floor < clean:
        raise ValueError(
            f"fit_midpoint: floor must be from 0 to below the clean accuracy {clean}, got {floor}; "
            "a network no better than its floor has no midpoint"
        )
    keep = np.flatnonzero((n.sum(1) > 0) & ((level > 0) | (axis == "linear")))
    if not len(keep):
        raise ValueError(f"fit_midpoint: levels must hold one on a {axis} axis that was evaluated, got none")
    order = keep[np.argsort(level[keep])]
    place = np.log10(level[order]) if axis == "log" else level[order]
    if same := np.flatnonzero(np.diff(place) <= 0).tolist():  # equal by rounding: no slope between them
        pair = level[order][same[0] : same[0] + 2].tolist()
        raise ValueError(f"fit_midpoint: levels must differ on a {axis} axis, got {pair[0]!r} and {pair[1]!r}")
    return level[order], acc[order], n[order]


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


def _first_fall(t: Floats, curves: Floats, target: Floats) -> Floats:
    """First downward crossing of each curve; -inf if it starts fallen, inf if it never falls."""
    above = curves > target[:, None]
    fallen = ~above
    i = np.maximum(fallen.argmax(1), 1)
    row = np.arange(len(curves))
    j = np.minimum(i, len(t) - 1)
    y0, y1 = curves[row, j - 1], curves[row, j]
    part = (y0 - target) / np.where(y0 == y1, 1.0, y0 - y1)
    inside = t[j - 1] + part * (t[j] - t[j - 1])
    return np.where(fallen[:, 0], -np.inf, np.where(fallen.any(1), inside, np.inf))


def _first(t: Floats, fallen: NDArray[np.bool_]) -> float:
    """The first fallen level; inf if there is none."""
    return float(t[fallen.argmax()]) if fallen.any() else math.inf


def _before(t: Floats, fallen: NDArray[np.bool_]) -> float:
    """The level before the first fallen one; -inf if that is the first, the last if none is."""
    i = int(fallen.argmax()) if fallen.any() else len(t)
    return float(t[i - 1]) if i else -math.inf


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


def _replicates(acc: Floats, mean: Floats, n: Floats, confidence: float, seed: int) -> Floats:
    """Bootstrap curves [REPLICATES, level]: mean + sum over draws of g_d (acc_d - mean), scaled."""
    draws = acc.shape[1]
    spread = np.where(n > 0, np.nan_to_num(acc) - mean[:, None], 0.0)
    d = (n > 0).sum(1)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = t_quantile(confidence, d - 1) / z / np.sqrt(d * (d - 1))
    g = np.random.default_rng(seed).standard_normal((REPLICATES, draws))
    curves: Floats = np.clip(mean + scale * (g @ spread.T), 0, 1)
    return curves


def _inner_quantiles(values: Floats, tail: float) -> tuple[float, float]:
    """The tail and 1 - tail quantiles, outward to a sample so that inf stays inf."""
    ordered: Sequence[float] = np.sort(values).tolist()
    i = math.floor(tail * (len(ordered) - 1))
    return ordered[i], ordered[len(ordered) - 1 - i]
