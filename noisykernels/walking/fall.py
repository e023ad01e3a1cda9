"""How a curve falls around a level, from one measurement: a parabola through its levels, and the errors of that.

Numbers in, numbers out: this file must not know torch or searches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisykernels.metrics.law import Answer
from noisykernels.stats.intervals import Floats, widening
from noisykernels.stats.regression import NORMAL, adjusted, adjusted_chips, standard_error

__all__ = ["Fall", "fall_of"]


class Fall(NamedTuple):
    """A curve around x = 0, against half-way: whether it is above there, and where it falls to it."""

    above: bool
    root: float | None  # the nearest x at which it falls half-way; None: nowhere
    slope: float = math.nan  # at the root
    error: float = math.nan  # standard error of the curve at the root
    slope_error: float = math.nan


def fall_of(
    x: Floats, target: float, clean: NDArray[Any], parts: Sequence[NDArray[Any]], answers: Sequence[Answer],
    chips: bool, *, skewed: bool = False,
) -> Fall:  # fmt: skip
    """The fall through a target.

    Args:
        x: [levels], at which the curve was measured.
        target: the value that is fallen to.
        clean: [all rows], the number of each row without noise.
        parts: of each answer, those of its rows.
        answers: numbers [levels, draws, rows] each; one, unless rows share their noise.
        chips: whether the rows of a draw share their noise.
        skewed: whether numbers may be skewed, which makes errors larger, see `widening`.
    """
    project = np.linalg.pinv(np.stack([np.ones_like(x), x, x * x], 1))  # least squares: (a, b, c)
    of_chips = adjusted_chips(clean, parts, answers) if chips else None
    mean = adjusted(clean, answers[0]) if of_chips is None else of_chips.mean(1)
    a, b, c = project @ mean
    root = _root(a - target, b, c)
    if root is None:
        return Fall(bool(a > target), None)

    def error(weights: Floats) -> float:
        """Of a weighted mean over the levels."""
        if of_chips is None:
            found, h = standard_error(clean, answers[0], weights), np.einsum("l,ldr->dr", weights, answers[0]).ravel()
        else:
            h = weights @ of_chips
            found = float(h.std(ddof=1)) / math.sqrt(of_chips.shape[1])
        return found * float(widening(h - h.mean(), h.size, NORMAL)) if skewed else found

    value, slope = (np.array(w) @ project for w in ([1.0, root, root * root], [0.0, 1.0, 2 * root]))
    return Fall(bool(a > target), root, float(b + 2 * c * root), error(value), error(slope))


def _root(a: float, b: float, c: float) -> float | None:
    """The root of a + b x + c x^2 at which it falls that is nearest to 0."""
    roots = np.roots([c, b, a]) if abs(c) > 1e-12 else np.array([-a / b]) if b else np.array([])
    falling = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and b + 2 * c * r.real < 0]
    return min(falling, key=abs) if falling else None
