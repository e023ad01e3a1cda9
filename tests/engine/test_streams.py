"""Loaders larger than memory, read again chunk by chunk, have the records of a tensor; what changes is refused."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_look_alikes import TwoInputs, pictures
from test_memory_of_walks import MIB, MODEL
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import noisykernels as nk
from noisykernels._engine.session import Problem, Session
from noisykernels._util.inputs import Call
from noisykernels._util.streams import Stream, StreamedInputs, StreamedLabels, loaded

SMALL = 48 * 1024  # bytes of memory, which the data below are larger than
X = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


with torch.no_grad():
    Y = network()(X).argmax(1)


WIDE = Y[:, None] + torch.arange(2)  # labels that a chunk of the least memory has no room for


def loader(batch: int = 50, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch, num_workers=workers)


class Again:
    """Any object that can be iterated again; what it gives the n-th time."""

    def __init__(self, given: Callable[[int], Any]) -> None:
        self.given, self.times = given, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.given(self.times))


def walked(data: Any, **more: Any) -> list[Any]:
    given: dict[str, Any] = dict(noise=nk.Noise(add=1.0), seed=1, compute=nk.Compute(memory=SMALL))
    if "search" not in more:
        given |= dict(levels=[0.5, 2.0], draws=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few rows for a search
        return list(nk.walk(network(), data, **(given | more)).records)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_has_the_records_of_a_tensor(workers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than processors
        data = loader(50, workers)
        assert isinstance(loaded("f", data, SMALL)[0], StreamedInputs)
    sites = {"sites": ["input", "2"]}
    assert walked(data, **sites) == walked((X, Y), **sites)


@pytest.mark.parametrize("memory", [SMALL, 512 * 1024])
def test_labels_are_kept_where_they_are_small(memory: int) -> None:
    """Beside a chunk, or no larger than a digest."""
    inputs, labels = loaded("f", loader(), memory)
    assert isinstance(inputs, StreamedInputs) and isinstance(labels, Tensor) and torch.equal(labels, Y)
    _, labels = loaded("f", DataLoader(TensorDataset(X, WIDE), 50), memory)
    assert isinstance(labels, Tensor) == (memory > SMALL)
    more = {"sites": ["2"], "search": nk.Search(rel_ci=0.3), "compute": nk.Compute(memory=memory)}
    assert walked(loader(), **more) == walked((X, Y), **more)


def test_so_do_dicts_two_inputs_and_any_iterable() -> None:
    image, numbers, labels = pictures(400)
    given: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1)
    expected = nk.walk(TwoInputs().eval(), ((image, numbers), labels), **given).records
    parts = list(zip(image.split(32), numbers.split(32), labels.split(32), strict=True))
    for form in (
        lambda n: [{"image": a, "numbers": b, "labels": y} for a, b, y in parts],
        lambda n: (((a, b), y) for a, b, y in parts),
    ):
        given["compute"] = nk.Compute(memory=16 * 1024)
        assert nk.walk(TwoInputs().eval(), Again(form), **given).records == expected
    called = nk.walk(TwoInputs().eval(), Again(form), forward=lambda model, batch: model(*batch), **given)
    assert called.records == expected


@pytest.mark.parametrize("more", [
    {"search": nk.Search(rel_ci=0.3), "sites": ["2"]}, {"plateaus": 0.03, "sites": ["2"]},
    {"sites": ["2"], "compute": nk.Compute(memory=SMALL, executor=1)},
    {"sites": ["2"], "compute": nk.Compute(memory=SMALL, verify="full")},
    {"target": "weight", "sites": ["2"]},
], ids=["search", "plateaus", "workers", "verified", "weights"])  # fmt: skip
def test_every_walk_can_be_of_a_stream(more: dict[str, Any]) -> None:
    assert walked(loader(), **more) == walked((X, Y), **more)


def test_a_store_is_of_the_rows_not_of_their_form(tmp_path: Path) -> None:
    expected = walked((X, Y), sites=["2"], store=tmp_path / "a.store")
    assert walked(loader(), sites=["2"], store=tmp_path / "a.store") == expected


def test_other_studies_can_be_of_a_stream() -> None:
    few = nk.Compute(memory=SMALL)
    for study in (
        lambda data: nk.vote(network(), data, noise=nk.Noise(add=1.0), draws=3, seed=1, compute=few).curves,
        lambda data: nk.chips(
            network(), data, hardware=[nk.WeightNoise(add=1.0)], draws=3, seed=1, compute=few
        ).values.tolist(),
        lambda data: nk.experiments.sweep_formats(network(), data, ["M3E4"], seed=1, compute=few).results,
        lambda data: nk.experiments.order_sensitivity(
            network(), data, nk.Serial(low=-1.0, high=1.0), permutations=2, orders=(), seed=1, compute=few
        ).values.tolist(),
    ):
        assert str(study(loader())) == str(study((X, Y)))  # type: ignore[no-untyped-call]


def batches(x: Tensor, y: Tensor, size: int = 50) -> list[Any]:
    return list(zip(x.split(size), y.split(size), strict=True))


ORDER = torch.randperm(600, generator=torch.Generator().manual_seed(1))
CHANGES: dict[str, tuple[Callable[[int], Any], str]] = {
    "another order": (lambda n: batches(X, Y) if n == 1 else batches(X[ORDER], Y[ORDER]), "its rows in another order"),
    "other values": (lambda n: batches(X + n, Y), r"other rows \(from row 0 on\)"),
    "other labels": (lambda n: batches(X, Y if n == 1 else 2 - Y), "other rows"),
    "fewer": (lambda n: batches(X[: 601 - n], Y[: 601 - n]), "599 rows after 600|550 rows after 600|other rows"),
    "more": (lambda n: batches(X[: 549 + 50 * n], Y[: 549 + 50 * n]), "more than 599 rows after 599|other rows"),
    "a batch more": (lambda n: batches(X[: 500 + 50 * n], Y[: 500 + 50 * n]), "more than 550 rows after 550"),
    "used up": (lambda n: batches(X, Y) if n == 1 else [], "0 rows after 600"),
    "a late change": (lambda n: batches(torch.cat([X[:-1], X[-1:] * n]), Y), r"other rows \(from row 550 on\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_refused(change: str) -> None:
    given, message = CHANGES[change]
    with pytest.raises(ValueError, match=rf"walk: data must give the same rows .* got ({message}).*shuffle=False"):
        walked(Again(given))


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return 600

    def __getitem__(self, i: int) -> Any:
        return X[i] + torch.randn(()), Y[i]


@pytest.mark.parametrize("memory", [SMALL, 2**30])
@pytest.mark.parametrize("data", [
    lambda: DataLoader(TensorDataset(X, Y), 50, shuffle=True), lambda: DataLoader(Augmented(), 50), Augmented,
], ids=["shuffled", "augmented", "an augmented data set"])  # fmt: skip
def test_shuffled_and_augmented_data_are_refused_in_memory_too(data: Callable[[], Any], memory: int) -> None:
    with pytest.raises(ValueError, match=r"walk: data must give the same rows in the same order"):
        walked(data(), compute=nk.Compute(memory=memory))


def test_what_can_be_read_once_is_held() -> None:
    assert walked(iter(batches(X, Y)), sites=["2"]) == walked((X, Y), sites=["2"])


@pytest.mark.parametrize("batch", [7, 50, 120])
def test_parts_of_any_place_and_size(batch: int) -> None:
    x, y = X[:120], Y[:120]
    stream = loaded("f", DataLoader(TensorDataset(x, y), batch), 8 * 1024)[0]
    assert isinstance(stream, StreamedInputs) and isinstance(stream.stream, Stream)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(2)
    for inputs, expected in ((stream, x), (stream.permuted(order), x[order])):
        for _ in range(8):
            first = int(torch.randint(120, (), generator=generator))
            some = slice(first, first + int(torch.randint(1, 60, (), generator=generator)))
            assert torch.equal(inputs[some].tensors[0], expected[some])
        for end in (slice(None), slice(115, None), slice(0, 3), slice(110, 119)):
            assert torch.equal(inputs[end].tensors[0], expected[end])
        picked = torch.randint(120, (9,), generator=generator)
        assert torch.equal(inputs[picked].tensors[0], expected[picked])


def test_the_first_rows_of_an_order_stay_and_rows_as_they_come_take_one_pass() -> None:
    """A search begins with the first rows at every site; a grid goes on where it was."""
    data = Again(lambda _: batches(X, Y))
    stream = loaded("f", data, SMALL)[0]
    assert isinstance(stream, StreamedInputs) and data.times == 1
    for part in stream.split(37):
        assert len(part) > 0
    assert data.times == 2
    mixed = stream.permuted(torch.randperm(600))
    for first in (0, 300, 0, 302, 4):
        assert len(mixed[first : first + 3]) == 3
    assert data.times == 4


FEW: dict[str, Any] = {"seed": 1, "compute": nk.Compute(memory=SMALL)}
GRID: dict[str, Any] = FEW | {"noise": nk.Noise(add=1.0), "levels": [0.5, 2.0], "draws": 2}
ASKED: dict[str, Any] = GRID | {"at": nk.Value(0.5)}
# How often each study reads its data: once for their number and the values without noise, and for its own work.
PASSES: dict[str, tuple[int, Callable[[nn.Module, Any], Any]]] = {
    "walk": (2, lambda model, data: nk.walk(model, data, **GRID)),
    "plain": (2, lambda model, data: nk.walk(
        model, data, **GRID | {"compute": nk.Compute(memory=SMALL, engine="plain")})),
    "weights": (2, lambda model, data: nk.walk(model, data, target="weight", **GRID)),
    "walk_mixed": (2, lambda model, data: nk.walk_mixed(
        model, data, ratios=(0.0, 1.0), levels=[0.5], draws=2, **FEW)),
    "nll": (2, lambda model, data: nk.walk(model, data, metric="nll", **GRID)),
    "kl": (2, lambda model, data: nk.walk(model, data, metric="kl", **ASKED)),
    "a function": (2, lambda model, data: nk.walk(model, data, metric=nk.metrics.ByRow(
        lambda y, t: y.gather(-1, t[:, None])[:, 0], True), **ASKED | {"at": nk.Drop(0.1)})),
    "weighted": (3, lambda model, data: nk.walk(
        model, Weighed(data), metric=nk.metrics.Weighted("accuracy"), **GRID)),
    "mean_iou": (3, lambda model, data: nk.walk(model, data, metric="mean_iou", **GRID)),
    "store": (3, lambda model, data: nk.walk(model, data, store=Path(tempfile.mkdtemp()) / "a.store", **GRID)),
    "vote": (2, lambda model, data: nk.vote(model, data, noise=nk.Noise(add=1.0), draws=3, **FEW)),
    "vote on nll": (2, lambda model, data: nk.vote(
        model, data, noise=nk.Noise(add=1.0), draws=3, metric="nll", **FEW)),
    "chips": (2, lambda model, data: nk.chips(model, data, hardware=[nk.WeightNoise(add=1.0)], draws=3, **FEW)),
    "sweep_formats": (4, lambda model, data: nk.experiments.sweep_formats(model, data, ["M3E4", "M4E4"], **FEW)),
    "order_sensitivity": (5, lambda model, data: nk.experiments.order_sensitivity(
        model, data, nk.Serial(low=-1.0, high=1.0), permutations=2, orders=(), **FEW)),
}  # fmt: skip


class Weighed(Again):
    """Batches with weights of the rows beside them; counts for those that it is made of."""

    def __init__(self, data: Again) -> None:
        super().__init__(lambda _: [(x, y, 1 + y) for x, y in data])


@pytest.mark.parametrize("study", PASSES)
def test_how_often_data_are_read(study: str) -> None:
    """One pass counts rows and finds the values without noise; formats are compared on some rows, picked in a pass."""
    expected, asks = PASSES[study]
    data = Again(lambda _: batches(X, Y))
    asks(network(), data)
    assert data.times == expected


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_a_search_finds_values_without_noise_in_the_pass_that_counts(metric: str) -> None:
    """Though it looks at rows in another order, where each chunk takes a pass."""
    asked = {"metric": metric} if metric == "accuracy" else {"metric": metric, "at": nk.Ratio(2.0)}
    found = []
    for data in (Again(lambda _: batches(X, Y)), (X, Y)):
        problem = Problem.of(Call("f"), network(), data, seed=7, metric=metric, compute=FEW["compute"]).shuffled()
        with Session("f", problem, FEW["compute"]) as session:
            before = getattr(data, "times", 1)
            found.append((session.clean.tolist(), session.leads is None or session.leads.tolist()))
            assert getattr(data, "times", 1) == before
    assert found[0] == found[1]
    assert walked(loader(), sites=["2"], search=nk.Search(rel_ci=0.3), **asked) == walked(
        (X, Y), sites=["2"], search=nk.Search(rel_ci=0.3), **asked)  # fmt: skip


def test_inputs_and_labels_of_an_order_take_the_same_passes() -> None:
    """Whatever looks at them: on another device, by position, one after the other."""
    data = Again(lambda _: batches(X, WIDE))
    inputs, labels = loaded("f", data, SMALL)
    assert isinstance(inputs, StreamedInputs) and isinstance(labels, StreamedLabels) and data.times == 1
    order = torch.randperm(600, generator=torch.Generator().manual_seed(4))
    mixed = inputs.permuted(order).to(torch.device("cpu")).by_position()
    beside = labels.beside(mixed)
    for first in (0, 4, 0, 496, 499, 2, 496):
        some = slice(first, first + 6)
        assert torch.equal(beside[some], WIDE[order][some]) and torch.equal(mixed[some].tensors[0], X[order][some])
    assert data.times == 3  # for the first chunk of eleven rows, and for another
    again = mixed.permuted(order)
    assert torch.equal(again[:9].tensors[0], X[order][order][:9])
    assert torch.equal(labels.beside(again)[:9], WIDE[order][order][:9])
    assert torch.equal(mixed[:9].tensors[0], X[order][:9]) and data.times == 4
    some_rows = torch.tensor([3, 599, 3])  # of the order, not of the data
    assert torch.equal(mixed[some_rows].tensors[0], X[order][some_rows])
    assert torch.equal(beside[some_rows], WIDE[order][some_rows])


def test_the_order_of_a_search_is_that_of_data_in_memory() -> None:
    """Rows, labels and ids move together."""
    few, found = nk.Compute(memory=SMALL), []
    for given in (loader(), (X, Y)):
        problem = Problem.of(Call("f"), network(), given, seed=7, compute=few, rows=range(1000, 1600))
        inputs, labels, ids = problem.shuffled().first(50)
        found.append((inputs.tensors[0], labels, ids))
        assert torch.equal(X[ids - 1000], inputs.tensors[0]) and torch.equal(Y[ids - 1000], labels)
        assert not torch.equal(ids, torch.arange(1000, 1050))
    assert all(map(torch.equal, *found))


DATA = """
class Pictures(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows
    def __len__(self):
        return self.rows
    def __getitem__(self, i):
        return torch.full((3, 64, 64), float(i % 7) / 7), i % 4

def streamed(rows, **compute):
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data = torch.utils.data.DataLoader(Pictures(rows), 16)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.1], draws=1, seed=1, sites=["4"],
            compute=nk.Compute(**compute))
    return status("VmHWM") - before
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is Linux's")
def test_memory_for_ten_times_as_much_data() -> None:
    """Of 160 MiB of pictures, in 16 MiB; a chunk is an eighth of that."""
    then = f"streamed(8); print(streamed({160 * MIB // (3 * 64 * 64 * 4)}, memory={16 * MIB}))"
    told = subprocess.run(
        [sys.executable, "-c", f"{MODEL}\n{DATA}\n{then}"], capture_output=True, text=True, check=True
    )
    print(f"peak of {int(told.stdout.splitlines()[-1]) / MIB:.1f} MiB")
    assert int(told.stdout.splitlines()[-1]) <= (16 + 2) * MIB
