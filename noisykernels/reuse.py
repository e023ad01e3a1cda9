"""Counts a walk's hits with the work shared: the clean prefix runs once for all sites, levels and draws, and what
follows a site runs for many levels and draws at once (`carry.Suffix`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisykernels.adaptive import NAN, Answer, Request
from noisykernels.carry import Suffix, directions
from noisykernels.noise import Noise
from noisykernels.sites import Site
from noisykernels.tape import Tape

__all__ = ["Plan", "Reuse", "choose_plan", "judged"]

# Bytes of a site's value and direction that are read again for every level: they should stay in the cache of one core.
NEAR = 1 << 20
# Bytes of the largest pair of arguments and results after the levels part: beyond the last cache, memory is the limit.
FAR = 24 << 20


@dataclass(frozen=True)
class Plan:
    """How the work is cut: part of what fixes the rounding of contractions, so it is stored with a study."""

    rows: int  # of a chunk of data
    bytes: int  # that a pass after the levels have parted may take in one operation


def choose_plan(tape: Tape, memory: int, most_rows: int) -> Plan:
    """Rows of a chunk and bytes of a pass, from the sizes of the caches and within `memory` bytes."""
    sizes = {n: _row_bytes(tape, n) for n in tape.row_dims}
    largest = max(sizes.values())
    rows = max(8, NEAR // (2 * largest), 1)
    rows = min(rows, max(1, memory // (4 * sum(sizes.values()))), most_rows)
    return Plan(rows, max(largest * rows, min(FAR, memory // 4)))


def _row_bytes(tape: Tape, number: int) -> int:
    items = 1
    for size in tape.shapes[number]:
        items *= size
    return max(1, 4 * items // tape.rows)


class Reuse:
    """The sites of a tape, ready to be run on chunks of data.

    Args:
        tape: of the model.
        sites: those to be walked, all in `tape.sites`.
        plan: see `Plan`.
        seed: of the study.
    """

    def __init__(self, tape: Tape, sites: Sequence[Site], plan: Plan, seed: int) -> None:
        self.tape, self.plan, self.seed = tape, plan, seed
        self.suffixes = {site.name: Suffix(tape, tape.sites[site.name]) for site in sites}

    def scores(
        self, site: Site, clean: dict[int, Any], rows: Tensor, noise: Noise, levels: Tensor, draws: Sequence[int]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Noisy scores of a chunk at a site, pass by pass: (first level, first draw, scores (levels, draws, rows,
        classes))."""
        suffix, number = self.suffixes[site.name], self.tape.sites[site.name]
        count = len(rows)
        copies = max(1, self.plan.bytes // (suffix.peak * count))
        some = max(1, min(len(draws), copies // len(levels)))
        at_once = max(1, min(len(levels), copies // some))
        dim = self.tape.row_dims[number]
        assert dim is not None
        for first in range(0, len(draws), some):
            ids = list(draws[first : first + some])
            toward = directions(noise, clean[number], dim, seed=self.seed, site=site.id, draws=ids, rows=rows)
            for low in range(0, len(levels), at_once):
                part = levels[low : low + at_once]
                scores = suffix.scores(clean, toward, part, len(ids), count)
                yield low, first, scores.view(len(part), len(ids), count, -1)

    def correct(
        self,
        requests: Sequence[Request],
        data: tuple[Tensor, Tensor, Tensor],
        noise: Noise,
        advance: Callable[[float], object] = lambda done: None,
    ) -> list[Answer]:
        """The answers to requests on data (inputs, labels, ids of rows).

        Args:
            advance: called with the levels done since, in parts.
        """
        most = max(request.rows for request in requests)
        found = [np.zeros((len(r.levels), len(r.draws), r.rows), dtype=np.int8) for r in requests]
        start = 0
        for inputs, labels, rows in zip(*(part[:most].split(self.plan.rows) for part in data), strict=True):
            clean = self.tape.run(inputs)
            for out, request in zip(found, requests, strict=True):
                if (some := min(len(labels), request.rows - start)) <= 0:
                    continue
                part = clean if some == len(labels) else self._head(clean, some, len(labels))
                levels = torch.tensor(request.levels, dtype=torch.float64)
                for low, first, scores in self.scores(request.site, part, rows[:some], noise, levels, request.draws):
                    where = (slice(low, low + len(scores)), slice(first, first + scores.shape[1]))
                    out[where][..., start : start + some] = judged(scores, labels[:some])
                advance(len(request.levels) * some / request.rows)
            start += len(labels)
        return found

    def _head(self, clean: dict[int, Any], some: int, rows: int) -> dict[int, Any]:
        """The parts of clean values that belong to the first rows of a chunk."""
        found = dict(clean)
        for n, value in clean.items():
            if (dim := self.tape.row_dims[n]) is not None:
                found[n] = value.narrow(dim, 0, value.shape[dim] // rows * some)
        return found

    def scales(self, sites: Sequence[Site], data: tuple[Tensor, Tensor, Tensor], noise: Noise) -> dict[str, float]:
        """The level at which the noise is about as large as the values, for each site: a quarter of a decade coarse."""
        inputs, _, rows = (part[: min(100, self.plan.rows)] for part in data)
        clean, found = self.tape.run(inputs), {}
        for site in sites:
            if site.name in self.suffixes:
                number = self.tape.sites[site.name]
                dim = self.tape.row_dims[number]
                assert dim is not None
                toward = directions(noise, clean[number], dim, seed=self.seed, site=site.id, draws=[0], rows=rows)[0]
                ratio = float(clean[number].double().square().mean().sqrt() / toward.double().square().mean().sqrt())
                if math.isfinite(ratio) and ratio > 0:
                    found[site.name] = 10 ** (round(4 * math.log10(ratio)) / 4)
        return found


def judged(scores: Tensor, labels: Tensor) -> Answer:
    """1 where the largest score (..., rows, classes) is the label's, 0 where not, NAN where there is none."""
    verdict = (scores.argmax(-1) == labels).to(torch.int8)
    verdict[scores.isnan().any(-1)] = NAN
    return verdict.cpu().numpy()
