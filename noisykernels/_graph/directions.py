"""Directions at a site.

Noise there is ``x + A d`` with d free of the level A (``x + A d1 + A^2 d2`` for order ``add_mul``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.tensors import kept_type
from noisykernels.injection.laid import Laid
from noisykernels.injection.rows import Rows, apart, together
from noisykernels.noise.arguments import Key
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import eps
from noisykernels.noise.units import row_scale

__all__ = ["Mixture", "Term", "directions"]


# ------------------------------------------------------------------------------ directions at a site

Term = tuple[Any, ...]
"""Names a direction: ("add" | "mul" | "cross", kind, and of "add" its unit), or a noise's own (power, noise)."""


@dataclass(frozen=True)
class Mixture:
    """A noise in terms of directions: at level A it is ``sum_k (A factor)^k sum_i c_ki d_i``, k = 1, 2."""

    powers: list[dict[Term, float]]  # the coefficients, for each k
    factor: float = 1.0

    def of(self, directions: dict[Term, Tensor]) -> list[Tensor]:
        """The direction of each power of the level."""
        found = []
        for coefficients in self.powers:
            (first, c), *more = coefficients.items()
            total = directions[first] if c == 1.0 else directions[first] * c
            for term, c in more:
                total = torch.add(total, directions[term], alpha=c)
            found.append(total)
        return found


class _Drawn:
    """What noises at one site draw, each stream once however many share it, for a value of `count` rows."""

    def __init__(self, x: Tensor, place: Rows | Laid, count: int, key: Key) -> None:
        self.x, self.place, self.draws = x, place, key.draw_ids
        if isinstance(place, Laid):
            value, key = place.rows, key._replace(rows=place.ids.reshape(-1))
        else:
            of_rows = apart(x, place, count)
            assert of_rows is not None
            value = of_rows
        self.value, self.key = value, key
        self.tiled = value if len(self.draws) == 1 else torch.cat([value] * len(self.draws))
        self.kept = kept_type(x)  # half values are rounded after the noise
        self._raw: dict[tuple[str, str], Tensor] = {}
        self._sizes: dict[str, Tensor] = {}

    def back(self, drawn: Tensor) -> Tensor:
        """What was drawn for the rows, where the value has it."""
        place = self.place
        if not isinstance(place, Laid):
            return together(drawn, place, self.x)
        none = drawn.new_zeros(()).expand(len(self.draws) * len(place.value), *place.value.shape[1:])
        return place.back(drawn, none, tuple(self.x.shape))

    def raw(self, operand: str, kind: str) -> Tensor:
        """A stream for all draws."""
        if (operand, kind) not in self._raw:
            key = self.key
            of_all: dict[str, Any] = {"kind": kind, "operand": operand, "device": self.value.device}
            of_all |= {"seed": key.seed, "site": key.site, "rows": key.rows}
            each = [eps(self.value.shape, draw=d, **of_all) for d in self.draws]
            self._raw[operand, kind] = each[0] if len(each) == 1 else torch.cat(each)
        return self._raw[operand, kind]

    def size(self, noise: Noise) -> Tensor | None:
        """What additive levels are relative to, beside the value for all draws; None: they are not."""
        unit = noise.relative
        if not isinstance(unit, str):
            return None
        if unit not in self._sizes:
            of_rows = row_scale(self.value, unit).to(self.value.device, self.kept).repeat(len(self.draws))
            self._sizes[unit] = of_rows.view(-1, *[1] * (self.value.dim() - 1))
        return self._sizes[unit]

    def added(self, noise: Noise) -> Tensor:
        """The additive term at level 1."""
        size, drawn = self.size(noise), self.raw("add", noise.kind)
        return drawn if size is None else drawn.to(self.kept) * size


def directions(
    noises: Sequence[Noise], x: Tensor, place: Rows | Laid, count: int, key: Key
) -> tuple[dict[Term, Tensor], list[Mixture]]:
    """The directions in which noises at a site are linear, each drawn once however many noises share it, and how each
    noise is made of them.

    Noises whose levels are numbers are mixtures of ``eps_add``, ``x eps_mul`` and ``eps_add eps_mul``, with ``eps_add``
    times the size of its row where levels are relative to that; others have directions of their own. A direction holds
    (draws x rows), draw by draw, where the value holds its `count` rows; their tokens are what is drawn for where these
    are `Laid`.
    """
    drawn = _Drawn(x, place, count, key)
    table: dict[Term, Tensor] = {}

    def keep(term: Term, make: Callable[[], Tensor]) -> Term:
        if term not in table:
            table[term] = drawn.back(make().to(drawn.kept))
        return term

    def mixture(noise: Noise) -> Mixture:
        add, mul, kind, unit = noise.add, noise.mul, noise.kind, noise.relative
        if noise.mode == "fold" or any(level is not None and level.dim() > 0 for level in (add, mul)):
            own = _own_directions(noise, drawn)
            return Mixture([{keep((k, id(noise)), lambda d=d: d): 1.0} for k, d in enumerate(own)])  # type: ignore[misc]
        first: dict[Term, float] = {}
        if add is not None:
            first[keep(("add", kind, unit), lambda: drawn.added(noise))] = float(add)
        if mul is not None:
            first[keep(("mul", kind), lambda: drawn.raw("mul", kind) * drawn.tiled)] = float(mul)
        if noise.mode == "add_mul":
            cross = keep(("cross", kind, unit), lambda: drawn.added(noise).to(drawn.kept) * drawn.raw("mul", kind))
            return Mixture([first, {cross: float(add or 0) * float(mul or 0)}])
        if len(first) == 1:  # the level itself takes the coefficient
            ((term, c),) = first.items()
            return Mixture([{term: 1.0}], c)
        return Mixture([first])

    mixtures = [mixture(noise) for noise in noises]
    return table, mixtures


def _own_directions(noise: Noise, drawn: _Drawn) -> list[Tensor]:
    """For a noise that is no mixture of the common directions: levels of several numbers, or folded into one."""
    tiled, draws, size = drawn.tiled, len(drawn.draws), drawn.size(noise)

    def expanded(level: Tensor) -> Tensor:
        if level.dim() > 0:
            level = level.expand(draws, len(tiled) // draws, *tiled.shape[1:]).reshape(tiled.shape)
        return level.to(tiled.device, kept_type(tiled))

    def share(level: Tensor) -> Tensor:
        return expanded(level) if size is None else expanded(level) * size

    if noise.mode == "add":
        assert noise.add is not None
        return [drawn.raw("add", noise.kind) * share(noise.add)]
    assert noise.mul is not None
    if noise.mode == "fold":
        assert noise.add is not None
        return [drawn.raw("add", noise.kind) * torch.hypot(tiled * expanded(noise.mul), share(noise.add))]
    factor = drawn.raw("mul", noise.kind) * expanded(noise.mul)
    if noise.add is None:
        return [factor * tiled]
    additive = drawn.raw("add", noise.kind) * share(noise.add)
    first = torch.addcmul(additive, factor, tiled)
    return [first, additive * factor] if noise.mode == "add_mul" else [first]
