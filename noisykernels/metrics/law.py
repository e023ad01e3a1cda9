"""Laws of the numbers that rows give: how they are kept, counted, packed, and how much they can vary.

A law knows nothing of what is measured. Numbers are numpy's here. An answer is [levels, draws, rows]; that of a law of
sums is [levels, draws, blocks, width], for what only adds up over rows is kept of each block of rows alone.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from noisykernels._util.checks import Range, in_range

__all__ = ["ALL", "BINARY", "NAN", "Answer", "Binary", "Bounded", "Law", "Real", "Sums", "block_rows"]

Answer = NDArray[Any]  # what a metric gives for each row, or block of them; its law says of which type
ALL = 2**62  # rows of a block that is all of them, whatever the data: for numbers of a whole pass
NAN = -1  # in the answers of a binary metric: the scores of the row hold NaN, and it counts as 0


class Law(Protocol):
    """How the numbers of a metric's rows are kept and counted."""

    @property
    def name(self) -> Literal["binary", "bounded", "real", "sums"]:
        """By which intervals are chosen."""

    @property
    def largest_variance(self) -> float:
        """Of one row's number, where nothing is known of it; infinite: it has no bound."""

    @property
    def worst(self) -> float | None:
        """The worst number that a row can have; None: there is none."""

    @property
    def block(self) -> int:
        """Rows that one entry of an answer speaks of: those of a multiple of it to the next, counted in the data."""

    def empty(self, *shape: int) -> Answer:
        """An answer to be filled in, all zeros: of a shape [levels, draws, entries]."""

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """The numbers that an answer's rows count with; NaN: a row has none, and is left out."""

    def missing(self, answer: Answer) -> NDArray[np.bool_]:
        """The rows of an answer that have no number of their own."""

    def pooled(self, numbers: NDArray[Any], shares: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Over the entries of [..., entries]: the mean of those that have a number, NaN: none has; of sums the total
        of [..., entries, width]. Shares: of the entries in all weights, in parts of their mean, where numbers have
        them in; None: all count alike."""

    def packed(self, answer: Answer) -> dict[str, Any]:
        """An answer as JSON can hold it."""

    def unpacked(self, result: Any, shape: Sequence[int]) -> Answer:
        """The counterpart of `packed`: an answer of this shape, from anything that JSON can hold.

        Raises:
            KeyError, TypeError, ValueError: what is there is no packed answer of this shape.
        """


class Binary:
    """A row is right (1), wrong (0), or has NaN in its scores (`NAN`), which counts as wrong: int8, two bits packed.

    Example:
        >>> law = Binary()
        >>> answer = np.array([[[1, 0, NAN]]], dtype=np.int8)
        >>> law.numbers(answer).tolist(), bool((law.unpacked(law.packed(answer), answer.shape) == answer).all())
        ([[[1, 0, 0]]], True)
    """

    name: Literal["binary"] = "binary"
    largest_variance = 0.25
    worst = 0.0
    block = 1

    def empty(self, *shape: int) -> Answer:
        """Zeros."""
        return np.zeros(shape, dtype=np.int8)

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """1 for a right row, else 0."""
        right: NDArray[np.int8] = (answer == 1).astype(np.int8)
        return right

    def missing(self, answer: Answer) -> NDArray[np.bool_]:
        """Rows whose scores hold NaN."""
        return np.asarray(answer == NAN)

    def pooled(self, numbers: NDArray[Any], shares: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """The share of right rows."""
        share: NDArray[np.float64] = numbers.mean(-1)
        return share

    def packed(self, answer: Answer) -> dict[str, Any]:
        """Shape, and a bit for each row that is right and for each that holds NaN."""

        def bits(which: Any) -> str:
            return _text(np.packbits(which).tobytes())

        return {"shape": list(answer.shape), "correct": bits(answer == 1), "nan": bits(answer == NAN)}

    def unpacked(self, result: Any, shape: Sequence[int]) -> Answer:
        """The counterpart of `packed`; takes no more memory than an answer of this shape."""
        size = math.prod(shape)
        _check_shape(result, shape)

        def rows(text: str) -> Any:
            content = np.frombuffer(_content(text, (size + 7) // 8), dtype=np.uint8)
            return np.unpackbits(content, count=size).reshape(shape).astype(np.int8)

        correct, nan = rows(result["correct"]), rows(result["nan"])
        if (correct & nan).any():
            raise ValueError("a row is right and holds NaN")
        answer: Answer = correct + NAN * nan
        return answer


class _Floats:
    """Numbers kept as floating-point ones; what is infinite or NaN is none."""

    type: ClassVar[str]
    block: int = 1

    def empty(self, *shape: int) -> Answer:
        """See `Law`."""
        return np.zeros(self._full(shape), dtype=self.type)

    def _full(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of an answer of so many levels, draws and entries."""
        return tuple(shape)

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """As they are, in float64; NaN where there is none."""
        return np.where(np.isfinite(answer), answer, np.nan).astype(np.float64)

    def missing(self, answer: Answer) -> NDArray[np.bool_]:
        """What is infinite or NaN."""
        return np.asarray(~np.isfinite(answer))

    def pooled(self, numbers: NDArray[Any], shares: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """The mean of those that have a number."""
        there = np.isfinite(numbers)
        whole = there.all(-1)  # whose shares make up their number
        count = there.sum(-1) if shares is None else np.where(whole, there.sum(-1), (there * shares).sum(-1))
        total = np.where(there, numbers, 0.0).sum(-1)
        return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)

    def packed(self, answer: Answer) -> dict[str, Any]:
        """Shape, type and bytes."""
        kept = np.ascontiguousarray(answer, dtype=self.type)
        return {"shape": list(answer.shape), "type": self.type, "values": _text(kept.tobytes())}

    def unpacked(self, result: Any, shape: Sequence[int]) -> Answer:
        """The counterpart of `packed`; takes no more memory than an answer of this shape."""
        full = self._full(shape)
        _check_shape(result, full)
        if result["type"] != self.type:
            raise ValueError(f"expected numbers of type {self.type}, got {result['type']!s:.80}")
        content = _content(result["values"], math.prod(full) * np.dtype(self.type).itemsize)
        return np.frombuffer(content, dtype=self.type).reshape(full).copy()


@dataclass(frozen=True)
class Bounded(_Floats):
    """A number from low to high: float32. A row that has none counts with the worst.

    Args:
        low, high: its range.
        worst: the end of it that a row counts with whose outputs hold NaN, or are infinite where that says nothing.

    Example:
        >>> law = Bounded(0.0, 1.0, worst=0.0)
        >>> answer = np.array([[[0.5, np.nan]]], dtype=np.float32)
        >>> law.numbers(answer).tolist(), law.missing(answer).tolist(), law.largest_variance
        ([[[0.5, 0.0]]], [[[False, True]]], 0.25)
    """

    low: float
    high: float
    worst: float
    name: ClassVar[Literal["bounded"]] = "bounded"
    type: ClassVar[str] = "<f4"

    def __post_init__(self) -> None:
        """Checks the range."""
        for what in ("low", "high", "worst"):
            object.__setattr__(self, what, in_range("Bounded", what, getattr(self, what), Range()))
        if self.low >= self.high:
            raise ValueError(f"Bounded: low must be below high, got {self.low} and {self.high}")
        if self.worst not in (self.low, self.high):
            raise ValueError(f"Bounded: worst must be {self.low} or {self.high}, got {self.worst}")

    @property
    def largest_variance(self) -> float:
        """That of a number which is at either end as often as at the other."""
        return (self.high - self.low) ** 2 / 4

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """As they are, in float64; the worst where there is none."""
        return np.where(np.isfinite(answer), answer, self.worst).astype(np.float64)


@dataclass(frozen=True)
class Real(_Floats):
    """A number without bounds: float32. What is infinite or NaN is counted, and left out of means.

    Example:
        >>> law = Real()
        >>> answer = np.array([[[1.0, 2.0, np.inf]]], dtype=np.float32)
        >>> law.pooled(law.numbers(answer)).tolist(), law.missing(answer).sum().item()
        ([[1.5]], 1)
    """

    name: ClassVar[Literal["real"]] = "real"
    type: ClassVar[str] = "<f4"
    largest_variance: ClassVar[float] = math.inf
    worst: ClassVar[float | None] = None


@dataclass(frozen=True)
class Sums(_Floats):
    """So many numbers that add up over rows, kept of each block of rows: float64.

    Args:
        width: how many.
        block: rows that are added up.

    Example:
        >>> law = Sums(3)
        >>> law.empty(2, 1, 4).shape, law.pooled(np.ones((2, 1, 4, 3))).tolist()
        ((2, 1, 4, 3), [[[4.0, 4.0, 4.0]], [[4.0, 4.0, 4.0]]])
    """

    width: int
    block: int = 250
    name: ClassVar[Literal["sums"]] = "sums"
    type: ClassVar[str] = "<f8"
    largest_variance: ClassVar[float] = math.inf
    worst: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Checks both."""
        for what in ("width", "block"):
            object.__setattr__(self, what, in_range("Sums", what, getattr(self, what), Range(1, whole=True)))

    def _full(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape, self.width)

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """As they are; all of a block are NaN where one of them is none."""
        return np.where(self.missing(answer)[..., None], np.nan, answer)

    def missing(self, answer: Answer) -> NDArray[np.bool_]:
        """Blocks in which a sum is infinite or NaN."""
        return np.asarray(~np.isfinite(answer).all(-1))

    def pooled(self, numbers: NDArray[Any], shares: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """The totals of the blocks that have numbers; NaN: none has."""
        there = np.isfinite(numbers)
        return np.where(there.any(-2), np.where(there, numbers, 0.0).sum(-2), np.nan)


def block_rows(rows: int, block: int) -> NDArray[np.int64]:
    """How many rows each block has.

    Example:
        >>> block_rows(5, 2).tolist()
        [2, 2, 1]
    """
    found: NDArray[np.int64] = np.minimum(block, rows - np.arange(0, rows, block))
    return found


def _text(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 1)).decode()


def _content(text: str, expected: int) -> bytes:
    """The counterpart of `_text`, of so many bytes."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(base64.b64decode(text, validate=True), expected + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) != expected or not stream.eof:
        raise ValueError(f"expected {expected} bytes, got others")
    return content


def _check_shape(result: Any, shape: Sequence[int]) -> None:
    if result["shape"] != list(shape):
        raise ValueError(f"expected the shape {list(shape)}, got {result['shape']!s:.80}")


BINARY = Binary()
