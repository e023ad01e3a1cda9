"""Confidence intervals of accuracies under noise: one proportion, and one curve.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown

Floats = NDArray[np.float64]


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
) -> tuple[Floats, Floats, Floats]:
    """Mean accuracy per level with the interval due to the noise, on the given data.

    When the noise of different rows is independent (noise on activations), the number of correct
    rows is a sum of independent yes/no outcomes with unequal probabilities. Its variance is at
    most the binomial `p (1 - p) / (rows * draws)`, so the Wilson interval over all rows of all
    draws is safe with any number of draws, one included, and cannot collapse when draws agree.
    When rows share their noise (noise on weights), only draws are independent: the t interval
    over draws, never narrower than Wilson's; with one draw, or draws that all agree, Wilson's of
    one draw alone, which is then too narrow if anything is random.

    Args:
        accuracy: [level, draw], fractions; nan where a cell was not evaluated.
        rows: rows behind each cell, at least 1, scalar or [level, draw].
        confidence: two-sided, pointwise.
        independent_rows: False for noise shared by all rows of a draw.

    Returns:
        mean, low, high: [level] each; nan for a level without cells.

    Raises:
        ValueError: accuracies outside of [0, 1], or less than a row behind one.

    Source: the variance bound, W. Hoeffding, Ann. Math. Stat. 27 (1956) 713-721.

    Example:
        >>> mean, low, high = band([[0.9, 0.9, 0.9]], 1000)
        >>> mean.round(3), low.round(3), high.round(3)
        (array([0.9]), array([0.889]), array([0.91]))
    """
    check_arguments(band, locals())
    acc, n = cells("band", accuracy, rows)
    if not independent_rows:
        acc, n = one_of_equal(acc, n)
    total = n.sum(1)
    safe = np.maximum(total, 1)
    correct = (n * np.nan_to_num(acc)).sum(1)
    mean = np.where(total > 0, correct / safe, np.nan)
    low, high = wilson(np.minimum(correct, safe), safe, confidence)
    if not independent_rows:
        draws = (n > 0).sum(1)
        several = draws > 1
        spread = np.where(n > 0, np.nan_to_num(acc) - mean[:, None], 0.0)
        d = np.where(several, draws, 2)
        half = t_quantile(confidence, d - 1) * np.sqrt((spread**2).sum(1) / (d * (d - 1)))
        low = np.where(several, np.minimum(low, np.maximum(mean - half, 0)), low)
        high = np.where(several, np.maximum(high, np.minimum(mean + half, 1)), high)
    return mean, np.where(total > 0, low, np.nan), np.where(total > 0, high, np.nan)


def cells(op: str, accuracy: ArrayLike, rows: ArrayLike) -> tuple[Floats, Floats]:
    """accuracy [level, draw] and the rows behind each cell, 0 where it was not evaluated."""
    acc = np.asarray(accuracy, np.float64)
    if acc.ndim != 2 or acc.size == 0:
        raise ValueError(f"{op}: accuracy must be a non-empty [level, draw] array, got shape {list(acc.shape)}")
    if not (np.isnan(acc) | ((acc >= 0) & (acc <= 1))).all():
        raise ValueError(f"{op}: accuracy must be from 0 to 1, nan where not evaluated, got {shown(accuracy)}")
    n = np.asarray(rows, np.float64)
    if n.ndim > 2 or any(mine not in (1, theirs) for mine, theirs in zip(n.shape[::-1], acc.shape[::-1], strict=False)):
        raise ValueError(f"{op}: rows must be of shape {list(acc.shape)}, as accuracy, got {list(n.shape)}")
    n = np.broadcast_to(n, acc.shape)
    if not (np.isnan(acc) | (np.isfinite(n) & (n >= 1))).all():
        raise ValueError(f"{op}: rows must be finite and at least 1 for every evaluated cell, got {shown(rows)}")
    return acc, np.where(np.isnan(acc), 0.0, n)


def one_of_equal(acc: Floats, n: Floats) -> tuple[Floats, Floats]:
    """One draw of them, where all draws agree everywhere: nothing was drawn, so more of them tell nothing new."""
    same = bool((acc == acc[:, :1]).all() and (n == n[:, :1]).all())
    return (acc[:, :1], n[:, :1]) if same else (acc, n)


def t_quantile(confidence: float, dof: Any) -> Any:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return stdtrit(dof, 0.5 + confidence / 2)


def t_for(z: float, dof: int) -> float:
    """The quantile of Student's t that is as probable as z is of a normal one."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, NormalDist().cdf(z)))
