"""Means over all rows from those of some, with what is known of every row without noise: regression estimates.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisykernels.stats.intervals import Floats, t_quantile, widening

__all__ = ["RowWeights", "adjusted", "adjusted_chips", "effective", "least_spread", "paired_error", "spread_given"]


class RowWeights(NamedTuple):
    """Shares of rows in all weights, in parts of their mean, and the ends of what is measured of them, if there are; of
    blocks of rows, how many each has."""

    shares: NDArray[np.float64]
    bounds: tuple[float, float] | None = None


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


def spread_given(clean: NDArray[Any], numbers: NDArray[Any], shares: NDArray[Any] | None = None) -> Floats:
    """Standard deviation [...] of rows' numbers [..., rows] that their clean ones do not explain; nan of one row.

    That of the noise is at most so much, on average over the rows: the rest is what rows differ in otherwise. It is
    larger by what their skewness adds to an interval of the mean, see `widening`. Where a few rows have most of all
    weights, what each differs by is that from a regression without it, and what is known of the spread is known of as
    many rows as `(sum w)^2 / sum w^2`: Student's quantile for these, in place of the normal one.

    Args:
        clean: [rows], the number of each row without noise.
        numbers: [..., rows].
        shares: of the rows in all weights, which numbers have in them; None: all count alike.

    Source: what rows differ by without them, HC3 of J. G. MacKinnon and H. White, J. Econometrics 29 (1985) 305-325.

    Example:
        >>> spread_given(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [0.0, 3.0, 0.0]])).round(2)
        array([0.  , 4.99])
    """
    rows = numbers.shape[-1]
    known = clean - clean.mean()
    norm = float(known @ known)
    freedom = rows - 1 - (norm > 0)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are too large for a square have no spread
        rest = numbers - numbers.mean(-1, keepdims=True)
        if norm > 0:
            rest = rest - (rest @ known / norm)[..., None] * known
        factor = 1.0
        if shares is not None:
            own = 1 / rows + (known * known / norm if norm > 0 else 0.0)
            rest = rest / np.maximum(1 - own, 1e-3)
            many = effective(shares)
            factor = float(t_quantile(0.95, many - 1) / t_quantile(0.95, max(1, rows - 1))) * (1 + 0.9 / many)
        squares = (rest * rest).sum(-1)
        found: Floats = np.sqrt(squares / freedom) if freedom > 0 else np.full(squares.shape, np.nan)
        return factor * found * widening(rest, rows, NORMAL)


def effective(shares: NDArray[Any]) -> float:
    """Of how many rows that count alike as much is known as of these, at least 2: `(sum w)^2 / sum w^2`.

    Example:
        >>> effective(np.array([1.0, 1.0, 1.0])), effective(np.array([4.0, 4.0, 0.1, 0.1])) < 2.1
        (3.0, True)
    """
    return max(2.0, float(shares.sum()) ** 2 / float((shares * shares).sum()))


def least_spread(mean: float, low: float, high: float, shares: NDArray[Any]) -> float:
    """Standard deviation, at least, that rows' numbers from low to high are taken to have: that of yes and no as often
    as their mean says, Wilson's way, of as many rows as `effective`. A few heavy rows that all agree tell little.

    Args:
        mean: of numbers that have the shares in them.
        low, high: ends of what is measured.
        shares: of the rows in all weights.

    Example:
        >>> round(least_spread(1.0, 0.0, 1.0, np.ones(100)), 3)
        0.137
    """
    many = effective(shares)
    part = (min(1.0, max(0.0, (mean - low) / (high - low))) * many + 2) / (many + 4)
    return (high - low) * math.sqrt(part * (1 - part) * len(shares) / many)
