"""Loaders whose batches come with the ids of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from noisykernels.datasets import numbered

VALUES = torch.arange(100.0, 110.0)
DATA = TensorDataset(VALUES, torch.arange(10))


class Dicts(Dataset[dict[str, Any]]):
    """Items by name, many at once."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"value": VALUES[index]}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[i] for i in indices]


class Streamed(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(VALUES)


def doubled(items: list[Any]) -> Tensor:
    return torch.stack([2 * value for value, _ in items])


def test_batches_are_those_of_the_loader_with_the_ids_of_their_rows() -> None:
    for workers in (0, 2):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=generator, num_workers=workers)
        plain = list(loader)
        generator.manual_seed(3)
        with_rows = list(numbered(loader))
        assert len(with_rows) == len(plain) == len(numbered(loader)) == 3
        for (rows, (x, y)), (plain_x, plain_y) in zip(with_rows, plain, strict=True):
            assert rows.dtype == torch.int64 and torch.equal(rows, y)
            assert torch.equal(x, plain_x) and torch.equal(y, plain_y)


def test_every_kind_of_loader_has_ids_of_the_data_set_below() -> None:
    subset = Subset(Subset(DATA, [9, 7, 5, 3]), [3, 1])
    for loader in (
        DataLoader(subset, batch_size=2),
        DataLoader(DATA, batch_sampler=[[3, 7]]),
        DataLoader(DATA, batch_size=None, sampler=BatchSampler([3, 7], 2, False)),
    ):
        (rows, (x, _)), *others = numbered(loader)
        assert not others and rows.tolist() == [3, 7] and x.tolist() == [103, 107]
    (rows, batch), *_ = numbered(DataLoader(Dicts(), batch_size=3, sampler=SequentialSampler(Dicts())))
    assert rows.tolist() == [0, 1, 2] and batch["value"].tolist() == [100, 101, 102]
    (rows, (x, _)), *_ = numbered(DataLoader(ConcatDataset([DATA, DATA]), batch_size=1, sampler=[14]))
    assert rows.tolist() == [14] and x.tolist() == [104]
    (rows, x), *_ = numbered(DataLoader(DATA, batch_size=2, collate_fn=doubled))
    assert rows.tolist() == [0, 1] and x.tolist() == [200, 202]


def test_processes_share_the_ids_out_and_epochs_change_them() -> None:
    def ids(rank: int, epoch: int) -> list[int]:
        sampler = DistributedSampler(DATA, 4, rank, seed=5)
        loader = numbered(DataLoader(DATA, batch_size=2, sampler=sampler))
        sampler.set_epoch(epoch)
        return torch.cat([rows for rows, _ in loader]).tolist()

    for epoch in (0, 1):
        every = [i for rank in range(4) for i in ids(rank, epoch)]
        assert set(every) == set(range(10)) and len(every) == 12  # two of them twice
    assert ids(0, 0) != ids(0, 1)


def test_what_has_no_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="numbered: loader must have a data set with indices, got an IterableDataset"):
        numbered(DataLoader(Streamed(), batch_size=2))
    with pytest.raises(TypeError, match=r"numbered: loader must be a torch\.utils\.data\.DataLoader, got list"):
        numbered([1])  # type: ignore[arg-type]
    names: Any = {"a": torch.zeros(1)}
    with pytest.raises(TypeError, match="numbered: loader must have indices that are whole numbers, got 'a'"):
        next(iter(numbered(DataLoader(names, sampler=["a"]))))
