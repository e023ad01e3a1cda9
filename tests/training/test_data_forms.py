"""The forms that data come in mean the same to every function that takes them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from data_look_alikes import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import noisykernels as nk
from noisykernels.training import accuracy, gradient_norms, m_sharpness, recalibrate_bn, site_statistics, train

X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3


class Rows(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], int(Y[i])


class DictRows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input": X[i], "label": int(Y[i])}


class Named(NamedTuple):
    x: Tensor
    y: Tensor


class LabelsFirst(NamedTuple):
    label: Tensor
    image: Tensor


FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (X, Y),
    "list": lambda: [X, Y],
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "list of arrays": lambda: [X.numpy(), Y.numpy()],
    "tensor and array": lambda: (X, Y.numpy()),
    "tensors' data set": lambda: TensorDataset(X, Y),
    "data set": Rows,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=20),
    "batches": lambda: [(X, Y)],
    "batches of lists": lambda: [[X, Y]],
    "batches of arrays": lambda: [(X.numpy(), Y.numpy())],
    "iterator": lambda: iter([(X, Y)]),
    "an input of any name": lambda: [{"x": X, "labels": Y}],
    "a column of any name": lambda: Table({"pixels": X.tolist(), "label": Y.tolist()}),
    "dict": lambda: {"input": X, "labels": Y},
    "dict of arrays": lambda: {"label": Y.numpy(), "input": X.numpy()},
    "dicts": lambda: [{"input": X, "target": Y}],
    "another mapping": lambda: [UserDict(input=X, targets=Y)],
    "a dict beside labels": lambda: ({"input": X}, Y),
    "a tuple beside labels": lambda: ((X,), Y),
    "named tuple": lambda: Named(X, Y),
    "named tuples, labels first": lambda: [LabelsFirst(Y, X)],
    "names of files": lambda: [(X, Y, ["a.png"] * 20)],
    "data set of dicts": lambda: DictRows(),
    "loader of dicts": lambda: DataLoader(DictRows(), batch_size=20),
    "table": lambda: Table({"input": X.tolist(), "label": Y.tolist(), "text": ["word"] * 20}),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


def recalibrated(data: Any) -> Any:
    made = model()
    recalibrate_bn(made, data, batch_size=20)
    return made[1].running_mean.tolist(), made[1].running_var.tolist(), made[1].num_batches_tracked.item()


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "recalibrate_bn": recalibrated,
    "m_sharpness": lambda data: m_sharpness(model(), data, batch_size=20),
    "site_statistics": lambda data: site_statistics(model(), data, batch_size=20),
    "gradient_norms": lambda data: gradient_norms(model(), data, batch_size=20),
    "accuracy": lambda data: accuracy(model(), data),
    "train": lambda data: [r | {"seconds": 0} for r in train(model(), data, epochs=1)],
    "order_sensitivity": lambda data: nk.experiments.order_sensitivity(
        model(), data, nk.arithmetic.Serial(low=-1.0, high=1.0), permutations=2, seed=1
    ),
    "sweep_formats": lambda data: nk.experiments.sweep_formats(model(), data, ["M3E4"], seed=1).results,
    "chips": lambda data: nk.chips(model(), data, hardware=[nk.WeightNoise(add=1.0)], draws=3, seed=1),
    "vote": lambda data: nk.vote(model(), data, noise=nk.Noise(add=1.0), draws=3, seed=1),
    "walk": lambda data: (
        nk.walk(model(), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1, sites=["2"]).records
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_form_means_the_same(function: str) -> None:
    run = FUNCTIONS[function]
    expected = str(run((X, Y)))
    for name, form in FORMS.items():
        assert str(run(form())) == expected, name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_names_that_the_model_does_not_take_are_refused(function: str) -> None:
    """But for an input that is alone beside labels."""
    with pytest.raises(
        ValueError, match=rf"{function}: .* model's forward, input, got {{'input', 'x'}}; forward= says"
    ):
        FUNCTIONS[function]([{"input": X, "x": X, "labels": Y}])


def test_two_tensors_are_never_two_batches() -> None:
    """Also of inputs alone, where nothing asks for labels."""
    assert recalibrated([X, 100 + X]) == recalibrated(X) == recalibrated(X.numpy()) == recalibrated(TensorDataset(X))
    with pytest.raises(ValueError, match=r"as many inputs as labels, got 20 and 3 \(two batches of inputs are"):
        recalibrated([X, X[:3]])
    assert recalibrated([(X,), (X[:7],)])[2] == 2


@pytest.mark.parametrize("form", [lambda x: x, lambda x: list(x.split(4)), lambda x: DataLoader(x, batch_size=4)])
def test_a_last_batch_of_one_row_does_not_end_a_recalibration(form: Callable[[Tensor], Any]) -> None:
    """It has no variance, and is left out."""
    found = []
    for x in (X[:17], X[:16]):
        made = model()
        recalibrate_bn(made, form(x), batch_size=4)
        found.append([*made[1].state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match=r"a batch must have more than one value per channel, got \[1, 5\] alone"):
        recalibrated(X[:1])


def test_nor_where_a_batch_norm_keeps_no_statistics() -> None:
    made = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    recalibrate_bn(made, X[:17], batch_size=4)
    assert made[0].num_batches_tracked == 4
