"""The plain engine: for every site, level and draw the whole noisy model runs.

This is the reference that the other engine is held against: correct and readable first. All it does for speed is to
fold draws into the batch, to hold the data in memory, and to run without autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from noisykernels._engine.request import Answer, Request
from noisykernels._engine.session import Session
from noisykernels._util.inputs import Inputs

__all__ = ["PlainEngine"]


class PlainEngine:
    """Runs a session's model for each level and draw."""

    def __init__(self, session: Session) -> None:
        self.session, self.problem = session, session.problem
        self.rows, self.draws = session.passes.rows, session.passes.draws

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Inputs, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """See `evaluator.Engine`."""
        for k, request in enumerate(requests):
            some = slice(request.start - first, request.end - first)
            inputs, labels, rows = data[0][some], data[1][some], data[2][some]
            levels = []
            for level in request.levels:
                placement = self.problem.targets[request.which].placement(request.site, level)
                with self.session.placing(placement):
                    levels.append(torch.cat([
                        self._rows(request.draws[i : i + self.draws], inputs, labels, rows)
                        for i in range(0, len(request.draws), self.draws)
                    ]))  # fmt: skip
            yield k, torch.stack(levels).cpu().numpy()

    def _rows(self, draws: Sequence[int], inputs: Inputs, labels: Tensor, rows: Tensor) -> Tensor:
        scores = self.session.scores(inputs, rows, draws)
        return self.problem.metric.of_rows(scores.unflatten(0, (len(draws), len(labels))), labels)
