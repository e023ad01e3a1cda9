"""Batches of what users call data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["Data", "batches"]


Data = Tensor | tuple[Tensor, Tensor] | Iterable[Any]


def batches(name: str, data: Data, size: int, dim: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels, where there are any, batch by batch.

    Args:
        name: of the function that asks, for errors.
        data: inputs or (inputs, labels), tensors; or any other iterable of batches, each likewise.
        size: rows of a batch, where `data` are tensors.
        dim: dimension of the inputs that counts rows.

    Raises:
        TypeError: a batch that is no tensor and does not begin with one.
        ValueError: a `size` below 1, or not as many inputs as labels.

    Example:
        >>> [x.shape[0] for x, labels in batches("f", torch.zeros(5, 2), 2)]
        [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"{name}: batch_size must be at least 1, got {size}")
    if isinstance(data, Tensor) or (
        isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
    ):
        inputs, labels = (data, None) if isinstance(data, Tensor) else data
        count = inputs.shape[dim]
        if labels is not None and count != len(labels):
            raise ValueError(f"{name}: expected as many inputs as labels, got {count} and {len(labels)}")
        for first in range(0, max(1, count), size):
            rows = min(size, count - first)
            yield inputs.narrow(dim, first, rows), None if labels is None else labels[first : first + rows]
        return
    for batch in data:
        first, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        if not isinstance(first, Tensor):
            raise TypeError(f"{name}: a batch must be a tensor or begin with one, got {type(first).__name__}")
        yield first, next((t for t in rest if isinstance(t, Tensor)), None)
