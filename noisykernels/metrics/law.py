"""Laws of the numbers that rows give: how they are kept, counted, packed, and how much they can vary.

A law knows nothing of what is measured. Numbers are numpy's here.
"""

from __future__ import annotations

import base64
import zlib
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

    def unpacked(self, result: dict[str, Any]) -> Answer:
        """The counterpart of `packed`."""


class Binary:
    """A row is right (1), wrong (0), or has NaN in its scores (`NAN`), which counts as wrong: int8, two bits packed.

    Example:
        >>> law = Binary()
        >>> answer = np.array([[[1, 0, NAN]]], dtype=np.int8)
        >>> law.numbers(answer).tolist(), bool((law.unpacked(law.packed(answer)) == answer).all())
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

    def unpacked(self, result: dict[str, Any]) -> Answer:
        """The counterpart of `packed`."""

        def rows(text: str) -> Any:
            bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8))
            return bits[: int(np.prod(result["shape"]))].reshape(result["shape"]).astype(np.int8)

        answer: Answer = rows(result["correct"]) + NAN * rows(result["nan"])
        return answer


BINARY = Binary()
