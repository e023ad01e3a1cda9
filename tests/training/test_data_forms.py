"""The forms that data come in mean the same to every function that takes them."""

from __future__ import annotations

import inspect
import warnings
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from data_look_alikes import Table, TableRows
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


class Optional(NamedTuple):
    x: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None


def read_only(t: Tensor) -> Any:
    array = t.numpy().copy()
    array.setflags(write=False)
    return array


FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (X, Y),
    "list": lambda: [X, Y],
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "labels as numbers": lambda: (X, Y.tolist()),
    "numbers alone": lambda: (X.tolist(), tuple(Y.tolist())),
    "numbers by name": lambda: {"input": X.tolist(), "labels": Y.tolist()},
    "read-only arrays": lambda: (read_only(X), read_only(Y)),
    "other bytes": lambda: (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
    "another direction": lambda: (X.flip(0).numpy()[::-1], Y.flip(0).numpy()[::-1]),
    "unsigned labels": lambda: (X, Y.numpy().astype(np.uint16)),
    "gradients asked for": lambda: (X.clone().requires_grad_(), Y),
    "nothing masked": lambda: (np.ma.masked_array(X.numpy(), mask=False), Y),
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
    "a named tuple with nothing in a place": lambda: Optional(X, labels=Y),
    "named tuples, labels first": lambda: [LabelsFirst(Y, X)],
    "names of files": lambda: [(X, Y, ["a.png"] * 20)],
    "data set of dicts": lambda: DictRows(),
    "loader of dicts": lambda: DataLoader(DictRows(), batch_size=20),
    "table row by row": lambda: TableRows({"input": X.tolist(), "label": Y.tolist(), "text": ["word"] * 20}),
    "table": lambda: Table({"input": X.tolist(), "label": Y.tolist(), "text": ["word"] * 20}),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


class Wrapped(nn.Module):
    """The same model behind another door: it takes a dict and gives one, the scores last."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, input: Tensor) -> dict[str, Tensor]:  # what data call it
        return {"first": input.sum(1), "found": self.net(input)}


def recalibrated(data: Any, net: Any = None, **more: Any) -> Any:
    made = net or model()
    recalibrate_bn(made, data, batch_size=20, **more)
    made = getattr(made, "net", made)
    return made[1].running_mean.tolist(), made[1].running_var.tolist(), made[1].num_batches_tracked.item()


def searched(data: Any, net: Any = None, **more: Any) -> Any:
    linear = nk.experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 3)
    return nk.experiments.search_format(
        net or model(), data, linear, formats=["M7E6", "M3E4"], target=0.5, seed=1, **more
    )


def by_layer(data: Any, net: Any = None, **more: Any) -> Any:
    return nk.experiments.layer_formats(net or model(), data, start="M7E6", target=0.5, evaluations=2, seed=1, **more)


GRID: dict[str, Any] = dict(levels=[1.0], draws=2, seed=1)
# Every function that takes data: of a net, and of how it is called.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "recalibrate_bn": recalibrated,
    "m_sharpness": lambda data, net=None, **k: m_sharpness(net or model(), data, batch_size=20, **k),
    "site_statistics": lambda data, net=None, **k: site_statistics(net or model(), data, batch_size=20, **k),
    "gradient_norms": lambda data, net=None, **k: gradient_norms(net or model(), data, batch_size=20, **k),
    "calibrate": lambda data, net=None, **k: dict(nk.calibrate(net or model(), data, batch_size=20, **k)),
    "accuracy": lambda data, net=None, **k: accuracy(net or model(), data, **k),
    "train": lambda data, net=None, **k: [r | {"seconds": 0} for r in train(net or model(), data, epochs=1, **k)],
    "order_sensitivity": lambda data, net=None, **k: nk.experiments.order_sensitivity(
        net or model(), data, nk.arithmetic.Serial(low=-1.0, high=1.0), permutations=2, seed=1, **k
    ),
    "sweep_formats": lambda data, net=None, **k: (
        nk.experiments.sweep_formats(net or model(), data, ["M3E4"], seed=1, **k).results
    ),
    "search_format": searched,
    "layer_formats": by_layer,
    "chips": lambda data, net=None, **k: nk.chips(
        net or model(), data, hardware=[nk.WeightNoise(add=1.0)], draws=3, seed=1, **k
    ),
    "vote": lambda data, net=None, **k: nk.vote(net or model(), data, noise=nk.Noise(add=1.0), draws=3, seed=1, **k),
    "walk": lambda data, net=None, **k: (
        nk.walk(net or model(), data, noise=nk.Noise(add=1.0), sites=["*linear#0"], **GRID, **k).records
    ),
    "walk_mixed": lambda data, net=None, **k: [
        study.records
        for study in nk.walk_mixed(net or model(), data, ratios=[0.5], sites=["*linear#0"], **GRID, **k).studies
    ],
    "walk_parameter": lambda data, net=None, **k: (
        nk.walk_parameter(net or model(), data, lambda v: [nk.hardware.DAC(int(v), "row")], [2, 4], seed=1, **k).records
    ),
}
NO_OUTPUT = ("recalibrate_bn",)  # nothing looks at what the model gives


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_form_means_the_same(function: str) -> None:
    run = FUNCTIONS[function]
    expected = str(run((X, Y)))
    for name, form in FORMS.items():
        assert str(run(form())) == expected, name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_is_told_how_a_model_is_called(function: str) -> None:
    """By `forward` and `output`, for data that the model does not take and a result that is no tensor."""
    run, more = FUNCTIONS[function], {} if function in NO_OUTPUT else {"output": "found"}
    expected = str(run({"input": X, "labels": Y}, Wrapped(), **more))
    data = {"pixels": X * 2, "more": torch.ones(20).int(), "labels": Y}
    for forward in (
        lambda net, batch: net(batch["pixels"] / 2),
        lambda net, batch: net(input=batch["pixels"] / batch["more"][:, None] / 2),
    ):
        assert str(run(data, Wrapped(), forward=forward, **more)) == expected
    with pytest.raises(TypeError, match=r"forward must be a function( \(model, batch\) -> output)?,? .*got 'input'"):
        run(data, Wrapped(), forward="input")
    if more:
        with pytest.raises(TypeError, match=r"output must be a key, an index or a function, got \[1\]"):
            run(data, Wrapped(), output=[1])


@pytest.mark.parametrize("function", ["site_statistics", "gradient_norms"])
def test_a_forward_that_does_not_call_the_model_is_refused(function: str) -> None:
    with pytest.raises(ValueError, match=rf"{function}: forward must call the model that it is given"):
        FUNCTIONS[function]((X, Y), forward=lambda net, batch: batch)


def test_every_function_that_takes_data_is_here() -> None:
    """And takes `forward` and `output`, but where nothing looks at the output."""
    found = {}
    for place in (nk, nk.experiments, nk.training):
        for name, function in vars(place).items():
            if inspect.isfunction(function) and "data" in inspect.signature(function).parameters:
                found[name] = inspect.signature(function).parameters
    assert sorted(found) == sorted(FUNCTIONS)
    for name, parameters in found.items():
        if name != "walk_mixed":  # which gives them on
            assert "forward" in parameters and ("output" in parameters or name in NO_OUTPUT), name


class Nowhere(nn.Module):
    """A model whose outputs are none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * torch.nan


# What data cannot be, for some functions or for all.
WRONG: dict[str, Any] = {
    "nothing": None, "no rows": (X[:0], Y[:0]), "no batches": [], "words": (X, ["a"] * 20), "fewer labels": (X, Y[:3]),
    "no labels": X, "three": (X, X, Y), "another type": (X.double(), Y), "higher labels": (X, Y + 7),
    "labels of numbers": (X, Y * 0.5), "complex labels": (X, Y.to(torch.complex64)), "columns": (X, Y[:, None]),
    "without values": (X.to("meta"), Y), "sparse": (X.to_sparse(), Y), "numbers that are none": (X * torch.nan, Y),
    "batches that differ": [(X[:5], Y[:5]), (X[5:].double(), Y[5:])], "a function": model,
    "shuffled": DataLoader(TensorDataset(X, Y), 5, shuffle=True),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_about_data_name_the_function_that_was_called(function: str) -> None:
    """And warnings; not a function that it calls."""
    refused = {}
    for what, data in WRONG.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                FUNCTIONS[function](data)
            except (TypeError, ValueError) as error:
                refused[what] = str(error)
        assert all(str(one.message).startswith(f"{function}: ") for one in told), what
    assert len(refused) >= 8
    assert [what for what, said in refused.items() if not said.startswith(f"{function}: ")] == []
    if "walk" in function or function in ("vote", "chips"):
        with pytest.raises(ValueError, match=f"^{function}: the model gives NaN without noise"):
            FUNCTIONS[function]((X, Y), Nowhere())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_names_that_the_model_does_not_take_are_refused(function: str) -> None:
    """But for an input that is alone beside labels."""
    with pytest.raises(
        ValueError, match=rf"{function.partition('_')[0]}.*: .* model's forward, input, got {{'input', 'x'}}; forward="
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
