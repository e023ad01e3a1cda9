"""Ids of tokens: a sequence and a position in it make one row of the contract; operators that take such ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.checks import in_range, shown, whole
from noisykernels._util.tensors import can_look
from noisykernels.noise.contract import ID_LIMIT
from noisykernels.noise.description import Noise
from noisykernels.noise.shards import is_dtensor

__all__ = ["RowIds", "TokenRows", "by_tokens", "checked_positions", "in_tokens", "levels_of_tokens", "token_ids"]


class TokenRows:
    """Rows that are tokens: the noise of each belongs to its sequence and its position in it.

    ``row = sequence * length + position``, so that padding, packing, batching, chunks and caches change no bit. In
    attention's scores the element is ``head * length + position of the key``.

    Args:
        length: positions lie below it; the same in everything that is to have the same noise.
        sequence: int64 (B), the data-set index of each sequence; (B, T), that of each token, where several sequences
            share a row; None: places in the batch.
        position: int64 (T) or (B, T), of each token in its sequence, negative where there is none (padding); None:
            the model's arguments tell it in each call: ``position_ids``, ``attention_mask``, ``cache_position`` and the
            length of the cache; without any of these they count from 0.

    Raises:
        ValueError: ids beyond 32 bits, positions that are not below ``length`` or repeat within a sequence.

    Example:
        >>> TokenRows(8, [0, 5], [0, 1, 2]).ids.tolist()
        [[0, 1, 2], [40, 41, 42]]
        >>> TokenRows(8, [[3, 3, 4]], [[0, 1, 0]]).ids.tolist()  # two sequences in one row
        [[24, 25, 32]]
        >>> alone = nk.perturb(torch.zeros(1, 1, 4), nk.Noise(add=1.0), seed=1, rows=TokenRows(8, [5], [2]))
        >>> rows = TokenRows(8, [0, 5], [0, 1, 2])
        >>> every = nk.perturb(torch.zeros(2, 3, 4), nk.Noise(add=1.0), seed=1, rows=rows)
        >>> torch.equal(alone[0, 0], every[1, 2])
        True
    """

    def __init__(
        self,
        length: int,
        sequence: Tensor | Sequence[Any] | None = None,
        position: Tensor | Sequence[Any] | None = None,
    ) -> None:
        in_range("TokenRows", "length", length, whole(1, ID_LIMIT))
        self.length = int(length)
        self.sequence = None if sequence is None else _whole_numbers("sequence", sequence)
        self.position = None if position is None else _whole_numbers("position", position)
        if self.sequence is not None and can_look(self.sequence) and self.sequence.numel():
            low, high = (int(v) for v in torch.aminmax(self.sequence))
            if low < 0 or (high + 1) * self.length > ID_LIMIT:
                raise ValueError(
                    f"TokenRows: sequence must lie in [0, {ID_LIMIT // self.length}), so that sequence * length + "
                    f"position has 32 bits (length {self.length}), got values from {low} to {high}"
                )
        if self.position is not None:
            checked_positions("TokenRows", self.position, self.length)
            if self.sequence is not None:
                token_ids("TokenRows", self, self.sequence, self.position)

    @property
    def ids(self) -> Tensor:
        """The ids of all tokens, int64 (B, T), as the ``rows`` of operators."""
        if self.position is None:
            raise ValueError("TokenRows: ids need position, which only the arguments of a model's call can tell else")
        sequence = self.sequence
        if sequence is None:
            sequence = torch.arange(self.position.shape[0] if self.position.dim() == 2 else 1)
        return token_ids("TokenRows", self, sequence, self.position)

    def __repr__(self) -> str:
        parts = [
            f"{name}=<{list(t.shape)}>" for name in ("sequence", "position") if (t := getattr(self, name)) is not None
        ]
        return f"TokenRows({', '.join([str(self.length), *parts])})"


RowIds = Tensor | Sequence[int] | Sequence[Sequence[int]] | TokenRows | None


def _whole_numbers(name: str, given: Tensor | Sequence[Any]) -> Tensor:
    """One or two dimensions of int64."""
    if not isinstance(given, Tensor):
        try:
            given = torch.tensor(given, dtype=None if len(given) else torch.int64, device="cpu")
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"TokenRows: {name} must be int64 of rank 1 or 2, got {shown(given)}") from error
    if given.dtype != torch.int64 or given.dim() not in (1, 2):
        raise ValueError(
            f"TokenRows: {name} must be int64 of rank 1 or 2, got {given.dtype} of shape {list(given.shape)}"
        )
    return given


def checked_positions(op: str, position: Tensor, length: int) -> None:
    """Refuses positions that a sequence of so many tokens does not have."""
    if can_look(position) and position.numel() and (high := int(position.max())) >= length:
        raise ValueError(
            f"{op}: positions must lie below the length of {length} that TokenRows was given, got {high}: a longer "
            "sequence needs a larger length, with which all noise is another"
        )


def token_ids(op: str, tokens: TokenRows, sequence: Tensor, position: Tensor) -> Tensor:
    """Of tokens, whose sequences (B) or (B, T) and positions (T) or (B, T) are these: int64 (B, T)."""
    of_each = sequence.unsqueeze(1) if sequence.dim() == 1 else sequence
    position = position if position.dim() == 2 else position.unsqueeze(0)
    try:
        of_each, position = torch.broadcast_tensors(of_each, position)
    except RuntimeError as error:
        raise ValueError(
            f"{op}: sequence (B) or (B, T) and position (T) or (B, T) must fit, got {list(sequence.shape)} and "
            f"{list(position.shape)}"
        ) from error
    ids: Tensor = of_each * tokens.length + position.clamp(min=0)
    if can_look(ids) and ids.shape[1] > 1:
        # What holds no token differs from all that do, and from each other.
        none = torch.arange(-1, -1 - ids.shape[1], -1, device=ids.device)
        ordered = torch.where(position < 0, none, ids).sort(1).values
        if bool((same := ordered[:, 1:] == ordered[:, :-1]).any()):
            b, t = same.nonzero()[0].tolist()
            number, place = divmod(int(ordered[b, t]), tokens.length)
            raise ValueError(
                f"{op}: positions must not repeat within a sequence, got {place} twice in sequence {number}: several "
                "sequences in one row need an id for each token, sequence=(B, T)"
            )
    return ids


def in_tokens(rows: Any) -> Tensor | None:
    """The ids of rows that are tokens, of rank 2; None: they are not."""
    if isinstance(rows, Tensor):
        return rows if rows.dim() == 2 else None
    if isinstance(rows, TokenRows):
        return rows.ids
    if isinstance(rows, list | tuple) and len(rows) > 0 and isinstance(rows[0], list | tuple):
        return torch.tensor(rows, device="cpu")
    return None


def levels_of_tokens(op: str, noise: Noise, batch: int, count: int, rank: int) -> Noise:
    """A noise on values (B, T, ...) as one on their tokens (B * T, ...)."""
    levels = []
    for level in (noise.add, noise.mul):
        if level is not None and level.dim() == 1 + rank:
            if level.shape[1] not in (1, batch) or level.shape[2] not in (1, count):
                raise RuntimeError(
                    f"{op}: a level must be 0-d or broadcast to (draws, {batch}, {count}, then the value's other "
                    f"dimensions), got shape {list(level.shape)}"
                )
            if level.shape[1] != level.shape[2] or level.shape[1] != 1:
                level = level.expand(-1, batch, count, *[-1] * (rank - 2))
            level = level.flatten(1, 2)
        levels.append(level)
    if levels[0] is noise.add and levels[1] is noise.mul:
        return noise
    flat = object.__new__(Noise)
    flat.__dict__.update(noise.__dict__)
    flat.add, flat.mul = levels
    return flat


def by_tokens(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator on a value's rows that takes ids of rank 2, too: those of the tokens of values (D * B, T, ...)."""
    op = function.__name__

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        rows = in_tokens(kwargs.get("rows"))
        x = args[0] if args else kwargs.get("x")
        if rows is None or not isinstance(x, Tensor) or is_dtensor(x):
            return function(*args, **kwargs)
        batch, count = rows.shape
        if x.dim() < (3 if op == "linear" else 2) or x.shape[1] != count:
            raise RuntimeError(
                f"{op}: rows of shape [{batch}, {count}] are those of tokens: the value must be (draws x {batch}, "
                f"{count}, ...), got shape {list(x.shape)}"
            )

        def flat(given: Any) -> Any:
            if given is x:
                return x.flatten(0, 1)
            return levels_of_tokens(op, given, batch, count, x.dim()) if isinstance(given, Noise) else given

        named = {name: flat(given) for name, given in kwargs.items()}
        y = function(*map(flat, args), **{**named, "rows": rows.reshape(-1)})
        made: Tensor = y.unflatten(0, (y.shape[0] // count if count else x.shape[0], count))
        return made

    return run
