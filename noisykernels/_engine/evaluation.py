"""Who evaluates a study's requests: the engines here or the workers of an executor, again where a recording failed, and
before either a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from noisykernels._engine.cached import CachedAnswers
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.request import Advance, Answer, Evaluate, Request, unheard
from noisykernels._engine.session import Problem
from noisykernels._engine.shared import Failed
from noisykernels._engine.store import Store
from noisykernels._engine.store_keys import study_key
from noisykernels._engine.workers import Workers

__all__ = ["evaluation"]


@contextlib.contextmanager
def evaluation(
    here: Evaluator, sent: bytes | None, store: str | os.PathLike[str] | None, plan: dict[str, Any],
    levels: Sequence[float],
) -> Iterator[Evaluate]:  # fmt: skip
    """What evaluates, for the length of a block.

    Args:
        here: the engines of this process.
        sent: the problem as workers get it; None: there are none.
        store: a file that keeps answers.
        plan: what the store's answers belong to, beside the problem.
        levels: of a grid.
    """
    evaluate: Evaluate = here
    with contextlib.ExitStack() as stack:
        if sent is not None:
            executor = here.session.compute.executor
            assert executor is not None
            evaluate = stack.enter_context(Workers(executor, sent, here))
        evaluate = _Again(here, evaluate)
        if store is not None:
            opened = stack.enter_context(Store(store, _key(here.problem, plan, levels)))
            evaluate = CachedAnswers(opened, evaluate, here, here.problem.metric.law, len(here.problem.data[1]))
        yield _Compared(here, evaluate) if here.session.compute.verify == "full" else evaluate


class _Again:
    """Evaluates again where an operation of the recording fails: then the site runs whole, all of its rows alike."""

    def __init__(self, here: Evaluator, evaluate: Evaluate) -> None:
        self.here, self.evaluate = here, evaluate

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """See `Evaluate`."""
        done = 0.0

        def told(more: float) -> None:
            nonlocal done
            done += more
            advance(more)

        while True:
            try:
                return self.evaluate.answers(requests, told)
            except Failed as failed:
                self.here.distrust(failed, requests)
            told(-done)


class _Compared:
    """Has every answer of the engine that shares work compared, wherever it comes from."""

    def __init__(self, here: Evaluator, evaluate: Evaluate) -> None:
        self.here, self.evaluate = here, evaluate

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """See `Evaluate`."""
        return self.here.compared(requests, self.evaluate.answers(requests, advance))


def _key(problem: Problem, plan: dict[str, Any], levels: Sequence[float]) -> dict[str, Any]:
    inputs, labels, rows = problem.data
    noises, where = type(problem.targets[0]).stored(problem.targets, levels)
    told = noises[0] if len(noises) == 1 else noises
    return study_key(problem.model, inputs, labels, told, problem.seed, plan=plan, rows=rows.cpu(), target=where)
