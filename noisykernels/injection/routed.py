"""Noise on values whose rows are tokens that the model has picked out, as those of its experts.

A token's noise there is that of the token alone. Its call is the one that it would be if no other token were there: how
many calls of the operation have come to it so far in this forward; its elements are those that belong to it, in the
order in which they lie in the value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisykernels.injection.belonging import SEVERAL, Belonging, Followed
from noisykernels.injection.belonging_rules import compact
from noisykernels.injection.shards import in_group
from noisykernels.injection.tokens import Place, Stream, Tokens, held_by, lost, names_of_streams, together
from noisykernels.injection.values import Change
from noisykernels.noise.description import Noise

__all__ = ["Numbers", "elements_of", "follow_tokens", "routed", "stem_of", "told_by_place"]

_OF_NONE = "nothing that goes into it belongs to a token"


class Numbers(NamedTuple):
    """The tokens of a call, of all draws, numbered one after the other, stream by stream.

    Args:
        ids, draw, row: of each: its id, the place of its draw among those of the call, of its sequence in that draw.
        first: the number of the first token of each stream.
        sizes: of each stream: sequences of all draws, tokens.
    """

    ids: Tensor
    draw: Tensor
    row: Tensor
    first: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: Tokens, batch: int) -> Numbers:
        """Of `batch` sequences, those of all draws."""
        streams = [stream for stream in tokens.streams if isinstance(stream, Stream)]
        ids, draw, row, first, sizes = [], [], [], [0], []
        for stream in streams:
            each, count = stream.ids.shape
            place = torch.arange(batch, device=stream.ids.device).repeat_interleave(count)
            ids.append(stream.ids.repeat(batch // each, 1).flatten())
            draw.append(place // each)
            row.append(place % each)
            first.append(first[-1] + len(place))
            sizes.append((batch, count))
        return cls(torch.cat(ids), torch.cat(draw), torch.cat(row), tuple(first[:-1]), tuple(sizes))


def follow_tokens(mode: Any, asked: bool, given: Mapping[Any, Any], encoder: bool) -> None:
    """Has the tokens of a forward followed where that is asked, from its arguments on; `mode` as in `mode.SiteMode`."""
    if asked and not in_group():  # a process of a group may have a part of a value only
        _number_tokens(mode.follow(), given, encoder, mode.key.batch)


def _number_tokens(belonging: Belonging, given: Mapping[Any, Any], encoder: bool, batch: int) -> None:
    """Tells which tokens the arguments of a model hold, stream by stream, as `Numbers` have them."""
    first = 0
    for name in names_of_streams(given, encoder):
        if name is None:
            continue
        value = held_by(given, name)
        if len(value) == batch:
            belonging.tell(value, _numbered(value, first))
        first += batch * value.shape[1]


def _numbered(value: Tensor, first: int) -> Tensor:
    """The numbers of the tokens of a value (sequences, tokens, ...), from the first one on."""
    rows, count = value.shape[:2]
    numbers = torch.arange(first, first + rows * count, device=value.device)
    return numbers.view(rows, count, *[1] * (value.dim() - 2)).expand(value.shape)


def told_by_place(numbers: Numbers, place: Place, value: Tensor, apart: Tensor) -> Tensor | None:
    """The tokens of a value whose place is known, and that is `apart` as (sequences, tokens, ...)."""
    if place.token is None or apart.shape[:2] != numbers.sizes[place.stream]:
        return None
    return together(_numbered(apart, numbers.first[place.stream]).contiguous(), place, tuple(value.shape))


def stem_of(name: str) -> str:
    """A site's name without the number of its call."""
    return name.rpartition("#")[0]


def elements_of(held: Followed, value: Tensor) -> tuple[Tensor, Tensor]:
    """A value as rows along dimension 0, each of one token, and the tokens: all elements, if rows are not outside."""
    small = compact(held.tokens)
    several = [d for d, size in enumerate(small.shape) if size > 1]
    last = several[-1] + 1 if several else 0
    if any(value.shape[d] > 1 for d in range(last) if d not in several):
        return value.reshape(-1), held.tokens.reshape(-1)
    return value.reshape(-1, *value.shape[last:]), small.reshape(-1)


def routed(mode: Any, name: str, clean: Tensor) -> Tensor:
    """The noisy value at a site at which tokens are followed; `mode` as in `mode.SiteMode`."""
    belonging: Belonging = mode.belonging
    held, stem, module = belonging.of(clean), stem_of(name), mode.modules[-1][1]
    why = _OF_NONE if held is None else held.lost
    if held is None or bool((compact(held.tokens) == SEVERAL).any()):
        if mode.noise_at(name) is not None:
            raise RuntimeError(lost(name, clean, f"{why} lost them" if why and held is not None else why))
        return clean
    value, of = elements_of(held, clean)
    order = of.argsort(stable=True)
    order = order[(of < 0).sum() :]  # what is of no token stays as it is
    tokens, count = torch.unique_consecutive(of[order], return_counts=True)
    start = count.cumsum(0) - count
    numbers: Numbers = mode.token_numbers
    seen = mode.seen.setdefault(stem, torch.zeros_like(numbers.ids))
    calls = seen[tokens]
    seen[tokens] += 1
    groups, group = torch.stack([calls, numbers.draw[tokens], count]).unique(dim=1, return_inverse=True)
    places, parts = [], []
    for number, (call, draw, each) in enumerate(groups.T.tolist()):
        spot = mode.spot(f"{stem}#{call}", module)
        if spot.noise is None or not (mode.always or mode.placement.on(module)):
            continue
        members = (group == number).nonzero().squeeze(1)
        place = order[start[members].unsqueeze(1) + torch.arange(each, device=order.device)]
        part = value[place] if each > 1 else value[place.squeeze(1)]
        with _of_tokens(mode, numbers, tokens[members], draw):
            noisy = mode.rows_noisy(f"{stem}#{call}", _fitting(name, spot.noise), part)
        places.append(place.flatten())
        parts.append(noisy.reshape(-1, *value.shape[1:]))
    if not parts:
        return clean
    return value.index_copy(0, torch.cat(places), torch.cat(parts)).reshape(clean.shape)


def _fitting(name: str, noise: Noise | Change) -> Noise | Change:
    if isinstance(noise, Noise) and any(level is not None and level.dim() for level in (noise.add, noise.mul)):
        raise RuntimeError(
            f"site {name!r}: levels that are tensors are for values whose first dimensions are sequences and tokens"
        )
    return noise


@contextlib.contextmanager
def _of_tokens(mode: Any, numbers: Numbers, tokens: Tensor, draw: int) -> Iterator[None]:
    """Values are of these tokens of one draw meanwhile, along dimension 0."""
    key, level = mode.key, mode.key.level
    if level is not None and level.dim() > 0:
        level = level[numbers.row[tokens] % len(level)]
    draws = None if key.draws is None else key.draws.narrow(0, draw, 1)
    mode.key = replace(key, draws=draws, rows=numbers.ids[tokens], batch=len(tokens), level=level)
    before, mode.batch, mode.flat = mode.batch, len(tokens), True
    try:
        yield
    finally:
        mode.key, mode.batch, mode.flat = key, before, False
