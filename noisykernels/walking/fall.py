"""How a curve falls around a level, from one measurement: a parabola through its levels, and the errors of that.

Numbers in, numbers out: this file must not know torch or searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisykernels.metrics.law import Answer
from noisykernels.stats.intervals import Floats, widening
from noisykernels.stats.regression import NORMAL, adjusted, adjusted_chips, paired_error
from noisykernels.walking.measuring import Measured

__all__ = ["Fall", "fall_of_chips", "fall_of_rows"]


class Fall(NamedTuple):
    """A curve around x = 0, against half-way: whether it is above there, and where it falls to it."""

    above: bool
    root: float | None  # the nearest x at which it falls half-way; None: nowhere
    slope: float = math.nan  # at the root
    error: float = math.nan  # standard error of the curve at the root
    slope_error: float = math.nan


def fall_of_rows(width: float, target: float, clean: NDArray[Any], measured: Measured, *, skewed: bool = False) -> Fall:
    """The fall through a target where each row has noise of its own.

    At x = 0 the curve is the mean of all rows and draws; at -width and width what it is there, and what the first rows
    and draws differ by.

    Args:
        width: distance of the levels on either side.
        target: the value that is fallen to.
        clean: [all rows], the number of each row without noise.
        measured: numbers at -width, 0 and width.
        skewed: whether numbers may be skewed, which makes errors larger, see `widening`.
    """
    first, rest = measured.first.astype(float), measured.rest.astype(float)
    steps = measured.beside[[0, 2]].astype(float) - measured.beside[1]
    (middle,) = adjusted(clean, measured.middle[None, None])
    low, high = adjusted(clean, steps)

    def error(share: float, weights: Floats) -> float:
        """Of so much of the curve at x = 0, and the weighted sum of what the others differ by."""
        more = np.einsum("l,ldr->dr", weights, steps)
        found = paired_error(clean, share * first, share * rest, more, skewed=skewed)
        if not skewed:
            return found
        h = share * first
        h[: len(more)] += more * (h.size + rest.size) / more.size
        h = np.concatenate([h.ravel(), share * rest.ravel()])
        return found * float(widening(h - h.mean(), h.size, NORMAL))

    def errors(x: float) -> tuple[float, float]:
        u = x / width
        value, slope = np.array([u * u - u, u * u + u]) / 2, np.array([2 * u - 1, 2 * u + 1]) / (2 * width)
        return error(1.0, value), error(0.0, slope)

    return _fall(middle - target, (high - low) / (2 * width), (high + low) / (2 * width**2), errors)


def fall_of_chips(
    x: Floats, target: float, clean: NDArray[Any], parts: Sequence[NDArray[Any]], answers: Sequence[Answer],
    *, skewed: bool = False,
) -> Fall:  # fmt: skip
    """The fall through a target where the rows of a draw share their noise.

    Args:
        x: [levels], at which the curve was measured.
        target: the value that is fallen to.
        clean: [all rows], the number of each row without noise.
        parts: of each answer, those of its rows.
        answers: numbers [levels, draws, rows] each.
        skewed: as for `fall_of_rows`.
    """
    project = np.linalg.pinv(np.stack([np.ones_like(x), x, x * x], 1))  # least squares: (a, b, c)
    chips = adjusted_chips(clean, parts, answers)
    a, b, c = project @ chips.mean(1)

    def error(weights: Floats) -> float:
        """Of a weighted mean over the levels."""
        h = weights @ chips
        found = float(h.std(ddof=1)) / math.sqrt(chips.shape[1])
        return found * float(widening(h - h.mean(), h.size, NORMAL)) if skewed else found

    def errors(root: float) -> tuple[float, float]:
        value, slope = (np.array(w) @ project for w in ([1.0, root, root * root], [0.0, 1.0, 2 * root]))
        return error(value), error(slope)

    return _fall(a - target, b, c, errors)


def _fall(a: float, b: float, c: float, errors: Callable[[float], tuple[float, float]]) -> Fall:
    """Of a curve a + b x + c x^2 against its target, whose errors and slope's errors follow from the root."""
    root = _root(a, b, c)
    if root is None:
        return Fall(bool(a > 0), None)
    error, slope_error = errors(root)
    return Fall(bool(a > 0), root, float(b + 2 * c * root), error, slope_error)


def _root(a: float, b: float, c: float) -> float | None:
    """The root of a + b x + c x^2 at which it falls that is nearest to 0."""
    roots = np.roots([c, b, a]) if abs(c) > 1e-12 else np.array([-a / b]) if b else np.array([])
    falling = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and b + 2 * c * r.real < 0]
    return min(falling, key=abs) if falling else None
