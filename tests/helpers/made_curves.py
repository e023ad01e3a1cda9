"""Rows and chips whose accuracy follows a known law of the level, and a search on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from noisykernels._engine.request import Advance, Answer, Request, unheard
from noisykernels.injection import Site
from noisykernels.metrics import BINARY, Real
from noisykernels.stats.questions import Question
from noisykernels.walking import search as walking_search
from noisykernels.walking.aim import Aim
from noisykernels.walking.search import SiteSearch

SITE = Site("made", 0, 1, "linear", (1,), 0)
ROWS, FLOOR = 1500, 0.1


class Made:
    """Rows whose probability of being right falls with ln(level) around a place of their own."""

    def __init__(self, seed: int, centre: float = 0.0, spread: float = 0.5, steepness: float = 3.0) -> None:
        rng = np.random.default_rng(1)  # the rows are the same in every study: only the noise is random
        self.place = centre + spread * rng.standard_normal(ROWS)
        self.clean = rng.random(ROWS) < 0.9
        self.steepness, self.seed, self.asked = steepness, seed, 0

    def probability(self, level: float, rows: int = ROWS) -> Any:
        if level == 0:
            return self.clean[:rows].astype(float)
        hold = 1 / (1 + np.exp(self.steepness * (math.log(level) - self.place[:rows])))
        return FLOOR + (self.clean[:rows] - FLOOR) * hold

    def midpoint(self) -> float:
        target = (self.clean.mean() + FLOOR) / 2
        return math.exp(optimize.brentq(lambda t: self.probability(math.exp(t)).mean() - target, -30, 30))

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for r in requests:
            self.asked += len(r.levels) * len(r.draws) * r.rows
            u = np.stack([np.random.default_rng((self.seed, d)).random(ROWS)[r.start : r.end] for d in r.draws])
            p = np.stack([self.probability(v)[r.start : r.end] for v in r.levels])
            answers.append((u[None] < p[:, None]).astype(np.int8))
        return answers


class Flat(Made):
    """Never falls, or has fallen everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def probability(self, level: float, rows: int = ROWS) -> Any:
        return np.full(rows, self.value)


class MadeChips(Made):
    """Chips that hold each row up to a level of their own: ln(level) is normal around the row's place, in part alike
    for all rows of a chip."""

    def __init__(self, seed: int, rows: int = ROWS, chip: float = 0.2, own: float = 0.3) -> None:
        rng = np.random.default_rng(1)
        self.place = 0.5 * rng.standard_normal(rows)
        self.clean = rng.random(rows) < 0.9
        self.chip, self.own, self.seed, self.asked = chip, own, seed, 0

    def probability(self, level: float, rows: int = ROWS) -> Any:
        hold = stats.norm.cdf((self.place - math.log(level)) / math.hypot(self.chip, self.own))
        return FLOOR + (self.clean - FLOOR) * hold

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for r in requests:
            self.asked += len(r.levels) * len(r.draws) * r.rows
            answer = np.zeros((len(r.levels), len(r.draws), r.rows), np.int8)
            for j, draw in enumerate(r.draws):
                rng = np.random.default_rng((self.seed, draw))
                held = self.place + self.chip * rng.standard_normal() + self.own * rng.standard_normal(len(self.place))
                guessed = rng.random(len(self.place)) < FLOOR
                for i, level in enumerate(r.levels):
                    answer[i, j] = np.where(held > math.log(level), self.clean, guessed)[r.start : r.end]
            answers.append(answer)
        return answers


class Plateau(Made):
    """Falls from its clean value to a plateau, as multiplicative noise does, which leaves zeros zero."""

    def __init__(self, seed: int, end: float, rows: int = ROWS) -> None:
        super().__init__(seed)
        self.place, self.clean, self.end = self.place[:rows], self.clean[:rows], end

    def probability(self, level: float, rows: int = ROWS) -> Any:
        hold = 1 / (1 + np.exp(self.steepness * (math.log(level) - self.place[:rows])))
        return self.end + (self.clean[:rows] - self.end) * hold

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked += sum(r.cells for r in requests)
        found = []
        for r in requests:
            u = np.stack([np.random.default_rng((self.seed, d)).random(ROWS)[r.start : r.end] for d in r.draws])
            p = np.stack([self.probability(min(v, 1e9))[r.start : r.end] for v in r.levels])
            found.append((u[None] < p[:, None]).astype(np.int8))
        return found


class MadeLoss:
    """Rows whose loss grows from a clean one of their own by `level^2 h w`, without bounds: h a row's, w one draw's, of
    a law with mean 1 ("heavy": Student's t of 3; "skewed": lognormal), and the chip's where rows share their noise."""

    def __init__(self, seed: int, law: str = "skewed", rows: int = ROWS, chip: float = 0.0) -> None:
        rng = np.random.default_rng(1)
        self.clean, self.growth = rng.gamma(0.5, 0.4, rows), rng.gamma(1.0, 1.0, rows)
        self.seed, self.law, self.chip, self.asked = seed, law, chip, 0

    def tolerance(self, by: float) -> float:
        return math.sqrt(by / float(self.growth.mean()))

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for r in requests:
            self.asked += r.cells
            answer = np.zeros((len(r.levels), len(r.draws), r.rows))
            for j, draw in enumerate(r.draws):
                rng = np.random.default_rng((self.seed, draw))
                share = math.exp(self.chip * rng.standard_normal() - self.chip**2 / 2)
                size = len(self.clean)
                w = (
                    np.exp(rng.standard_normal(size) - 0.5)
                    if self.law == "skewed"
                    else (np.abs(rng.standard_t(3, size)) / (2 * math.sqrt(3) / math.pi))
                )
                for i, level in enumerate(r.levels):
                    answer[i, j] = (self.clean + level**2 * self.growth * share * w)[r.start : r.end]
            answers.append(answer.astype(np.float32))
        return answers


class Giving:
    """Evaluates by a function of the requests."""

    def __init__(self, give: Callable[[Sequence[Request]], list[Answer]]) -> None:
        self.give = give

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        return self.give(requests)


def seek(searches: Sequence[SiteSearch], give: Callable[[Sequence[Request]], list[Answer]]) -> Any:
    return walking_search.seek(searches, Giving(give))


def search(made: Made, **options: Any) -> SiteSearch:
    scale, rel_ci = options.pop("scale", 1.0), options.pop("rel_ci", 0.05)
    return SiteSearch(SITE, scale, Aim(BINARY, made.clean, FLOOR), rel_ci, **options)


def search_loss(made: MadeLoss, question: Question, floor: float | None = None, **options: Any) -> SiteSearch:
    aim = Aim(Real(), made.clean, floor, question, higher_is_better=False, said=("walk", "loss"))
    return SiteSearch(SITE, options.pop("scale", 1.0), aim, options.pop("rel_ci", 0.05), **options)
