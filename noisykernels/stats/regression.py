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

__all__ = ["adjusted", "adjusted_chips", "paired_error", "spread_given"]

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


def paired_error(
    clean: NDArray[Any], first: Floats, rest: Floats, more: Floats, *, skewed: bool = False
) -> float:  # fmt: skip
    """Standard error of the mean over all rows of some numbers, plus that of others, which belong to the first of their
    draws and rows: the noise's part, and that of the rows that were not evaluated.

    Of rows with one draw nothing tells the noise from what rows differ by: there it varies as it does in the first
    rows. Numbers that may be skewed can have their largest among the others. Then all that they vary by counts as if it
    were the noise's, which it is at most.

    Args:
        clean: [all rows], the number of each row without noise.
        first: numbers [draws, rows] of the first rows.
        rest: numbers [other draws, other rows] of those after them.
        more: the others, [fewer draws, rows] of the first rows.
        skewed: whether numbers may be.
    """
    (draws, part), some, others = first.shape, len(more), rest.shape[1]
    rows = part + others
    known = [part_of.var(0, ddof=1) for part_of in (first, rest) if len(part_of) > 1]
    alone = float(np.concatenate(known).mean())  # what the noise of a number varies by
    both = float((first[:some] / (rows * draws) + more / (part * some)).var(0, ddof=1).mean())
    noise = part * (some * both + (draws - some) * alone / (rows * draws) ** 2)
    noise += others * alone / (len(rest) * rows**2)

    # How much rows differ, in either and in both, beyond what the noise makes of their means.
    means = _unexplained(clean, np.concatenate([first.mean(0), rest.mean(0)]))
    added = _unexplained(clean, more.mean(0))
    noisy = (part / draws + others / len(rest)) / rows
    of_means = max(0.0, float(means @ means) / max(1, rows - 1) - alone * noisy)
    of_added = max(0.0, float(added @ added) / max(1, part - 1) - float(more.var(0, ddof=1).mean()) / some)
    shared = float(((first[:some] - first[:some].mean(0)) * more).sum(0).mean()) / (some - 1) / draws
    of_both = float(means[:part] @ added) / max(1, part - 1) - shared
    unseen = 0.0 if skewed and others and len(rest) == 1 else 1 / len(clean)
    left, left_of_part = 1 / rows - unseen, 1 / part - unseen
    return math.sqrt(noise + max(0.0, left * (of_means + 2 * of_both) + left_of_part * of_added))


def _unexplained(clean: NDArray[Any], means: Floats) -> Floats:
    """Of the first rows' means, what their clean numbers do not explain."""
    known = clean[: len(means)].astype(float)
    spread = known - known.mean()
    norm = float(spread @ spread)
    found: Floats = means - means.mean() - (means @ spread / norm * spread if norm > 0 else 0.0)
    return found


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
