"""The engine that shares work: the clean prefix runs once for all sites, levels and draws, and what
follows a site runs for many levels and draws at once (`suffix.Suffix`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from noisykernels._engine.plan import Plan
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.session import Problem
from noisykernels._engine.targets import Target, Work
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape
from noisykernels.injection.site import Site

__all__ = ["SharedEngine"]


class SharedEngine:
    """The sites of a tape, ready to be run on chunks of data.

    Args:
        problem: what is asked.
        tape: of its model.
        plan: see `Plan`.
    """

    def __init__(self, problem: Problem, tape: Tape, plan: Plan) -> None:
        self.problem, self.tape, self.plan = problem, tape, plan
        self.rows = plan.rows
        self.suffixes: dict[str, Suffix] = {}

    def suffix(self, site: str) -> Suffix:
        """What follows a site."""
        if site not in self.suffixes:
            self.suffixes[site] = Suffix(self.tape, self.tape.sites[site])
        return self.suffixes[site]

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Tensor, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """See `evaluator.Engine`. Requests that differ in levels and noise only share what is drawn and carried, if
        they are of as many levels: passes are then cut as they would be for each alone.
        """
        inputs, labels, rows = data
        metric = self.problem.metric
        clean = self.tape.run(inputs)
        groups: dict[Any, list[int]] = {}
        for k, r in enumerate(requests):
            groups.setdefault((r.site.name, len(r.levels), r.draws, r.start, r.rows), []).append(k)
        for group in groups.values():
            one, mine = requests[group[0]], [requests[k] for k in group]
            targets = [self.problem.targets[r.which] for r in mine]
            size = (len(one.draws), one.rows)
            found = [labels.new_zeros((len(r.levels), *size), dtype=metric.dtype) for r in mine]
            step = max(1, self.plan.near // (2 * self.suffix(one.site.name).near), targets[0].least_rows)
            for low in range(one.start - first, one.end - first, step):
                high = min(low + step, one.end - first)
                part = self._cut(targets[0], one.site.name, clean, low, high, len(labels))
                work = self._work(one.site, part, rows[low:high], one.draws, [r.levels for r in mine], targets)
                at = low - (one.start - first)
                for k, level, draw, scores in targets[0].passes(work):
                    levels, draws = slice(level, level + len(scores)), slice(draw, draw + scores.shape[1])
                    found[k][levels, draws, at : at + high - low] = metric.of_rows(scores, labels[low:high])
            for k, numbers in zip(group, found, strict=True):  # where the device is waited for
                yield k, numbers.cpu().numpy()

    def _work(
        self, site: Site, clean: dict[int, Any], rows: Tensor, draws: tuple[int, ...],
        levels: list[tuple[float, ...]], targets: list[Target],
    ) -> Work:  # fmt: skip
        suffix, seed = self.suffix(site.name), self.problem.seed
        return Work(self.tape, suffix, site, clean, rows, draws, levels, targets, seed, self.plan.bytes)

    def _cut(
        self, target: Target, site: str, clean: dict[int, Any], low: int, high: int, rows: int
    ) -> dict[int, Any]:  # fmt: skip
        """The clean values around a site's suffix, those of rows low..high - 1 of a chunk."""
        found = {}
        for n in self.suffix(site).values | target.reads(self.tape, site):
            dim, value = self.tape.row_dims[n], clean[n]
            assert dim is not None  # a site before which rows mix is none that can be reached
            each = value.shape[dim] // rows
            found[n] = value if high - low == rows else value.narrow(dim, low * each, (high - low) * each)
        return found

    def scales(self, sites: Sequence[Site], target: Target) -> dict[str, float]:
        """The level at which a target is about as large as the values, for each site that can be reached: a quarter of
        a decade coarse."""
        inputs, _, rows = (part[: min(100, self.plan.rows)] for part in self.problem.data)
        clean, found = self.tape.run(inputs), {}
        for site in sites:
            if target.reaches(self.tape, site.name):
                ratio = target.ratio(self._work(site, clean, rows, (0,), [(1.0,)], [target]))
                if math.isfinite(ratio) and ratio > 0:
                    found[site.name] = 10 ** (round(4 * math.log10(ratio)) / 4)
        return found
