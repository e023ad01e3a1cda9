"""Before a study trusts the engine that shares work at a site, both engines run a few rows there, and each score is
compared.

Rows come from two places of the data, more and fewer than the recording was made from, some from the middle of a chunk.
At the first place the level is one at which noise moves a good share of the scores, at the second one beyond all of the
study; the engine that shares work runs it together with other levels and draws, as it does in earnest. Both must agree
within the bound of `rounding`. A difference that comes near it is judged after more runs have told the bound: beyond
it, the site runs whole. A false alarm costs speed only, a miss costs the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._engine.request import Answer, Request, unlike
from noisykernels._engine.rounding import Rounding, difference, rows_of, slices
from noisykernels._engine.session import Session
from noisykernels._engine.shared import Failed, SharedEngine
from noisykernels._engine.targets import Target
from noisykernels._util.inputs import Inputs
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import Site

__all__ = ["Check", "Verification"]

DRAWS = (0, 1)
MOVED, SHARE = 0.01, 0.25  # a score has moved that differs by this part of the row's largest; how many should
FIRST, MORE = range(1), range(1, 8)  # runs of the bound, and those where a difference comes near it
PROVED, AT_ONCE = 8, 64  # rows looked at of a level at which nothing can flip; of those that differ, at most
NEAR = 0.1  # parts of the bound that are near it: what two numbers of a normal law say of its size may be as far off


class _Place(NamedTuple):
    """Some rows of the data as a chunk, of which `rows` from `low` on are looked at."""

    inputs: Inputs
    ids: Tensor
    first: int  # the number of its first row
    low: int
    rows: int

    @property
    def looked_at(self) -> tuple[Inputs, Tensor]:
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
        cells: numbers of rows that both engines gave, where everything is compared.
        verdicts: how many of them differed, by no more than rounding explains.
    """

    rows: int = 0
    sites: int = 0
    worst: float = 0.0
    differing: dict[str, str] = field(default_factory=dict)
    cells: int = 0
    verdicts: int = 0

    def told(self) -> dict[str, Any]:
        """As a study's JSON can hold it."""
        found = asdict(self) | {"worst": float(f"{self.worst:.1e}")}
        return found if self.cells else {k: v for k, v in found.items() if k not in ("cells", "verdicts")}


class Check:
    """Both engines of a session on a few rows.

    Args:
        session: with the model.
        engine: that shares work.
        levels: of a grid; empty for a search.
    """

    def __init__(self, session: Session, engine: SharedEngine, levels: Sequence[float] = ()) -> None:
        self.session, self.engine, self.levels = session, engine, levels
        inputs, _, ids = session.problem.data
        # Rows of a pass of both draws: half as many as else, for factors take memory as well (`rounding`).
        most = max(1, session.passes.rows * session.passes.draws // (2 * len(DRAWS)))
        begin, end = engine.chunks[0], min(engine.chunks[-1] + engine.rows, len(inputs))
        size, last = min(engine.rows, end - begin, 11), min(engine.rows, end - begin, 3)
        if engine.elsewhere:  # what comes before the last chunk may be of another one
            last = min(last, end - engine.chunks[-1])
        low, first = min(3, size - 1), end - last
        near, far = slice(begin, begin + size), slice(first, end)
        self.near = _Place(inputs[near], ids[near], begin, low, min(5, size - low, most))
        self.far = _Place(inputs[far], ids[far], first, 0, min(last, most))

    @cached_property
    def rounding(self) -> Rounding:
        """That of the model."""
        return Rounding(self.session, list(self.engine.clean(self.near.inputs).values()))

    @cached_property
    def silent(self) -> Tensor:
        """Scores of the rows at the first place without noise: [rows, scores]."""
        return rows_of(self.session.scores(self.near.looked_at[0]))

    def through(self, sites: Sequence[Site], which: int) -> Verification:
        """Looks at those sites that the engine that shares work can run under a target: at all of them at the first
        place, then at the second, so that the values of one of both are held."""
        mine = [s for s in sites if self.engine.reaches(s, self._target(which))]
        found = Verification(rows=self.near.rows + self.far.rows, sites=len(mine))
        levels: dict[str, tuple[float, float]] = {}  # of each site, that of the first place and that of the second
        for place in (self.near, self.far) if mine else ():
            try:
                clean = self.engine.clean(place.inputs)
            except Failed as failed:
                found.differing |= dict.fromkeys((s.name for s in mine), failed.reason)
                break
            for site in (s for s in mine if s.name not in found.differing):
                try:
                    if place is self.near:
                        levels[site.name], worst = self._near(site, which, clean)
                    else:
                        worst = self._far(site, which, levels[site.name], clean)
                except Failed as failed:
                    found.differing[site.name] = failed.reason
                    continue
                if worst <= 1:
                    found.worst = max(found.worst, worst)
                else:
                    found.differing[site.name] = _said(worst, levels[site.name][place is self.far])
        return found

    def why_not(self, request: Request, answer: Answer, plain: Answer) -> str | None:
        """Why answers of the two engines to a request differ, if not by rounding alone.

        Where one differs, the scores must agree within the bound, and that of the label must lie as near to another.
        """
        try:
            for level, draws in zip(request.levels, unlike(answer, plain), strict=True):
                for draw, entries in zip(request.draws, draws, strict=True):
                    some = self._rows_of(request, entries)[:AT_ONCE]
                    if len(some) and (worst := self._explained(request, level, draw, some)) > 1:
                        return _said(worst, level)
        except Failed as failed:
            return failed.reason
        return None

    def _rows_of(self, request: Request, entries: NDArray[np.bool_]) -> Tensor:
        """The rows of some entries of an answer to a request."""
        block = self.session.problem.metric.law.block
        if block == 1:
            return request.start + torch.from_numpy(entries.nonzero()[0])
        rows = torch.arange(request.start, request.end)
        differs = torch.from_numpy(entries.any(-1))
        return rows[differs[rows // block - request.start // block]]

    def _explained(self, request: Request, level: float, draw: int, rows: Tensor) -> float:
        """How far the scores of some rows differ, and how far that of the label is from all others, in parts of what
        rounding explains: the larger."""
        inputs, labels, ids = self.session.problem.some(rows)
        place = _Place(inputs, ids, 0, 0, len(rows))
        site, which = request.site, request.which
        shared = self._shared(site, which, (level,), place, self.engine.clean(inputs), (draw,))[0]
        placement = self._target(which).placement(site, level)
        plain = self._plain(placement, place, (draw,))
        worst, bound = self._bounded(placement, place, shared, plain, (draw,))
        if not self.session.problem.metric.by_argmax:
            return worst
        scores, label = plain[0].double(), labels.long().unsqueeze(-1)
        apart = (scores - scores.gather(1, label)).abs().scatter(1, label, math.inf).amin(1)
        parts = torch.nan_to_num(apart, nan=0.0) / (2 * bound.amax(1))
        return max(worst, float(parts.max()))

    def holds(self, request: Request, level: float) -> bool:
        """Whether the plain engine's answers on a few rows from the whole of the data are those without noise, but for
        rows that rounding decides."""
        problem, count = self.session.problem, min(PROVED, len(self.session.inputs))
        rows = torch.arange(count) * len(self.session.inputs) // count
        inputs, labels, ids = problem.some(rows)
        placement = problem.targets[request.which].placement(request.site, level)
        with self.session.placing(placement):
            scores = self.session.scores(inputs, ids, request.draws[:1])
        targets = self.session.targets(inputs, labels)
        numbers = problem.metric.law.numbers(problem.metric.of_rows(scores, targets).cpu().numpy())
        flipped = numbers != self.session.clean[rows.numpy()]
        if not flipped.any():
            return True
        bound = self.rounding.bound(placement, scores.unsqueeze(0), (inputs, ids), request.draws[:1], MORE)
        top = scores.double().topk(2, 1).values
        decided = (top[:, 0] - top[:, 1] > 2 * bound.amax(1)).cpu().numpy()
        return not (flipped & decided).any()

    def _near(self, site: Site, which: int, clean: dict[int, Any]) -> tuple[tuple[float, float], float]:
        """The levels at which a site is looked at, and the largest difference at the first place, in parts of its
        bound."""
        target = self._target(which)
        levels = target.ladder(self.engine.scale(site, target, clean, self.near.ids) or 1.0, self.levels)
        scores = self._shared(site, which, levels, self.near, clean)
        chosen = next((i for i, s in enumerate(scores) if self._moves(s)), len(levels) - 1)
        return (levels[chosen], levels[-1]), self._apart(site, which, levels[chosen], self.near, scores[chosen])

    def _far(self, site: Site, which: int, levels: tuple[float, float], clean: dict[int, Any]) -> float:
        """The largest difference at the second place, at the second level."""
        scores = self._shared(site, which, levels, self.far, clean)
        return self._apart(site, which, levels[1], self.far, scores[1])

    def _target(self, which: int) -> Target:
        return self.session.problem.targets[which]

    def _moves(self, scores: Tensor) -> bool:
        """Whether a level moves a good share of the scores [draws, rows, scores] that are finite."""
        silent = self.silent
        usual = silent.abs().nanmedian(-1, keepdim=True).values.double()  # not the size of a class that is masked
        moved = 0
        for some in slices(scores):
            part, still = scores[..., some], silent[..., some]
            if not bool((part.isfinite() | ~still.isfinite()).all()):
                return False
            moved += int(((part.double() - still.double()).abs() > MOVED * usual).sum())
        return moved >= SHARE * scores.numel()

    def _shared(
        self, site: Site, which: int, levels: tuple[float, ...], place: _Place, clean: dict[int, Any],
        draws: tuple[int, ...] = DRAWS,
    ) -> Tensor:  # fmt: skip
        """Scores by the engine that shares work: [levels, draws, rows, scores]."""
        request = Request(site, levels, draws, place.rows, place.first + place.low, which)
        found: Tensor | None = None
        for _, row, part in self.engine.passes([request], place.first, clean, place.ids):
            scores = part.scores.flatten(0, 2)
            scores = rows_of(scores).unflatten(0, part.scores.shape[:3])
            if found is None:
                found = scores.new_zeros((len(levels), len(draws), place.rows, scores.shape[-1]))
            part.put(scores, row, found)
        assert found is not None
        return found

    def _plain(self, placement: Placement, place: _Place, draws: tuple[int, ...] = DRAWS) -> Tensor:
        """Scores by the plain engine: [draws, rows, scores]."""
        inputs, ids = place.looked_at
        with self.session.placing(placement):
            scores = rows_of(self.session.scores(inputs, ids, draws))
        parts: Tensor = scores.unflatten(0, (len(draws), place.rows))
        return parts

    def _apart(self, site: Site, which: int, level: float, place: _Place, shared: Tensor) -> float:
        """The largest difference of scores [draws, rows, scores] from the plain engine's, in parts of its bound."""
        placement = self._target(which).placement(site, level)
        plain = self._plain(placement, place)
        if bool(_alike(shared, plain).all()):  # as is usual for small models: no run is needed to tell the bound
            return 0.0
        return self._bounded(placement, place, shared, plain)[0]

    def _bounded(
        self, placement: Placement, place: _Place, shared: Tensor, plain: Tensor, draws: tuple[int, ...] = DRAWS
    ) -> tuple[float, Tensor]:
        """The largest difference in parts of its bound, and the bound."""
        bound = self.rounding.bound(placement, plain, place.looked_at, draws, FIRST)
        for run in MORE:  # each is a pass with factors, and the bound can only grow: until it is no longer near
            if (worst := _worst(shared, plain, bound)) <= NEAR:
                return worst, bound
            bound = torch.maximum(bound, self.rounding.bound(placement, plain, place.looked_at, draws, [run]))
        return _worst(shared, plain, bound), bound


def _said(worst: float, level: float) -> str:
    said = "infinitely more than" if math.isinf(worst) else f"{worst:.2g} times what"
    return f"at level {level:g} scores differ by {said} rounding explains"


def _worst(shared: Tensor, plain: Tensor, bound: Tensor) -> float:
    """The largest difference in parts of its bound; infinite or NaN scores must be so for both engines."""
    worst = 0.0
    for some in slices(shared):
        apart = difference(shared[..., some], plain[..., some])
        told = bound[..., some]
        parts = torch.where(apart > 0, apart / told, 0.0)
        lost = apart.isnan() & told.isfinite() & ~_alike(shared[..., some], plain[..., some])  # a number by one alone
        parts = parts.masked_fill_(lost, math.inf)
        worst = max(worst, float(torch.nan_to_num(parts, nan=math.inf, posinf=math.inf).max()))
    return worst


def _alike(shared: Tensor, plain: Tensor) -> Tensor:
    """Where scores are the same."""
    return (shared == plain) | (shared.isnan() & plain.isnan())
