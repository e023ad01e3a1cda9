"""Laws of the numbers that rows give: how they are kept, counted, packed, and how much they can vary.

A law knows nothing of what is measured. Numbers are numpy's here.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINARY", "NAN", "Answer", "Binary", "Law"]

Answer = NDArray[Any]  # [levels, draws, rows]: what a metric gives for each row; its law says of which type
NAN = -1  # in the answers of a binary metric: the scores of the row hold NaN, and it counts as 0


class Law(Protocol):
    """How the numbers of a metric's rows are kept and counted."""

    @property
    def name(self) -> Literal["binary", "bounded", "real"]:
        """By which intervals are chosen."""

    @property
    def largest_variance(self) -> float:
        """Of one row's number, where nothing is known of it."""

    def empty(self, *shape: int) -> Answer:
        """An answer to be filled in."""

    def numbers(self, answer: Answer) -> NDArray[Any]:
        """The numbers that an answer's rows count with."""

    def missing(self, answer: Answer) -> NDArray[np.bool_]:
        """The rows of an answer that have no number of their own."""

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

    def packed(self, answer: Answer) -> dict[str, Any]:
        """Shape, and a bit for each row that is right and for each that holds NaN."""

        def bits(which: Any) -> str:
            return base64.b64encode(zlib.compress(np.packbits(which).tobytes(), 1)).decode()

        return {"shape": list(answer.shape), "correct": bits(answer == 1), "nan": bits(answer == NAN)}

    def unpacked(self, result: Any, shape: Sequence[int]) -> Answer:
        """The counterpart of `packed`; takes no more memory than an answer of this shape."""
        size = math.prod(shape)
        if result["shape"] != list(shape):
            raise ValueError(f"expected the shape {list(shape)}, got {result['shape']!s:.80}")

        def rows(text: str) -> Any:
            stream, expected = zlib.decompressobj(), (size + 7) // 8
            try:
                content = stream.decompress(base64.b64decode(text, validate=True), expected + 1)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            if len(content) != expected or not stream.eof:
                raise ValueError(f"expected {expected} bytes of bits, got others")
            return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).reshape(shape).astype(np.int8)

        correct, nan = rows(result["correct"]), rows(result["nan"])
        if (correct & nan).any():
            raise ValueError("a row is right and holds NaN")
        answer: Answer = correct + NAN * nan
        return answer


BINARY = Binary()
