"""One noise, however many processes: the same losses and the same bits alone and under torchrun. A few seconds.

python examples/processes.py
torchrun --nproc-per-node 2 examples/processes.py
"""

from __future__ import annotations

import hashlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import noisykernels as nk

ROWS, BATCH = 256, 64


def network() -> nn.Sequential:
    """The same in all processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))


def data_parallel(rank: int, count: int) -> list[float]:
    """The losses of an epoch of noisy training, of which each process has its rows."""
    x = torch.randn(ROWS, 20, generator=torch.Generator().manual_seed(1))
    data, model = TensorDataset(x, x[:, :4].argmax(1)), network()
    loader = DataLoader(data, BATCH // count, sampler=DistributedSampler(data, count, rank, seed=2))
    nk.inject(model, nk.Noise(add=0.1), where=nn.Linear)
    outer = DistributedDataParallel(model) if count > 1 else model
    noisy, optimizer, losses = nk.training.noisy_steps(model, seed=3), torch.optim.Adam(model.parameters()), []
    for step, (rows, (inputs, labels)) in enumerate(nk.datasets.numbered(loader)):
        with noisy(step, rows):
            loss = F.cross_entropy(outer(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if count > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / count)
    return losses


def tensor_parallel(count: int) -> str:
    """A digest of the noise at a layer of which each process has its columns."""
    model = network()
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)  # so that its output is noise and nothing else
    if count > 1:
        plan = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (count,)), plan)
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=3):
        model(torch.ones(8, 20))
    noise = seen[0].full_tensor() if isinstance(seen[0], DTensor) else seen[0]
    return hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:16]


def run(rank: int = 0, count: int = 1) -> tuple[list[float], str]:
    """Both, as this process of so many finds them."""
    losses, digest = data_parallel(rank, count), tensor_parallel(count)
    if rank == 0:
        print(f"{count} process{'es' * (count > 1)}")
        print("losses, data parallel:         ", *(f"{loss:.5f}" for loss in losses))
        print("bits of noise, tensor parallel:", digest)
    return losses, digest


if __name__ == "__main__":
    if "RANK" not in os.environ:
        run()
    else:
        dist.init_process_group("gloo")
        run(dist.get_rank(), dist.get_world_size())
        dist.barrier()
        dist.destroy_process_group()
