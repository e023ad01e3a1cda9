"""Loaders whose batches come with the ids of their rows in the data set, whatever shuffles or shares them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from noisykernels._util.checks import is_number, shown

__all__ = ["numbered"]

_SAME = (
    "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
    "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip


def numbered(loader: DataLoader[Any]) -> DataLoader[tuple[Tensor, Any]]:
    """A loader of the same batches in the same order, each with the ids of its rows: ``(rows, batch)``.

    A row's id is its index in the data set, below all `torch.utils.data.Subset`: so noise by it (``rows=``) is the same
    in one process and in many that share the data out (`torch.utils.data.DistributedSampler`), shuffled or not. A row
    that such a sampler gives twice, to have as many for each process, has its id and its noise twice.

    Args:
        loader: of a data set with indices. Its samplers stay what they are: ``set_epoch`` of yours goes on working.

    Returns:
        A `DataLoader`: rows int64 (B), and what the given one makes of a batch.

    Raises:
        TypeError: no `DataLoader` of torch's own, or indices that are no whole numbers.
        ValueError: a data set without indices.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.arange(10.0, 15.0))
        >>> for rows, (x,) in numbered(DataLoader(data, batch_size=2, sampler=[4, 0, 2])):
        ...     print(rows.tolist(), x.tolist())
        [4, 0] [14.0, 10.0]
        [2] [12.0]
    """
    if type(loader) is not DataLoader:
        raise TypeError(f"numbered: loader must be a torch.utils.data.DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "numbered: loader must have a data set with indices, got an IterableDataset: let its items hold their "
            "numbers, or in one process count rows (noise_state(rows='advance'))"
        )
    same: dict[str, Any] = {name: getattr(loader, name) for name in _SAME}
    data, each = _Numbered(loader.dataset), loader.batch_sampler is not None
    collate = _Collated(loader.collate_fn, each)
    if each:
        return DataLoader(data, batch_sampler=loader.batch_sampler, collate_fn=collate, **same)
    return DataLoader(data, batch_size=None, sampler=loader.sampler, collate_fn=collate, **same)


class _Numbered(Dataset[tuple[Any, Any]]):
    """Items with their ids."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        many = isinstance(index, Sequence | Tensor) and not isinstance(index, str)  # of a loader without batches
        ids = (
            [_id_of(self.data, i) for i in (index.tolist() if isinstance(index, Tensor) else index)] if many else index
        )
        return ids if many else _id_of(self.data, index), self.data[index]

    def __getitems__(self, indices: list[Any]) -> list[tuple[int, Any]]:
        at_once = getattr(self.data, "__getitems__", None)
        items = [self.data[i] for i in indices] if at_once is None else at_once(indices)
        return [(_id_of(self.data, i), item) for i, item in zip(indices, items, strict=True)]


class _Collated:
    """What makes a batch of items, and their ids beside it."""

    def __init__(self, collate: Callable[[Any], Any], each: bool) -> None:
        self.collate, self.each = collate, each

    def __call__(self, pairs: Any) -> tuple[Tensor, Any]:
        if not self.each:
            rows, batch = pairs
            return torch.tensor([rows] if isinstance(rows, int) else rows), self.collate(batch)
        return torch.tensor([row for row, _ in pairs]), self.collate([item for _, item in pairs])


def _id_of(data: Any, index: Any) -> int:
    """The index of an item in the data set below all subsets."""
    while isinstance(data, Subset):
        index, data = data.indices[index], data.dataset
    if not is_number(index):
        raise TypeError(f"numbered: loader must have indices that are whole numbers, got {shown(index)}")
    return int(index)
