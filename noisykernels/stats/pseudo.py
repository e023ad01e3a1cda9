"""How much the numbers behind a value scatter, whatever the value makes of their mean or sum: by leaving each number
out, by having each sum there twice.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisykernels.stats.intervals import Floats, t_quantile
from noisykernels.stats.regression import spread_given

__all__ = ["pseudo_values", "shares_of_sums", "spread_of"]


def pseudo_values(numbers: NDArray[Any], value: Callable[[Any], Any]) -> Floats:
    """`n v - (n - 1) v_i`, v_i the value without the i-th entry: they scatter as the entries do, and their mean is the
    value but for its bias (the jackknife).

    Args:
        numbers: [entries].
        value: of the mean over entries, along leading dimensions.

    Returns:
        [entries]; the numbers themselves where the value is their mean.

    Source: J. W. Tukey, Ann. Math. Stat. 29 (1958) 614.

    Example:
        >>> pseudo_values(np.array([1.0, 2.0, 6.0]), lambda mean: mean).round(6)
        array([1., 2., 6.])
    """
    count, total = len(numbers), numbers.sum(0)
    rest = total - numbers
    with np.errstate(all="ignore"):
        whole, each = value(total / count), value(rest / max(1, count - 1))
    found: Floats = count * np.asarray(whole) - (count - 1) * np.asarray(each)
    return found


def shares_of_sums(sums: NDArray[Any], value: Callable[[Any], Any], rows: NDArray[Any]) -> Floats:
    """`n (p v + (1 + p) (v_i - v))`, v_i the value with the i-th entry there twice and p its part of all rows, moved so
    that their mean is the value v: they scatter as the entries do (the delta method, exact for a mean of rows).

    An entry is not left out: it may be all that there is of a class.

    Args:
        sums: [..., entries, width].
        value: of the sum over entries, along leading dimensions.
        rows: [entries], of how many rows each is.

    Returns:
        [..., entries]; NaN where the value, or one of these, is none.

    Example:
        >>> sums = np.array([[1.0, 2.0], [6.0, 4.0]])
        >>> shares_of_sums(sums, lambda total: total[..., 0] / total[..., 1], np.array([2, 4])).round(6)
        array([0.333333, 2.      ])
    """
    part = rows / rows.sum()
    with np.errstate(all="ignore"):
        whole = np.asarray(value(sums.sum(-2)), np.float64)[..., None]
        each = np.asarray(value(sums.sum(-2, keepdims=True) + sums), np.float64)
        moved = (1 + part) * (each - whole)
        found = len(rows) * (part * whole + moved - moved.mean(-1, keepdims=True))
    return np.where(np.isfinite(found).all(-1, keepdims=True), found, np.nan)


def spread_of(
    clean: NDArray[Any], numbers: NDArray[Any], value: Callable[[Any], Any], *, rows: NDArray[Any] | None = None,
    shares: NDArray[Any] | None = None,
) -> float:  # fmt: skip
    """Standard deviation of a row's part in a value that its clean one does not explain; NaN: not known.

    What a few sums tell of it is little: it is larger by what Student's quantile for them is above that for rows, and
    of fewer than six, where that is half as large again, it is not known. Draws tell more.

    Args:
        clean: entries without noise, as many.
        numbers: entries [entries], or sums [entries, width], all finite.
        value: see `pseudo_values`, or of sums `shares_of_sums`.
        rows: of sums, [entries], of how many rows each is; None: entries are numbers of rows.
        shares: of the entries in all weights; None: all count alike.
    """
    if (entries := len(numbers)) < (3 if rows is None else 6):
        return math.nan
    if rows is None:
        before, after, factor = pseudo_values(clean, value), pseudo_values(numbers, value), 1.0
    else:
        before, after = shares_of_sums(clean, value, rows), shares_of_sums(numbers, value, rows)
        known = t_quantile(0.95, entries - 2) / t_quantile(0.95, float(rows.sum()) - 1)
        factor = float(known) * math.sqrt(float(rows.sum()) / entries)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.nan
    return factor * float(spread_given(before, after, shares))
