"""What a walk has found so far of each cell: site, level and draw under one of its targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from noisykernels._engine.request import Answer, Request
from noisykernels._util.warning import warn_user
from noisykernels.injection.site import Site
from noisykernels.metrics.base import Metric
from noisykernels.stats.records import Record

__all__ = ["Cells", "counted"]


def counted(request: Request, level: float, draw: int, numbers: NDArray[Any], status: str = "evaluated") -> Record:
    """The record of one cell of a request, from the numbers of its rows."""
    site = request.site
    return Record.counted(site.name, site.index, level, draw, len(numbers), int(numbers.sum()), status)


class Cells:
    """Records of cells; of one evaluated twice, that with more rows.

    Args:
        sites: those walked.
        targets: how many targets are walked.
        clean: [rows], the number of each row without noise.
        floor: their mean under unbounded noise.
        metric: of which they are.
    """

    def __init__(self, sites: Sequence[Site], targets: int, clean: NDArray[Any], floor: float, metric: Metric) -> None:
        self.sites, self.targets, self.clean, self.floor, self.metric = list(sites), targets, clean, floor, metric
        self.evaluations: Counter[int] = Counter()  # numbers looked at, under each target
        self._found: dict[tuple[int, str, float, int], Record] = {}

    @property
    def clean_mean(self) -> float:
        """What is measured without noise."""
        return float(self.clean.mean())

    def take(self, request: Request, answer: Answer) -> None:
        """Takes the answer to a request, a record for each cell."""
        self.evaluations[request.which] += answer.size
        for level, of_level in zip(request.levels, answer, strict=True):
            if nan := int(self.metric.law.missing(of_level).sum()):
                warn_user(
                    f"walk: site {request.site.name} at level {level:g}: {nan} of {of_level.size} rows of scores hold "
                    "NaN and count as wrong",
                )
            for draw, of_draw in zip(request.draws, self.metric.law.numbers(of_level), strict=True):
                self.put(request.which, counted(request, level, draw, of_draw))

    def prove(self, request: Request, levels: Sequence[float]) -> None:
        """Takes it that at some levels of a request on all rows no prediction flips: the counts are the clean ones."""
        for level in levels:
            for draw in request.draws:
                self.put(request.which, counted(request, level, draw, self.clean, "proved"))

    def put(self, which: int, record: Record) -> None:
        """Takes a record."""
        key = which, record.site, record.level, record.draw
        if key not in self._found or self._found[key].rows < record.rows:
            self._found[key] = record

    def records(self, which: int) -> list[Record]:
        """The records under one of the targets."""
        return [record for (target, *_), record in self._found.items() if target == which]
