"""Noise on a value of a running forward: which, at what level, under which key, and what becomes of a value that it
does not fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.tensors import is_plain
from noisykernels._util.warning import warn_user
from noisykernels.injection.belonging import Belonging
from noisykernels.injection.calls import called, perturb_plain
from noisykernels.injection.kinds import PREPARING
from noisykernels.injection.laid import LEADING, laid_at, leads, noise_of_tokens
from noisykernels.injection.placement import Placement
from noisykernels.injection.record import Entry, Record
from noisykernels.injection.routed import Numbers, routed, stem_of, told_by_place
from noisykernels.injection.rows import ALONE, FIRST, Rows, apart, no_rows, together
from noisykernels.injection.shards import Parallel
from noisykernels.injection.site import PARTS, kind_of
from noisykernels.injection.spot import Spot, scale_and_repeats, spot_of
from noisykernels.injection.tokens import Place, Tokens
from noisykernels.injection.tokens import apart as tokens_apart
from noisykernels.injection.values import Change, changed
from noisykernels.nn.functional import linear
from noisykernels.nn.signals import ModelMode
from noisykernels.noise.contract import hashed_id
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb
from noisykernels.noise.shards import gathered

__all__ = ["LEFT_OUT", "Drawing", "ForwardKey", "Lead"]

Plain = tuple[int, Tensor | None, Tensor | None, Tensor | None]
# Of values whose first dimensions are sequences and tokens: these dimensions, the ids, the key as kernels take it.
Lead = tuple[tuple[int, int], Tensor, Plain | None]
LEFT_OUT = "rows cannot be told apart there, so nothing enters at"

_perturb = torch.ops.noisykernels.perturb.default._op


@dataclass
class ForwardKey:
    """What the noise of one forward depends on, at all of its sites: a call at one of them has a `Key` of its own."""

    seed: Tensor | None  # None only where no noise is drawn
    draws: Tensor | None
    rows: Tensor | None
    batch: int  # rows of every draw together; where they are tokens, sequences
    level: Tensor | None = None  # factor of all noise: 0-d, or one for each row
    array_seed: Tensor | None = None  # of what belongs to the chip, where the seed is that of one call


class Drawing(ModelMode):
    """The part of `mode.SiteMode` that draws noise."""

    alone: set[str]
    always: bool
    common: tuple[Tensor | None, Tensor | None, Tensor | None, int]
    batch: int
    belonging: Belonging | None
    compiled: bool
    flat: bool
    ids: dict[str, int]
    lead: Lead | None
    key: ForwardKey
    left: set[str]
    modules: list[tuple[str, nn.Module]]
    muted: int
    parallel: Parallel | None
    noted: dict[str, Any]
    token_numbers: Numbers | None
    place: torch.device | None
    placement: Placement
    places: Mapping[str, Rows | None]
    plain: Plain | None
    record: Record | None
    routed: frozenset[str]
    seen: dict[str, Tensor]
    spots: dict[str, Spot]
    token_places: Mapping[str, Place | str]
    tokens: Tokens | None
    untold: list[str]
    valueless: list[str]
    wanted: Collection[str]

    def noise_at(self, name: str) -> Noise | Change | None:
        """The placement's noise at a site of the module that runs now."""
        module = self.modules[-1][1]
        return self.spot(name, module).noise if self.always or self.placement.on(module) else None

    def spot(self, name: str, module: nn.Module) -> Spot:
        """What is known of the site of this name, whose innermost module is `module`."""
        spot = self.spots.get(name)
        if spot is None:
            spot = spot_of(self.placement, name, module, self._id, self.rows_at)
            if not self.compiled:  # a graph would be guarded on the table
                self.spots[name] = spot
        return spot

    def is_known(self, spot: Spot, value: Tensor) -> bool:
        """Whether all about the noise of a value is known beforehand: levels, place, and that its rows come first."""
        return (
            spot.args is not None
            and spot.dim == 0
            and value.dim() > 0
            and len(value) == self.key.batch
            and value.device == self.place
        )

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The noisy value at a site. `row_dim` overrides what is known of the site's rows."""
        if self.record is not None:
            operands, array = self.noted.pop(name, ((), None))
            within = torch._C._functorch.is_functorch_wrapped_tensor(clean)  # a transform, which has ended by then
            value = gathered(clean.detach()).clone() if name in self.wanted and not within else None
            held = None if self.belonging is None else self.belonging.of(clean)
            self.record.append(Entry(name, tuple(clean.shape), operands, array, value, held))
            return clean
        if self.belonging is not None and self.tokens is not None:
            return self._followed(self.belonging, name, noise, clean)
        if noise is None or not clean.is_floating_point():
            if noise is not None:
                self.valueless.append(name)
            return clean
        if self.parallel is not None:
            noisy: Tensor = self.parallel.at(self, name, noise, clean, row_dim)
            return noisy
        return self.at_rows(name, noise, clean, row_dim)

    def at_rows(self, name: str, noise: Noise | Change, clean: Tensor, row_dim: int | None) -> Tensor:
        """The same of a value that this process has all of."""
        if self.tokens is not None:
            return self.at_tokens(self.tokens, name, noise, clean)
        spot = self.spots.get(name)
        if spot is not None and spot.noise is noise and row_dim is None and self.is_known(spot, clean):
            if self.plain is not None and spot.plain is not None:
                noisy = perturb_plain(clean, *self.plain, *spot.plain)  # type: ignore[arg-type]
                if noisy is not None:
                    return noisy
            add, mul, mode, kind = spot.args  # type: ignore[misc]
            return called(_perturb, clean, 0, add, mul, *self.common, spot.id, mode, kind, False)
        rows = self.rows_at(name, row_dim)
        value = None if rows is None else apart(clean, rows, self.key.batch)
        if value is None or rows is None:
            self.leave_out(name, clean)
            return clean
        return together(self._noisy(name, noise, value, rows), rows, clean)

    def _followed(self, belonging: Belonging, name: str, noise: Noise | Change | None, clean: Tensor) -> Tensor:
        """The same where tokens are followed: also through values without noise."""
        held, noisy = belonging.of(clean), clean
        if not clean.is_floating_point():
            if noise is not None:
                self.valueless.append(name)
        elif stem_of(name) in self.routed:
            noisy = routed(self, name, clean)
        else:
            place = self.token_places.get(name)
            if (held is None or held.lost) and isinstance(place, Place) and self.token_numbers is not None:
                value = tokens_apart(clean, place, self.key.batch)
                told = None if value is None else told_by_place(self.token_numbers, place, clean, value)
                if told is not None:
                    belonging.tell(clean, told)
                    held = belonging.of(clean)
            if noise is not None and self.tokens is not None:
                noisy = self.at_tokens(self.tokens, name, noise, clean)
        belonging.give(noisy, held)
        return noisy

    def rows_noisy(self, name: str, noise: Noise | Change, value: Tensor) -> Tensor:
        """The noisy value whose rows are those of the key, along dimension 0."""
        return self._noisy(name, noise, value, FIRST)

    def at_tokens(self, tokens: Tokens, name: str, noise: Noise | Change, clean: Tensor) -> Tensor:
        """The same where the rows are tokens."""
        noisy = self._led(name, noise, clean)
        if noisy is not None:
            return noisy
        laid = laid_at(tokens, self.token_places, name, clean, self.key.batch)
        if isinstance(noise, Noise):
            noise = noise_of_tokens(name, noise, laid.place, laid.value)
        flat, spot = laid.rows, self.spots.get(name)
        if self.place == clean.device and spot is not None and spot.noise is noise and spot.args is not None:
            add, mul, mode, kind = spot.args
            key = (self.key.seed, self.key.draws, laid.ids.reshape(-1), 0, spot.id)
            noisy = called(_perturb, flat, 0, add, mul, *key, mode, kind, False)
        else:
            with self.by_token(laid.ids):
                noisy = self._noisy(name, noise, flat, FIRST)
        return laid.back(noisy, laid.value, clean.shape)

    def _led(self, name: str, noise: Noise | Change, clean: Tensor) -> Tensor | None:
        """The noisy value where all about the noise is known beforehand, and tokens lie along the first dimensions."""
        spot, lead = self.spots.get(name), self.lead
        if spot is None or spot.noise is not noise or spot.args is None or lead is None or clean.device != self.place:
            return None
        if clean.shape[:2] != lead[0] or not leads(self.token_places.get(name)):
            return None
        flat = clean.flatten(0, 1)
        noisy = None
        if lead[2] is not None and spot.plain is not None:
            noisy = perturb_plain(flat, *lead[2], *spot.plain)  # type: ignore[arg-type]
        if noisy is None:
            add, mul, mode, kind = spot.args
            key = (self.key.seed, self.key.draws, lead[1], 0, spot.id)
            noisy = called(_perturb, flat, 0, add, mul, *key, mode, kind, False)
        return noisy.view(clean.shape)

    def leading_ids(self, name: str, x: Tensor, features: int) -> Tensor | None:
        """The ids of the tokens along the first two dimensions of what goes into a linear layer with so many features
        out; None elsewhere."""
        place = self.token_places.get(name)
        if self.tokens is None or x.dim() < 3 or not leads(place) or len(x) != self.key.batch:
            return None
        return self.tokens.ids_of(place, x.shape[1], math.prod(x.shape[2:-1]) * features)

    @contextlib.contextmanager
    def by_token(self, ids: Tensor) -> Iterator[None]:
        """Values have tokens for rows meanwhile, along dimension 0: (draws x sequences x tokens, ...), of these ids."""
        key, batch, tokens = self.key, self.batch, self.tokens
        count = ids.shape[1]
        level = key.level
        if level is not None and level.dim() > 0:
            level = level.repeat_interleave(count)
        self.key = replace(key, rows=ids.reshape(-1), batch=key.batch * count, level=level)
        self.batch, self.tokens, self.flat = self.key.batch, None, True
        try:
            yield
        finally:
            self.key, self.batch, self.tokens, self.flat = key, batch, tokens, False

    @contextlib.contextmanager
    def without_tokens(self) -> Iterator[None]:
        """Nothing is drawn for single rows meanwhile."""
        tokens, self.tokens = self.tokens, None
        try:
            yield
        finally:
            self.tokens = tokens

    def _noisy(self, name: str, noise: Noise | Change, value: Tensor, rows: Rows) -> Tensor:
        if not isinstance(noise, Noise):
            return changed(self, name, noise, value, rows)
        noise, repeats = self._levels(name, noise, value.numel() // max(1, value.shape[0]), value.dim())
        key = self.key_at(name, rows)
        if repeats == 1:
            return perturb(value, noise, **key)
        if (draws := key.pop("draws")) is None:
            draws = torch.zeros(1, dtype=torch.int64, device=value.device)
        parts = [perturb(value, noise, **key, draws=draws * repeats + r) for r in range(repeats)]
        return torch.stack(parts).mean(0)

    def _levels(self, name: str, noise: Noise, item_size: int, rank: int) -> tuple[Noise, int]:
        """The noise with the key's level and its published options applied, and the number of explicit repeats left.

        `rank` is that of the value, whose dimension 0 counts rows.
        """
        if (level := self.key.level) is not None:
            noise = noise.scaled(level if level.dim() == 0 else level.reshape(1, -1, *[1] * (rank - 1)))
        placement, repeats = self.placement, self.placement.repeats_at(name)
        scale = 1.0 / item_size if placement.normalize_to_input_size and item_size > 0 else 1.0
        scale, repeats = scale_and_repeats(noise, repeats, scale)
        return (noise if scale == 1.0 else noise.scaled(scale)), repeats

    def _fused(
        self, name: str, op: Callable[..., Tensor], noise: Noise, args: Any, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """A contraction with its noise in one operator; None where the noise must come after."""
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        weight = rest[0] if rest else kwargs["weight"]
        if self.parallel is not None:
            return None
        if self.tokens is not None:
            ids = self.leading_ids(name, x, len(weight)) if op is linear else None
            if ids is None:
                return None
            noise = noise_of_tokens(name, noise, LEADING, x)
            with self.by_token(ids):
                made = self._fused(name, op, noise, (x.flatten(0, 1), *rest), kwargs)
            return None if made is None else made.unflatten(0, x.shape[:2])
        batched = x.dim() > 1 if op is linear else x.dim() == weight.dim()
        plain = (is_plain(weight) or torch.compiler.is_compiling()) and not x.is_complex()
        if not (batched and plain) or x.shape[0] != self.key.batch or self.rows_at(name) != FIRST:
            return None
        if self.placement.normalize_to_input_size:
            return None
        noise, repeats = self._levels(name, noise, 0, x.dim())
        return op(x, *rest, **kwargs, noise=noise, **self.key_at(name)) if repeats == 1 else None

    def key_at(self, name: str, rows: Rows = FIRST) -> dict[str, Any]:
        """The key of a site whose value holds its rows so, as the keywords of our operators say it."""
        key = self.key
        if rows.outer == 0:
            if key.draws is not None and key.draws.shape[0] != 1:
                raise RuntimeError(
                    f"site {name!r}: its value is the same for all rows: run one draw at a time, or give "
                    "inject() an example_input"
                )
            return {"seed": key.seed, "site": self._id(name), "draws": key.draws, "rows": None}
        return {"seed": key.seed, "site": self._id(name), "draws": key.draws, "rows": key.rows}

    def _id(self, name: str) -> int:
        """The number of a site; a collision that was not settled beforehand is an error."""
        number = self.ids.get(name)
        if number is None:
            number = hashed_id(name)
            if number in self.ids.values():
                raise RuntimeError(
                    f"site {name!r} has the same number as another; give inject() an example_input, which settles it"
                )
            if not torch.compiler.is_compiling():  # a graph would be guarded on the table
                self.ids[name] = number
        return number

    def rows_at(self, name: str, row_dim: int | None = None) -> Rows | None:
        """Where the value at a site holds its rows; None: they are mixed."""
        if self.flat:
            return FIRST
        if row_dim is None and "row_dims" in self.placement.pairs:
            row_dim = self.placement.row_dim_at(name)
        if row_dim is not None:
            return Rows(row_dim)
        return ALONE if name in self.alone else self.places.get(name, FIRST)

    def leave_out(self, name: str, value: Tensor) -> None:
        """What was asked for does not enter: an error where rows were never looked for, or this very site was meant."""
        known = name in self.places or kind_of(name) in (*PREPARING, *PARTS)  # any value may come out of a product
        if not known or self.placement.means(name):
            raise RuntimeError(no_rows(name, self.key.batch, value))
        if name not in self.left and not self.compiled:
            self.left.add(name)
            self.untold.append(name)

    def tell_left_out(self) -> None:
        """One warning of the sites that this forward was the first to leave out."""
        if self.untold:
            hint = "" if self.places else "; with example_input=... rows are looked for"
            warn_user(f"inject: {LEFT_OUT} {', '.join(map(repr, self.untold))}{hint}")
            self.untold.clear()
