"""Look-alikes of the forms that Hugging Face's libraries give data and outputs in, and models of several inputs."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset


class Encoding(UserDict):  # type: ignore[type-arg]
    """A `BatchEncoding`: a mapping whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


class Output(OrderedDict):  # type: ignore[type-arg]
    """A `ModelOutput`: items by key, attribute and place."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Table:
    """A `datasets.Dataset`: columns by name, rows by number or slice; iterating it gives rows, not batches."""

    def __init__(self, columns: Mapping[str, list[Any]], tensors: bool = False) -> None:
        self.columns, self.tensors = dict(columns), tensors

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def with_format(self, kind: str) -> Table:
        assert kind == "torch"
        return Table(self.columns, True)

    def __getitem__(self, rows: int | slice) -> dict[str, Any]:
        found = {name: column[rows] for name, column in self.columns.items()}
        return {name: self._made(column) for name, column in found.items()} if self.tensors else found

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def _made(self, column: Any) -> Any:
        """A tensor, or a list of them where rows differ in length, or words."""
        try:
            return torch.tensor(column)
        except (TypeError, ValueError):
            return column if isinstance(column[0], str) else [torch.tensor(row) for row in column]


class TableRows(IterableDataset[Any]):
    """A `datasets.IterableDataset`: its rows one by one; it may not know its columns."""

    column_names = None

    def __init__(self, columns: Mapping[str, list[Any]], tensors: bool = False) -> None:
        super().__init__()
        self.columns, self.tensors = dict(columns), tensors

    def with_format(self, kind: str) -> TableRows:
        assert kind == "torch"
        return TableRows(self.columns, True)

    def __iter__(self) -> Any:
        for row in zip(*self.columns.values(), strict=True):
            made = [torch.tensor(v) if self.tensors and not isinstance(v, str) else v for v in row]
            yield dict(zip(self.columns, made, strict=True))


class Tables(dict):  # type: ignore[type-arg]
    """A `datasets.DatasetDict`, which has what a table has."""

    def with_format(self, kind: str) -> Tables:
        return Tables({name: table.with_format(kind) for name, table in self.items()})

    @property
    def column_names(self) -> dict[str, list[str]]:
        return {name: table.column_names for name, table in self.items()}


class Encoder(nn.Module):
    """Tokens and a mask to classes, with or without the mask's help; gives a `ModelOutput` whose logits come second."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.mix, self.norm = nn.Embedding(20, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Output:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.norm(self.tokens(input_ids))
        h = torch.relu(self.mix(x)) * mask.unsqueeze(-1).to(x.dtype)
        logits = self.head(h.sum(1) / mask.sum(1, keepdim=True).to(x.dtype))
        found = Output(hidden=h, logits=logits)
        return Output(loss=nn.functional.cross_entropy(logits, labels), **found) if labels is not None else found


class TwoInputs(nn.Module):
    """An image and numbers beside it to classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.beside, self.head = nn.Conv2d(1, 3, 3), nn.Linear(4, 6), nn.Linear(12 + 6, 3)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        x = torch.relu(self.conv(image)).flatten(1)
        return self.head(torch.cat([x, torch.relu(self.beside(numbers))], 1))


def encoded(rows: int = 40, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the mask of some of them, and labels that an `Encoder` gets right mostly."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)).long()
    with torch.no_grad():
        labels = Encoder()(tokens, mask).logits.argmax(1)
    return tokens * mask, mask, labels


def pictures(rows: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Images, numbers beside them, and labels that `TwoInputs` gets right."""
    generator = torch.Generator().manual_seed(2)
    images, numbers = torch.randn(rows, 1, 4, 4, generator=generator), torch.randn(rows, 4, generator=generator)
    with torch.no_grad():
        return images, numbers, TwoInputs()(images, numbers).argmax(1)
