"""How much the numbers behind a value scatter, whatever the value makes of their mean or sum: by leaving each out.

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

__all__ = ["pseudo_values", "spread_of"]


def pseudo_values(numbers: NDArray[Any], value: Callable[[Any], Any], *, sums: bool) -> Floats:
    """`n v - (n - 1) v_i`, v_i the value without the i-th entry: they scatter as the entries do, and their mean is the
    value but for its bias (the jackknife).

    Args:
        numbers: [entries], or sums [entries, width].
        value: of the mean over entries, or of the sum over them, along leading dimensions.
        sums: whether of the sum.

    Returns:
        [entries]; the numbers themselves where the value is their mean.

    Source: J. W. Tukey, Ann. Math. Stat. 29 (1958) 614.

    Example:
        >>> pseudo_values(np.array([1.0, 2.0, 6.0]), lambda mean: mean, sums=False).round(6)
        array([1., 2., 6.])
    """
    count, total = len(numbers), numbers.sum(0)
    rest = total - numbers
    with np.errstate(all="ignore"):
        whole, each = value(total if sums else total / count), value(rest if sums else rest / max(1, count - 1))
    found: Floats = count * np.asarray(whole) - (count - 1) * np.asarray(each)
    return found


def spread_of(
    clean: NDArray[Any], numbers: NDArray[Any], value: Callable[[Any], Any], *, sums: bool, rows: int,
    shares: NDArray[Any] | None = None,
) -> float:  # fmt: skip
    """Standard deviation of a row's part in a value that its clean one does not explain; NaN: not known.

    Args:
        clean: entries without noise, as many.
        numbers: entries [entries], or sums [entries, width], all finite.
        value, sums: see `pseudo_values`.
        rows: that the entries are of.
        shares: of the entries in all weights; None: all count alike.
    """
    if len(numbers) < 3:
        return math.nan
    before, after = (pseudo_values(each, value, sums=sums) for each in (clean, numbers))
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.nan
    return float(spread_given(before, after, shares)) * math.sqrt(rows / len(numbers))
