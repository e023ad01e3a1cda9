"""What a walk has found so far of each cell: site, level and draw under one of its noises."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisykernels._engine.request import Answer, Request
from noisykernels.injection.site import Site
from noisykernels.metrics.base import NAN
from noisykernels.stats.records import Record

__all__ = ["Cells"]


class Cells:
    """Records of cells; of one evaluated twice, that with more rows.

    Args:
        sites: those walked.
        clean: bool [rows], which rows are correct without noise.
    """

    def __init__(self, sites: Sequence[Site], clean: NDArray[np.bool_]) -> None:
        self.sites, self.clean = list(sites), clean
        self.evaluations: Counter[int] = Counter()  # predictions made, under each noise
        self._found: dict[tuple[int, str, float, int], Record] = {}

    def take(self, request: Request, answer: Answer) -> None:
        """Takes the answer to a request, a record for each cell."""
        self.evaluations[request.which] += answer.size
        for level, of_level in zip(request.levels, answer, strict=True):
            if nan := int((of_level == NAN).sum()):
                warnings.warn(
                    f"walk: site {request.site.name} at level {level:g}: {nan} of {of_level.size} rows of scores hold "
                    "NaN and count as wrong",
                    stacklevel=3,
                )
            for draw, of_draw in zip(request.draws, of_level, strict=True):
                hits = int((of_draw == 1).sum())
                counted = Record.counted(request.site.name, request.site.index, level, draw, len(of_draw), hits)
                self.put(request.which, counted)

    def put(self, which: int, record: Record) -> None:
        """Takes a record."""
        key = which, record.site, record.level, record.draw
        if key not in self._found or self._found[key].rows < record.rows:
            self._found[key] = record

    def records(self, which: int) -> list[Record]:
        """The records under one of the noises."""
        return [record for (noise, *_), record in self._found.items() if noise == which]
