"""A session's model recorded, in the way that its code takes for most chunks of the data.

Code may ask something of values that noise does not reach, such as whether a mask hides any token, and go another way
by the answer. A recording holds where the answers are those that it was made with; the other chunks run whole.
"""

from __future__ import annotations

from collections import Counter

import torch

from noisykernels._engine.plan import ROWS
from noisykernels._engine.session import Session
from noisykernels._graph.recorder import SIZES, record_tape
from noisykernels._graph.tape import Tape

__all__ = ["elsewhere", "tape_of"]


@torch.inference_mode()
def tape_of(session: Session) -> Tape:
    """The model recorded.

    Raises:
        NotTraceable: with the reason.
    """
    call, most, rows = session.problem.call, SIZES[-1], _rows(session)
    tape = record_tape(session.model, session.inputs[:most], call)
    if not tape.asked:
        return tape
    told = Counter(repr(tape.answers(part)) for part in session.inputs.split(rows))
    ((usual, _),) = told.most_common(1)
    if repr([answer for _, answer in tape.asked]) == usual:
        return tape
    for part in session.inputs.split(rows):
        for row in range(len(part)):
            if repr(tape.answers(part[row : row + 1])) == usual:
                others = [other for other in range(len(part)) if other != row][: most - 1]
                return record_tape(session.model, part[torch.tensor([row, *others], device=part.device)], call)
    return tape


@torch.inference_mode()
def elsewhere(session: Session, tape: Tape, rows: int | None = None) -> frozenset[int]:
    """The first rows of chunks of so many (None: about as many as the plan's) for which a recording does not hold."""
    if not tape.asked:
        return frozenset()
    rows = rows or _rows(session)
    parts = enumerate(session.inputs.split(rows))
    return frozenset(rows * i for i, part in parts if not tape.holds_for(part))


def _rows(session: Session) -> int:
    """Of a chunk, before there is a plan."""
    return min(ROWS, session.passes.rows)
