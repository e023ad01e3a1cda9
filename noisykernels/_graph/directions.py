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
from noisykernels.injection.rows import Rows, apart, together
from noisykernels.noise.arguments import Key
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import eps

__all__ = ["Mixture", "Term", "directions"]


# ------------------------------------------------------------------------------ directions at a site

Term = tuple[Any, ...]  # names a direction: ("add" | "mul" | "cross", kind), or a noise's own (power, noise)


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


def directions(
    noises: Sequence[Noise], x: Tensor, place: Rows, count: int, key: Key
) -> tuple[dict[Term, Tensor], list[Mixture]]:
    """The directions in which noises at a site are linear, each drawn once however many noises share it, and how each
    noise is made of them.

    Noises whose levels are numbers are mixtures of ``eps_add``, ``x eps_mul`` and ``eps_add eps_mul``; others have
    directions of their own. A direction holds (draws x rows), draw by draw, where the value holds its `count` rows.
    """
    value, draws = apart(x, place, count), key.draw_ids
    assert value is not None
    tiled = value if len(draws) == 1 else torch.cat([value] * len(draws))
    kept = kept_type(x)  # half values are rounded after the noise
    drawn: dict[tuple[str, str], Tensor] = {}
    table: dict[Term, Tensor] = {}

    def raw(operand: str, kind: str) -> Tensor:
        if (operand, kind) not in drawn:
            of_all: dict[str, Any] = {"kind": kind, "operand": operand, "device": x.device}
            of_all |= {"seed": key.seed, "site": key.site, "rows": key.rows}
            each = [eps(value.shape, draw=d, **of_all) for d in draws]
            drawn[operand, kind] = each[0] if len(each) == 1 else torch.cat(each)
        return drawn[operand, kind]

    def keep(term: Term, make: Callable[[], Tensor]) -> Term:
        if term not in table:
            table[term] = together(make().to(kept), place, x)
        return term

    def mixture(noise: Noise) -> Mixture:
        add, mul, kind = noise.add, noise.mul, noise.kind
        if noise.mode == "fold" or any(level is not None and level.dim() > 0 for level in (add, mul)):
            own = _own_directions(noise, tiled, len(draws), raw)
            return Mixture([{keep((k, id(noise)), lambda d=d: d): 1.0} for k, d in enumerate(own)])  # type: ignore[misc]
        first: dict[Term, float] = {}
        if add is not None:
            first[keep(("add", kind), lambda: raw("add", kind))] = float(add)
        if mul is not None:
            first[keep(("mul", kind), lambda: raw("mul", kind) * tiled)] = float(mul)
        if noise.mode == "add_mul":
            cross = keep(("cross", kind), lambda: raw("add", kind).to(kept) * raw("mul", kind))
            return Mixture([first, {cross: float(add or 0) * float(mul or 0)}])
        if len(first) == 1:  # the level itself takes the coefficient
            ((term, c),) = first.items()
            return Mixture([{term: 1.0}], c)
        return Mixture([first])

    mixtures = [mixture(noise) for noise in noises]
    return table, mixtures


def _own_directions(noise: Noise, tiled: Tensor, draws: int, raw: Callable[[str, str], Tensor]) -> list[Tensor]:
    """For a noise that is no mixture of the common directions: levels of several numbers, or folded into one."""

    def expanded(level: Tensor) -> Tensor:
        if level.dim() > 0:
            level = level.expand(draws, len(tiled) // draws, *tiled.shape[1:]).reshape(tiled.shape)
        return level.to(tiled.device, kept_type(tiled))

    def scaled(operand: str, level: Tensor) -> Tensor:
        return raw(operand, noise.kind) * expanded(level)

    if noise.mode == "add":
        assert noise.add is not None
        return [scaled("add", noise.add)]
    assert noise.mul is not None
    if noise.mode == "fold":
        assert noise.add is not None
        return [raw("add", noise.kind) * torch.hypot(tiled * expanded(noise.mul), expanded(noise.add))]
    factor = scaled("mul", noise.mul)
    if noise.add is None:
        return [factor * tiled]
    additive = scaled("add", noise.add)
    first = torch.addcmul(additive, factor, tiled)
    return [first, additive * factor] if noise.mode == "add_mul" else [first]
