"""Walks of made-up rows over a grid of levels, whose truth is known: what intervals are held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from noisykernels.stats import fit_tolerance
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.regression import least_spread, spread_given

__all__ = ["LAWS", "made_accuracy", "made_loss"]

ROWS = 300
LAWS = ("heavy", "skewed", "shared")


def uneven(rows: int, kind: str | None) -> NDArray[np.float64]:
    """Weights of rows, in parts of their mean: None, all 1; "uneven": lognormal; "few": a twentieth of the rows has
    nine tenths of all weight, and a tenth of them none."""
    rng = np.random.default_rng(3)
    if kind is None:
        return np.ones(rows)
    drawn = np.exp(rng.standard_normal(rows))
    if kind == "few":
        drawn = np.where(np.arange(rows) % 20 == 0, 180 * drawn, np.where(np.arange(rows) % 10 == 1, 0.0, drawn))
    found: NDArray[np.float64] = drawn / drawn.mean()
    return found


def made_loss(law: str, draws: int, seed: int, weights: str | None = None) -> tuple[Midpoint, float]:
    """Row r loses `level^2 h_r w`, w of a law with mean 1: the fit of a loss of 0.2 more, and where it is.

    Args:
        law: "heavy": Student's t of 3; "skewed": lognormal; "shared": so, and in part alike for all rows of a draw.
        draws: of the grid.
        seed: of the noise; the rows are the same in all.
        weights: of the rows, see `uneven`.
    """
    fixed, rng = np.random.default_rng(1), np.random.default_rng([seed, 7])
    clean, h = fixed.gamma(1.0, 0.4, ROWS), fixed.gamma(2.0, 0.5, ROWS)
    size, share = (draws, ROWS), uneven(ROWS, weights)
    w = {
        "heavy": lambda: np.abs(rng.standard_t(3, size)) / (2 * np.sqrt(3) / np.pi),
        "skewed": lambda: np.exp(rng.standard_normal(size) - 0.5),
        "shared": lambda: (
            np.exp(0.4 * rng.standard_normal((draws, 1)) - 0.08) * np.exp(rng.standard_normal(size) - 0.5)
        ),
    }[law]()
    levels = np.logspace(-0.8, 0.3, 23)
    clean, numbers = share * clean, share * (clean + levels[:, None, None] ** 2 * h * w)
    found = fit_tolerance(
        levels, numbers.mean(2), at="drop:0.2", clean=float(clean.mean()), rows=ROWS, law="real",
        higher_is_better=False, spread=spread_given(clean, numbers, None if weights is None else share),
        independent_rows=law != "shared",
    )  # fmt: skip
    return found, math.sqrt(0.2 / float((share * h).mean()))


def made_accuracy(draws: int, seed: int, weights: str | None = None) -> tuple[Midpoint, float]:
    """Rows that are right with a probability that falls with the level: the fit of an accuracy of 0.1 less, as a
    measure with bounds where rows have weights, and where it is."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng([seed, 8])
    place, clean, share = 0.5 * fixed.standard_normal(ROWS), fixed.random(ROWS) < 0.9, uneven(ROWS, weights)
    levels, u = np.logspace(-1.2, 0.6, 23), rng.random((draws, ROWS))

    def hold(level: Any) -> Any:
        return 0.1 + (clean - 0.1) / (1 + np.exp(3 * (np.log(level) - place)))

    numbers = share * (u < hold(levels[:, None, None]))
    known = float((share * clean).mean())
    truth = optimize.brentq(lambda v: float((share * hold(v)).mean()) - known + 0.1, 1e-3, 1e2)
    spread = None
    if weights is not None:
        spread = spread_given(share * clean, numbers, share)
        least = [[least_spread(v, 0.0, 1.0, share) for v in of_level] for of_level in numbers.mean(2)]
        spread = np.maximum(spread, least)
    law: Any = "binary" if weights is None else "bounded"
    return fit_tolerance(levels, numbers.mean(2), at="drop:0.1", clean=known, rows=ROWS, law=law, spread=spread), float(
        truth
    )
