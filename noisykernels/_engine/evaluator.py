"""Evaluates requests, chunk of rows by chunk of rows, each by the engine that can.

What is found does not depend on how requests are cut by rows: an engine always computes a whole chunk's clean values,
and passes of a chunk are cut in the same way whoever asks. So any worker may evaluate any part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from noisykernels._engine.plain import Plain
from noisykernels._engine.plan import ROWS, Passes, Plan
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.shared import Reuse
from noisykernels._engine.targets import Walked
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import Tape

__all__ = ["Engine", "Evaluator", "Problem"]


class Engine(Protocol):
    """What evaluates requests on a chunk of rows."""

    rows: int  # of a chunk

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Tensor, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """Answers to requests that lie within a chunk, as (place in `requests`, answer), in any order.

        Args:
            first: number of the chunk's first row.
            data: inputs, labels and ids of the chunk's rows.
        """


@dataclass(frozen=True)
class Problem:
    """All that answers depend on, as it can be sent to a worker.

    Args:
        model: not injected.
        data: inputs, labels, ids of rows.
        noises: at level 1.
        seed: of the study.
    """

    model: nn.Module
    data: tuple[Tensor, Tensor, Tensor]
    noises: tuple[Walked, ...]
    seed: int


class Evaluator:
    """Both engines on one problem.

    Args:
        problem: what is asked.
        injected: its model, injected and traced.
        passes: of the plain engine.
        plan: of the engine that shares work; None: there is none.
        tape: of the model; None records it if there is a plan.
    """

    def __init__(
        self, problem: Problem, injected: nn.Module, passes: Passes, plan: Plan | None, tape: Tape | None = None
    ) -> None:
        self.problem = problem
        how = problem.noises, problem.seed
        self.plain = Plain(injected, passes, *how)
        self.reuse = None if plan is None else Reuse(tape or record_tape(injected, problem.data[0][:4]), plan, *how)

    def shares(self, request: Request) -> bool:
        """Whether the engine that shares work can evaluate a request."""
        return self.reuse is not None and self.reuse.reaches(request.site.name, self.problem.noises[request.which])

    def rows_of_task(self, request: Request) -> int:
        """Some hundred rows, at whose multiples a request may be cut without changing its answer."""
        chunk = self.reuse.rows if self.reuse is not None and self.shares(request) else self.plain.rows
        return chunk * -(-ROWS // chunk)

    def correct(
        self, requests: Sequence[Request], advance: Callable[[float], object] = lambda done: None
    ) -> list[Answer]:
        """The answers to requests.

        Args:
            advance: called with the levels done since, in parts.
        """
        found = [np.zeros((len(r.levels), len(r.draws), r.rows), dtype=np.int8) for r in requests]
        with torch.inference_mode():
            for engine, shared in ((self.reuse, True), (self.plain, False)):
                mine = [i for i, r in enumerate(requests) if self.shares(r) == shared]
                if engine is not None and mine:
                    self._run(engine, {i: requests[i] for i in mine}, found, advance)
        return found

    def _run(
        self, engine: Engine, requests: dict[int, Request], found: list[Answer], advance: Callable[[float], object]
    ) -> None:
        low, high = min(r.start for r in requests.values()), max(r.end for r in requests.values())
        for first in range(low // engine.rows * engine.rows, high, engine.rows):
            parts = {i: p for i, r in requests.items() if (p := r.within(first, first + engine.rows)) is not None}
            if not parts:
                continue
            places = list(parts)
            inputs, labels, rows = (part[first : first + engine.rows] for part in self.problem.data)
            for k, answer in engine.chunk(list(parts.values()), first, (inputs, labels, rows)):
                part, whole = parts[places[k]], requests[places[k]]
                found[places[k]][..., part.start - whole.start : part.end - whole.start] = answer
                advance(len(part.levels) * part.rows / whole.rows)
