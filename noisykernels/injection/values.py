"""Faults and noise as a function of the value at a site: what such a function is given, and what it may give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from noisykernels.hardware.device import standardised
from noisykernels.injection.rows import Rows
from noisykernels.noise.arguments import Chip, Key
from noisykernels.noise.contract import OPERANDS, stream_number
from noisykernels.noise.description import Noise

__all__ = ["Change", "SiteDraw", "changed", "is_noise"]


class SiteDraw:
    """One draw at one site, as a function ``f(x, draw)`` that `inject` is given sees it.

    All it gives is fixed by seed, site, draw and the name of a stream; what is fresh, by the row, too. Names are the
    user's own, of numbers of their own (`noise.contract.stream_number`).

    Args:
        site: the name of the site.
        key: of the draw and its rows.
        chip: of what is the same for all rows.

    Example:
        >>> from torch import nn
        >>> from noisykernels.injection import inject, noise_state
        >>> def dead(x, draw):  # a tenth of the neurons give nothing
        ...     return torch.where(draw.fixed(x.shape[1:], "dead", kind="uniform") < 3**0.5 * (2 * 0.1 - 1), 0.0, x)
        >>> model = nn.Sequential(nn.Linear(4, 100), nn.Sigmoid())
        >>> with inject(model, dead, where=nn.Sigmoid), noise_state(model, seed=1):
        ...     y = model(torch.ones(2, 4))
        >>> 0 < int((y[0] == 0).sum()) < 25, bool((y[0] == y[1]).all())
        (True, True)
    """

    def __init__(self, site: str, key: Key, chip: Key, device: torch.device) -> None:
        self.site = site
        self._key, self._chip, self._device = key, chip, device
        self._streams: dict[int, tuple[str, str]] = {}  # by number: name and whether it is fixed

    @property
    def id(self) -> Tensor | None:
        """The number of the draw, (1); None: 0."""
        return self._key.draws

    def fixed(
        self, shape: Sequence[int], operand: str, kind: str = "gaussian", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standardised values of the draw: the same for every row of the data, in every call at the site."""
        number = self._number(operand, "fixed")
        return standardised(torch.zeros(tuple(shape), dtype=dtype, device=self._device), self._chip, number, kind)

    def fresh(self, x: Tensor, operand: str, kind: str = "gaussian") -> Tensor:
        """Standardised values for each element of a value (rows, ...) of this draw: new for every row of the data."""
        return standardised(torch.zeros_like(x.detach()), self._key, self._number(operand, "fresh"), kind)

    def _number(self, operand: str, way: str) -> int:
        """The number of a stream, which no other one at the site may have."""
        if not isinstance(operand, str) or operand in OPERANDS:
            raise ValueError(
                f"site {self.site!r}: operand must be a name of one's own, not one of {', '.join(OPERANDS)}, "
                f"got {operand!r}"
            )
        number = stream_number(operand)
        name, before = self._streams.setdefault(number, (operand, way))
        if name != operand:
            raise ValueError(
                f"site {self.site!r}: streams must have different numbers, got {name!r} and {operand!r}, which have "
                f"{number}: name one of them otherwise"
            )
        if before != way:
            raise ValueError(
                f"site {self.site!r}: stream {operand!r} must be either fixed or fresh, got both, which would have "
                "the same values"
            )
        return number


Change = Callable[[Tensor, SiteDraw], Tensor]


def is_noise(given: Any) -> bool:
    """Whether this can enter at a site: a noise, or a function of the value."""
    return isinstance(given, Noise) or (callable(given) and not isinstance(given, type))


class Running(Protocol):
    """What a change asks of the mode that runs it; see `mode.SiteMode`."""

    key: Any
    muted: int
    placement: Any

    def key_at(self, name: str, rows: Rows) -> dict[str, Any]: ...


def changed(mode: Running, site: str, function: Change, value: Tensor, rows: Rows) -> Tensor:
    """A value (draws x rows, ...) as a function of each draw's rows makes it, in which no operation is a site."""
    placement, array_seed = mode.placement, mode.key.array_seed
    if mode.key.level is not None or placement.normalize_to_input_size or placement.repeats_at(site) != 1:
        raise RuntimeError(
            f"site {site!r}: a function of the value has no levels that noise_state(level=...), repeats= or "
            "normalize_to_input_size= could change: give a Noise, or leave these out"
        )
    key = Key.of(site, value.device, first_row=0, **mode.key_at(site, rows))
    count = 1 if key.draws is None else key.draws.shape[0]
    each, parts = value.shape[0] // count, []
    mode.muted += 1
    try:
        for number in range(count):
            given = value if count == 1 else value.narrow(0, number * each, each)
            of_draw = key if key.draws is None else key.of_draws(key.draws.narrow(0, number, 1))
            chip = of_draw.of_chip(Chip(None, array_seed))
            made = function(given.clone(), SiteDraw(site, of_draw, chip, value.device))  # which may write into it
            _check(site, made, given)
            parts.append(made)
    finally:
        mode.muted -= 1
    return parts[0] if count == 1 else torch.cat(parts)


def _check(site: str, made: Any, given: Tensor) -> None:
    """Refuses what cannot take the place of a value."""
    if not isinstance(made, Tensor):
        raise TypeError(f"site {site!r}: the function of its value must give a tensor, got {type(made).__name__}")
    if made.shape != given.shape or made.dtype != given.dtype or made.device != given.device:
        raise ValueError(
            f"site {site!r}: the function of its value must give {given.dtype} of shape {list(given.shape)} on "
            f"{given.device}, got {made.dtype} of shape {list(made.shape)} on {made.device}"
        )
