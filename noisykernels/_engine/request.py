"""What is asked of the engine, and what it answers: requests, answers, and how parts of an answer are put together.

Everything that evaluates takes requests and gives answers, so each wraps the next without knowing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from noisykernels.injection.site import Site

__all__ = ["Answer", "Request", "joined"]


Answer = NDArray[np.int8]  # [levels, draws, rows]: 1 for a correct prediction, 0 for a wrong one, NAN


@dataclass(frozen=True)
class Request:
    """What is to be evaluated: a site at `levels`, under `draws`, on `rows` rows from `start` on."""

    site: Site
    levels: tuple[float, ...]
    draws: tuple[int, ...]
    rows: int
    start: int = 0
    which: int = 0  # of the study's noises

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.start + self.rows

    def within(self, start: int, end: int) -> Request | None:
        """The part of this request on rows start..end - 1; None: there is none."""
        low, high = max(self.start, start), min(self.end, end)
        return replace(self, start=low, rows=high - low) if low < high else None


def joined(request: Request, parts: Sequence[tuple[Request, Answer]]) -> Answer:
    """The answer to a request from those to its parts."""
    found: Answer = np.zeros((len(request.levels), len(request.draws), request.rows), dtype=np.int8)
    for part, answer in parts:
        found[..., part.start - request.start : part.end - request.start] = answer
    return found
