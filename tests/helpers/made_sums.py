"""Rows of several places (pixels, tokens) that are said to be of some class, as a known law of the level has it: what
searches and grids of sums over rows are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from made_curves import SITE
from numpy.typing import NDArray

from noisykernels._engine.request import Answer, Request
from noisykernels.metrics import AUROC, ECE, F1, MeanIoU, Metric
from noisykernels.metrics.law import block_rows
from noisykernels.stats import fit_tolerance
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.pseudo import spread_of
from noisykernels.stats.questions import Question
from noisykernels.stats.regression import RowWeights
from noisykernels.walking.aim import Aim
from noisykernels.walking.search import SiteSearch

__all__ = ["CLASSES", "MadeScores", "MadeSums", "grid_of_sums", "search_sums"]

CLASSES, BLOCK = 4, 250
STEPS = np.linspace(-0.2, 0.2, 9)


class MadeSums:
    """Rows whose places are right up to a level, and of any class beyond: its logarithm is normal around the row's own
    place, in part alike for all places of a row under a draw, and for all rows of it where they share their noise.

    Args:
        seed: of the noise; the rows are the same in all.
        metric: "f1" or "mean_iou".
        rows: of the data.
        places: of a row.
        chip: standard deviation of what all rows of a draw have in common.
    """

    def __init__(self, seed: int, metric: str = "f1", rows: int = 1500, places: int = 1, chip: float = 0.0) -> None:
        rng = np.random.default_rng(1)
        self.labels = rng.choice(CLASSES, (rows, places), p=[0.5, 0.3, 0.15, 0.05])
        self.hard = 0.5 * rng.standard_normal((rows, 1))
        self.wrong = rng.random((rows, places)) < 0.1  # without noise
        self.seed, self.chip, self.rows, self.asked = seed, chip, rows, 0
        kind = F1() if metric == "f1" else MeanIoU()
        self.metric: Metric = kind.prepared("made", torch.from_numpy(self.labels))
        self.clean = self.sums(np.where(self.wrong, (self.labels + 1) % CLASSES, self.labels))

    def sums(self, said: NDArray[Any]) -> NDArray[np.float64]:
        """[blocks, width] of what is said of all rows, as `metrics.sums` has them."""
        block = (np.arange(self.rows) // BLOCK)[:, None]

        def count(classes: NDArray[Any], where: Any = None) -> NDArray[Any]:
            place = (block * CLASSES + classes).ravel()
            weight = None if where is None else where.ravel().astype(float)
            return np.bincount(place, weight, (int(block[-1, 0]) + 1) * CLASSES)

        both = count(said, said == self.labels)
        either = count(said) + count(self.labels) - both
        return np.stack([both, either], 1).reshape(-1, 2 * CLASSES)

    def said(self, draw: int, levels: Sequence[float]) -> list[NDArray[Any]]:
        """Of all rows under a draw at some levels."""
        rng = np.random.default_rng((self.seed, draw))
        shape = self.labels.shape
        held = self.hard + self.chip * rng.standard_normal() + 0.4 * rng.standard_normal((self.rows, 1))
        held = held + 0.4 * rng.standard_normal(shape)
        other = np.where(rng.random(shape) < 0.7, 0, rng.integers(CLASSES, size=shape))  # the first class most often
        clean = np.where(self.wrong, (self.labels + 1) % CLASSES, self.labels)
        return [np.where(held > math.log(level), clean, other) for level in levels]

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers, by rows as the engine has them: those of a block that lie in the request."""
        found = []
        for r in requests:
            self.asked += r.cells
            assert r.start % BLOCK == 0 and (r.end % BLOCK == 0 or r.end == self.rows)
            some = slice(r.start // BLOCK, -(-r.end // BLOCK))
            answer = [[self.sums(said)[some] for said in self.said(draw, r.levels)] for draw in r.draws]
            found.append(np.array(answer).swapaxes(0, 1))
        return found

    def value(self, sums: NDArray[Any]) -> Any:
        """Of sums [..., blocks, width]."""
        return self.metric.value(sums.sum(-2))

    def truth(self, target: float, near: float, draws: int = 1000) -> float:
        """The level at which the mean value of many draws crosses a target: of a quadratic through it at some."""
        other = type(self).__new__(type(self))
        other.__dict__ |= self.__dict__ | {"seed": 10**9}
        levels = near * np.exp(STEPS)
        (answer,) = other([Request(SITE, tuple(levels), tuple(range(draws)), self.rows)])
        fit = np.polyfit(STEPS, self.value(answer).mean(1) - target, 2)
        return near * math.exp(min((r.real for r in np.roots(fit) if abs(r.imag) < 1e-9), key=abs))


class MadeScores(MadeSums):
    """Rows whose scores get normal noise: one logit of two classes for "auroc", three scores for "ece", which are too
    sure by half where they are clean, and the surer the more noise there is."""

    def __init__(self, seed: int, metric: str = "auroc", rows: int = 1500) -> None:
        rng = np.random.default_rng(1)
        classes = 2 if metric == "auroc" else 3
        self.seed, self.chip, self.rows, self.asked = seed, 0.0, rows, 0
        kind = AUROC() if metric == "auroc" else ECE()
        means = rng.standard_normal((rows, classes))
        odds = np.exp(2 * means)
        picked = (odds.cumsum(1) / odds.sum(1, keepdims=True) < rng.random((rows, 1))).sum(1)
        self.labels = picked[:, None]
        self.scores = 2 * (means[:, 1:] - means[:, :1]) if metric == "auroc" else 3 * means
        self.metric = kind.prepared("made", torch.from_numpy(picked))
        self.clean = self.sums(self.scores)

    def sums(self, said: NDArray[Any]) -> NDArray[np.float64]:
        """See `MadeSums`: of scores."""
        scores, labels = torch.from_numpy(said)[None], torch.from_numpy(self.labels[:, 0])
        some = [slice(start, start + BLOCK) for start in range(0, self.rows, BLOCK)]
        return np.concatenate([self.metric.of_rows(scores[:, part], labels[part]).numpy() for part in some])

    def said(self, draw: int, levels: Sequence[float]) -> list[NDArray[Any]]:
        """See `MadeSums`: scores."""
        noise = np.random.default_rng((self.seed, draw)).standard_normal(self.scores.shape)
        return [self.scores + level * noise for level in levels]


def search_sums(made: MadeSums, question: Question, floor: float | None = None, **options: Any) -> SiteSearch:
    aim = Aim(
        made.metric.law, made.clean, floor, question, value=made.metric.value, said=("walk", made.metric.name),
        positions=min(BLOCK, made.rows) * made.labels.shape[1], weights=RowWeights(block_rows(made.rows, BLOCK) * 1.0),
        higher_is_better=made.metric.higher_is_better,
    )  # fmt: skip
    return SiteSearch(SITE, options.pop("scale", 1.0), aim, options.pop("rel_ci", 0.05), **options)


def grid_of_sums(made: MadeSums, question: Question, draws: int) -> Midpoint:
    """A walk over a grid of levels, as a study's records have it."""
    levels = tuple(np.logspace(-1.2, 0.6, 23).tolist())
    (answer,) = made([Request(SITE, levels, tuple(range(draws)), made.rows)])
    rows = block_rows(made.rows, BLOCK)
    spread = [[spread_of(made.clean, a, made.metric.value, rows=rows) for a in v] for v in answer]
    return fit_tolerance(
        levels, made.value(answer), at=question, clean=float(made.value(made.clean)), rows=made.rows, law="real",
        spread=spread, independent_rows=made.chip == 0, higher_is_better=made.metric.higher_is_better,
    )  # fmt: skip
