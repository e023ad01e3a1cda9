"""The value at a site as the rows of the contract that its tokens are, and back; the noise of such rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from noisykernels.injection.site import kind_of
from noisykernels.injection.tokens import ROUTED, Keys, Place, Tokens, apart, lost, of_single_token, together
from noisykernels.noise.description import Noise
from noisykernels.noise.tokens import levels_of_tokens

__all__ = ["LEADING", "Laid", "laid_at", "leads", "noise_of_tokens"]

LEADING = Place(0, 1)


class Laid(NamedTuple):
    """A value of so many sequences, of one draw or of all, with its tokens apart.

    Args:
        value: (sequences, tokens, ...).
        place: where it holds them.
        ids: of the tokens of one draw, (sequences, tokens).
        keys: of which the last dimension counts the places; None: of none.
        hides: whether a key whose value is 0 is none: behind a softmax, one that a mask leaves out.
    """

    value: Tensor
    place: Place
    ids: Tensor
    keys: Keys | None = None
    hides: bool = False

    @property
    def rows(self) -> Tensor:
        """The tokens as rows: (sequences x tokens, ...), keys at the places of their positions."""
        return (self.value if self.keys is None else self.keys.spread(self.value)).flatten(0, 1)

    def back(self, rows: Tensor, otherwise: Tensor, shape: Sequence[int]) -> Tensor:
        """A value of the shape that the given one has, of rows such as its own, of one draw or several.

        Args:
            otherwise: what it is where a row of keys holds none: (sequences, tokens, ...).
            shape: of the value as it lies, with one draw.
        """
        count = self.value.shape[1]
        made = rows.unflatten(0, (len(otherwise), count))
        copies = len(otherwise) // max(1, len(self.value))
        if self.keys is not None:
            made = self.keys.gathered(made, otherwise)
            if self.hides:
                hidden = self.value == 0
                made = torch.where(torch.cat([hidden] * copies) if copies > 1 else hidden, otherwise, made)
        dim = self.place.batch
        return together(made, self.place, (*shape[:dim], copies * shape[dim], *shape[dim + 1 :]))


def laid_at(tokens: Tokens, places: Mapping[str, Place | str], name: str, value: Tensor, batch: int) -> Laid:
    """The value at a site, of so many sequences of all draws together, with its tokens apart.

    Raises:
        RuntimeError: they cannot be told.
    """
    place = places.get(name, "no run of the model with fewer tokens has come to it")
    if isinstance(place, str):
        raise RuntimeError(lost(name, value, place))
    if place == ROUTED:
        raise RuntimeError(lost(name, value, "they are followed only in calls that are not compiled, of one process"))
    parts = apart(value, place, batch)
    if parts is None:
        raise RuntimeError(lost(name, value, f"of the {batch} rows (draws x sequences) it has another number"))
    of_keys = 1 if place.keys is None else max(1, parts.shape[-1])
    ids = tokens.ids_of(place, parts.shape[1], math.prod(parts.shape[2:]) // of_keys)
    if ids is None and (stream := tokens.streams[place.stream]) is not None and stream.ids.shape[1] == 1:
        single = of_single_token(value, place, batch)  # as where queries share keys
        if single is not None:
            place, parts, ids = place._replace(token=None), single, stream.ids
    if ids is None:
        of_row = f"after {place.lost or 'what went before'}, of which sequence in a row it is"
        which = of_row if place.token is None else f"which of the call's tokens its {parts.shape[1]} are"
        raise RuntimeError(lost(name, value, f"{which} is not known"))
    keys = None
    if place.keys is not None and (keys := Keys.of(tokens, place, parts.shape[-1])) is None:
        raise RuntimeError(lost(name, value, "which tokens its keys are is not known"))
    return Laid(parts, place, ids, keys, kind_of(name) == "softmax")


def leads(place: Place | str | None) -> TypeGuard[Place]:
    """Whether the first two dimensions of a value are sequences and tokens that the model goes on with."""
    return type(place) is Place and place[:6] == LEADING[:6]


def noise_of_tokens(name: str, noise: Noise, place: Place, value: Tensor) -> Noise:
    """The noise of a site as one on the tokens of a value (sequences, tokens, ...), whose levels may differ between
    them.

    Raises:
        RuntimeError: levels, or a unit, that tokens there do not have.
    """
    if place.keys is not None and noise.relative is not None:
        raise RuntimeError(
            f"site {name!r}: a row there holds the keys of one call, other ones with a cache or with padding: its "
            f"{noise.relative} is no unit of a token; give levels in units of the value, or of calibrate()d ranges"
        )
    if all(level is None or level.dim() == 0 for level in (noise.add, noise.mul)):
        return noise
    if not leads(place):
        raise RuntimeError(
            f"site {name!r}: levels that are tensors are for values whose first dimensions are sequences and tokens"
        )
    return levels_of_tokens("perturb", noise, value.shape[0], value.shape[1], value.dim())
