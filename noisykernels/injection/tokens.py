"""Tokens of one forward: which they are, as the model's arguments tell, and where a value holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._util.tensors import can_look
from noisykernels.noise.tokens import TokenRows, checked_positions, token_ids

__all__ = [
    "CACHES",
    "ROUTED",
    "Held",
    "Keys",
    "Place",
    "Tokens",
    "apart",
    "encodes",
    "held_by",
    "lost",
    "names_of_streams",
    "of_single_token",
    "together",
    "tokens_of",
]

CACHES = ("cache", "past_key_values")  # what a cache is called among the arguments of a model
_WHOLE = ("input_features", "input_values", "pixel_values")  # sounds and images: rows without tokens


class Place(NamedTuple):
    """The dimensions of a value that hold sequences and tokens.

    `token` None: there are no tokens, the value is that of the whole sequence. `outer`: what lies outside of sequences
    where several values of each are folded into their dimension (outer x sequences x more); 0: nothing is folded.
    `merged`: tokens are folded into the dimension of sequences (sequences x tokens). `keys`: the last dimension counts
    the tokens of this stream. `stream`: whose tokens, 0 those that the model goes on with, 1 those of its encoder.
    `free`: a whole sequence's value that its tokens do not change. `size`: elements of a token, keys not counted.
    `lost`: of a whole sequence's value: the operation that took tokens together.
    """

    batch: int
    token: int | None
    outer: int = 0
    merged: bool = False
    keys: int | None = None
    stream: int = 0
    free: bool = False
    size: int = 0
    lost: str = ""


ROUTED = Place(-1, None)  # of values whose tokens shapes do not tell, but can be followed


class Stream(NamedTuple):
    """The tokens of one stream of a call: sequences of one draw x tokens."""

    ids: Tensor  # (B, T)
    position: Tensor  # (B, T); negative: no token
    sequence: Tensor  # (B) or (B, T)
    past: int = 0  # tokens that a cache holds before them
    held: Tensor | None = None  # positions (B, S) of all that a mask tells of, with those of the cache
    cached: bool = False  # whether there is a cache, of which a value may hold more tokens than the call has

    @property
    def packed(self) -> bool:
        """Whether several sequences share a row."""
        return self.sequence.dim() == 2 and self.sequence.shape[1] > 1

    def positions_of(self, count: int) -> Tensor | None:
        """The positions (B, count) of so many tokens, with those of a cache; negative: none; None: not known."""
        if self.past == 0 and count == self.position.shape[1]:
            return self.position
        if self.packed:
            return None
        if self.held is not None and self.held.shape[1] == count:
            return self.held.expand(len(self.position), -1)
        # the last of what a cache holds, or its first places of more
        end = min(self.past + self.position.shape[1], count) - 1
        return self.position[:, -1:] - end + torch.arange(count, device=self.position.device)


class Tokens(NamedTuple):
    """The tokens of a call."""

    length: int
    streams: tuple[Stream | None, ...]
    kept: int = 0  # of how many last tokens logits are made; 0: of all

    def ids_of(self, place: Place, count: int, size: int) -> Tensor | None:
        """The ids (B, count) of what a value holds; None: which tokens these are is not known.

        Args:
            size: elements that each would have, keys not counted. Those of a cache have as many as a token has. With
                fewer, they are parts of tokens: heads that share keys may lie where tokens do in other calls.
        """
        stream = self.streams[place.stream]
        if stream is None:
            return None
        if place.token is None:
            return pooled(self.length, stream, place.free)
        held = stream.ids.shape[1]
        if count == held:
            return stream.ids
        if count == self.kept and count < held and place.stream == 0:
            return stream.ids[:, -count:].contiguous()
        position = stream.positions_of(count) if count > held and stream.cached and size == place.size else None
        if position is not None:
            position = position.clamp(0, self.length - 1)  # what is no token takes no part
            return stream.sequence.reshape(-1, 1) * self.length + position
        return None


Held = tuple[Tokens, Mapping[str, Place | str]]  # of a call, and where the values at its sites hold them, or why not


def pooled(length: int, stream: Stream, free: bool) -> Tensor | None:
    """The ids (B, 1) of whole sequences: their last tokens, or their first where no token changes the value; None:
    several share a row."""
    if stream.packed:
        return None
    sequence = stream.sequence.reshape(-1, 1)
    if free:
        return sequence * length
    return sequence * length + stream.position.amax(1, keepdim=True).clamp(min=0)


# ------------------------------------------------------------------------------------------------ values of a forward


def apart(value: Tensor, place: Place, batch: int) -> Tensor | None:
    """The value as (batch, tokens, ...); None: it does not hold them there."""
    b, t = place.batch, place.token
    if max(b, t or 0) >= value.dim() or (batch == 0 and (place.outer or place.merged)):
        return None
    if place.merged:
        if value.shape[b] % max(1, batch):
            return None
        value, t = value.unflatten(b, (batch, -1)), b + 1
    elif place.outer:
        if value.shape[b] % (place.outer * batch):
            return None
        value = value.unflatten(b, (place.outer, batch, -1))
        t = None if t is None else t + 2 * (t > b)
        b += 1
    elif value.shape[b] != batch:
        return None
    if t is None:
        return value.movedim(b, 0).unsqueeze(1)
    return value if (b, t) == (0, 1) else value.movedim((b, t), (0, 1))


def of_single_token(value: Tensor, place: Place, batch: int) -> Tensor | None:
    """A value of one token of each sequence, (batch, 1, ...), whatever becomes of its dimension of tokens."""
    keys = value.shape[-1] if place.keys is not None else 1
    if place.outer or value.dim() <= place.batch or value.shape[place.batch] != batch:
        return None
    return value.movedim(place.batch, 0).unsqueeze(1) if value.numel() == batch * place.size * keys else None


def together(value: Tensor, place: Place, shape: tuple[int, ...]) -> Tensor:
    """The counterpart of `apart`, for a value of this shape."""
    b, t = place.batch, place.token
    if place.merged:
        return value.movedim((0, 1), (b, b + 1)).reshape(shape)
    if place.outer:
        t = None if t is None else t + 2 * (t > b)
        b += 1
    if t is None:
        return value.squeeze(1).movedim(0, b).reshape(shape)
    value = value if (b, t) == (0, 1) else value.movedim((0, 1), (b, t))
    return value if value.shape == shape else value.reshape(shape)


def lost(name: str, value: Tensor, why: str) -> str:
    """What to say of a value at a site in which tokens are not found."""
    return (
        f"site {name!r}: the tokens in its value of shape {list(value.shape)} cannot be told: {why}; "
        "leave the site out with where=..., or give ids of rows (rows=[...]) in place of TokenRows"
    )


# ---------------------------------------------------------------------------------------------- arguments of a model


def _held(given: Mapping[Any, Any]) -> int:
    """How many tokens the cache among a model's arguments holds: an object that says so, or keys (..., tokens, n)."""
    named = [given.get(name) for name in CACHES]
    for a in (*named, *given.values()):
        if hasattr(a, "get_seq_length"):
            return int(a.get_seq_length())
    keys = next((t for t in pytree.tree_leaves(named) if isinstance(t, Tensor) and t.dim() > 2), None)
    return 0 if keys is None else keys.shape[-2]


def _has_cache(given: Mapping[Any, Any]) -> bool:
    return any(hasattr(a, "get_seq_length") for a in given.values()) or any(given.get(n) is not None for n in CACHES)


def encodes(model: Any) -> bool:
    """Whether a model says that it has an encoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def names_of_streams(given: Mapping[Any, Any], encoder: bool) -> tuple[Any, Any]:
    """Which arguments hold the tokens that the model goes on with, and those of its encoder; None: there are none."""
    held = {n for n, a in given.items() if isinstance(a, Tensor) and a.dim() >= 2}
    decoder = next((n for n in ("decoder_input_ids", "decoder_inputs_embeds") if n in held), None)
    if decoder is None and encoder and "labels" in held:
        decoder = "labels"
    first = next((n for n in ("input_ids", "inputs_embeds") if n in held), None)
    if decoder is not None:
        return decoder, first or ("encoder_outputs" if given.get("encoder_outputs") is not None else None)
    return first if first is not None else next((n for n in given if n in held and n not in _WHOLE), None), None


def held_by(given: Mapping[Any, Any], name: Any) -> Tensor:
    """The tensor (sequences, tokens, ...) of a stream."""
    found = given[name]
    if not isinstance(found, Tensor):
        found = found[0]
    return found  # type: ignore[no-any-return]


def tokens_of(
    asked: TokenRows, given: Mapping[Any, Any], encoder: bool, batch: int, draws: int, device: torch.device
) -> Tokens:
    """The tokens of a call with these arguments, of which a draw has so many sequences."""
    sequence = torch.arange(batch, device=device) if asked.sequence is None else asked.sequence.to(device)
    if len(sequence) != batch:
        if len(sequence) == 0 or batch % len(sequence):
            raise RuntimeError(
                f"noise_state: TokenRows has {len(sequence)} sequences, and a draw of this call {batch} rows: expected "
                "as many, or as many for each (beams)"
            )
        sequence = sequence.repeat_interleave(batch // len(sequence), 0)
    main, other = names_of_streams(given, encoder)
    if main is None:
        none = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        return Tokens(asked.length, (Stream(none, none, sequence), None))
    prefix = "decoder_" if other is not None or main in ("labels", "decoder_input_ids") else ""
    streams = [_stream(asked, given, main, prefix, _held(given), sequence, batch, draws)]
    if other is not None:
        of_encoder = TokenRows(asked.length)
        streams.append(_stream(of_encoder, given, other, "", 0, sequence, batch, draws))
    kept = given.get("logits_to_keep", 0)
    return Tokens(asked.length, (*streams, *[None] * (2 - len(streams))), kept if isinstance(kept, int) else 0)


def _stream(
    asked: TokenRows, given: Mapping[Any, Any], name: Any, prefix: str, past: int, sequence: Tensor, batch: int,
    draws: int,
) -> Stream:  # fmt: skip
    count = held_by(given, name).shape[1]
    mask = given.get(f"{prefix}attention_mask")
    held = None
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= count:
        real = (mask != 0).to(sequence.device)
        held = _of_draw((real.cumsum(1) - 1).masked_fill(~real, -1), batch, draws)
    position = asked.position
    if position is None:
        position = _told(given, prefix, count, past, held, sequence.device)
    elif position.shape[-1] != count:
        raise RuntimeError(
            f"noise_state: TokenRows was given positions of {position.shape[-1]} tokens, and {name!r} holds {count}"
        )
    position = _of_draw(position.to(sequence.device), batch, draws).expand(batch, count)
    checked_positions("noise_state", position, asked.length)
    ids = token_ids("noise_state", asked, sequence, position)
    return Stream(ids, position, sequence, past, held, _has_cache(given))


def _of_draw(position: Tensor, batch: int, draws: int) -> Tensor:
    """The positions of one draw, (B, T) or (1, T), of those of one, of one beam of each sequence, or of all draws."""
    position = position if position.dim() == 2 else position.unsqueeze(0)
    count = position.shape[0]
    if count in (1, batch):
        return position
    if count == draws * batch:
        every = position.view(draws, batch, -1)
        if can_look(position) and not torch.equal(every, every[:1].expand_as(every)):
            raise RuntimeError("noise_state: the draws of a call must have the same positions, got other ones")
        return every[0]
    if count == 0 or batch % count:
        raise RuntimeError(f"noise_state: positions of {count} sequences are none of the {batch} rows of a draw")
    return position.repeat_interleave(batch // count, 0)


def _told(
    given: Mapping[Any, Any], prefix: str, count: int, past: int, held: Tensor | None, device: torch.device
) -> Tensor:
    """The positions of tokens as a model's arguments tell them; `held`: those by the mask."""
    if held is not None:
        start = past if past + count <= held.shape[1] else held.shape[1] - count
        held = held[:, start : start + count]
    told = given.get(f"{prefix}position_ids")
    if isinstance(told, Tensor) and told.dim() <= 2 and told.shape[-1] == count:
        position = told.to(device=device, dtype=torch.int64)
        if held is not None and position.shape[0] in (1, held.shape[0]):
            return position.expand_as(held).masked_fill(held < 0, -1)
        hidden = given.get(f"{prefix}attention_mask") is not None and held is None
        return _without_padding(position) if hidden and position.dim() == 2 else position
    if held is not None:
        return held
    told = given.get("cache_position")
    if isinstance(told, Tensor) and told.shape == (count,):
        return told.to(device)
    return torch.arange(past, past + count, device=device)


def _without_padding(position: Tensor) -> Tensor:
    """Positions of which a mask of another form than (B, T) tells where padding is: on the left, where all have one."""
    number = torch.arange(position.shape[1], device=position.device)
    first = torch.where(position == 0, number, 0).amax(1, keepdim=True)
    before = number < first
    alike = (position == position[:, :1]) | ~before
    return position.masked_fill(before & alike.all(1, keepdim=True), -1)


# ------------------------------------------------------------------------------------------------------ rows of keys


class Keys(NamedTuple):
    """The places of a row of keys among all positions that there are: the element of a key is that of its position."""

    length: int
    positions: Tensor | None  # (B, 1 or T, K), `length` where a key belongs to none; None: they count from 0

    @classmethod
    def of(cls, tokens: Tokens, place: Place, count: int) -> Keys | None:
        """Of so many keys; None: which tokens they are is not known."""
        assert place.keys is not None
        stream, length = tokens.streams[place.keys], tokens.length
        if stream is None:
            return None
        position = stream.positions_of(count)
        if position is None:
            return None
        position = torch.where((position < 0) | (position >= length), length, position).unsqueeze(1)
        if stream.packed and place.keys == place.stream:
            own = stream.sequence.unsqueeze(2) == stream.sequence.unsqueeze(1)
            position = torch.where(own, position, length)
        elif can_look(position) and count <= length:
            from_0 = torch.arange(count, device=position.device).expand_as(position)
            return cls(length, None if torch.equal(position, from_0) else position)
        return cls(length, position)

    def spread(self, value: Tensor) -> Tensor:
        """A value (D * B, T, ..., K) as one with every position in its last dimension."""
        count = value.shape[-1]
        if self.positions is None:
            return F.pad(value, (0, self.length - count))
        every = value.new_zeros(*value.shape[:-1], self.length + 1).scatter(-1, self._index(value), value)
        return every[..., :-1]

    def gathered(self, every: Tensor, value: Tensor) -> Tensor:
        """The counterpart, of a value that was spread and has changed since."""
        if self.positions is None:
            return every[..., : value.shape[-1]]
        index = self._index(value)
        made = every.gather(-1, index.clamp(max=self.length - 1))
        return torch.where(index < self.length, made, value)

    def _index(self, value: Tensor) -> Tensor:
        assert self.positions is not None
        draws = value.shape[0] // len(self.positions)
        index = self.positions.repeat(draws, 1, 1)
        while index.dim() < value.dim():
            index = index.unsqueeze(2)
        return index.expand_as(value)
