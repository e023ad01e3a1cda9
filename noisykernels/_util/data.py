"""Batches of what users call data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from noisykernels._util.checks import in_range, shown

__all__ = ["Data", "batches", "check_classes", "check_dense", "check_labels", "in_memory"]


Data = Tensor | tuple[Tensor, Tensor] | Iterable[Any]


def batches(name: str, data: Data, size: int, dim: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels, where there are any, batch by batch.

    Args:
        name: of the function that asks, for errors.
        data: inputs or (inputs, labels), tensors or arrays; a torch ``Dataset`` of such rows; or any other iterable of
            batches, each likewise.
        size: rows of a batch, where `data` are no batches.
        dim: dimension of the inputs that counts rows.

    Raises:
        TypeError: a batch that is no tensor or array and does not begin with one.
        ValueError: a `size` below 1, or not as many inputs as labels.

    Example:
        >>> [x.shape[0] for x, labels in batches("f", torch.zeros(5, 2), 2)]
        [2, 2, 1]
    """
    in_range(name, "batch_size", size)
    opened: Any = _opened(data, size)
    if isinstance(opened, Tensor) or _is_pair(opened):
        inputs, labels = (opened, None) if isinstance(opened, Tensor) else opened
        check_dense(name, inputs)
        if inputs.dim() <= dim:
            raise ValueError(f"{name}: data must have rows, got {shown(inputs)}")
        count = inputs.shape[dim]
        if labels is not None and (labels.dim() == 0 or count != len(labels)):
            got = f"{count} and {len(labels)}" if labels.dim() else f"{count} and {shown(labels)}"
            raise ValueError(
                f"{name}: data must have as many inputs as labels, got {got} (two batches of inputs are [(a,), (b,)])"
            )
        for first in range(0, max(1, count), size):
            rows = min(size, count - first)
            yield inputs.narrow(dim, first, rows), None if labels is None else labels[first : first + rows]
        return
    _check_iterable(name, opened, "tensors, or an iterable of batches")
    for batch in opened:
        _refuse_named(name, batch)
        first, *rest = map(_opened, batch) if isinstance(batch, tuple | list) and batch else (_opened(batch),)
        if not isinstance(first, Tensor):
            raise TypeError(f"{name}: a batch of data must be a tensor or begin with one, got {shown(first)}")
        labels = next((t for t in rest if isinstance(t, Tensor)), None)
        check_dense(name, first)
        if first.dim() <= dim:
            raise ValueError(f"{name}: a batch of data must have rows, got {shown(first)}")
        if labels is not None and (labels.dim() == 0 or len(labels) != first.shape[dim]):
            got = f"{first.shape[dim]} and {shown(labels)}"
            raise ValueError(f"{name}: a batch of data must have as many inputs as labels, got {got}")
        yield first, labels


def in_memory(name: str, data: Data) -> tuple[Tensor, Tensor]:
    """All inputs, and all labels.

    Args:
        name: of the function that asks, for errors.
        data: (inputs, labels), tensors or arrays; a torch ``Dataset`` of such rows; or any other iterable of such
            pairs, each of tensors, arrays or lists.

    Raises:
        TypeError: no pairs, or pairs of what makes no tensors.
        ValueError: nothing; a batch without rows, with more inputs than labels, or of another shape than the first.

    Example:
        >>> [t.shape[0] for t in in_memory("f", [(torch.zeros(2, 3), [0, 1]), (torch.zeros(1, 3), [0])])]
        [3, 3]
    """
    opened: Any = _opened(data)
    if _is_pair(opened):
        parts: list[Any] = [opened]
    else:
        expected = "(inputs, labels), or an iterable of such batches"
        if isinstance(opened, Tensor):
            raise TypeError(f"{name}: data must be {expected}, got {shown(data)}")
        _check_iterable(name, opened, expected)
        parts = [_pair(name, batch) for batch in opened]
    if not parts:
        raise ValueError(f"{name}: data must hold at least one batch, got none")
    for x, y in parts:
        check_dense(name, x, y)
        if len(parts) > 1 and (x.dim() == 0 or y.dim() == 0 or len(x) != len(y)):
            got = f"{shown(x)} and {shown(y)}"
            raise ValueError(f"{name}: each batch of data must have as many inputs as labels, got {got}")
        for t, first in ((x, parts[0][0]), (y, parts[0][1])):
            if t.shape[1:] != first.shape[1:] or t.dtype != first.dtype or t.device != first.device:
                got = f"{shown(t)} after {shown(first)}"
                raise ValueError(f"{name}: each batch of data must be as the first but for its rows, got {got}")
    if len(parts) == 1:
        return parts[0][0], parts[0][1]
    inputs, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return inputs, labels


def check_dense(name: str, *tensors: Tensor) -> None:
    """Refuses tensors that hold no values, or hold them sparsely: rows cannot be cut out of them."""
    for t in tensors:
        if t.layout is not torch.strided or t.is_meta:
            raise ValueError(f"{name}: data must be dense tensors that hold values, got {t.layout} on {t.device}")


def check_labels(name: str, scores: Tensor, labels: Tensor) -> None:
    """Refuses labels that are no classes of the scores (rows, classes)."""
    if labels.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(f"{name}: labels must lie in 0..{scores.shape[1] - 1}, got {low}..{high}")


def check_classes(name: str, scores: Any, labels: Tensor) -> None:
    """Refuses what has no cross-entropy: scores and labels that are neither classes nor shares of them."""
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        raise ValueError(f"{name}: the model must give scores of shape [rows, classes], got {shown(scores)}")
    if labels.shape == scores.shape and labels.is_floating_point():
        return
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(f"{name}: data must have labels of int64 and shape (N,), got {shown(labels)}")
    check_labels(name, scores, labels)


def _opened(data: Any, size: int = 1024) -> Any:
    """Arrays as tensors, two of them as a pair, and a data set of rows as batches of so many."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf":
        return torch.as_tensor(data)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(t, Tensor | np.ndarray) for t in data):
        return tuple(map(_opened, data))
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        return data.tensors if len(data.tensors) == 2 else data.tensors[0]
    return DataLoader(data, batch_size=size) if isinstance(data, Dataset) else data


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)


def _refuse_named(name: str, batch: Any) -> None:
    """Of a batch whose parts have names it is not known which are inputs and which are labels."""
    if isinstance(batch, Mapping):
        keys = ", ".join(map(repr, batch))
        raise TypeError(f"{name}: a batch of data must be (inputs, labels), got a dict of {keys}: give these two alone")


def _check_iterable(name: str, data: Any, expected: str) -> None:
    if isinstance(data, str | bytes | Mapping | type) or not isinstance(data, Iterable):
        raise TypeError(f"{name}: data must be {expected}, got {shown(data)}")


def _pair(name: str, batch: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch."""
    _refuse_named(name, batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{name}: each batch of data must be a pair (inputs, labels), got {shown(batch)}")
    made = []
    for part in batch:
        try:
            made.append(part if isinstance(part, Tensor) else torch.as_tensor(part))
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:  # of words, uneven lists
            raise TypeError(f"{name}: each batch of data must be of tensors or numbers, got {shown(part)}") from error
    return made[0], made[1]
