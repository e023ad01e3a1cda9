"""The engine that shares work: the clean prefix runs once for all sites, levels and draws, and what
follows a site runs for many levels and draws at once (`suffix.Suffix`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor

from noisykernels._engine.judging import judged
from noisykernels._engine.plan import Plan
from noisykernels._engine.request import Answer, Request, begun
from noisykernels._engine.session import Session
from noisykernels._engine.targets import Pass, Target, Work
from noisykernels._engine.together import Together
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape, part_of
from noisykernels._util.inputs import Inputs
from noisykernels.injection.site import Site
from noisykernels.metrics.weighted import weighed

__all__ = ["Failed", "SharedEngine"]


class Failed(Exception):
    """An operation of the recording has raised: the site that was run (empty: all need it), and why."""

    @property
    def site(self) -> str:
        """Its name."""
        return str(self.args[0])

    @property
    def reason(self) -> str:
        """Of the operation, one line."""
        return str(self.args[1])

    @classmethod
    def by(cls, site: str, error: Exception) -> Failed:
        """Of an operation's own error, or of values that cannot be shared."""
        if isinstance(error, FloatingPointError):
            return cls(site, str(error))
        said = next(iter(str(error).splitlines()), "")
        return cls(site, f"what was recorded fails: {type(error).__name__}: {said}")


class SharedEngine:
    """The sites of a tape, ready to be run on chunks of data.

    Args:
        session: with the model, and what is asked.
        tape: of the model.
        plan: see `Plan`.
        elsewhere: first rows of the chunks for which the tape does not hold, see `recorded`.
    """

    def __init__(self, session: Session, tape: Tape, plan: Plan, elsewhere: Collection[int] = ()) -> None:
        self.session, self.problem, self.tape, self.plan = session, session.problem, tape, plan
        self.elsewhere = elsewhere
        self.rows, self.together = plan.rows, Together(session, tape)
        self.suffixes: dict[str, Suffix] = {}

    @property
    def chunks(self) -> list[int]:
        """First rows of the chunks for which the tape holds."""
        return [first for first in range(0, len(self.problem.data[0]), self.rows) if first not in self.elsewhere]

    def suffix(self, site: str) -> Suffix:
        """What follows a site."""
        if site not in self.suffixes:
            self.suffixes[site] = Suffix(self.tape, self.tape.sites[site])
        return self.suffixes[site]

    def reaches(self, site: Site, target: Target) -> bool:
        """Whether it can run a target at a site."""
        return target.reaches(self.tape, site) or not self.together.why_not(site, target)

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Inputs, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """See `evaluator.Engine`.

        Raises:
            Failed: an operation of the recording.
        """
        inputs, labels, rows = data
        metric, clean = self.problem.metric, self.clean(inputs, self.read_by(requests))
        law = metric.law
        for group in _alike(requests):
            mine = [requests[k] for k in group]
            start, count = mine[0].start - first, mine[0].rows
            targets = weighed(self._targets(clean, labels, start, start + count), inputs[start : start + count].weights)
            found = [labels.new_zeros(begun(law, r).shape, dtype=metric.dtype) for r in mine]
            for k, row, part in self.passes(mine, first, clean, rows):
                of_part = targets[row : row + part.scores.shape[2]]
                numbers = judged(metric, part.scores, of_part, mine[0].start + row, leading=2)
                if law.block == 1:
                    part.put(numbers, row, found[k])
                else:
                    part.add(numbers, (mine[0].start + row) // law.block - mine[0].start // law.block, found[k])
            for k, numbers in zip(group, found, strict=True):  # where the device is waited for
                yield k, numbers.cpu().numpy()

    def _targets(self, clean: dict[int, Any], labels: Tensor, low: int, high: int) -> Tensor:
        """What rows low..high - 1 of a chunk are held against: their labels, or their scores without noise."""
        if not self.problem.metric.against_clean:
            return labels[low:high]
        number = self.tape.result
        found: Tensor = part_of(self.tape, number, clean[number], low, high, len(labels))
        return found

    def read_by(self, requests: Sequence[Request]) -> set[int]:
        """The values without noise that requests read."""
        found: set[int] = set()
        for site, which in dict.fromkeys((r.site, r.which) for r in requests):
            found |= self._read_at(site, self.problem.targets[which])
        return found

    def _read_at(self, site: Site, target: Target) -> set[int]:
        """The values without noise that a target reads at a site."""
        if target.reaches(self.tape, site):
            found = self.suffix(site.name).values | target.reads(self.tape, site.name)
            found |= self.together.inputs if self.problem.length else set()
        else:
            found = self.together.values(site, target)
        return found - self.tape.fixed.keys() - self.tape.chosen

    def clean(self, inputs: Inputs, keep: set[int] | None = None) -> dict[int, Any]:
        """The values of some rows without noise: all of them, or those to keep and the scores."""
        try:
            return self.tape.run(inputs, keep)
        except Exception as error:
            raise Failed.by("", error) from error

    def passes(
        self, requests: Sequence[Request], first: int, clean: dict[int, Any], rows: Tensor
    ) -> Iterator[tuple[int, int, Pass]]:
        """Scores of requests that are alike, as (place in `requests`, row of it that is the pass's first, pass).

        Args:
            requests: of one site, as many levels, the same draws and rows, which lie within a chunk.
            first: number of the chunk's first row.
            clean: all values of the chunk's rows.
            rows: their ids.
        """
        one = requests[0]
        targets = [self.problem.targets[r.which] for r in requests]
        levels, alone = [r.levels for r in requests], not targets[0].reaches(self.tape, one.site)
        try:
            step = one.rows if alone else self._rows_at(one, targets[0])
            for low in range(one.start - first, one.end - first, step):
                high = min(low + step, one.end - first)
                part, ids = self._cut(targets[0], one.site, clean, low, high, len(rows)), rows[low:high]
                if alone:
                    found = self.together.passes(
                        one.site, targets, levels, one.draws, part, ids, self.plan.bytes
                    )  # fmt: skip
                else:
                    found = targets[0].passes(self._work(one.site, part, ids, one.draws, levels, targets))
                for scores in found:
                    yield scores.request, low - (one.start - first), scores
        except Exception as error:
            raise Failed.by(one.site.name, error) from error

    def _rows_at(self, request: Request, target: Target) -> int:
        """Rows of a pass at a site that is carried: so many that a value and its direction stay near a core."""
        suffix = self.suffix(request.site.name)
        if suffix.number in self.tape.fixed:  # what follows runs for each level and draw
            return request.rows
        return max(1, self.plan.near // (2 * suffix.near), target.least_rows)

    def _work(
        self, site: Site, clean: dict[int, Any], rows: Tensor, draws: tuple[int, ...],
        levels: list[tuple[float, ...]], targets: list[Target],
    ) -> Work:  # fmt: skip
        suffix, seed, tokens = self.suffix(site.name), self.problem.seed, None
        if self.problem.length:
            tokens = self.session.tokens(self.together.inputs_of(clean), rows)
        return Work(self.tape, suffix, site, clean, rows, draws, levels, targets, seed, self.plan.bytes, tokens)

    def _cut(
        self, target: Target, site: Site, clean: dict[int, Any], low: int, high: int, rows: int
    ) -> dict[int, Any]:  # fmt: skip
        """The clean values around a site, those of rows low..high - 1 of a chunk."""
        wanted = self._read_at(site, target)
        return {n: part_of(self.tape, n, clean[n], low, high, rows) for n in wanted}

    def scale(self, site: Site, target: Target, clean: dict[int, Any], rows: Tensor) -> float | None:
        """The level at which a target is about as large as the values at a site, from those of some rows: a quarter of
        a decade coarse."""
        if not target.reaches(self.tape, site):
            return None
        try:
            ratio = target.ratio(self._work(site, clean, rows, (0,), [(1.0,)], [target]))
        except Exception as error:
            raise Failed.by(site.name, error) from error
        return 10 ** (round(4 * math.log10(ratio)) / 4) if math.isfinite(ratio) and ratio > 0 else None

    def scales(self, sites: Sequence[Site], target: Target) -> dict[str, float]:
        """The `scale` of each of some sites, where it is known."""
        inputs, _, rows = self.problem.first(min(100, self.plan.rows))
        clean = self.clean(inputs)
        found = {site.name: self.scale(site, target, clean, rows) for site in sites}
        return {name: scale for name, scale in found.items() if scale is not None}


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Places of requests that differ in levels and noise only: they share what is drawn and carried, if they are of as
    many levels: passes are then cut as they would be for each alone."""
    groups: dict[Any, list[int]] = {}
    for k, r in enumerate(requests):
        groups.setdefault((r.site.name, len(r.levels), r.draws, r.start, r.rows), []).append(k)
    return list(groups.values())
