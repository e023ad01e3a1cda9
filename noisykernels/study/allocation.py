"""Multi-execution: how often the noisy operation at each site is repeated and averaged.

Every function gives a dict from site names to repeats, which `inject(..., repeats=...)` takes as it is. Numbers in,
numbers out: no torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range
from noisykernels.stats.intervals import Floats
from noisykernels.stats.midpoint import Axis, Midpoint
from noisykernels.stats.questions import HALF
from noisykernels.study.study import Study

__all__ = ["MAPPINGS", "allocate", "predicted_accuracy", "tailored", "uniform"]


Ints = NDArray[np.int64]

# Weight of each site from midpoints m [site] and ranks r [site] (0: the most sensitive).
MAPPINGS: Mapping[str, Callable[[Floats, Floats], Floats]] = MappingProxyType(
    {
        "inverse_sqrt": lambda m, r: (m / m.min()) ** -0.5,
        "inverse": lambda m, r: m.min() / m,
        "inverse_square": lambda m, r: (m / m.min()) ** -2.0,
        "log": lambda m, r: np.log10(m.max() / m),
        "sqrt": lambda m, r: np.sqrt(m.max()) - np.sqrt(m),
        "inverse_log": lambda m, r: np.where(m > 1, 1 / np.log10(np.where(m > 1, m, 10)), 0),
        "rank": lambda m, r: len(r) - r,
        "rank_bins_of_two": lambda m, r: -(-len(r) // 2) - r // 2,
        "rank_bins_of_three": lambda m, r: -(-len(r) // 3) - r // 3,
        "inverse_rank": lambda m, r: 1 / (r + 1),
        "inverse_rank_bins_of_two": lambda m, r: 1 / (r // 2 + 1),
        "inverse_rank_bins_of_three": lambda m, r: 1 / (r // 3 + 1),
    }
)


def uniform(sites: Sequence[Any], repeats: int) -> dict[str, int]:
    """The same number of executions at every site.

    Args:
        sites: sites (see `sites`), midpoints, or names.
        repeats: R, at least 1.

    Returns:
        dict name -> R.

    Raises:
        ValueError: no sites, one twice, or repeats not a whole number of at least 1.

    Example:
        >>> uniform(["input", "fc:linear#0"], 3)
        {'fc:linear#0': 3, 'input': 3}
    """
    check_arguments(uniform, locals())
    names = _names("uniform", sites)
    return _as_repeats(names, [in_range("uniform", "repeats", repeats)] * len(names))


def tailored(
    midpoints: Study | Sequence[Midpoint] | Mapping[str, float],
    repeats: int,
    mapping: str = "inverse",
    *,
    published_ranks: bool = False,
) -> dict[str, int]:
    """The published mappings: more executions where less noise is tolerated, with a given mean over sites.

    `R_l` proportional to a weight, at least 1, rounded by largest remainders so that `sum_l R_l = repeats * sites`.
    Weights, m the midpoint and r the rank among L sites (0: the most sensitive):
    ``inverse_sqrt`` m^-1/2, ``inverse`` 1/m, ``inverse_square`` m^-2, ``log`` log10(max m / m),
    ``sqrt`` sqrt(max m) - sqrt(m), ``inverse_log`` 1/log10(m) (as published; a midpoint up to 1 gets one execution),
    ``rank`` L - r, ``inverse_rank`` 1/(r + 1), and both with ranks in bins: ``rank_bins_of_two``, ``..._three``.
    The published zeros of ``log`` and ``sqrt`` are not known: here the least sensitive site has weight 0.

    Args:
        midpoints: a study, midpoints, or a dict name -> midpoint. A site that never falls half-way counts with the
            level that it surely stands, one already fallen at the smallest level with that level.
        repeats: mean number of executions, at least 1.
        mapping: a key of `MAPPINGS`.
        published_ranks: take the order of the sorted sites for their ranks, as the published lists do where the two
            differ; to reproduce these only.

    Returns:
        dict name -> R.

    Raises:
        ValueError: another mapping, no site, a site without any bound on its midpoint or one that a search has left
            open, repeats below 1.

    Source: the multi-execution lists of Walking Noise, arXiv 2212.10430 (github.com/UniHD-CEG/walking-noise).

    Example:
        >>> tailored({"fc1:linear#0": 0.5, "relu1:relu#0": 1.0, "fc2:linear#0": 2.0}, 7, "inverse")
        {'fc1:linear#0': 12, 'relu1:relu#0': 6, 'fc2:linear#0': 3}
    """
    check_arguments(tailored, locals())
    mean = in_range("tailored", "repeats", repeats)
    if mapping not in MAPPINGS:
        raise ValueError(f"tailored: mapping must be one of {', '.join(MAPPINGS)}, got {mapping!r}")
    if isinstance(midpoints, Mapping):
        names, values = _names("tailored", list(midpoints)), [float(v) for v in midpoints.values()]
    else:
        points = _points("tailored", midpoints)
        names, values = [p.site for p in points], [_centre("tailored", p) for p in points]
    for name, value in zip(names, values, strict=True):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"tailored: midpoints must be finite and above 0, got {value} at {name!r}")
    m = np.array(values)
    order = np.argsort(m, kind="stable")
    ranks = (order if published_ranks else np.argsort(order)).astype(np.float64)
    return _as_repeats(names, _shared_out(MAPPINGS[mapping](m, ranks), mean * len(names)))


def allocate(
    midpoints: Study | Sequence[Midpoint],
    budget: float,
    *,
    level: float | Mapping[str, float],
    cost: float | Mapping[str, float] = 1,
    axis: Axis | None = None,
) -> dict[str, int]:
    """Shares a budget of executions among the sites so that the predicted value of the noisy machine is best.

    With midpoints, the fitted curve of site l says which part of the accuracy above the floor is left when it alone is
    noisy, `s_l(sigma) = (acc_l(sigma) - floor) / (clean - floor)`, and R executions make sigma `sigma / sqrt(R)`. With
    noise at all sites the parts are taken to multiply, so the loss `sum_l -log s_l(sigma_l / sqrt(R_l))` is minimised
    over whole R_l >= 1 with `sum_l cost_l R_l <= budget`: greedily, every time the step that gains most per cost.

    A logistic with the common floor gives `-log s = log(1 + exp(z(R)))`, z convex and falling in R: each loss is
    convex, and with equal costs the greedy choice is optimal. With other costs its loss is above the best one by at
    most the gain of the first step that the budget refuses. Floors fitted per site can make a loss non-convex at its
    start; steps of several executions at once are weighed for that.

    With tolerances (another question than half-way), each site is taken to lose `d (sigma / sqrt(R) / tolerance)^p`, d
    the loss that was asked for and p the power at the crossing, and losses to add up: convex in R as well.

    Args:
        midpoints: a study (its own question, floor and axis), or midpoints or tolerances of one question.
        budget: total cost, at least that of one execution everywhere.
        level: noise level at which the machine works, one for all sites or a dict name -> level.
        cost: of one execution, one for all or a dict name -> cost, > 0.
        axis: of the fits, ``"log"`` or ``"linear"``; None: the study's, else ``"log"``.

    Returns:
        dict name -> R. Sites without a midpoint are taken at the bound that is known, with the median slope.

    Raises:
        ValueError: a budget too small, a level or cost missing or not positive, a site without any bound or one that
            a search has left open.

    Source: greedy marginal allocation, B. Fox, Oper. Res. 14 (1966) 210-216.

    Example:
        >>> points = [Midpoint(m, m, m, m, m, m, (m,), 5.0, 0.9, 0.1, "ok", "rows", site=name)
        ...           for name, m in (("input", 0.5), ("fc:linear#0", 5.0))]
        >>> repeats = allocate(points, 10, level=0.5)
        >>> repeats
        {'fc:linear#0': 1, 'input': 9}
        >>> round(predicted_accuracy(points, level=0.5), 2), round(predicted_accuracy(points, repeats, level=0.5), 2)
        (0.5, 0.83)
    """
    check_arguments(allocate, locals())
    points, losses = _losses("allocate", midpoints, level, axis)
    names = [p.site for p in points]
    costs = np.array(_each("allocate", "cost", cost, names))
    if not all(0 < c < math.inf for c in costs):
        raise ValueError(f"allocate: cost must be finite and above 0, got {cost!r}")
    left = budget * (1 + 1e-12) - costs.sum()  # a budget of n times the sum must not fail by rounding
    if not 0 <= left < math.inf:
        raise ValueError(f"allocate: budget must be at least {costs.sum():g}, one execution per site, got {budget!r}")
    most = int(left / costs.min()) + 1
    table = losses(np.arange(1, most + 1))  # [site, R]
    counts = np.zeros(len(points), np.int64)  # beyond the first execution
    steps = np.arange(1, most)
    best = np.zeros((len(points), 2))  # gain per cost and length of each site's best step

    def look(site: int) -> None:
        """The best step of a site that the budget allows; the shortest of equals."""
        at = counts[site]
        room = min(most - 1 - at, int(left / costs[site]))
        best[site] = 0
        if room > 0:
            gains = (table[site, at] - table[site, at + 1 : at + 1 + room]) / (costs[site] * steps[:room])
            k = int(gains.argmax())
            best[site] = gains[k], k + 1

    for site in range(len(points)):
        look(site)
    while best[:, 0].max() > 0:
        site = int(best[:, 0].argmax())
        step = int(best[site, 1])
        if step * costs[site] > left:  # planned when there was more left
            look(site)
            continue
        counts[site] += step
        left -= step * costs[site]
        look(site)
    return _as_repeats(names, counts + 1)


def predicted_accuracy(
    midpoints: Study | Sequence[Midpoint],
    repeats: int | Mapping[str, int] = 1,
    *,
    level: float | Mapping[str, float],
    axis: Axis | None = None,
) -> float:
    """Accuracy, or what else was measured, with noise at all sites, predicted from the curves of the single ones: what
    `allocate` makes best.

    With midpoints `floor + (clean - floor) prod_l s_l(sigma_l / sqrt(R_l))`, s_l the part of the accuracy above the
    floor that the fitted curve of site l leaves; with tolerances `clean -+ sum_l d (sigma_l / sqrt(R_l) /
    tolerance_l)^p_l`, see `allocate`, and not beyond the floor. A model, and no bound: noise at one site can weaken
    that at another, or add to it.

    Args:
        midpoints, level, axis: as for `allocate`.
        repeats: executions, one number for all sites or a dict name -> R.

    Returns:
        The accuracy, or other value.

    Raises:
        ValueError: as `allocate`; repeats missing or below 1.

    Example:
        >>> m = Midpoint(0.5, 0.4, 0.6, 0.5, 0.4, 0.6, (0.5,), 5.0, 0.9, 0.1, "ok", "rows", site="input")
        >>> round(predicted_accuracy([m], level=0.5), 3), round(predicted_accuracy([m], 4, level=1.0), 3)
        (0.5, 0.5)
    """
    check_arguments(predicted_accuracy, locals())
    points, losses = _losses("predicted_accuracy", midpoints, level, axis)
    given = _each("predicted_accuracy", "repeats", repeats, [p.site for p in points])
    counts = np.array([in_range("predicted_accuracy", "repeats", r) for r in given])
    loss = float(np.diagonal(losses(counts)).sum())
    clean, better = points[0].clean, 1 if points[0].target < points[0].clean else -1
    worst = better * min(better * p.floor for p in points)
    if points[0].at == str(HALF):
        return float(worst + (clean - worst) * np.exp(-loss))
    value = clean - better * loss
    return value if math.isnan(worst) else better * max(better * value, better * worst)


def _losses(op: str, midpoints: Any, level: Any, axis: Any) -> tuple[list[Midpoint], Callable[[ArrayLike], Floats]]:
    """The midpoints, and a function R [k] -> loss [site, k]: -log s, or with tolerances what is lost."""
    points = _points(op, midpoints)
    axis = axis or (midpoints.meta.axis if isinstance(midpoints, Study) else "log")
    levels = np.array(_each(op, "level", level, [p.site for p in points]))
    first = points[0]
    if any((p.clean, p.at) != (first.clean, first.at) for p in points):
        raise ValueError(f"{op}: midpoints must be of one study and one question")
    better = 1 if first.target < first.clean else -1
    floor = better * min(better * p.floor for p in points)
    if first.at == str(HALF) and not better * first.clean > better * floor:
        raise ValueError(f"{op}: midpoints must be of one study, with a clean value that is better than the floor")
    clean = first.clean
    slopes = np.array([p.slope for p in points])
    known = slopes[np.isfinite(slopes)]
    if not len(known):
        raise ValueError(f"{op}: midpoints must hold at least one with a fitted slope, got none")
    slopes = np.where(np.isfinite(slopes), slopes, np.median(known))
    centres = np.array([_centre(op, p) for p in points])
    if first.at != str(HALF):
        depth = abs(first.clean - first.target)

        def powers(repeats: ArrayLike) -> Floats:
            sigma = levels[:, None] / np.sqrt(np.asarray(repeats, np.float64))
            loss: Floats = depth * (sigma / centres[:, None]) ** slopes[:, None]
            return loss

        return points, powers
    drop = np.array([(clean - p.floor) / (clean - floor) for p in points])  # what can be lost

    def losses(repeats: ArrayLike) -> Floats:
        sigma = levels[:, None] / np.sqrt(np.asarray(repeats, np.float64))
        with np.errstate(divide="ignore"):  # level 0 is -inf on a log axis, and loses nothing
            t, mid = (np.log10(sigma), np.log10(centres)) if axis == "log" else (sigma, centres)
            z = slopes[:, None] * (t - mid[:, None])
            kept = z + np.log(1 - drop)[:, None]  # s = (1 + (1 - drop) e^z) / (1 + e^z)
        loss: Floats = np.logaddexp(0, z) - np.logaddexp(0, kept)
        return loss

    return points, losses


def _points(op: str, midpoints: Any) -> list[Midpoint]:
    points = midpoints.midpoints() if isinstance(midpoints, Study) else list(midpoints)
    for p in points:
        if not isinstance(p, Midpoint):
            raise ValueError(f"{op}: midpoints must be a study or a list of Midpoint, got a {type(p).__name__}")
    _names(op, points)
    return points


def _centre(op: str, p: Midpoint) -> float:
    """The midpoint, or the bound that is known of it."""
    if p.status == "open":
        raise ValueError(
            f"{op}: midpoints must be found, got one that a search has left open at {p.site!r}: let it spend more"
        )
    value = p.level if p.status == "ok" else p.low if p.above else p.high
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{op}: midpoints must have a finite bound above 0, got {value} ({p.status}) at {p.site!r}")
    return value


def _names(op: str, sites: Sequence[Any]) -> list[str]:
    """Names of sites given as such, as `Site` or as `Midpoint`."""
    names = [s if isinstance(s, str) else getattr(s, "name", getattr(s, "site", None)) for s in sites]
    if not names or isinstance(sites, str) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{op}: sites must be a list of named sites, at least one, got {sites!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{op}: sites must differ from each other, got {names}")
    return [str(n) for n in names]


def _each(op: str, name: str, given: Any, sites: list[str]) -> list[Any]:
    """A value for each site from one for all or a dict."""
    if not isinstance(given, Mapping):
        return [given] * len(sites)
    if lost := [s for s in sites if s not in given]:
        raise ValueError(f"{op}: {name} must have an entry for each site, got none for {', '.join(lost)}")
    return [given[s] for s in sites]


def _as_repeats(names: Sequence[str], counts: Any) -> dict[str, int]:
    """In execution order, but `input` last: as a pattern it would also take `input#1`."""
    found = {n: int(c) for n, c in zip(names, counts, strict=True)}
    return {n: found[n] for n in sorted(found, key=lambda n: n == "input")}


def _shared_out(weights: Floats, total: int) -> Ints:
    """Whole numbers of at least 1 in proportion to weights, of a given sum: those below 1 first, then remainders."""
    weights = weights if weights.max() > 0 else np.ones(len(weights))
    weights = weights / weights.max()
    free = np.full(len(weights), True)
    quota = np.ones(len(weights))
    while True:
        part = weights[free].sum()
        quota[free] = (total - (~free).sum()) * (weights[free] / part if part > 0 else 1 / free.sum())
        if not (small := free & (quota < 1 - 1e-9)).any():
            break
        quota[small], free = 1, free & ~small
    counts = np.floor(np.maximum(quota, 1) * (1 + 1e-12)).astype(np.int64)
    order = np.argsort(-(quota - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts
