"""Confidence intervals of what is measured under noise: one proportion, and one curve.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown

Floats = NDArray[np.float64]
LawName = Literal["binary", "bounded", "real", "sums"]


def wilson(correct: ArrayLike, rows: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson's score interval of a proportion.

    `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`, p = correct / rows, n = rows.

    Args:
        correct: number of successes, 0..rows, any shape; may be fractional; nan stays nan.
        rows: number of trials, at least 1, broadcasts with `correct`.
        confidence: two-sided, in (0, 1).

    Returns:
        low, high in [0, 1].

    Raises:
        ValueError: not 0 <= correct <= rows, or rows below 1.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.

    Example:
        >>> low, high = wilson(90, 100)
        >>> round(float(low), 4), round(float(high), 4)
        (0.8256, 0.9448)
    """
    check_arguments(wilson, locals())
    n = np.asarray(rows, np.float64)
    count = np.asarray(correct, np.float64)
    if not (np.isfinite(n) & (n >= 1)).all():
        raise ValueError(f"wilson: rows must be finite numbers of at least 1, got {shown(rows)}")
    if ((count < 0) | (count > n)).any():
        raise ValueError(f"wilson: correct must be numbers from 0 to rows, got {shown(correct)} of {shown(rows)}")
    p = count / n
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    # At p = 0 and 1 the closed form gives exactly p but for rounding.
    low = np.where(p <= 0, 0.0, (centre - half) / scale)
    high = np.where(p >= 1, 1.0, (centre + half) / scale)
    return np.clip(low, 0, p)[()], np.clip(high, p, 1)[()]


def band(
    accuracy: ArrayLike,
    rows: ArrayLike,
    *,
    confidence: float = 0.95,
    independent_rows: bool = True,
    law: LawName = "binary",
    spread: ArrayLike | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Mean value per level with the interval due to the noise, on the given data.

    When the noise of different rows is independent (noise on activations), the number of correct
    rows is a sum of independent yes/no outcomes with unequal probabilities. Its variance is at
    most the binomial `p (1 - p) / (rows * draws)`, so the Wilson interval over all rows of all
    draws is safe with any number of draws, one included, and cannot collapse when draws agree.
    When rows share their noise (noise on weights), only draws are independent: the t interval
    over draws, never narrower than Wilson's; with one draw, or draws that all agree, Wilson's of
    one draw alone, which is then too narrow if anything is random.

    Values of another law than "binary" have, in place of Wilson's, the t interval from `spread`, how much the numbers
    of a cell's rows differ for other reasons than their clean values: that bounds the noise's variance from above, as
    the binomial does. Without a spread there is the t interval over draws alone, and none (-inf .. inf) of one draw.
    A cell that is inf or -inf held a row without a finite number: its level is that, and is not averaged.

    Args:
        accuracy: [level, draw], fractions, or values of another law; nan where a cell was not evaluated.
        rows: rows behind each cell, at least 1, scalar or [level, draw].
        confidence: two-sided, pointwise.
        independent_rows: False for noise shared by all rows of a draw.
        law: of the rows' numbers, "binary", "bounded", "real", or "sums" of them.
        spread: standard deviation of a row's number given its clean one, [level, draw], at least 0; nan: not known.

    Returns:
        mean, low, high: [level] each; nan for a level without cells.

    Raises:
        ValueError: accuracies outside of [0, 1], less than a row behind one, a negative spread, another law.

    Source: the variance bound, W. Hoeffding, Ann. Math. Stat. 27 (1956) 713-721.

    Example:
        >>> mean, low, high = band([[0.9, 0.9, 0.9]], 1000)
        >>> mean.round(3), low.round(3), high.round(3)
        (array([0.9]), array([0.889]), array([0.91]))
        >>> mean, low, high = band([[2.0], [2.5]], 400, law="real", spread=[[0.5], [1.0]])
        >>> low.round(3), high.round(3)
        (array([1.951, 2.402]), array([2.049, 2.598]))
    """
    check_arguments(band, locals())
    acc, n = cells("band", accuracy, rows, law)
    sd = spreads("band", spread, acc)
    if not independent_rows:
        acc, n, sd = one_of_equal(acc, n, sd)
    total = n.sum(1)
    safe = np.maximum(total, 1)
    finite = np.where(np.isfinite(acc), acc, 0.0)
    sums = (n * finite).sum(1)
    mean = np.where(total > 0, sums / safe, np.nan)
    if law == "binary":
        least, most = 0.0, 1.0
        low, high = wilson(np.minimum(sums, safe), safe, confidence)
        unknown = np.zeros(len(mean), bool)
    else:
        least, most = -np.inf, np.inf
        half, unknown = _half_by_rows(n, sd, confidence)
        low, high = mean - half, mean + half
    if not independent_rows or unknown.any():
        draws = (n > 0).sum(1)
        use = (draws > 1) & (unknown | (not independent_rows))
        spread_of_draws = np.where(n > 0, finite - mean[:, None], 0.0)
        d = np.where(draws > 1, draws, 2)
        quantile = t_quantile(confidence, d - 1)
        half = quantile * np.sqrt((spread_of_draws**2).sum(1) / (d * (d - 1)))
        half = half if law == "binary" else half * widening(spread_of_draws, d, quantile)
        low = np.where(use, np.minimum(low, np.maximum(mean - half, least)), low)
        high = np.where(use, np.maximum(high, np.minimum(mean + half, most)), high)
        low, high = (np.where(unknown & ~use, end, v) for end, v in ((-np.inf, low), (np.inf, high)))
    beyond = np.where(np.isinf(acc), acc, 0.0).sum(1)
    mean, low, high = (np.where(total > 0, np.where(beyond != 0, beyond, v), np.nan) for v in (mean, low, high))
    return mean, low, high


def _half_by_rows(n: Floats, sd: Floats, confidence: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Half-width of each level's interval from the spread of its rows; 0 where none is known, and whether that is so.

    Cells whose spread is known stand for those of the same level whose is not.
    """
    known = np.where(np.isfinite(sd), n, 0.0)
    count = known.sum(1)
    variance = (known * np.nan_to_num(sd) ** 2).sum(1) / np.maximum(count, 1)
    half: Floats = t_quantile(confidence, np.maximum(count - 1, 1)) * np.sqrt(variance / np.maximum(n.sum(1), 1))
    return half, (count == 0) & (n.sum(1) > 0)


def widening(rest: Floats, count: Any, quantile: Any) -> Floats:
    """By which a t interval of a mean over the last axis is too short where the values are skewed: at least 1.

    `1 + |g| (1 + 2 q^2) / (6 q sqrt(n)) + 0.9 / n`, g the skewness without its bias for normal values: the first term
    of Edgeworth's series at the worse end, used at both; and what half of the error of g makes of it.

    Args:
        rest: values less their mean, 0 where there is none.
        count: how many there are.
        quantile: of the interval.

    Source: N. J. Johnson, J. Am. Stat. Assoc. 73 (1978) 536-544.

    Example:
        >>> widening(np.array([[-1.0, 0.0, 1.0], [-1.0, -1.0, 2.0]]), 3, 2.0).round(3)
        array([1.3 , 2.05])
    """
    squares = (rest**2).sum(-1) / count
    skewness = np.abs((rest**3).sum(-1) / count) / np.where(squares > 0, squares, 1.0) ** 1.5
    skewness = skewness * np.sqrt(count * (count - 1.0)) / np.maximum(count - 2.0, 0.5)
    found: Floats = 1 + skewness * (1 + 2 * quantile**2) / (6 * quantile * np.sqrt(count)) + 0.9 / count
    return found


def cells(op: str, accuracy: ArrayLike, rows: ArrayLike, law: LawName = "binary") -> tuple[Floats, Floats]:
    """accuracy [level, draw] and the rows behind each cell, 0 where it was not evaluated."""
    name = "accuracy" if law == "binary" else "values"
    acc = np.asarray(accuracy, np.float64)
    if acc.ndim != 2 or acc.size == 0:
        raise ValueError(f"{op}: {name} must be a non-empty [level, draw] array, got shape {list(acc.shape)}")
    if law == "binary" and not (np.isnan(acc) | ((acc >= 0) & (acc <= 1))).all():
        raise ValueError(f"{op}: accuracy must be from 0 to 1, nan where not evaluated, got {shown(accuracy)}")
    n = np.asarray(rows, np.float64)
    if n.ndim > 2 or any(mine not in (1, theirs) for mine, theirs in zip(n.shape[::-1], acc.shape[::-1], strict=False)):
        raise ValueError(f"{op}: rows must be of shape {list(acc.shape)}, as {name}, got {list(n.shape)}")
    n = np.broadcast_to(n, acc.shape)
    if not (np.isnan(acc) | (np.isfinite(n) & (n >= 1))).all():
        raise ValueError(f"{op}: rows must be finite and at least 1 for every evaluated cell, got {shown(rows)}")
    return acc, np.where(np.isnan(acc), 0.0, n)


def spreads(op: str, spread: ArrayLike | None, values: Floats) -> Floats:
    """The spread of the rows behind each cell; nan: not known."""
    sd = np.full(values.shape, np.nan) if spread is None else np.asarray(spread, np.float64)
    if sd.shape != values.shape or (sd < 0).any():
        raise ValueError(
            f"{op}: spread must be numbers of at least 0 of shape {list(values.shape)}, got {shown(spread)}"
        )
    return sd


def one_of_equal(acc: Floats, *more: Floats) -> tuple[Floats, ...]:
    """One draw of them, where all draws agree everywhere: nothing was drawn, so more of them tell nothing new.

    Args:
        acc: [level, draw].
        more: the rows of the cells, which must agree as well, and what else there is of them.
    """
    same = all(bool((v == v[:, :1]).all()) for v in (acc, *more[:1]))
    return tuple(v[:, :1] if same else v for v in (acc, *more))


def t_quantile(confidence: float, dof: Any) -> Any:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return stdtrit(dof, 0.5 + confidence / 2)


def t_for(z: float, dof: int) -> float:
    """The quantile of Student's t that is as probable as z is of a normal one."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, NormalDist().cdf(z)))
