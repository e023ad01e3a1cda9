"""What a walk puts in at one site at a time: noise on a value, noise on a weight, hardware with a parameter.

A target knows all that differs between them: which sites are open to it, what the plain engine places there, how the
shared engine runs it for many levels at once, and what it says of itself. Noise is a direction that its level
multiplies: on an output directly, on a weight through the contraction, ``(W + A dW) x = W x + A (dW x)``. Hardware is
not linear in its parameter: the contraction is run for each value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from noisykernels._engine.plan import ROWS
from noisykernels._engine.store_keys import identity
from noisykernels._graph.contractions import direction_at, input_of, step_of, value_at
from noisykernels._graph.directions import Mixture, Term, directions
from noisykernels._graph.suffix import Suffix, noisy
from noisykernels._graph.tape import Tape
from noisykernels.hardware.device import Device
from noisykernels.hardware.execute import checked
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.laid import Laid, laid_at, noise_of_tokens
from noisykernels.injection.placement import SILENT, Placement
from noisykernels.injection.rows import ALONE, Rows
from noisykernels.injection.site import PARTS, Site, exactly
from noisykernels.injection.tokens import Held
from noisykernels.noise.arguments import Key, seed_tensor
from noisykernels.noise.contract import largest_eps
from noisykernels.noise.description import Noise
from noisykernels.noise.ranges import Ranges

__all__ = ["Activation", "Parameter", "Pass", "Target", "Weight", "Work", "has_weight"]


def has_weight(site: Site) -> bool:
    """Whether a site is that of a contraction with a weight, the first of those with its array."""
    return bool(site.calls)


class Work(NamedTuple):
    """Requests at one site that the shared engine runs together on some rows: of as many levels, under the same draws.

    Args:
        tape, suffix, site: the model, and what follows the site.
        clean: the values without noise that are read.
        rows: ids.
        draws: ids.
        levels: of each request.
        targets: of each request.
        seed: of the study.
        bytes: that a pass may take in one operation.
        tokens: which ones the rows are, and where values hold them; None: rows are no tokens.
    """

    tape: Tape
    suffix: Suffix
    site: Site
    clean: dict[int, Any]
    rows: Tensor
    draws: tuple[int, ...]
    levels: list[tuple[float, ...]]
    targets: list[Any]  # all of one class
    seed: int
    bytes: int
    tokens: Held | None = None

    @property
    def value(self) -> Tensor:
        """The clean value at the site."""
        number, fixed = self.suffix.number, self.tape.fixed
        found: Tensor = fixed[number] if number in fixed else self.clean[number]
        return found

    @property
    def alone(self) -> bool:
        """Whether the value is the same for all rows: as if it were one row."""
        return self.suffix.number in self.tape.fixed

    @property
    def place(self) -> Rows | Laid:
        """Where the value holds what is drawn for: rows, or their tokens.

        Raises:
            RuntimeError: tokens cannot be told there.
        """
        if self.tokens is not None:
            return laid_at(*self.tokens, self.site.name, self.value, len(self.rows))
        return ALONE if self.alone else self.tape.place(self.suffix.number)

    def key(self, draws: Sequence[int]) -> Key:
        """Under which some draws are drawn."""
        seed, rows = seed_tensor("walk", self.seed, torch.device("cpu")), None if self.alone else self.rows
        return Key(seed, torch.tensor(draws, dtype=torch.int64), rows, 0, self.site.id)


class Pass(NamedTuple):
    """Scores [levels, draws, rows, ...] of a part of the work: place of the request, of its first level and draw."""

    request: int
    level: int
    draw: int
    scores: Tensor

    def put(self, numbers: Tensor, row: int, found: Tensor) -> None:
        """Puts numbers [levels, draws, rows, ...] of its scores where they belong among those of the request, of which
        `row` is its first."""
        levels, draws, rows = numbers.shape[:3]
        found[self.level :, self.draw :, row:][:levels, :draws, :rows] = numbers

    def add(self, sums: Tensor, block: int, found: Tensor) -> None:
        """Adds sums [levels, draws, blocks, width] to those of the request, of which `block` is the first."""
        levels, draws, blocks = sums.shape[:3]
        found[self.level :, self.draw :, block:][:levels, :draws, :blocks] += sums


class Target(ABC):
    """What a walk puts in, at level 1."""

    name: ClassVar[str]  # what studies and stores call it
    shares_rows: ClassVar[bool] = True  # the rows of a draw share what is random: a draw is a chip
    of_calls: ClassVar[bool] = True  # what makes a site's value is another operation; else its value is another
    by_token: ClassVar[bool] = True  # it is shared where rows are tokens, too
    least_rows: ClassVar[int] = ROWS  # what is drawn for all rows alike is drawn anew for each part of them

    @abstractmethod
    def check(self, op: str, level: float, computed: torch.dtype) -> None:
        """Refuses a level that cannot be, where values are computed in this type: ValueError."""

    def check_site(self, site: Site) -> None:  # noqa: B027  # most know all sites
        """Refuses a site whose unit is not known: ValueError."""

    @abstractmethod
    def placement(self, site: Site, level: float) -> Placement:
        """What the plain engine places."""

    @abstractmethod
    def passes(self, work: Work) -> Iterator[Pass]:
        """Scores of all requests of a work whose first target this is."""

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What is walked, as a study's JSON can hold it."""

    @classmethod
    @abstractmethod
    def stored(cls, targets: Sequence[Any], levels: Sequence[float]) -> tuple[list[Noise], str]:
        """For the key of a store: the noises, and what else is to be told from others, in words."""

    def opens(self, site: Site) -> bool:
        """Whether it can be put in at a site."""
        return has_weight(site)

    def reaches(self, tape: Tape, site: Site) -> bool:
        """Whether it can be carried, or its contraction run, at a site alone: what the shared engine is best at."""
        return not site.members and len(site.calls) == 1 and step_of(tape, site.name) is not None

    def enters(self, site: Site) -> tuple[str, ...]:
        """Names of all calls at which it is put in."""
        return site.calls or site.names

    @property
    def by_row(self) -> bool:
        """Whether each row may have a level of its own, with the same bits."""
        return False

    def reads(self, tape: Tape, site: str) -> set[int]:
        """Values before the site that `passes` reads."""
        step = step_of(tape, site)
        return set() if step is None else {input_of(step)}

    def ratio(self, work: Work) -> float:
        """The level at which it is as large as the values at the site; NaN: not known."""
        return math.nan

    def ladder(self, scale: float, levels: Sequence[float]) -> tuple[float, ...]:
        """Levels at which engines are held against each other, the gentlest first; the last one beyond all of the
        study, where what depends on sizes (a branch, a scale of the batch) has changed in a few rows as it may in many.

        Args:
            scale: about the ratio; 1 where it is not known.
            levels: of a grid; empty for a search.
        """
        return (scale, 8 * scale, max([64 * scale, *levels]))

    def radii(self, x: Tensor) -> list[Tensor]:
        """How far it can move values of absolute size x: r1, r2, ... at level A by at most A r1 + A^2 r2 + ...; none:
        nothing is known."""
        return []


class _Directed(Target):
    """A target that is a direction, or two, times its level: drawn and carried once for all levels."""

    @abstractmethod
    def directions(self, work: Work, draws: Sequence[int]) -> tuple[dict[Term, Tensor], list[Mixture]]:
        """Directions at the site, and how each target of the work is made of them."""

    def passes(self, work: Work) -> Iterator[Pass]:
        """See `Target`."""
        if work.alone:
            yield from self._one_by_one(work)
            return
        suffix, count = work.suffix, len(work.rows)
        copies = max(1, work.bytes // (suffix.peak * count))
        if work.value.device.type == "cpu":
            copies = max(1, int(min(copies, suffix.rows / count)))
        some = max(1, min(len(work.draws), copies // len(work.levels[0])))
        half = work.value.dtype.itemsize < 4
        for first in range(0, len(work.draws), some):
            draws = work.draws[first : first + some]
            toward, mixtures = self.directions(work, draws)
            carried = suffix.carry(toward, len(draws), count, half=half)
            _check_finite([d for of_value in carried.values.values() for d in of_value.values()])
            for k, mixture in enumerate(mixtures):
                levels = torch.tensor(work.levels[k], dtype=torch.float64)
                for low, part in _parts(levels, copies // len(draws)):
                    scores = suffix.scores(work.clean, carried, mixture, part, len(draws), count)
                    yield Pass(k, low, first, scores.unflatten(0, (len(part), len(draws), count)))

    def _one_by_one(self, work: Work) -> Iterator[Pass]:
        """Where the value is the same for all rows, it is another one for each level and draw."""
        count, x = len(work.rows), work.value
        for first, draw in enumerate(work.draws):
            table, mixtures = self.directions(work, [draw])
            _check_finite(list(table.values()))
            for k, mixture in enumerate(mixtures):
                toward = mixture.of(table)
                for low, level in enumerate(work.levels[k]):
                    value = noisy(x, toward, level * mixture.factor)
                    scores = work.suffix.of_value(value, work.clean, 1, count)
                    yield Pass(k, low, first, scores.unflatten(0, (1, 1, count)))

    def ratio(self, work: Work) -> float:
        """See `Target`: from one draw of some rows."""
        table, (mixture,) = self.directions(work, [0])
        size = mixture.of(table)[0].double().square().mean().sqrt() * mixture.factor
        return float(work.value.double().square().mean().sqrt() / size)


@dataclass(frozen=True, eq=False)
class Activation(_Directed):
    """Noise on the value at a site."""

    noise: Noise
    name: ClassVar[str] = "activation"
    shares_rows: ClassVar[bool] = False
    of_calls: ClassVar[bool] = False
    least_rows: ClassVar[int] = 1

    def check(self, op: str, level: float, computed: torch.dtype) -> None:
        """See `Target`."""
        _check_scaled(op, self.noise, level, computed)

    def check_site(self, site: Site) -> None:
        """See `Target`."""
        for name in site.names:
            self.noise.at(name)

    def placement(self, site: Site, level: float) -> Placement:
        """See `Target`."""
        return replace(SILENT, noise=self.noise.scaled(level), where=tuple(map(exactly, site.names)))

    def directions(self, work: Work, draws: Sequence[int]) -> tuple[dict[Term, Tensor], list[Mixture]]:
        """See `_Directed`."""
        name, place = work.site.name, work.place
        noises = [t.noise.at(name) for t in work.targets]
        if isinstance(place, Laid):
            noises = [noise_of_tokens(name, noise, place.place, place.value) for noise in noises]
        return directions(noises, work.value, place, 1 if work.alone else len(work.rows), work.key(draws))

    def told(self) -> dict[str, Any]:
        """See `Target`."""
        return _told(self.noise)

    @classmethod
    def stored(cls, targets: Sequence[Activation], levels: Sequence[float]) -> tuple[list[Noise], str]:
        """See `Target`."""
        return [t.noise for t in targets], cls.name

    def opens(self, site: Site) -> bool:
        """Any site."""
        return True

    def reaches(self, tape: Tape, site: Site) -> bool:
        """See `Target`."""
        return not site.members and site.name in tape.sites

    def enters(self, site: Site) -> tuple[str, ...]:
        """See `Target`."""
        return site.names

    @property
    def by_row(self) -> bool:
        """See `Target`: a tensor of another type is rounded to that when a number multiplies it, rows of levels not."""
        return all(level is None or level.dtype == torch.float64 for level in (self.noise.add, self.noise.mul))

    def reads(self, tape: Tape, site: str) -> set[int]:
        """The site alone."""
        return set()

    def radii(self, x: Tensor) -> list[Tensor]:
        """See `Target`: known where levels are numbers, in units of the value."""
        noise, most = self.noise, largest_eps(self.noise.kind)
        if noise.relative is not None or any(level is not None and level.dim() > 0 for level in (noise.add, noise.mul)):
            return []
        a, m = (0.0 if level is None else float(level) for level in (noise.add, noise.mul))
        found = [most * (a + m * x)]
        if noise.mode == "add_mul":
            found.append(torch.full_like(x, a * m * most**2))
        return found


@dataclass(frozen=True, eq=False)
class Weight(_Directed):
    """Noise on the weight of a contraction, the same for all rows of a draw."""

    noise: WeightNoise
    name: ClassVar[str] = "weight"

    def check(self, op: str, level: float, computed: torch.dtype) -> None:
        """See `Target`."""
        _check_scaled(op, self.noise.noise, level, computed)

    def placement(self, site: Site, level: float) -> Placement:
        """See `Target`."""
        return replace(SILENT, hardware={exactly(call): [self.noise.scaled(level)] for call in site.calls})

    def directions(self, work: Work, draws: Sequence[int]) -> tuple[dict[Term, Tensor], list[Mixture]]:
        """See `_Directed`."""
        step = step_of(work.tape, work.site.name)
        assert step is not None
        x, key = work.clean[input_of(step)], work.key(draws)
        table: dict[Term, Tensor] = {
            ("weight", k): direction_at(work.tape, t.noise, step, x, key) for k, t in enumerate(work.targets)
        }
        return table, [Mixture([{term: 1.0}]) for term in table]

    def told(self) -> dict[str, Any]:
        """See `Target`."""
        return _told(self.noise.noise) | {"relative": self.noise.relative}

    @classmethod
    def stored(cls, targets: Sequence[Weight], levels: Sequence[float]) -> tuple[list[Noise], str]:
        """See `Target`."""
        relative = ", ".join(str(t.noise.relative) for t in targets)
        return [t.noise.noise for t in targets], f"{cls.name} relative to {relative}"


@dataclass(frozen=True, eq=False)
class Parameter(Target):
    """Hardware of a contraction that depends on a parameter.

    Args:
        make: the list of devices for a value of the parameter.
        label: name of the parameter, with its unit.
        larger: ``"better"``: more of it is closer to the exact contraction; ``"worse"``.
        of_values: attention's own products are walked, too: devices act there.
    """

    make: Callable[[float], Sequence[Device] | Device]
    label: str
    larger: str
    of_values: bool = False
    name: ClassVar[str] = "parameter"
    by_token: ClassVar[bool] = False

    def devices(self, value: float) -> tuple[Device, ...]:
        """The devices for a value."""
        return checked("walk_parameter", self.make(value))  # type: ignore[arg-type]

    def check(self, op: str, level: float, computed: torch.dtype) -> None:
        """See `Target`."""
        self.devices(level)

    def placement(self, site: Site, level: float) -> Placement:
        """See `Target`."""
        return replace(SILENT, hardware={exactly(call): self.devices(level) for call in self.enters(site)})

    def opens(self, site: Site) -> bool:
        """See `Target`."""
        return has_weight(site) or (self.of_values and site.kind in PARTS)

    def reaches(self, tape: Tape, site: Site) -> bool:
        """See `Target`: the rows of the contraction must be those of the data, nothing beside them."""
        step = step_of(tape, site.name) if super().reaches(tape, site) else None
        return step is not None and all(tape.holds_rows_alone(n) for n in (input_of(step), step.outputs[0]))

    def passes(self, work: Work) -> Iterator[Pass]:
        """See `Target`: the contraction is run for each value."""
        suffix, count, step = work.suffix, len(work.rows), step_of(work.tape, work.site.name)
        assert step is not None
        x = work.clean[input_of(step)]
        dims = work.tape.place(input_of(step)).dim, work.tape.place(suffix.number).dim
        some = max(1, min(len(work.draws), work.bytes // (suffix.peak * count)))
        for first in range(0, len(work.draws), some):
            draws = work.draws[first : first + some]
            key = work.key(draws)
            for k, target in enumerate(work.targets):
                for low, level in enumerate(work.levels[k]):
                    value = value_at(target.devices(level), step, work.site.kind, x, dims, key)
                    scores = suffix.of_value(value, work.clean, len(draws), count)
                    yield Pass(k, low, first, scores.unflatten(0, (1, len(draws), count)))

    def ladder(self, scale: float, levels: Sequence[float]) -> tuple[float, ...]:
        """See `Target`: some of the study's own values, for not any may be tried."""
        some = sorted(levels, reverse=self.larger == "better")
        return tuple(some[i] for i in sorted({round(k * (len(some) - 1) / 4) for k in range(1, 5)}))

    def told(self) -> dict[str, Any]:
        """See `Target`."""
        return {"parameter": self.label, "larger": self.larger}

    @classmethod
    def stored(cls, targets: Sequence[Parameter], levels: Sequence[float]) -> tuple[list[Noise], str]:
        """See `Target`; the devices at the first value stand for all."""
        (one,) = targets
        return [], f"{cls.name} {one.label}, at {levels[0]!r}: {identity(one.devices(levels[0]))}"


def _check_scaled(op: str, noise: Noise, level: float, computed: torch.dtype) -> None:
    """Noise times a level must be finite in what it is computed in."""
    scaled = noise.scaled(level)
    for name, value in (("add", scaled.add), ("mul", scaled.mul)):
        if value is not None and not bool(value.to(computed).isfinite().all()):
            kind = str(computed).removeprefix("torch.")
            raise ValueError(f"{op}: `{name}` of the noise times level {level} exceeds {kind}'s range")


def _check_finite(directions: list[Tensor]) -> None:
    """An infinite direction is no noise times its level: where inf (1 + A eps) is inf, inf + A (inf eps) may be NaN.

    Raises:
        FloatingPointError: one is not finite, as it may be in a few rows of the data only.
    """
    ends = [torch.stack(torch.aminmax(d)).isfinite().all() for d in directions if d.numel()]
    if ends and not bool(torch.stack(ends).all()):  # a device is waited for once
        raise FloatingPointError("what noise makes of its values is not finite in some rows")


def _told(noise: Noise) -> dict[str, Any]:
    def level(value: Tensor | None) -> Any:
        if value is None:
            return 0.0
        return value.item() if value.dim() == 0 else f"tensor {list(value.shape)}"

    told = {
        "kind": noise.kind, "mode": noise.mode, "fold": noise.fold, "add": level(noise.add), "mul": level(noise.mul)
    }  # fmt: skip
    if noise.relative is not None:
        told["relative"] = noise.relative.told() if isinstance(noise.relative, Ranges) else noise.relative
    return told


def _parts(levels: Tensor, most: int) -> Iterator[tuple[int, Tensor]]:
    """Levels in parts of about equal length, none above `most`: (place of the first, part)."""
    low = 0
    for part in levels.tensor_split(-(-len(levels) // max(1, most))):
        yield low, part
        low += len(part)
