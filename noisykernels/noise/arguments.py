"""Arguments that all operators share, checked: levels, seeds, ids; and the key that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisykernels._util.checks import ID, LARGEST, flag, is_number, shown, whole
from noisykernels._util.tensors import can_look
from noisykernels.noise.contract import ID_LIMIT, OPERANDS
from noisykernels.noise.description import Noise
from noisykernels.noise.operands import refuse_complex
from noisykernels.noise.tokens import RowIds, TokenRows

__all__ = [
    "OF_THE_CALL",
    "PLACE",
    "Chip",
    "Ids",
    "Key",
    "Seed",
    "Size",
    "document_common",
    "factor_tensor",
    "flags",
    "ids_tensor",
    "ints",
    "level_tensor",
    "noise_args",
    "operand_number",
    "seed_of",
    "seed_tensor",
    "tensors",
    "word",
]


def largest_level(dtype: torch.dtype) -> float:
    """The largest level for values of a type: the noise of half types is float32."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max


def within(t: Tensor, most: float) -> bool:
    """Whether all values lie in [0, most]; NaN does not."""
    if t.numel() == 0:
        return True
    low, high = torch.aminmax(t)  # a NaN is both
    return 0 <= low.item() and high.item() <= most


def level_tensor(op: str, name: str, t: Tensor | None, x: Tensor, trusted: bool) -> Tensor | None:
    """A level as the operators take it: float64, on the device of `x`, checked where its values can be seen.

    One that is 0-d and on the CPU stays there: the operator passes its value on, and no copy is waited for.
    """
    if t is None:
        return None
    if t.requires_grad:
        raise ValueError(
            f"{op}: level `{name}` requires grad, but there is no gradient with respect to a level; detach it"
        )
    if not trusted and can_look(t) and not within(t, largest_level(x.dtype)):
        raise ValueError(
            f"{op}: level `{name}` must be finite (in {x.dtype}) and not negative, got "
            f"{t.detach().flatten()[:8].tolist()}"
        )
    if t.dim() == 0 and t.is_cpu:
        return t if t.dtype == torch.float64 else t.double()
    if t.dtype == torch.float64 and t.device == x.device:
        return t
    return t.to(device=x.device, dtype=torch.float64)


def seed_tensor(op: str, seed: int | Tensor | None, device: torch.device, name: str = "seed") -> Tensor:
    """A seed as the operators take it: one int64. None draws one from torch's default generator of the device; one that
    is on the CPU stays there, as a level does.
    """
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"{op}: {name} must be one int64, got {seed.dtype} of shape {list(seed.shape)}")
        return seed if seed.is_cpu or seed.device == device else seed.to(device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: {name} must be an int, an int64 tensor or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"{op}: {name} must lie in [0, 2^64), got {shown(seed)}")
    return torch.tensor(seed if seed < 2**63 else seed - 2**64, dtype=torch.int64, device="cpu")


_MIX = (30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)  # SplitMix64's, as signed numbers


def seed_of(seed: Tensor, number: Tensor) -> Tensor:
    """The seed with a number: ``seed XOR mix(number)``, of which 0 has the seed itself and no two have the same one.

    ``mix(z)``: thrice ``z = (z XOR (z >> shift)) * factor`` modulo 2^64, with the shifts and factors of SplitMix64.

    Args:
        seed, number: int64, 64 bits each.

    Source: the finalizer of SplitMix64, Steele et al., OOPSLA'14.

    Example:
        >>> seed_of(torch.tensor(7), torch.tensor([0, 1, 2])).tolist()
        [7, 6238072747940578786, -2606959012126976883]
    """
    for shift, factor in _MIX:
        number = (number ^ ((number >> shift) & (2 ** (64 - shift) - 1))) * factor  # what is shifted in is 0
    return seed ^ number


def factor_tensor(op: str, level: float | Tensor | Sequence[float] | None, device: torch.device) -> Tensor | None:
    """A factor of all levels: a 0-d or one-dimensional float64 tensor, checked where its values can be seen."""
    if level is None:
        return None
    if isinstance(level, Tensor) and level.requires_grad:
        raise ValueError(f"{op}: level requires grad, but there is no gradient with respect to a level; detach it")
    if not isinstance(level, Tensor):
        numbers = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level]
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise TypeError(f"{op}: level must be a number, numbers or a floating-point tensor, got {level!r}")
        # A whole number may be larger than any float.
        values = [float(n) if not abs(n) > LARGEST else math.inf if n > 0 else -math.inf for n in numbers]
        level = torch.tensor(values if isinstance(level, Sequence) else values[0], dtype=torch.float64, device="cpu")
    if not level.dtype.is_floating_point or level.dim() > 1:
        raise TypeError(
            f"{op}: level must be a floating-point tensor, 0-d or a vector, got {level.dtype} of {list(level.shape)}"
        )
    if level.dim() == 1 and level.shape[0] == 0:
        raise ValueError(f"{op}: level must hold at least one number, got none")
    if can_look(level) and not within(level, torch.finfo(torch.float64).max):
        raise ValueError(f"{op}: level must be finite and not negative, got {level.flatten()[:8].tolist()}")
    return level.to(device=device, dtype=torch.float64)


def ids_tensor(op: str, name: str, ids: RowIds, device: torch.device) -> Tensor | None:
    """Draw or row ids as the operators take them: an int64 vector, checked where its values can be seen."""
    if ids is None:
        return None
    if isinstance(ids, int):
        raise TypeError(
            f"{op}: {name} must be a vector of ids, got the number {shown(ids)}; for a count use range({shown(ids)})"
        )
    if isinstance(ids, TokenRows):
        raise TypeError(f"{op}: {name} must be a vector of ids, got those of tokens, {ids!r}")
    if not isinstance(ids, Tensor):  # whatever is not an integer keeps its type, to be refused below
        try:
            ids = torch.tensor(ids, dtype=None if len(ids) else torch.int64, device="cpu")
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{op}: {name} must be an int64 vector of ids, got {shown(ids)}") from error
    if ids.dtype != torch.int64 or ids.dim() != 1 or ids.layout is not torch.strided:
        kind = "" if ids.layout is torch.strided else f", {ids.layout}"
        raise ValueError(f"{op}: {name} must be an int64 vector, got {ids.dtype} of shape {list(ids.shape)}{kind}")
    if can_look(ids) and ids.numel() > 0:
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= ID_LIMIT:
            raise ValueError(f"{op}: {name} must lie in [0, 2^32), got values from {low} to {high}")
    ids = ids if ids.device == device else ids.to(device)
    return ids if ids.is_contiguous() else ids.contiguous()


PLACE = whole(0, 2**24 - 1)  # an id of a site, or of an array
WORDS = {"site": PLACE, "array": PLACE, "groups": whole(1, 2**31 - 1)}  # others are ids
FLOAT32_MAX = largest_level(torch.float32)

Seed = int | Tensor | None
Ids = Tensor | Sequence[int] | None
Size = int | Sequence[int]


class Chip(NamedTuple):
    """What holds the weight of a call, where that is keyed by itself."""

    id: int | None = None  # None: the call's
    seed: Tensor | None = None  # None: the call's

    @classmethod
    def of(cls, op: str, device: torch.device, array: int | None, array_seed: Seed) -> Chip:
        """What the keywords of an operator say, for values on a device."""
        return cls(array, None if array_seed is None else seed_tensor(op, array_seed, device, "array_seed"))

    def seed_of(self, key: Key) -> Tensor:
        """The seed of what is drawn for the array."""
        return key.seed if self.seed is None else self.seed


OF_THE_CALL = Chip()


class Key(NamedTuple):
    """What the noise of one call is a function of, besides its kind and element: checked, and in the order of the
    operators' schemas, so that they take it as ``*key``.

    Whether draws share their rows is said beside it, since that is about the value and not about its noise.
    """

    seed: Tensor  # one int64
    draws: Tensor | None  # ids (D); None: the one draw 0
    rows: Tensor | None  # data-set indices (B); None: from first_row on
    first_row: int
    site: int

    @classmethod
    def of(cls, op: str, device: torch.device, seed: Seed, site: int, draws: Ids, rows: RowIds, first_row: int) -> Key:
        """The key that the keywords of an operator say, for values on a device."""
        if rows is not None and not (isinstance(first_row, int) and first_row == 0):
            raise ValueError(f"{op}: give rows or first_row, not both")
        if isinstance(first_row, int) and not 0 <= first_row < ID_LIMIT:
            raise ValueError(f"{op}: first_row must lie in [0, 2^32), got {shown(first_row)}")
        word(op, "first_row", first_row)
        word(op, "site", site)
        return cls(
            seed_tensor(op, seed, device),
            None if draws is None else ids_tensor(op, "draws", draws, device),
            None if rows is None else ids_tensor(op, "rows", rows, device),
            first_row,
            site,
        )

    @property
    def draw_ids(self) -> list[int]:
        """The draws as numbers, which waits for their device."""
        return [0] if self.draws is None else self.draws.tolist()

    def of_chip(self, array: Chip) -> Key:
        """The key of what is the same for all rows of the data and all calls with one array: a weight, a column."""
        return Key(array.seed_of(self), self.draws, None, 0, self.site if array.id is None else array.id)

    def of_rows(self, first: int, count: int) -> Key:
        """The key of some of the rows, those at first ... first + count - 1."""
        if self.rows is None:
            return Key(self.seed, self.draws, None, self.first_row + first, self.site)
        return Key(self.seed, self.draws, self.rows.narrow(0, first, count), self.first_row, self.site)

    def of_draws(self, draws: Tensor) -> Key:
        """The key of other draws."""
        return Key(self.seed, draws, self.rows, self.first_row, self.site)


def noise_args(op: str, x: Tensor, noise: Noise | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """A noise on a value as the operators take it: the levels `add` and `mul`, then mode and kind."""
    if not isinstance(noise, Noise):
        raise TypeError(f"{op}: noise must be a Noise, got {type(noise).__name__}")
    if not torch.compiler.is_compiling() and FLOAT32_MAX < noise.largest > largest_level(x.dtype):
        raise ValueError(f"{op}: a level must be finite in {x.dtype}, got {noise.largest}")
    return (
        None if noise.add is None else level_tensor(op, "add", noise.add, x, noise.trusted),
        None if noise.mul is None else level_tensor(op, "mul", noise.mul, x, noise.trusted),
        noise.mode_index,
        noise.kind_index,
    )


def word(op: str, name: str, value: int) -> None:
    """Refuses what an operator could not take for a whole number; it checks the range by itself."""
    number = isinstance(value, int) or is_number(value)
    if isinstance(value, bool) or not number or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        error = ValueError if number and not isinstance(value, bool) else TypeError
        raise error(f"{op}: {name} must be {WORDS.get(name, ID)}, got {shown(value)}")


def tensors(op: str, **values: Any) -> None:
    """Refuses what is no tensor, and complex values."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {shown(value)}")
        refuse_complex(op, name, value)


def flags(op: str, **values: bool) -> None:
    """Refuses what is neither True nor False."""
    for name, value in values.items():
        if value is not True and value is not False:
            flag(op, name, value)


def operand_number(op: str, operand: str) -> int:
    """The number of an operand's stream."""
    if operand not in OPERANDS:
        raise ValueError(f"{op}: operand must be one of {', '.join(OPERANDS)}, got {operand!r}")
    return OPERANDS.index(operand)


# ------------------------------------------------------------------------------------------------- public functions

_COMMON = """
        noise: which noise, and its levels.
        seed: 64-bit seed, an int in [0, 2^64) or an int64 tensor; None draws one from torch's default generator
            (`torch.manual_seed` works).
        site: id of the place where the noise enters, in [0, 2^24).
        draws: int64 vector (D) of draw ids in [0, 2^32); None is the one draw 0.
        shared: give every draw the same rows: the value has B rows and the result D * B, draw by draw.
            Otherwise the value already holds D * B rows, draw by draw.
        rows: int64 vector (B), the data-set index of each row in [0, 2^32); None numbers them from ``first_row``; int64
            (B, T), or `TokenRows`: the ids of the tokens of values (B, T, ...), whose elements are counted within each.
        first_row: index of the first row in the data set.
"""


def document_common(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Fills the arguments that all operators share into a docstring."""
    assert function.__doc__ is not None
    function.__doc__ = function.__doc__.replace("        {common}\n", _COMMON.lstrip("\n"))
    return function


def ints(op: str, name: str, value: Size, dims: int) -> list[int]:
    """One number for each dimension; one alone stands for all."""
    numbers = [value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(numbers) not in (1, dims) or not all(_is_size(n, 0 if "padding" in name else 1) for n in numbers):
        kind = "not negative" if "padding" in name else "positive"
        raise ValueError(f"{op}: {name} must be a number or {dims} numbers, whole and {kind}, got {shown(value)}")
    return numbers * dims if len(numbers) == 1 else numbers


def _is_size(value: Any, least: int) -> bool:
    """Whether it is a whole number from `least` to what fits the operators; also one of a compiled graph."""
    number = isinstance(value, int) or is_number(value)
    return number and not isinstance(value, bool) and least <= value < 2**31
