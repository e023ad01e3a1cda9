"""Counts a walk's hits with the work shared: the clean prefix runs once for all sites, levels and draws, and what
follows a site runs for many levels and draws at once (`carry.Suffix`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels._engine.plan import ROWS, Plan
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.targets import Varied, Walked
from noisykernels._graph.contractions import direction_at, input_of, step_of, value_at
from noisykernels._graph.directions import Mixture, Term, directions
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.site import Site
from noisykernels.metrics.accuracy import judged
from noisykernels.noise.arguments import Key, seed_tensor
from noisykernels.noise.description import Noise

__all__ = ["Reuse"]


class Reuse:
    """The sites of a tape, ready to be run on chunks of data.

    Args:
        tape: of the model.
        plan: see `Plan`.
        noises: of the study, at level 1.
        seed: of the study.
    """

    def __init__(self, tape: Tape, plan: Plan, noises: Sequence[Walked], seed: int) -> None:
        self.tape, self.plan, self.noises, self.seed = tape, plan, noises, seed
        self.rows = plan.rows
        self.suffixes: dict[str, Suffix] = {}

    def reaches(self, site: str, noise: Walked) -> bool:
        """Whether the work at a site can be shared under a noise."""
        if isinstance(noise, Noise):
            return site in self.tape.sites
        return step_of(self.tape, site) is not None

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
        clean = self.tape.run(inputs)
        groups: dict[Any, list[int]] = {}
        for k, r in enumerate(requests):
            groups.setdefault((r.site.name, len(r.levels), r.draws, r.start, r.rows), []).append(k)
        for group in groups.values():
            one = requests[group[0]]
            size = (len(one.draws), one.rows)
            found = {k: labels.new_zeros((len(requests[k].levels), *size), dtype=torch.int8) for k in group}
            step = max(1, self.plan.near // (2 * self.suffix(one.site.name).near))
            if not isinstance(self.noises[one.which], Noise):  # drawn anew for each part, whatever its rows
                step = max(step, ROWS)
            run = self._on_hardware if isinstance(self.noises[one.which], Varied) else self._scores
            for low in range(one.start - first, one.end - first, step):
                high = min(low + step, one.end - first)
                part = self._cut(one.site.name, clean, low, high, len(labels))
                at = low - (one.start - first)
                for k, level, draw, scores in run(requests, group, part, rows[low:high]):
                    levels, draws = slice(level, level + len(scores)), slice(draw, draw + scores.shape[1])
                    found[k][levels, draws, at : at + high - low] = judged(scores, labels[low:high])
            for k, verdicts in found.items():  # where the device is waited for
                yield k, verdicts.cpu().numpy()

    def _scores(
        self, requests: Sequence[Request], group: Sequence[int], clean: dict[int, Any], rows: Tensor
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """Noisy scores of a group, pass by pass: (place of the request, first level, first draw, scores (levels, draws,
        rows, classes))."""
        site, draws = requests[group[0]].site, requests[group[0]].draws
        suffix, count = self.suffix(site.name), len(rows)
        copies = max(1, self.plan.bytes // (suffix.peak * count))
        some = max(1, min(len(draws), copies // len(requests[group[0]].levels)))
        noises = [self.noises[requests[k].which] for k in group]
        for first in range(0, len(draws), some):
            ids = draws[first : first + some]
            key = self._key(site, ids, rows)
            value, _ = self._value(site, clean)
            toward, mixtures = self._directions(noises, site, clean, key)
            carried = suffix.carry(toward, len(ids), count, half=value.dtype.itemsize < 4)
            for k, mixture in zip(group, mixtures, strict=True):
                levels = torch.tensor(requests[k].levels, dtype=torch.float64)
                for low, part in _parts(levels, copies // len(ids)):
                    scores = suffix.scores(clean, carried, mixture, part, len(ids), count)
                    yield k, low, first, scores.view(len(part), len(ids), count, -1)

    def _on_hardware(
        self, requests: Sequence[Request], group: Sequence[int], clean: dict[int, Any], rows: Tensor
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """As `_scores`, where the contraction has to be run for each value of a parameter."""
        site, draws = requests[group[0]].site, requests[group[0]].draws
        suffix, count, step = self.suffix(site.name), len(rows), step_of(self.tape, site.name)
        assert step is not None
        x = clean[input_of(step)]
        dims = self.tape.row_dims[input_of(step)], self.tape.row_dims[suffix.number]
        assert dims[0] is not None and dims[1] is not None
        some = max(1, min(len(draws), self.plan.bytes // (suffix.peak * count)))
        for first in range(0, len(draws), some):
            ids = draws[first : first + some]
            key = self._key(site, ids, rows)
            for k in group:
                varied = self.noises[requests[k].which]
                for low, level in enumerate(requests[k].levels):
                    devices: Any = varied.scaled(level)
                    value = value_at(devices, step, site.kind, x, (dims[0], dims[1]), key)
                    scores = suffix.of_value(value, clean, len(ids), count)
                    yield k, low, first, scores.view(1, len(ids), count, -1)

    def _directions(
        self, noises: Sequence[Walked], site: Site, clean: dict[int, Any], key: Key
    ) -> tuple[dict[Term, Tensor], list[Mixture]]:
        """Directions at a site, and how each noise is made of them. A study's noises are all of one sort."""
        value, dim = self._value(site, clean)
        outputs = [n for n in noises if isinstance(n, Noise)]
        if outputs:
            return directions(outputs, value, dim, key)
        step = step_of(self.tape, site.name)
        assert step is not None
        x = clean[input_of(step)]
        table: dict[Term, Tensor] = {}
        for k, n in enumerate(noises):
            assert isinstance(n, WeightNoise)
            table["weight", k] = direction_at(n, step, x, dim, key)
        return table, [Mixture([{term: 1.0}]) for term in table]

    def _key(self, site: Site, draws: Sequence[int], rows: Tensor) -> Key:
        seed = seed_tensor("walk", self.seed, torch.device("cpu"))
        return Key(seed, torch.tensor(draws, dtype=torch.int64), rows, 0, site.id)

    def _value(self, site: Site, clean: dict[int, Any]) -> tuple[Tensor, int]:
        """The clean value at a site, and its dimension of rows."""
        number = self.tape.sites[site.name]
        dim = self.tape.row_dims[number]
        assert dim is not None
        return clean[number], dim

    def _cut(self, site: str, clean: dict[int, Any], low: int, high: int, rows: int) -> dict[int, Any]:
        """The clean values around a site's suffix, those of rows low..high - 1 of a chunk."""
        found = {}
        step = step_of(self.tape, site)
        for n in self.suffix(site).values | ({input_of(step)} if step is not None else set()):
            dim, value = self.tape.row_dims[n], clean[n]
            assert dim is not None  # a site before which rows mix is none that can be reached
            each = value.shape[dim] // rows
            found[n] = value if high - low == rows else value.narrow(dim, low * each, (high - low) * each)
        return found

    def scales(self, sites: Sequence[Site], data: tuple[Tensor, Tensor, Tensor], noise: Walked) -> dict[str, float]:
        """The level at which a noise is about as large as the values, for each site that can be reached: a quarter of a
        decade coarse."""
        inputs, _, rows = (part[: min(100, self.plan.rows)] for part in data)
        clean, found = self.tape.run(inputs), {}
        for site in sites:
            if self.reaches(site.name, noise):
                value, _ = self._value(site, clean)
                table, (mixture,) = self._directions([noise], site, clean, self._key(site, [0], rows))
                size = mixture.of(table)[0].double().square().mean().sqrt() * mixture.factor
                ratio = float(value.double().square().mean().sqrt() / size)
                if math.isfinite(ratio) and ratio > 0:
                    found[site.name] = 10 ** (round(4 * math.log10(ratio)) / 4)
        return found


def _parts(levels: Tensor, most: int) -> Iterator[tuple[int, Tensor]]:
    """Levels in parts of about equal length, none above `most`: (place of the first, part)."""
    low = 0
    for part in levels.tensor_split(-(-len(levels) // max(1, most))):
        yield low, part
        low += len(part)
