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

from noisykernels.stats.intervals import Floats
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


def shares_of_sums(sums: NDArray[Any], value: Callable[[Any], Any]) -> Floats:
    """`v + (n + 1) (v_i - v)`, v_i the value with the i-th entry there twice, moved so that their mean is the value v:
    they scatter as the entries do (the delta method, exact for a ratio whose denominators are alike).

    An entry is not left out: it may be all that there is of a class.

    Args:
        sums: [..., entries, width].
        value: of the sum over entries, along leading dimensions.

    Returns:
        [..., entries]; NaN where the value, or one of these, is none.

    Example:
        >>> shares_of_sums(np.array([[1.0, 2.0], [3.0, 2.0]]), lambda sums: sums[..., 0] / sums[..., 1]).round(6)
        array([0.5, 1.5])
    """
    count, total = sums.shape[-2], sums.sum(-2)
    with np.errstate(all="ignore"):
        whole = np.asarray(value(total), np.float64)[..., None]
        each = np.asarray(value(total[..., None, :] + sums), np.float64)
        found = (count + 1) * (each - whole)
        found = whole + found - found.mean(-1, keepdims=True)
    return np.where(np.isfinite(found).all(-1, keepdims=True), found, np.nan)


def spread_of(
    clean: NDArray[Any], numbers: NDArray[Any], value: Callable[[Any], Any], *, sums: bool, rows: int,
    shares: NDArray[Any] | None = None,
) -> float:  # fmt: skip
    """Standard deviation of a row's part in a value that its clean one does not explain; NaN: not known.

    Args:
        clean: entries without noise, as many.
        numbers: entries [entries], or sums [entries, width], all finite.
        value: see `pseudo_values`, or of sums `shares_of_sums`.
        sums: whether of sums.
        rows: that the entries are of.
        shares: of the entries in all weights; None: all count alike.
    """
    if len(numbers) < 3:
        return math.nan
    before, after = ((shares_of_sums if sums else pseudo_values)(each, value) for each in (clean, numbers))
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.nan
    return float(spread_given(before, after, shares)) * math.sqrt(rows / len(numbers))
