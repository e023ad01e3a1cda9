"""Which part of data is what: names, labels by key, tables, rows of several lengths; and what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from data_look_alikes import Encoder, Encoding, Table, Tables, encoded
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import noisykernels as nk
from noisykernels._util.checks import shown
from noisykernels._util.data import in_memory
from noisykernels._util.forms import NO_LABEL
from noisykernels._util.inputs import Inputs, Takes
from noisykernels._util.streams import loaded
from noisykernels.training import accuracy, recalibrate_bn, site_statistics

X, Z, Y = torch.arange(12.0).view(6, 2), torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
TAKES = Takes(("x", "z"))


class Three(NamedTuple):
    x: Tensor
    z: Tensor
    target: Tensor


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return ({"x": x, "z": z, "labels": int(y)} for x, z, y in zip(X, Z, Y, strict=True))


TWO: dict[str, Any] = {
    "dict": {"x": X, "z": Z, "labels": Y},
    "arrays": {"x": X.numpy(), "z": Z.numpy(), "label": Y.numpy()},
    "lists": [{"x": X.tolist(), "z": Z.tolist(), "label": Y.tolist()}],
    "nothing under a key": Encoding(x=X, z=Z, more=None, targets=Y),
    "numpy's numbers": [{"x": X.numpy(), "z": list(Z.numpy()), "target": list(Y.numpy())}],
    "rows": Rows(),
    "table": Table({"id": ["a"] * 6, "z": Z.tolist(), "x": X.tolist(), "label": Y.tolist(), "score": [0.5] * 6}),
    "list of tensors": [{"x": list(X), "z": list(Z), "label": list(Y)}],
}


@pytest.mark.parametrize("form", TWO)
def test_inputs_by_name(form: str) -> None:
    inputs, labels = in_memory("f", TWO[form], TAKES)
    found = dict(zip(inputs.names, inputs.tensors, strict=True))
    assert sorted(found) == ["x", "z"] and labels is not None and torch.equal(labels, Y)
    assert torch.equal(found["x"], X) and torch.equal(found["z"], Z)


@pytest.mark.parametrize("data", [
    ((X, Z), Y), [((X, Z), Y)], [([X, Z], Y.tolist())], ((X.numpy(), Z), Y.numpy()), Three(X, Z, Y), [Three(X, Z, Y)],
    [((X[:2], Z[:2]), Y[:2]), ((X[2:], Z[2:]), Y[2:])],
])  # fmt: skip
def test_inputs_by_position(data: Any) -> None:
    inputs, labels = in_memory("f", data)
    assert not inputs.names and all(map(torch.equal, inputs.tensors, (X, Z))) and torch.equal(labels, Y)


def test_labels_of_positions_and_rows_without_labels() -> None:
    assert in_memory("f", {"x": X, "labels": X})[1] is X and in_memory("f", {"x": X})[1] is None
    assert in_memory("f", [(X,), (X,)])[1] is None and len(in_memory("f", [X, X, X]).inputs) == 18


def test_nothing_in_the_place_of_labels() -> None:
    for data in (((X, Z), None), [((X, Z), None)], ([X, Z], None), ({"x": X, "z": Z}, None)):
        inputs, labels = in_memory("f", data)
        assert labels is None and all(map(torch.equal, inputs.tensors, (X, Z)))
    for data in ((X, None), [X, None], (X.tolist(), None)):
        inputs, labels = in_memory("f", data)
        assert labels is None and torch.equal(inputs.tensors[0], X)
    model = nn.Sequential(nn.Linear(X.shape[1], 3), nn.Tanh())
    given: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1)
    first, second = (nk.walk(model, data, metric="kl", **given).records for data in ((X, None), X))
    assert first == second
    for metric, more in (("cosine", ', or metric=nk.metrics.Cosine("clean"), which needs none'), ("accuracy", "")):
        for data, said in (((X, None), "write (inputs, labels)"), ({"x": X}, f"got {shown({'x': X})}")):
            with pytest.raises(ValueError, match=f"walk: data must hold labels.*{re.escape(said + more)}$"):
                nk.walk(model, data, metric=metric, **given)


def ragged() -> dict[str, list[list[int]]]:
    tokens, mask, labels = encoded()
    rows = [t[: int(n)].tolist() for t, n in zip(tokens, mask.sum(1), strict=True)]
    return {"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows], "labels": labels.tolist()}


class RaggedRows(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        return {name: torch.tensor(column[i]) for name, column in ragged().items()}


def padded_apart(size: int) -> list[Any]:
    """Batches that are padded each to its own longest row."""
    tokens, mask, labels = encoded()
    found = []
    for i in range(0, 40, size):
        longest = int(mask[i : i + size].sum(1).max())
        rows = slice(i, i + size)
        found.append(
            {"input_ids": tokens[rows, :longest], "attention_mask": mask[rows, :longest], "label": labels[rows]}
        )
    return found


def test_rows_of_several_lengths_are_padded_to_the_longest() -> None:
    tokens, mask, labels = encoded()
    for data in ([ragged()], Table(ragged()), RaggedRows(), padded_apart(3), padded_apart(1)):
        inputs, found = in_memory("f", data)
        assert inputs.names == ("input_ids", "attention_mask") and torch.equal(found, labels)
        assert torch.equal(inputs.tensors[0], tokens) and torch.equal(inputs.tensors[1], mask)


def test_their_labels_of_positions_are_padded_with_none() -> None:
    batches = [{"ids": X[:2, :n].long(), "mask": torch.ones(2, n), "labels": Z[:2, None].repeat(1, n)} for n in (1, 2)]
    labels = in_memory("f", batches)[1]
    assert labels.tolist() == [[0, NO_LABEL], [1, NO_LABEL], [0, 0], [1, 1]]


@pytest.mark.parametrize("memory", [2**30, 4096])
def test_a_walk_over_them_is_that_over_padded_rows(memory: int) -> None:
    tokens, mask, labels = encoded()
    given: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1, sites=["mix", "head"])
    expected = nk.walk(Encoder().eval(), {"input_ids": tokens, "attention_mask": mask, "labels": labels}, **given)
    for data in (padded_apart(8), Table(ragged())):
        found = nk.walk(Encoder().eval(), data, compute=nk.Compute(memory=memory), **given)
        assert found.records == expected.records


class Endless(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i]


class Gap(NamedTuple):
    x: Tensor
    mask: Tensor | None
    z: Tensor
    labels: Tensor


class Frame:
    """A `pandas.DataFrame`, of which iterating gives the names of columns."""

    iloc = None

    def __iter__(self) -> Any:
        return iter(["a", "b"])


REFUSED: dict[str, tuple[Any, str]] = {
    "words by name": ([{"x": X, "z": ["a"] * 6, "labels": Y}], r"of tensors or numbers, got 'z': \['a'.*leave it out"),
    "labels alone": ({"labels": Y}, "inputs beside labels"),
    "three tensors": ((X, Z, Y), r"got torch.float32 of shape \[6, 2\] and 2 more: several inputs are"),
    "rows of three": (TensorDataset(X, Z, Y), r"must be a pair .* got 3 parts: several inputs are"),
    "several data sets": (
        {"train": Table({"x": [1]}), "test": Table({"x": [1]})},
        "one of the data sets 'train', 'test'",
    ),
    "a dict of several data sets": (
        Tables({"train": Table({"x": [1]}), "test": Table({"x": [1]})}),
        "one of the data sets 'train', 'test'",
    ),
    "several labels by name": ((X, {"a": Y, "b": Y}), "labels of data must be one tensor, got several, 'a', 'b'"),
    "several labels": ((X, (Y, Y)), "labels of data must be one tensor, got several, 2 parts"),
    "several labels under a key": ({"x": X, "z": Z, "labels": {"a": Y}}, "must be one tensor, got several, 'a'"),
    "several labels in batches": ([(X, [Y, Y])], "labels of data must be one tensor, got several, 2 parts"),
    "a dict within a dict": (
        {"x": {"a": X}, "z": Z, "labels": Y},
        "'x' of data must be a tensor, got a dict of 'a': put",
    ),
    "rows of an unknown number": (Endless(), "a Dataset must say how many rows it has, got Endless without __len__"),
    "a loader of those": (
        DataLoader(Endless(), sampler=range(6)),
        "a Dataset must say how many rows it has, got Endless",
    ),
    "nothing before an input": (Gap(X, None, Z, Y), "by position, got None for 'mask' before 'z': give a dict"),
    "an empty batch": ([()], r"must hold inputs, got \(\)"),
    "masked numbers": ((np.ma.masked_array(X.numpy(), X.numpy() > 3), Y), "got a MaskedArray: fill what is masked"),
    "a frame": (Frame(), r"arrays, got a Frame: write \(frame\[columns\]"),
    "a frame beside labels": ((Frame(), Y), "arrays, got a Frame: write .values"),
    "a frame by name": ({"x": Frame(), "z": Frame()}, "arrays, got a Frame: write .values"),
    "objects": ((np.array([X, None], dtype=object), Y), r"tensors or numbers, got object of shape \[2\]"),
    "labels in words": ((X, np.array(["a"] * 6)), "of tensors or numbers, got <U1"),
    "without values": ((X, Y.to("meta")), "dense tensors that hold values"),
    "nested": ((torch.nested.nested_tensor([X]), Y), "dense tensors that hold values, got nested"),
    "what was read": (iter([]), r"at least one batch, got none \(what is read but once may be used up\)"),
    "masks of several types": (
        [{"x": X, "mask": torch.ones(6, 2, dtype=kind)} for kind in (torch.bool, torch.int64)],
        r"got torch.int64 of shape \[6, 2\] after torch.bool of shape \[6, 2\] for 'mask'",
    ),
    "no column": (
        Table({"a": [1], "b": [1], "label": [0]}),
        r"a column for .*, x, z, got a, b, label; rename_col",
    ),
    "lengths without a mask": ([{"x": [[1, 2], [1]], "z": [1, 2]}], r"'attention_mask'.* got 'x' of lengths 1 to 2"),
    "lengths of batches without a mask": ([(X, Y), (X[:, :1], Y)], r"shape \[6, 1\] after .* need an 'attention_mask'"),
    "other names": ([{"x": X, "labels": Y}, {"z": X, "labels": Y}], r"got 'z' after 'x'"),
    "labels here only": ([{"x": X, "labels": Y}, {"x": X}], "got one without labels"),
    "sizes that differ": ({"x": X, "z": Z[:3], "labels": Y}, "got 'x' of 6, 'z' of 3"),
    "sizes by position": (((X, Z[:3]), Y), "got input 1 of 6, input 2 of 3"),
    "numbers without rows": (
        {"x": X, "z": torch.tensor(1.0), "labels": Y},
        r"must have rows, got torch.float32 of shape",
    ),
    "rows one by one": (
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        r"got 2 and torch.int64 of shape \[\] \(rows one",
    ),
    "rows one by one, named": (
        [{"x": X[0], "label": 3}],
        r"got 2 and torch.int64 of shape \[\] \(rows one by one go into",
    ),
    "complex words": ({"x": X, "z": np.array(["a"]), "labels": Y}, "got 'z'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    data, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=f"f: .*{message}") as caught:
        in_memory("f", data, TAKES)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", [2**30, 256])
def test_names_may_come_in_another_order_in_later_batches(memory: int) -> None:
    """Also of a loader that is read again and again."""

    class Turning:
        def __iter__(self) -> Any:
            for i in range(6):
                batch = {"x": X[i : i + 1], "z": Z[i : i + 1], "labels": Y[i : i + 1]}
                yield dict(reversed(batch.items())) if i % 2 else batch

    inputs, labels = loaded("f", Turning(), memory)
    assert isinstance(inputs, Inputs) == (memory > 256)
    for _ in range(2):
        found = inputs[:]
        assert found.names == ("x", "z") and torch.equal(found.tensors[0], X) and torch.equal(found.tensors[1], Z)
        assert labels is not None and torch.equal(labels[:], Y)


def test_a_file_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    """Without a copy, and without a warning that it cannot be written to."""
    np.save(tmp_path / "x.npy", X.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array = np.load(tmp_path / "x.npy", mmap_mode="r")
        found = in_memory("f", (array, Y)).inputs.tensors[0]
    assert torch.equal(found, X) and found.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bool, torch.complex64])
def test_inputs_of_another_type_than_the_model_are_told(kind: torch.dtype) -> None:
    net = torch.nn.Linear(2, 3)
    how: dict[str, Any] = dict(seed=1, draws=2)
    for run in (
        lambda data: nk.walk(net, data, noise=nk.Noise(add=1.0), levels=[1.0], **how),
        lambda data: nk.vote(net, data, noise=nk.Noise(add=1.0), **how),
        lambda data: nk.vote(net, data, noise=nk.Noise(add=1.0), sites=["input"], **how),
        lambda data: accuracy(net, data),
        lambda data: site_statistics(net, data),
    ):
        with pytest.raises(ValueError, match=rf": data must have inputs of .*, torch.float32, .*, got {kind}: "):
            run((X.to(kind), Y))  # type: ignore[no-untyped-call]


def test_models_are_asked_for_the_names_that_they_take() -> None:
    tokens, mask, labels = encoded()
    with pytest.raises(ValueError, match=r"input_ids, attention_mask, labels, got {'ids', 'mask'}; forward= says"):
        accuracy(Encoder(), {"ids": tokens, "mask": mask, "labels": labels})
    assert accuracy(Encoder(), {"input_ids": tokens, "attention_mask": mask, "labels": labels}) == 1.0
    found = accuracy(Encoder(), (tokens, labels), forward=lambda model, batch: model(batch, mask), batch_size=40)
    assert found == 1.0


def test_a_recalibration_of_several_inputs() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.norm(x + z[:, None])

    by_name, by_hand, called = Two(), Two(), Two()
    recalibrate_bn(by_name, {"x": X, "z": Z})
    recalibrate_bn(by_hand.norm, X + Z[:, None])
    recalibrate_bn(called, [(Z, X)], forward=lambda model, batch: model(X, batch))
    assert torch.equal(by_name.norm.running_mean, by_hand.norm.running_mean)
    assert torch.equal(called.norm.running_var, by_hand.norm.running_var)
