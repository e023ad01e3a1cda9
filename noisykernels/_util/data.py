"""What users call data, as batches of inputs and labels or all in memory; `forms` tells what is which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.checks import in_range, shown
from noisykernels._util.forms import LABELS, Batch, batch_of, check_dense, lengthened, mask_of, opened
from noisykernels._util.inputs import ANY, Inputs, Takes

__all__ = ["Batch", "Data", "batches", "check_classes", "check_dense", "check_labels", "cut", "in_memory", "needed"]


Data = Any  # in one of the forms of `forms`


def batches(name: str, data: Data, size: int, dim: int = 0, takes: Takes = ANY) -> Iterator[Batch]:
    """Inputs and labels, where there are any, batch by batch.

    Args:
        name: of the function that asks, for errors.
        data: in any form.
        size: rows of a batch, where `data` are no batches.
        dim: dimension of the inputs that counts rows.
        takes: what is looked for, see `opened`.

    Raises:
        TypeError: a batch of what makes no tensors.
        ValueError: a `size` below 1, or not as many inputs as labels.

    Example:
        >>> [len(inputs) for inputs, labels in batches("f", torch.zeros(5, 2), 2)]
        [2, 2, 1]
    """
    in_range(name, "batch_size", size)
    found = opened(name, data, size, takes, dim)
    if not isinstance(found, Batch):
        for batch in found:
            yield batch_of(name, batch, dim, takes)
        return
    for first in range(0, max(1, len(found.inputs)), size):
        yield cut(found, slice(first, first + size))


def in_memory(name: str, data: Data, takes: Takes = ANY) -> Batch:
    """All rows.

    Args:
        name: of the function that asks, for errors.
        data: in any form.
        takes: what is looked for, see `opened`.

    Raises:
        TypeError: what makes no tensors.
        ValueError: nothing; a batch without rows, with more inputs than labels, or of another shape than the first.

    Example:
        >>> inputs, labels = in_memory("f", [(torch.zeros(2, 3), [0, 1]), (torch.zeros(1, 3), [0])])
        >>> len(inputs), labels.tolist()
        (3, [0, 1, 0])
    """
    found = opened(name, data, 1024, takes)
    return found if isinstance(found, Batch) else joined(name, [batch_of(name, batch, 0, takes) for batch in found])


def cut(batch: Batch, rows: slice) -> Batch:
    """Some of its rows."""
    return Batch(batch.inputs[rows], None if batch.labels is None else batch.labels[rows])


def joined(name: str, parts: Sequence[Batch]) -> Batch:
    """The rows of all batches, which must be alike; those with masks are padded to the longest."""
    if not parts:
        raise ValueError(f"{name}: data must hold at least one batch, got none (what is read but once may be used up)")
    masks = [mask_of(part.inputs) for part in parts]
    longest = max((mask.shape[1] for mask in masks if mask is not None), default=0)
    first = lengthened(parts[0], longest)
    parts = [first, *(alike(name, lengthened(part, longest), first) for part in parts[1:])]
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        Inputs.joined([part.inputs for part in parts]), torch.cat(labels) if len(labels) > 1 else parts[0].labels
    )


def alike(name: str, batch: Batch, first: Batch) -> Batch:
    """A batch with its names in the first one's order; refuses one that is not as the first, but for its rows."""
    expected = f"{name}: each batch of data must be as the first but for its rows, got"
    inputs = batch.inputs.ordered(first.inputs.names)
    if inputs.names != first.inputs.names or len(inputs.tensors) != len(first.inputs.tensors):
        raise ValueError(f"{expected} {', '.join(inputs.told())} after {', '.join(first.inputs.told())}")
    if (batch.labels is None) != (first.labels is None):
        raise ValueError(f"{expected} {'one with' if first.labels is None else 'one without'} labels")
    triples = list(zip(inputs.tensors, first.inputs.tensors, inputs.told(), strict=True))
    if inputs.weights is not None and first.inputs.weights is not None:
        triples.append((inputs.weights, first.inputs.weights, "weights"))
    if batch.labels is not None and first.labels is not None:
        triples.append((batch.labels, first.labels, "labels"))
    for t, one, what in triples:
        if t.shape[1:] != one.shape[1:] or t.dtype != one.dtype or t.device != one.device:
            longer = t.dtype == one.dtype and t.shape[2:] == one.shape[2:]
            hint = "; batches of other lengths need an 'attention_mask'" if longer and t.dim() > 1 else ""
            raise ValueError(f"{expected} {_told(t, one)} after {_told(one, t)} for {what}{hint}")
    return Batch(inputs, batch.labels)


def _told(t: Tensor, other: Tensor) -> str:
    return shown(t) + (f" on {t.device}" if t.device != other.device else "")


def needed(name: str, data: Data, labels: Any, other: str = "") -> Any:
    """The labels, where they are needed; an error that says, too, what needs none."""
    other = other and f", or metric={other}, which needs none"
    if labels is None and isinstance(data, Mapping):
        keys = ", ".join(map(repr, LABELS))
        raise ValueError(f"{name}: data must hold labels under one of {keys}, got {shown(data)}{other}")
    if labels is None:
        raise ValueError(f"{name}: data must hold labels, got inputs alone: write (inputs, labels){other}")
    return labels


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
