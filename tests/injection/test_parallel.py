"""Injected models in DistributedDataParallel and FSDP2, in either order: the noise and the gradients of one process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import noisykernels as nk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o = nn.Linear(6, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.block(torch.relu(self.a(x))))


X = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
ROWS = [4, 9, 1, 2, 7, 0]
PLACED: dict[str, dict[str, Any]] = {
    "noise": dict(noise=nk.Noise(add=0.3, mul=0.1)),
    "hardware": dict(noise=nk.Noise(add=0.1), hardware=[nk.WeightNoise(add=0.1), nk.MacNoise(read=0.1)]),
}
Step = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def stepped(outer: nn.Module, model: nn.Module, part: slice = slice(None)) -> Step:
    """A forward's result, and the gradients of the model in the wrapper."""
    with nk.noise_state(outer, seed=3, rows=ROWS[part]):
        y = outer(X[part])
    y.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    return y.detach(), {n: getattr(g, "full_tensor", lambda g=g: g)().clone() for n, g in grads.items()}


def plain(placed: str) -> Step:
    model = Net()
    with nk.inject(model, **PLACED[placed]):
        return stepped(model, model)


def assert_same(found: Step, wanted: Step) -> None:
    assert torch.equal(found[0], wanted[0]) and found[1].keys() == wanted[1].keys()
    assert all(torch.equal(g, wanted[1][name]) for name, g in found[1].items())


@pytest.mark.parametrize("options", [{}, {"static_graph": True}, {"gradient_as_bucket_view": True}], ids=str)
@pytest.mark.parametrize("order", ["inject first", "wrap first"])
@pytest.mark.parametrize("placed", PLACED)
def test_data_parallel(placed: str, order: str, options: dict[str, bool]) -> None:
    model = Net()
    names = [site.name for site in nk.sites(model, X)]
    if order == "inject first":
        nk.inject(model, **PLACED[placed])
        outer = DistributedDataParallel(model, **options)
    else:
        outer = DistributedDataParallel(model, **options)
        nk.inject(outer, **PLACED[placed])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(stepped(outer, model), plain(placed))
    assert [site.name for site in nk.sites(outer, X)] == names
    nk.remove(outer)
    with torch.no_grad():
        assert torch.equal(outer(X), Net()(X)) and "forward" not in vars(model)


@pytest.mark.parametrize("order", ["inject first", "shard first", "in between"])
@pytest.mark.parametrize("placed", PLACED)
def test_fully_sharded(placed: str, order: str) -> None:
    mesh, model = init_device_mesh("cpu", (1,)), Net()
    names = [site.name for site in nk.sites(model, X)]
    if order == "inject first":
        nk.inject(model, **PLACED[placed])
    fully_shard(model.block, mesh=mesh)
    if order == "in between":
        nk.inject(model, **PLACED[placed])
    fully_shard(model, mesh=mesh)
    if order == "shard first":
        nk.inject(model, **PLACED[placed], example_input=X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # hardware reaches weights that are gathered within the forward
        assert_same(stepped(model, model), plain(placed))
    assert [site.name for site in nk.sites(model, X)] == names
    assert nk.coverage(model, X).share("noise") == 1
    nk.remove(model)
    with torch.no_grad():
        assert torch.equal(model(X), Net()(X)) and "forward" not in vars(model)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for placed in PLACED:
        for first in (True, False):
            model = Net()
            if first:
                nk.inject(model, **PLACED[placed])
            outer = DistributedDataParallel(model)
            if not first:
                nk.inject(outer, **PLACED[placed])
            torch.save(stepped(outer, model, slice(3 * rank, 3 * rank + 3)), folder / f"{placed} {first} {rank}.pt")
    (folder / f"{rank} is done").touch()
    while not (folder / f"{1 - rank} is done").exists():  # a rank that leaves early breaks the other's connection
        time.sleep(0.01)
    torch.distributed.destroy_process_group()


@pytest.mark.full
def test_two_ranks_have_the_noise_of_one_process(tmp_path: Path) -> None:
    """Each rank has half of the rows, by their ids in the whole."""
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)
    for placed in PLACED:
        y, grads = plain(placed)
        for first in (True, False):
            ranks = [torch.load(tmp_path / f"{placed} {first} {rank}.pt") for rank in range(2)]
            torch.testing.assert_close(torch.cat([found for found, _ in ranks]), y, rtol=1e-5, atol=1e-6)
            for name, grad in grads.items():
                assert torch.equal(ranks[0][1][name], ranks[1][1][name])
                torch.testing.assert_close(ranks[0][1][name], grad, rtol=1e-4, atol=1e-6)
