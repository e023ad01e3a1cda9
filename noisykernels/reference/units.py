"""The sizes that levels are relative to, stated a second time: the oracle for `noisykernels.noise.row_scale`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def row_size(row: npt.ArrayLike, statistic: str) -> float:
    """The size of a row's finite elements on their grid, by sums of whole numbers of any length."""
    values = [v for v in np.asarray(row, np.float64).ravel().tolist() if math.isfinite(v)]
    largest = max(map(abs, values), default=0.0)
    if statistic == "max" or largest == 0:
        return largest
    n = len(values)
    bits = min(24, (61 - (n - 1).bit_length()) // 2)
    exponent = max(math.frexp(largest)[1], -990)
    grid = [round(math.ldexp(v, bits - exponent)) for v in values]
    centre = round(sum(grid) / n) if statistic == "std" else 0
    return math.ldexp(math.sqrt(float(sum((q - centre) ** 2 for q in grid)) / n), exponent - bits)
