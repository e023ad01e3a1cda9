"""Batches of what users call data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from noisykernels._util.checks import in_range, shown

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
    in_range(name, "batch_size", size)
    if isinstance(data, Tensor) or (
        isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
    ):
        inputs, labels = (data, None) if isinstance(data, Tensor) else data
        count = inputs.shape[dim]
        if labels is not None and count != len(labels):
            raise ValueError(f"{name}: data must have as many inputs as labels, got {count} and {len(labels)}")
        for first in range(0, max(1, count), size):
            rows = min(size, count - first)
            yield inputs.narrow(dim, first, rows), None if labels is None else labels[first : first + rows]
        return
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise TypeError(f"{name}: data must be tensors, or an iterable of batches, got {shown(data)}")
    for batch in data:
        first, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        if not isinstance(first, Tensor):
            raise TypeError(f"{name}: a batch of data must be a tensor or begin with one, got {shown(first)}")
        yield first, next((t for t in rest if isinstance(t, Tensor)), None)
