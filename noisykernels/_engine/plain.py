"""The plain engine: for every site, level and draw the whole noisy model runs.

This is the reference that the other engine is held against: correct and readable first. All it does for speed is to
fold draws into the batch and to run without autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels._engine.judging import judged
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.session import Session
from noisykernels._util.inputs import Inputs
from noisykernels.metrics.law import ALL

__all__ = ["PlainEngine"]


class PlainEngine:
    """Runs a session's model for each level and draw."""

    def __init__(self, session: Session) -> None:
        self.session, self.problem = session, session.problem
        self.rows, self.draws = session.passes.rows, session.passes.draws
        if session.problem.metric.law.block == ALL:  # whose outputs are held together
            self.rows, self.draws = len(session.inputs), 1

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Inputs, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """See `evaluator.Engine`."""
        for k, request in enumerate(requests):
            some = slice(request.start - first, request.end - first)
            inputs, labels, rows = data[0][some], data[1][some], data[2][some]
            targets = self.session.targets(inputs, labels)
            levels = []
            for level in request.levels:
                placement = self.problem.targets[request.which].placement(request.site, level)
                with self.session.placing(placement):
                    levels.append(torch.cat([
                        self._entries(request.draws[i : i + self.draws], inputs, targets, rows, request.start)
                        for i in range(0, len(request.draws), self.draws)
                    ]))  # fmt: skip
            yield k, torch.stack(levels).cpu().numpy()

    def _entries(self, draws: Sequence[int], inputs: Inputs, targets: Any, rows: Tensor, start: int) -> Tensor:
        parts = [slice(low, low + self.session.passes.rows) for low in range(0, len(rows), self.session.passes.rows)]
        scores = [self.session.scores(inputs[part], rows[part], draws).unflatten(0, (len(draws), -1)) for part in parts]
        return judged(self.problem.metric, scores[0] if len(scores) == 1 else torch.cat(scores, 1), targets, start, 1)
