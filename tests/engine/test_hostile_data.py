"""Odd forms of data give the records of a tensor, or one error that names function and argument and says what to write;
walks and votes, with data in memory and read chunk by chunk. Tokens and weights, too, whoever reads the data."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

import noisykernels as nk

X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
Pair = namedtuple("Pair", "x y")
Three = namedtuple("Three", "x y z")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def walk(data: Any, **more: Any) -> Any:
    return nk.walk(model(), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1, sites=["2*"], **more).records


def vote(data: Any, **more: Any) -> Any:
    return nk.vote(model(), data, noise=nk.Noise(add=1.0), draws=3, seed=1, **more).curves


STUDIES, MEMORY = {"walk": walk, "vote": vote}, [2**30, 400]  # the data are larger than the second


class Encoding(UserDict[str, Any]):
    """As tokenizers give them: neither a dict nor a tuple."""


@dataclass
class Fields:
    input: Tensor
    labels: Tensor


class Rows(IterableDataset[Any]):
    """Rows that every worker gives, or its share of them."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info and self.shared else (0, 1)
        return ((X[i], Y[i]) for i in range(first, 40, step))


class Numpy(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        return X[i].numpy(), np.int64(Y[i])


class Failing:
    """Batches, and then an error, whenever they are read."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        yield X[:10], Y[:10]
        raise self.error("the disk")


class Longer(Numpy):
    def __len__(self) -> int:
        return 50


def batches() -> Iterator[Any]:
    yield from zip(X.split(10), Y.split(10), strict=True)


SAME: dict[str, Callable[[], Any]] = {
    "an empty batch among others": lambda: [(X[:20], Y[:20]), (X[:0], Y[:0]), (X[20:], Y[20:])],
    "an empty batch first": lambda: [(X[:0], Y[:0]), (X, Y)],
    "batches of other sizes": lambda: [(X[:3], Y[:3]), (X[3:30], Y[3:30]), (X[30:], Y[30:])],
    "labels under another key later": lambda: [
        {"input": X[:20], "labels": Y[:20]}, {"input": X[20:], "label": Y[20:]}],
    "a generator": batches,
    "a map": lambda: map(tuple, batches()),
    "rows that are iterated": lambda: Rows(shared=False),
    "... by one worker": lambda: DataLoader(Rows(shared=False), 10, num_workers=1),
    "batches of one": lambda: DataLoader(TensorDataset(X, Y), 1),
    "numpy's rows": Numpy,
    "data sets after one another": lambda: ConcatDataset(
        [TensorDataset(X[:20], Y[:20]), TensorDataset(X[20:], Y[20:])]),
    "a part of a data set": lambda: Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(40)),
    "None under a key": lambda: {"input": X, "mask": None, "labels": Y},
    "an encoding": lambda: Encoding(input=X, labels=Y),
    "encodings": lambda: [Encoding(input=X[:20], labels=Y[:20]), Encoding(labels=Y[20:], input=X[20:])],
    "an ordered dict": lambda: OrderedDict(labels=Y, input=X),
    "a named tuple": lambda: Pair(X, Y),
    "a dataclass": lambda: Fields(X, Y),
    "dataclasses": lambda: [Fields(X[:20], Y[:20]), Fields(X[20:], Y[20:])],
    "labels in a list of tensors": lambda: (X, list(Y)),
    "numbers, labels in a tensor": lambda: (X.tolist(), Y),
    "small labels": lambda: (X, Y.to(torch.int8)),
    "another layout": lambda: (X.T.contiguous().T, Y),
    "parameters": lambda: (nn.Parameter(X), Y),
}  # fmt: skip
ONE_HOT, OBJECTS = torch.nn.functional.one_hot(Y, 3), np.array([None] * 40)
HOLES = X.where(torch.arange(4) != 1, torch.nan)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "other keys later": (lambda: [{"input": X, "labels": Y}, {"pixels": X, "labels": Y}], "must be as the first"),
    "more keys later": (lambda: [{"input": X, "labels": Y}, {"input": X, "labels": Y, "id": Y}], "got 'input', 'id'"),
    "a dict after tuples": (lambda: [(X, Y), {"input": X, "labels": Y}], "must be as the first"),
    "labels that end": (lambda: [(X, Y), (X,)], "got one without labels"),
    "other widths": (lambda: [(X, Y), (X[:, :3], Y)], r"got torch.float32 of shape \[40, 3\] after"),
    "other labels' types": (lambda: [(X, Y), (X, Y.int())], "int32 .* after torch.int64 .* for labels"),
    "numpy's doubles": (lambda: (X.numpy().astype(float), Y), "type of the model's parameters, .*float64"),
    "pictures of bytes": (lambda: (X.byte(), Y), "type of the model's parameters, torch.float32, .*uint8"),
    "objects": (lambda: (OBJECTS, Y), r"of tensors or numbers, got object of shape \[40\]"),
    "uneven lists": (lambda: ([[1.0, 2.0], [1.0]] * 20, Y), "of tensors or numbers"),
    "uneven tensors": (lambda: ([X[0], X[1, :2]] * 20, Y), r"and 36 more; a list of rows is torch.stack\(rows\)"),
    "a list of rows": (lambda: (list(X), list(Y)), r"got 40 parts: .*, a list of rows is torch.stack\(rows\)"),
    "rows one by one": (lambda: list(zip(X, Y, strict=True)), "rows one by one go into a DataLoader"),
    "used up": (lambda: iter([]), "at least one batch, got none"),
    "a function": (lambda: batches, "got <function batches.*; call it"),
    "None for inputs": (lambda: {"input": None, "labels": Y}, "must hold inputs beside labels"),
    "labels that are longer": (lambda: (X, torch.cat([Y, Y])), "as many inputs as labels, got 40 and 80"),
    "holes": (lambda: (HOLES, Y), "gives NaN without noise, where inputs of data hold NaN or infinity"),
    "a named tuple of three": (lambda: Three(X, Y, X), "got 3 parts: several inputs are"),
    "one-hot labels": (lambda: (X, ONE_HOT), r"classes are labels.argmax\(1\)"),
    "labels that are floats": (lambda: (X, Y.double()), r"metric='mse' is of numbers, classes are labels.long\(\)"),
    "labels in a column": (lambda: (X, Y[:, None]), r"classes are labels.flatten\(\)"),
    "labels from 1": (lambda: (X, Y + 1), r"labels must lie in 0..2, got (1|3)..3"),
    "labels in words": (lambda: (X, ["cat"] * 40), "of tensors or numbers, got 'cat'"),
    "no rows": (lambda: (X[:0], Y[:0]), r"not empty, got \[0, 4\]"),
    "a name of a file": (lambda: "data.npz", "must be .inputs, labels., or an iterable .* got 'data.npz'"),
    "a wider row": (lambda: (torch.cat([X, X], 1), Y), r"inputs of a shape that the model takes, got .*\[2, 8\]: mat1"),
    "rows of every worker": (lambda: DataLoader(Rows(shared=False), 10, num_workers=3),
                             "must give each row once, got every row 3 times, of each of 3 workers: num_workers=1"),
}  # fmt: skip


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("memory", MEMORY)
def test_odd_forms_have_the_records_of_a_tensor(study: str, memory: int) -> None:
    run, compute = STUDIES[study], nk.Compute(memory=memory)
    expected = str(run((X, Y), compute=compute))
    assert expected != str(run((X, Y.flip(0)), compute=compute))
    assert [name for name, form in SAME.items() if str(run(form(), compute=compute)) != expected] == []


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("memory", MEMORY)
def test_others_are_refused_in_one_clear_error(study: str, memory: int) -> None:
    for name, (form, message) in REFUSED.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than processors
            with pytest.raises((TypeError, ValueError), match=message) as told:
                STUDIES[study](form(), compute=nk.Compute(memory=memory))
        assert str(told.value).startswith(f"{study}: ") and "\n" not in str(told.value), name


def test_workers_that_share_rows_are_taken() -> None:
    """Rows are numbered as they come."""
    mine = torch.cat([torch.arange(40)[k::3].split(10)[i] for i in range(2) for k in range(3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = walk(DataLoader(Rows(shared=True), 10, num_workers=3))
    assert found == walk((X[mine], Y[mine]))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_an_error_of_the_data_says_whose_they_are(error: type[Exception], memory: int) -> None:
    """It stays what it is."""
    with pytest.raises(error, match="the disk") as told:
        walk(Failing(error), compute=nk.Compute(memory=memory))
    with pytest.raises(IndexError) as other:
        vote(DataLoader(Longer(), 8), compute=nk.Compute(memory=memory))
    if sys.version_info >= (3, 11):
        assert told.value.__notes__ == ["walk: data failed so in their batch 1"]
        assert other.value.__notes__ == ["vote: data failed so in their batch 5"]


def test_labels_of_no_and_yes_are_two_classes() -> None:
    for study in STUDIES.values():
        assert str(study((X, Y > 0))) == str(study((X, (Y > 0).long())))


class Tokens(nn.Module):
    """Classes of each token, from it and a context."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        return self.head(h + h.cumsum(1))


IDS = torch.randint(20, (48, 6), generator=torch.Generator().manual_seed(2))
TAGS, W = IDS % 5, 1.0 + torch.arange(48) % 3


@pytest.mark.parametrize("case", ["tokens", "weighted tokens", "weighted rows"])
@pytest.mark.parametrize("memory", [2**30, 4000])
def test_tokens_and_weights_have_equal_records_in_every_form(case: str, memory: int) -> None:
    """From tensors, loaders with 0, 1 and 3 workers, dicts, in memory or read chunk by chunk."""
    torch.manual_seed(1)
    net, inputs, labels = Tokens().eval(), IDS, TAGS
    more: dict[str, Any] = {"metric": "token_accuracy"}
    if case == "weighted rows":
        net, inputs, labels = model(), torch.cat([X, X])[:48], torch.cat([Y, Y])[:48]
        more = {"metric": "accuracy"}
    weighted = case != "tokens"
    if weighted:
        more["metric"] = nk.metrics.Weighted(more["metric"], "weights")
    rows = nk.TokenRows(6) if net(inputs[:1]).dim() == 3 else None
    columns = (inputs, labels, W) if weighted else (inputs, labels)
    name = "input" if case == "weighted rows" else "input_ids"
    names = (name, "labels", "weights")[: len(columns)]
    whole, parts = columns, [c.split(7) for c in columns]
    workers = (0, 1, 3) if memory > 4000 else (0, 3)  # which begin anew with each pass
    forms: dict[str, Any] = {
        **{f"{n} workers": DataLoader(TensorDataset(*columns), 7, num_workers=n) for n in workers},
        "dict": dict(zip(names, columns, strict=True)),
        "dicts": DictBatches([dict(zip(names, some, strict=True)) for some in zip(*parts, strict=True)]),
    }
    compute = nk.Compute(memory=memory)
    studies: list[Callable[[Any], Any]] = [
        lambda data: nk.walk(net, data, noise=nk.Noise(add=1.0), levels=[0.5], draws=2, seed=1, compute=compute,
                             at=nk.Drop(0.01), rows=rows, **more).records,
        lambda data: nk.chips(net, data, noise=nk.Noise(add=1.0), draws=2, seed=1, compute=compute,
                              **more).values.tolist(),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for study in studies[: 2 if memory > 4000 else 1]:
            expected = study(whole)
            assert {form: study(data) == expected for form, data in forms.items()} == dict.fromkeys(forms, True)


class DictBatches:
    """An iterable of batches that begins anew."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)
