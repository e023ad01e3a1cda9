"""Sites on which the scores do not depend: a head that is not used, a value that is thrown away.

Their counts are the clean ones at every level, under every target, so nothing is run for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from noisykernels._engine.recorded import elsewhere
from noisykernels._engine.session import Session
from noisykernels._graph.tape import Tape
from noisykernels.injection.placement import SILENT
from noisykernels.injection.site import Site, exactly
from noisykernels.noise.description import Noise

__all__ = ["idle_sites", "is_silent"]

LOUD = 1e4  # level of the noise that is tried


def idle_sites(session: Session, tape: Tape, chosen: Sequence[Site]) -> list[str]:
    """The names of those chosen from which, as recorded, nothing leads to the scores, and whose loud noise moves none.

    A recording does not see what goes through Python's numbers or memory shared behind torch's back: a pass of two rows
    through the whole model does. Any noise of a site enters at or before its value, so one on the value tells of all.
    """
    found = [s for s in chosen if all(name in tape.idle for name in _noisy(s))]
    if not found or elsewhere(session, tape):  # where another way may lead from them to the scores
        return []
    return [s.name for s in found if all(is_silent(session, name) for name in _noisy(s))]


def is_silent(session: Session, call: str) -> bool:
    """Whether loud noise at a call moves no score."""
    inputs, rows = session.inputs[:2], session.rows[:2]
    with session.placing(SILENT):
        clean = session.scores(inputs, rows)
    with session.placing(replace(SILENT, noise=Noise(add=LOUD), where=exactly(call))):
        return torch.equal(session.scores(inputs, rows), clean)


def _noisy(site: Site) -> tuple[str, ...]:
    """All values that noise of a site may enter."""
    return (*site.members, *site.calls) or (site.name,)
