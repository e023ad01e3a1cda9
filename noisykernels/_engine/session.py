"""One set-up for all studies: data in memory, a clean run, scores that are checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisykernels.noise.arguments import ids_tensor

__all__ = ["Data", "clean_correct", "in_memory", "scores_of"]


Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def in_memory(op: str, data: Data, rows: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and row ids, checked."""
    inputs: Any
    labels: Any
    pair: Any = data if isinstance(data, tuple | list) and len(data) == 2 else ()
    if pair and all(isinstance(t, Tensor) for t in pair):
        inputs, labels = pair
    else:
        try:
            batches = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in data]
            inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{op}: data must be (inputs, labels) or an iterable of such batches: {error}") from error
    if labels.dim() != 1 or labels.is_floating_point() or inputs.dim() == 0 or not len(inputs) == len(labels) > 0:
        raise ValueError(
            f"{op}: data must be inputs (rows, ...) and whole-number labels (rows), not empty, "
            f"got {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    ids = ids_tensor(op, "rows", rows, torch.device("cpu"))
    ids = torch.arange(len(labels)) if ids is None else ids
    if len(ids) != len(labels):
        raise ValueError(f"{op}: rows must hold one id for each of {len(labels)} rows, got {len(ids)}")
    return inputs, labels, ids


def scores_of(op: str, model: nn.Module, inputs: Tensor, rows: int) -> Tensor:
    """The model's scores, checked."""
    scores = model(inputs)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != rows:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{op}: the model must give scores of shape [{rows}, classes], got {got}")
    return scores


def clean_correct(
    op: str, model: nn.Module, inputs: Tensor, labels: Tensor, batch_rows: int
) -> tuple[NDArray[np.bool_], int]:
    """Which predictions are correct without noise, and the number of classes."""
    found, classes = [], 0
    for x, y in zip(inputs.split(batch_rows), labels.split(batch_rows), strict=True):
        scores = scores_of(op, model, x, len(y))
        if bool(scores.isnan().any()):
            raise ValueError(f"{op}: the model gives NaN without noise")
        classes = scores.shape[1]
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{op}: labels must lie in 0..{classes - 1}, got {low}..{high}")
        found.append(scores.argmax(1) == y)
    return torch.cat(found).cpu().numpy(), classes
