"""Means over all rows from those of some, with what is known of every row without noise: regression estimates.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisykernels.stats.intervals import Floats, widening

__all__ = ["adjusted", "adjusted_chips", "spread_given", "standard_error"]

NORMAL = 1.96  # the quantile of a 95 % interval


def adjusted(clean: NDArray[Any], answer: NDArray[Any]) -> Floats:
    """Mean at each level on all rows: that of the rows evaluated, corrected by their clean mean.

    Args:
        clean: [all rows], the number of each row without noise.
        answer: [levels, draws, rows], of the first rows.
    """
    mean = answer.mean(1)  # [levels, rows]
    known = clean[: answer.shape[2]].astype(float)
    spread = known - known.mean()
    norm = float(spread @ spread)
    slope = mean @ spread / norm if norm > 0 else np.zeros(len(mean))
    found: Floats = mean.mean(1) + slope * (float(clean.mean()) - known.mean())
    return found


def adjusted_chips(clean: NDArray[Any], known: Sequence[NDArray[Any]], answers: Sequence[NDArray[Any]]) -> Floats:
    """Mean [levels, draws] of each chip, corrected by the clean mean of the rows that it saw.

    Args:
        clean: [all rows], the number of each row without noise.
        known: of each answer, those of its rows.
        answers: [levels, draws, rows] each.
    """
    centre = float(clean.mean())
    spreads = [part.astype(float) - centre for part in known]
    both = list(zip(spreads, answers, strict=True))
    norm = sum(float(spread @ spread) * a.shape[1] for spread, a in both)
    slope = sum(a.sum(1) @ spread for spread, a in both) / norm if norm > 0 else np.zeros(len(answers[0]))
    return np.concatenate([a.mean(2) - (slope * spread.mean())[:, None] for spread, a in both], axis=1)


def standard_error(clean: NDArray[Any], answer: NDArray[Any], weights: Floats) -> float:
    """Of the weighted mean over all rows: the noise's part, and that of the rows that were not evaluated.

    Args:
        clean: [all rows], the number of each row without noise.
        answer: [levels, draws, rows], of the first rows.
        weights: of the levels.
    """
    _, draws, rows = answer.shape
    h = np.einsum("l,ldr->dr", weights, answer.astype(float))
    within = float(h.var(0, ddof=1).mean())
    known = clean[:rows].astype(float)
    spread = known - known.mean()
    norm = float(spread @ spread)
    mean = h.mean(0)
    residual = mean - mean.mean() - (mean @ spread / norm * spread if norm > 0 else 0.0)
    between = max(0.0, float(residual @ residual) / (rows - 1) - within / draws)
    return math.sqrt(within / (rows * draws) + (1 - rows / len(clean)) * between / rows)


def spread_given(clean: NDArray[Any], numbers: NDArray[Any]) -> Floats:
    """Standard deviation [...] of rows' numbers [..., rows] that their clean ones do not explain; nan of one row.

    That of the noise is at most so much, on average over the rows: the rest is what rows differ in otherwise. It is
    larger by what their skewness adds to an interval of the mean, see `widening`.

    Example:
        >>> spread_given(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [0.0, 3.0, 0.0]])).round(2)
        array([0.  , 3.19])
    """
    rows = numbers.shape[-1]
    known = clean - clean.mean()
    norm = float(known @ known)
    freedom = rows - 1 - (norm > 0)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are too large for a square have no spread
        rest = numbers - numbers.mean(-1, keepdims=True)
        if norm > 0:
            rest = rest - (rest @ known / norm)[..., None] * known
        squares = (rest * rest).sum(-1)
        found: Floats = np.sqrt(squares / freedom) if freedom > 0 else np.full(squares.shape, np.nan)
        return found * widening(rest, rows, NORMAL)
