"""SAM, ASAM, SAMSON as torch's optimizers: states, groups, what is refused, several processes."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sam_models import SGD, batch, every_method, loss_of, made, network, same, values
from torch import nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


# --- as torch's optimizers -----------------------------------------------------------------------


def test_one_list_of_groups_and_one_state() -> None:
    model = network()
    optimizer = made("asam", model, momentum=0.9)
    base = optimizer.base_optimizer
    assert isinstance(optimizer, torch.optim.Optimizer) and type(base) is SGD
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(lambda: loss_of(model, batch()).backward())
    schedule.step()  # without a warning that no step was taken
    assert base.param_groups[0]["lr"] == 0.05 and "momentum_buffer" in base.state[model[0].weight]
    assert "rho" in repr(optimizer)


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy"])
@every_method
def test_a_stored_optimizer_goes_on_as_if_nothing_happened(method: str, way: str) -> None:
    model = network(torch.float32)
    data = batch(torch.float32)

    def run(model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            optimizer.step(lambda: loss_of(model, data).backward())

    optimizer = made(method, model, torch.optim.Adam, lr=0.01)
    run(model, optimizer)
    optimizer.param_groups[0]["rho"] *= 2  # is stored
    if way == "deepcopy":
        twin, other = copy.deepcopy((model, optimizer))
    else:
        twin = network(torch.float32)
        twin.load_state_dict(model.state_dict())
        other = made(method, twin, torch.optim.Adam, lr=0.5)
        stored = copy.deepcopy(optimizer.state_dict())  # torch's optimizers share the tensors of what they load
        if way == "file":
            file = io.BytesIO()
            torch.save(stored, file)
            file.seek(0)
            stored = torch.load(file, weights_only=True)
        other.load_state_dict(stored)
    assert other.param_groups is other.base_optimizer.param_groups and other.state is other.base_optimizer.state
    assert other.param_groups[0]["lr"] == 0.01
    run(model, optimizer)
    run(twin, other)
    assert same(values(model), values(twin)) and optimizer.state is not other.state


def test_the_state_of_a_base_optimizer_alone_can_be_loaded_and_the_other_way_round() -> None:
    model = network()
    base = SGD(model.named_parameters(), lr=0.3, momentum=0.9)
    loss_of(model, batch()).backward()
    base.step()
    base.zero_grad()
    optimizer = made("asam", model, momentum=0.9)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]["rho"] == 0.7 and optimizer.param_groups[0]["lr"] == 0.3
    assert torch.equal(
        optimizer.state[model[0].weight]["momentum_buffer"], base.state[model[0].weight]["momentum_buffer"]
    )
    optimizer.step(lambda: loss_of(model, batch()).backward())
    base.load_state_dict(optimizer.state_dict())
    base.step()


def test_added_group() -> None:
    model, head = network(), nn.Linear(3, 2).double()
    optimizer = made("samson_2", model)
    optimizer.add_param_group({"params": list(head.named_parameters()), "rho": 2.0, "lr": 0.7})
    assert len(optimizer.base_optimizer.param_groups) == 2
    assert {k: optimizer.param_groups[1][k] for k in ("rho", "eta", "p", "lr")} == {
        "rho": 2.0, "eta": 0.05, "p": 2, "lr": 0.7}  # fmt: skip
    before = values(head)
    optimizer.step(lambda: head(model(batch()[0])).square().sum().backward())
    assert not any(torch.equal(a, b) for a, b in zip(values(head), before, strict=True))
    with pytest.raises(ValueError, match="rho"):
        optimizer.add_param_group({"params": [("weight", nn.Parameter(torch.ones(1)))], "rho": -1.0})
    assert len(optimizer.param_groups) == 2


W = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nk.training.SAM([W], SGD([W], lr=0.1)), TypeError, "optimizer's class, .* got an object of class SGD"),
        (lambda: nk.training.SAM([W], nn.Linear, lr=0.1), TypeError, "optimizer's class, .* got the class Linear"),
        (
            lambda: nk.training.SAM([W], SGD, lr=0.1, rho=-0.1),
            ValueError,
            "rho must be a finite number of at least 0, got -0.1",
        ),
        (lambda: nk.training.SAM([W], SGD, lr=0.1, rho=math.nan), ValueError, "rho must be a finite number"),
        (lambda: nk.training.SAM([W], SGD, lr=0.1, rho=math.inf), ValueError, "rho must be a finite number"),
        (
            lambda: nk.training.SAM([W], SGD, lr=0.1, rho="0.1"),
            TypeError,
            "rho must be a finite number of at least 0, got '0.1'",
        ),
        (
            lambda: nk.training.SAM([W], SGD, lr=0.1, rho=True),
            TypeError,
            "rho must be a finite number of at least 0, got True",
        ),
        (lambda: nk.training.SAM([{"params": [W], "rho": -1}], SGD, lr=0.1), ValueError, "rho must be"),
        (lambda: nk.training.SAM([W], torch.optim.Adadelta), ValueError, "Adadelta has settings of the same name: rho"),
        (lambda: nk.training.SAM([W], SGD, lr=0.1, model=W), TypeError, "model must be a torch.nn.Module"),
        (lambda: nk.training.SAM([W], SGD, lr=0.1, eta=1.0), TypeError, "options .* of SGD, got lr=0.1, eta=1.0"),
        (lambda: nk.training.SAM([], SGD, lr=0.1), ValueError, "params must hold at least one parameter, got none"),
        (lambda: nk.training.ASAM([W], SGD, lr=0.1), ValueError, "give model.named_parameters"),
        (
            lambda: nk.training.ASAM([("weight", W)], SGD, lr=0.1, eta=-1),
            ValueError,
            "eta must be a finite number of at least 0",
        ),
        (lambda: nk.training.SAMSON([W], SGD, lr=0.1), ValueError, "give model.named_parameters"),
        (
            lambda: nk.training.SAMSON([("weight", W)], SGD, lr=0.1, p=0.5),
            ValueError,
            "p must be a number from 1 to inf, got 0.5",
        ),
        (
            lambda: nk.training.SAMSON([("weight", W)], SGD, lr=0.1, p=math.nan),
            ValueError,
            "p must be a number from 1 to inf",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_calls_out_of_order_are_refused() -> None:
    model = network()
    before, optimizer = values(model), made("sam", model)
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="not at the ascent point"):
        optimizer.restore()
    loss_of(model, batch()).backward()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match="already"):
        optimizer.ascend()
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.restore()
    assert same(values(model), before)
    optimizer.step()
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.ascend()
    optimizer.restore()
    optimizer.ascend()  # the step before was left out, as a loss scaler does
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.restore()
    optimizer.step()
    for _ in optimizer.passes():
        break
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="of weight is sparse"):
        nk.training.SAM(table.named_parameters(), SGD, lr=0.1).ascend()


# --- two processes -------------------------------------------------------------------------------


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(_small())
    x, y = (part[rank::2] for part in batch())
    found = []
    for synced in (True, False):
        optimizer = nk.training.ASAM(model.named_parameters(), SGD, lr=0.1)
        for number in optimizer.passes():
            for i, part in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
                alone = i == 0 or (number == 0 and not synced)
                with model.no_sync() if alone else contextlib.nullcontext():
                    (loss_of(model, part) / 2).backward()
            if number == 1:
                found.append(values(model))  # where the second gradient is taken
        optimizer.step()
        optimizer.zero_grad()
        found.append(values(model))
    torch.save(found, folder / f"{rank}.pt")
    while not (folder / f"{1 - rank}.pt").exists():  # a rank that leaves early breaks the other's connection
        time.sleep(0.01)
    torch.distributed.destroy_process_group()


def _small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.full
def test_two_ranks_and_no_sync(tmp_path: Path) -> None:
    """Synchronised passes make the step of the whole batch. With the first pass under `no_sync` each rank ascends by
    its own gradient, and the weights still agree to the bit afterwards."""
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    agree = [same(a, b) for a, b in zip(*ranks, strict=True)]
    assert agree == [True, True, False, True]  # ascent point and step, synchronised; the same without
    whole = _small()
    optimizer = nk.training.ASAM(whole.named_parameters(), SGD, lr=0.1)
    optimizer.step(lambda: loss_of(whole, batch()).backward())
    for p, q in zip(values(whole), ranks[0][1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
