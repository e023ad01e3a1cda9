"""Before a study trusts the engine that shares work at a site, both engines run a few rows there, and each score is
compared.

Rows come from two places of the data, more and fewer than the recording was made from, some from the middle of a chunk.
At the first place the level is one at which noise moves a good share of the scores, at the second the largest of the
study; the engine that shares work runs it together with other levels and draws, as it does in earnest. Both must agree
within the bound of `rounding`. A difference that comes near it is judged after more runs have told the bound: beyond
it, the site runs whole. A false alarm costs speed only, a miss costs the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisykernels._engine.request import Request
from noisykernels._engine.rounding import Rounding
from noisykernels._engine.session import Session
from noisykernels._engine.shared import Failed, SharedEngine
from noisykernels._engine.targets import Target
from noisykernels.injection.site import Site

__all__ = ["Verification", "verified"]

DRAWS = (0, 1)
MOVED, SHARE = 0.01, 0.25  # a score has moved that differs by this part of the row's largest; how many should
FIRST, MORE = range(1), range(1, 8)  # runs of the bound, and those where a difference comes near it
NEAR = 0.1  # parts of the bound that are near it: what two numbers of a normal law say of its size may be as far off


class _Place(NamedTuple):
    """Some rows of the data as a chunk, of which `rows` from `low` on are looked at."""

    inputs: Tensor
    ids: Tensor
    first: int  # the number of its first row
    low: int
    rows: int

    @property
    def looked_at(self) -> tuple[Tensor, Tensor]:
        """Inputs and ids."""
        part = slice(self.low, self.low + self.rows)
        return self.inputs[part], self.ids[part]


@dataclass
class Verification:
    """What came of it.

    Args:
        rows: that were looked at.
        sites: how many were.
        worst: the largest difference of scores of a site that is trusted, in parts of its bound.
        differing: sites that are not, and why.
    """

    rows: int = 0
    sites: int = 0
    worst: float = 0.0
    differing: dict[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As a study's JSON can hold it."""
        worst = float(f"{self.worst:.1e}")
        return {"rows": self.rows, "sites": self.sites, "worst": worst, "differing": dict(self.differing)}


def verified(
    session: Session, engine: SharedEngine, sites: Sequence[Site], levels: Sequence[float]
) -> list[Verification]:  # fmt: skip
    """Both engines compared at those sites that the engine that shares work can run, for each target.

    Args:
        session: with the model.
        engine: that shares work.
        sites: those of the study.
        levels: of a grid; empty for a search.
    """
    look = _Look(session, engine, levels)
    return [look.through(sites, which) for which in range(len(session.problem.targets))]


class _Look:
    """The rows that are looked at."""

    def __init__(self, session: Session, engine: SharedEngine, levels: Sequence[float]) -> None:
        self.session, self.engine, self.levels = session, engine, levels
        inputs, _, ids = session.problem.data
        rows = len(inputs)
        size, last = min(engine.rows, rows, 11), min(rows, 3)
        low = min(3, size - 1)
        self.near = _Place(inputs[:size], ids[:size], 0, low, min(5, size - low))
        self.far = _Place(inputs[rows - last :], ids[rows - last :], rows - last, 0, last)

    @cached_property
    def clean(self) -> dict[int, Any]:
        """All values at the first place; kept for all sites."""
        return self.engine.clean(self.near.inputs)

    @cached_property
    def clean_far(self) -> dict[int, Any]:
        """All values at the second place."""
        return self.engine.clean(self.far.inputs)

    @cached_property
    def rounding(self) -> Rounding:
        """That of the model."""
        return Rounding(self.session, list(self.clean.values()))

    @cached_property
    def silent(self) -> Tensor:
        """Scores of the rows at the first place without noise."""
        return self.session.scores(self.near.looked_at[0])

    def through(self, sites: Sequence[Site], which: int) -> Verification:
        """Looks at sites under a target."""
        found = Verification(rows=self.near.rows + self.far.rows)
        for site in (s for s in sites if self._target(which).reaches(self.engine.tape, s.name)):
            found.sites += 1
            try:
                worst, level = max(self._at(site, which))
            except Failed as failed:
                found.differing[site.name] = failed.reason
                continue
            if worst <= 1:
                found.worst = max(found.worst, worst)
            else:
                said = "infinitely more than" if math.isinf(worst) else f"{worst:.2g} times what"
                found.differing[site.name] = f"at level {level:g} scores differ by {said} rounding explains"
        return found

    def _at(self, site: Site, which: int) -> Iterator[tuple[float, float]]:
        """Of each place: the largest difference, in parts of its bound, and the level."""
        target = self._target(which)
        levels = target.ladder(self.engine.scale(site, target, self.clean, self.near.ids) or 1.0, self.levels)
        scores = self._shared(site, which, levels, self.near, self.clean)
        chosen = next((i for i, s in enumerate(scores) if self._moves(s)), len(levels) - 1)
        yield self._compared(site, which, levels[chosen], self.near, scores[chosen]), levels[chosen]
        scores = self._shared(site, which, (levels[chosen], levels[-1]), self.far, self.clean_far)
        yield self._compared(site, which, levels[-1], self.far, scores[1]), levels[-1]

    def _target(self, which: int) -> Target:
        return self.session.problem.targets[which]

    def _moves(self, scores: Tensor) -> bool:
        """Whether a level moves a good share of the scores [draws, rows, classes] that are finite."""
        silent = self.silent.double()
        apart = (scores.double() - silent).abs() > MOVED * silent.abs().amax(-1, keepdim=True)
        return bool(scores.isfinite().all()) and float(apart.double().mean()) >= SHARE

    def _shared(
        self, site: Site, which: int, levels: tuple[float, ...], place: _Place, clean: dict[int, Any]
    ) -> Tensor:  # fmt: skip
        """Scores by the engine that shares work: [levels, draws, rows, classes]."""
        request = Request(site, levels, DRAWS, place.rows, place.first + place.low, which)
        found: Tensor | None = None
        for _, row, part in self.engine.passes([request], place.first, clean, place.ids):
            if found is None:
                found = part.scores.new_zeros((len(levels), len(DRAWS), place.rows, part.scores.shape[-1]))
            part.put(part.scores, row, found)
        assert found is not None
        return found

    def _compared(self, site: Site, which: int, level: float, place: _Place, shared: Tensor) -> float:
        """The largest difference of scores [draws, rows, classes] from the plain engine's, in parts of its bound."""
        placement = self._target(which).placement(site.name, level)
        inputs, ids = data = place.looked_at
        with self.session.placing(placement):
            plain = self.session.scores(inputs, ids, DRAWS).unflatten(0, (len(DRAWS), place.rows))
        bound = self.rounding.bound(placement, plain, data, DRAWS, FIRST)
        if (worst := _worst(shared, plain, bound)) <= NEAR:
            return worst
        return _worst(shared, plain, torch.maximum(bound, self.rounding.bound(placement, plain, data, DRAWS, MORE)))


def _worst(shared: Tensor, plain: Tensor, bound: Tensor) -> float:
    """The largest difference in parts of its bound; infinite or NaN scores must be so for both engines."""
    alike = (shared == plain) | (shared.isnan() & plain.isnan())
    apart = (shared.double() - plain.double()).abs().masked_fill(alike, 0.0)
    parts = torch.where(apart > 0, apart / bound, 0.0)
    return float(torch.nan_to_num(parts, nan=math.inf, posinf=math.inf).max())
