"""What is asked of the engine, and what it answers: requests, answers, and how parts of an answer are put together.

Everything that evaluates takes requests and gives answers, so each wraps the next without knowing it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.judging import entries, put
from noisykernels.injection.site import Site
from noisykernels.metrics.law import Answer, Law

__all__ = ["Advance", "Answer", "Evaluate", "Facts", "Request", "begun", "joined", "unheard", "unlike"]

Advance = Callable[[float], object]  # is called with the levels of requests that were done since, in parts


def unheard(done: float) -> None:
    """The progress of what nobody watches."""


@dataclass(frozen=True)
class Request:
    """What is to be evaluated: a site at `levels`, under `draws`, on `rows` rows from `start` on."""

    site: Site
    levels: tuple[float, ...]
    draws: tuple[int, ...]
    rows: int
    start: int = 0
    which: int = 0  # of the study's targets

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.start + self.rows

    @property
    def cells(self) -> int:
        """Predictions that it takes."""
        return len(self.levels) * len(self.draws) * self.rows

    def entries(self, law: Law) -> int:
        """Of its answer, for each level and draw: rows, or blocks of them."""
        return entries(law, self.start, self.end)

    def within(self, start: int, end: int) -> Request | None:
        """The part of this request on rows start..end - 1; None: there is none."""
        low, high = max(self.start, start), min(self.end, end)
        return replace(self, start=low, rows=high - low) if low < high else None


class Evaluate(Protocol):
    """What evaluates requests: the engines here, workers, a store before either."""

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """The answers to requests, each [levels, draws, entries], of a law of sums [..., width]."""


class Facts(Protocol):
    """What is known of a study's model before anything is evaluated."""

    @property
    def idle(self) -> Collection[str]:
        """Sites on which the scores do not depend."""

    @property
    def positions(self) -> int:
        """Of a row, whose mean its number is: tokens, pixels."""

    def scales(self, sites: Sequence[Site], which: int) -> dict[str, float]:
        """The level at which a target is about as large as the values, at the sites of which that is known."""

    def proved(self, requests: Sequence[Request]) -> list[float]:
        """For each request on all rows, the level up to which no prediction can flip."""

    def shares_rows(self, which: int) -> bool:
        """Whether the rows of a draw share what is random under a target."""


def begun(law: Law, request: Request) -> Answer:
    """An answer to a request to be filled in."""
    return law.empty(len(request.levels), len(request.draws), request.entries(law))


def unlike(one: Answer, other: Answer) -> NDArray[np.bool_]:
    """Where two answers differ; NaN is like NaN."""
    same: NDArray[np.bool_] = (one == other) | ((one != one) & (other != other))
    return ~same


def joined(law: Law, request: Request, parts: Sequence[tuple[Request, Answer]]) -> Answer:
    """The answer to a request from those to its parts."""
    found = begun(law, request)
    for part, answer in parts:
        put(law, found, request.start, part.start, answer)
    return found
