"""The same training steps in one process and in several: what each case gives, put together to the whole.

Values lie on a grid so coarse that sums of them are exact in any order: what differs by a bit differs by its noise. A
case is a function of a `Group`, or of None in one process, where nothing of torch's distributed package is used.
Printed as a table: ``python tests/helpers/process_cases.py 1 2 4``.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import noisykernels as nk
from noisykernels.zoo.llama import Llama, LlamaSizes

__all__ = ["CASES", "Found", "Group", "all_cases", "compared", "in_processes"]

Found = dict[str, Tensor]


class Group(NamedTuple):
    """The processes that share a case."""

    rank: int
    size: int
    mesh: DeviceMesh


# ------------------------------------------------------------------------------------------------------ what is run


class _OnGrid(torch.autograd.Function):
    """Values and gradients rounded to multiples of a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        ctx.step = step
        return (x / step).round() * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] / ctx.step).round() * ctx.step, None


def on_grid(x: Tensor, step: float = 2**-4) -> Tensor:
    """The same with its gradient."""
    made: Tensor = _OnGrid.apply(x, step)
    return made


def whole_numbers(*shape: int, seed: int, most: int = 2) -> Tensor:
    """Values of which sums are exact."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


class Net(nn.Module):
    """Two linear layers with a rectifier between them."""

    def __init__(self, step: float = 2**-4, layer: Callable[..., nn.Module] = nn.Linear, inner: int = 12) -> None:
        super().__init__()
        self.step = step
        self.up, self.down = layer(6, inner), layer(inner, 8)
        self.relu = nn.ReLU()
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(whole_numbers(*parameter.shape, seed=number, most=1))

    def forward(self, x: Tensor) -> Tensor:
        x = on_grid(self.up(on_grid(x, self.step)), self.step)
        return on_grid(self.down(on_grid(self.relu(x), self.step)), self.step)


ROWS, STEPS = 16, 2
X, GOAL = whole_numbers(ROWS, 6, seed=10), whole_numbers(ROWS, 8, seed=11, most=1)


def full(t: Tensor) -> Tensor:
    """The whole of what may be a DTensor."""
    made: Tensor = t.full_tensor() if isinstance(t, DTensor) else t
    return made.detach().clone()


def gradients(model: nn.Module, factor: float = 1.0) -> Found:
    """Of all parameters, whole."""
    return {f"gradient of {name}": full(p.grad) * factor for name, p in model.named_parameters() if p.grad is not None}


def by_row(rows: Tensor, values: Tensor, group: Group | None) -> Tensor:
    """The values of rows that processes have shared, in the order of their ids."""
    if group is not None:
        every = [(torch.empty_like(rows), torch.empty_like(values)) for _ in range(group.size)]
        dist.all_gather([r for r, _ in every], rows)
        dist.all_gather([v for _, v in every], values)
        rows, values = torch.cat([r for r, _ in every]), torch.cat([v for _, v in every])
    order = rows.argsort(stable=True)
    return torch.cat([rows[order].unsqueeze(1).to(values.dtype), values[order].flatten(1)], 1)


# ----------------------------------------------------------------------------------------------------- data parallel


def trained(
    model: nn.Module, outer: Any, group: Group | None, dtype: torch.dtype = torch.float32, accumulated: bool = False
) -> Found:  # fmt: skip
    """Two steps of one batch each over shuffled data, of which each process has its rows; where gradients are
    `accumulated`, processes share them after the second."""
    data, count = TensorDataset(X.to(dtype), GOAL.to(dtype)), 1 if group is None else group.size
    sampler = DistributedSampler(data, count, 0 if group is None else group.rank, shuffle=True, seed=3)
    loader = nk.datasets.numbered(DataLoader(data, batch_size=ROWS // STEPS // count, sampler=sampler))
    noisy = nk.training.noisy_steps(model, seed=1)
    made: Found = {}
    for step, (rows, (x, goal)) in enumerate(loader):
        apart = accumulated and group is not None and step < STEPS - 1
        if isinstance(outer, FSDPModule):
            outer.set_requires_gradient_sync(not apart)
        with outer.no_sync() if apart and outer is not model else contextlib.nullcontext():
            with noisy(step, rows):
                y = outer(x)
            (y * goal).sum().backward()
        made[f"outputs of step {step}"] = by_row(rows, y.detach().float(), group)
    return made | gradients(model, count)  # of which torch's wrappers take the mean


def ddp(group: Group | None, accumulated: bool = False, **placed: Any) -> Found:
    """DistributedDataParallel around an injected model."""
    model = Net()
    with nk.inject(model, **placed):
        outer = model if group is None else DistributedDataParallel(model)
        return trained(model, outer, group, accumulated=accumulated)


def fsdp(
    group: Group | None, step: float = 2**-4, half: bool = False, accumulated: bool = False, **placed: Any
) -> Found:  # fmt: skip
    """FSDP2 of each layer and of the model."""
    model = Net(step)
    dtype = torch.bfloat16 if half else torch.float32
    if group is not None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for module in (model.up, model.down, model):
            fully_shard(module, mesh=group.mesh, mp_policy=policy)
    else:
        model.to(dtype)
    with nk.inject(model, **placed):
        found = trained(model, model, group, dtype, accumulated)
    return {name: value.float() for name, value in found.items()}


def fsdp_of_layers(group: Group | None) -> Found:
    """FSDP2 of layers that draw by themselves."""
    weights = [nk.WeightNoise(add=2**-3)]
    model = Net(layer=lambda *sizes: nk.NoisyLinear(*sizes, noise=nk.Noise(add=0.5), hardware=weights))
    if group is not None:
        for module in (model.up, model.down, model):
            fully_shard(module, mesh=group.mesh)
    return trained(model, model, group)


# --------------------------------------------------------------------------------------------------- tensor parallel

COLUMNS = {"up": ColwiseParallel(), "down": RowwiseParallel()}
THROUGHOUT = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel(use_local_output=False)}
TOKENS = whole_numbers(2, 8, 6, seed=12)
AIM = whole_numbers(2, 8, 8, seed=13, most=1)


def tensor_parallel(group: Group | None, plan: Any = COLUMNS, x: Tensor = TOKENS, **more: Any) -> Found:
    """One step of a model whose layers processes share; `more` is of `inject` and, beside it, of `noise_state`."""
    state = {name: more.pop(name) for name in ("rows", "draws", "level") if name in more}
    model = Net(layer=more.pop("layer", nn.Linear), inner=more.pop("inner", 12))
    if group is not None:
        parallelize_module(model, group.mesh, dict(plan))
    placed = nk.inject(model, **more) if more else contextlib.nullcontext()
    with placed, nk.noise_state(model, seed=1, **state):
        y = model(x)
        y = y.full_tensor() if isinstance(y, DTensor) else y
        (y * AIM.repeat(len(y) // len(AIM), 1, 1)).sum().backward()
    return {"output": full(y)} | gradients(model)


NOISE: dict[str, Any] = dict(noise=nk.Noise(add=0.5))
BOTH: dict[str, Any] = dict(noise=nk.Noise(add=0.5, mul=0.25), where="*:linear")
WEIGHTS: dict[str, Any] = dict(noise=nk.Noise(add=0.5), hardware=[nk.WeightNoise(add=2**-3)])
IDS = nk.TokenRows(64, sequence=[9, 4])


def _shaken(x: Tensor, draw: nk.injection.SiteDraw) -> Tensor:
    return x + on_grid(draw.fresh(x, "shaken"))


def in_two_ways(group: Group | None, **placed: Any) -> Found:
    """Layers that pairs of processes share, FSDP2 between the pairs, which have rows of their own."""
    model, pair, pairs = Net(), 0, 1
    if group is not None and group.size > 1:
        mesh, pairs = init_device_mesh("cpu", (group.size // 2, 2), mesh_dim_names=("rows", "layers")), group.size // 2
        pair = mesh.get_coordinate()[0]
        parallelize_module(model, mesh["layers"], dict(COLUMNS))
        for module in (model.up, model.down, model):
            fully_shard(module, mesh=mesh["rows"])
    rows = torch.arange(ROWS).chunk(pairs)[pair]
    with nk.inject(model, **placed), nk.noise_state(model, seed=1, rows=rows):
        y = model(X[rows])
        (y * GOAL[rows]).sum().backward()
    return {"outputs": torch.unique(by_row(rows, y.detach(), group), dim=0)} | gradients(model, pairs)


class LocalRows(nn.Linear):
    """A row-parallel layer of which only the parts of its sum are seen, as transformers has it without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.weight, DTensor):
            return super().forward(x)
        part = torch.nn.functional.linear(x, self.weight.to_local())
        dist.all_reduce(part)
        return part


def with_local_rows(group: Group | None, bias: bool = False) -> Net:
    """A net whose second layer is one."""
    model = Net()
    model.down = LocalRows(12, 8, bias=bias)
    with torch.no_grad():
        model.down.weight.copy_(whole_numbers(8, 12, seed=18, most=1))
    if group is not None:
        parallelize_module(model, group.mesh, {"up": ColwiseParallel()})
        model.down.weight = nn.Parameter(distribute_tensor(model.down.weight.detach(), group.mesh, [Shard(1)]))
    return model


def local_rows(group: Group | None) -> Found:
    """Noise on parts of a sum comes once."""
    model = with_local_rows(group)
    with torch.no_grad(), nk.inject(model, **BOTH), nk.noise_state(model, seed=1, rows=IDS):
        return {"output": full(model(TOKENS))}


def sequence_parallel(group: Group | None, **placed: Any) -> Found:
    """Tokens are shared between the two parallel layers of a norm's neighbours."""

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Identity(), nn.LayerNorm(6, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(self.first(x)))

    model = Normed()
    if group is not None:
        plan = {
            "norm": SequenceParallel(),
            "first": PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(1)),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        }
        parallelize_module(model, group.mesh, plan)
    with nk.inject(model, **placed), nk.noise_state(model, seed=1, rows=IDS):
        y = model(TOKENS)
        y = y.full_tensor() if isinstance(y, DTensor) else y
        (y * AIM).sum().backward()
    return {"output": full(y)} | gradients(model)


SIZES = LlamaSizes(vocabulary=32, width=32, hidden=64, blocks=2, heads=4, shared=4)
WORDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(14))


def llama(group: Group | None) -> Found:
    """All linear layers of a Llama: their outputs are nothing but noise, since their weights are zero."""
    model = Llama(SIZES)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    if group is not None:
        plan: dict[str, Any] = {}
        for name, _ in model.named_modules():
            if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                plan[name] = ColwiseParallel()
            elif name.rpartition(".")[2] in ("o_proj", "down_proj"):
                plan[name] = RowwiseParallel()
        parallelize_module(model, group.mesh, plan)
    found: Found = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        cut = group is not None and output.shape[-1] != module.out_features
        if cut:
            output = DTensor.from_local(output, group.mesh, [Shard(2)]).full_tensor()
        found[name] = full(output)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=1, rows=IDS), torch.no_grad():
        model(WORDS)
    return found


# ---------------------------------------------------------------------------------------------------------- operators


def operators(group: Group | None) -> Found:
    """`perturb` and `linear` of DTensors in all placements, and the gradients."""
    noise, found = nk.Noise(add=0.5, mul=0.25), Found()
    x, weight, aim = whole_numbers(5, 4, 10, seed=15), whole_numbers(6, 10, seed=16), whole_numbers(5, 4, 10, seed=17)
    for number, placement in enumerate((Shard(0), Shard(1), Shard(2), Replicate())):
        for key, of_call in {
            "rows": dict(rows=[3, 1, 9, 0, 2]),
            "tokens": dict(rows=nk.TokenRows(16, [3, 1, 9, 0, 2], range(4))),
            "draws": dict(draws=[0, 2], shared=True),
            "in units": dict(noise=nk.Noise(add=0.5, relative="rms")),
        }.items():
            a = x.clone() if group is None else distribute_tensor(x, group.mesh, [placement])
            a.requires_grad_()
            y = nk.perturb(a, **{"noise": noise, "seed": 1} | of_call)
            along = aim.repeat(len(y) // len(aim), 1, 1)
            if group is not None:
                along = distribute_tensor(along, group.mesh, [Replicate()])
            (y * along).sum().backward()
            found |= {f"perturb {number} {key}": full(y), f"perturb {number} {key} gradient": full(a.grad)}
    for number, placement in enumerate((Shard(0), Shard(1), Replicate())):
        w = weight if group is None else distribute_tensor(weight, group.mesh, [placement])
        a = x if group is None else distribute_tensor(x, group.mesh, [Replicate()])
        found[f"linear {number}"] = full(nk.linear(a, w, noise=noise, seed=1, relu=True))
        found[f"matmul {number}"] = full(nk.matmul(a, w.T, noise=noise, seed=1))
        found[f"weights {number}"] = full(nk.linear(a, w, hardware=[nk.WeightNoise(add=0.5)], seed=1))
    return found


def subset(group: Group | None) -> Found:
    """Rows of a subset, an uneven last batch, and a row that the sampler gives twice."""
    model, data = Net(), Subset(TensorDataset(X), [3, 14, 1, 8, 9, 2, 11])
    count = 1 if group is None else group.size
    sampler = DistributedSampler(data, count, 0 if group is None else group.rank, shuffle=False)
    loader = nk.datasets.numbered(DataLoader(data, batch_size=2, sampler=sampler))
    made = []
    with nk.inject(model, **NOISE), torch.no_grad():
        for rows, (x,) in loader:
            with nk.noise_state(model, seed=1, rows=rows):
                made.append((rows, model(x)))
    every = by_row(torch.cat([r for r, _ in made]), torch.cat([y for _, y in made]), group)
    return {"outputs": torch.unique(every, dim=0)}  # a row that came twice is the same twice


CASES: dict[str, Callable[[Group | None], Found]] = {
    "operators": operators,
    "sampler, subset": subset,
    "data parallel": lambda group: ddp(group, **NOISE),
    "data parallel, weight noise": lambda group: ddp(group, **WEIGHTS),
    "data parallel, accumulated": lambda group: ddp(group, accumulated=True, **NOISE),
    "FSDP2": lambda group: fsdp(group, **NOISE),
    "FSDP2, weight noise": lambda group: fsdp(group, **WEIGHTS),
    "FSDP2, accumulated": lambda group: fsdp(group, accumulated=True, **NOISE),
    "FSDP2, bfloat16": lambda group: fsdp(group, step=1.0, half=True, **NOISE),
    "FSDP2, noisy layers": fsdp_of_layers,
    "tensor parallel": lambda group: tensor_parallel(group, **NOISE),
    "tensor parallel, DTensors throughout": lambda group: tensor_parallel(group, THROUGHOUT, **NOISE),
    "tensor parallel, uneven": lambda group: tensor_parallel(group, THROUGHOUT, inner=7, **NOISE),
    "tensor parallel and FSDP2": lambda group: in_two_ways(group, **NOISE),
    "tensor parallel and FSDP2, weight noise": lambda group: in_two_ways(group, **WEIGHTS),
    "tensor parallel, factors": lambda group: {"output": tensor_parallel(group, **BOTH)["output"]},
    "tensor parallel, local kernels": local_rows,
    "tensor parallel, in units": lambda group: tensor_parallel(group, noise=nk.Noise(add=0.5, relative="rms")),
    "tensor parallel, functions": lambda group: tensor_parallel(group, noise=_shaken),
    "tensor parallel, weight noise": lambda group: tensor_parallel(group, **WEIGHTS),
    "tensor parallel, draws": lambda group: tensor_parallel(group, draws=[0, 3], **NOISE),
    "tensor parallel, noisy layers": lambda group: tensor_parallel(
        group, layer=lambda *sizes: nk.NoisyLinear(*sizes, noise=nk.Noise(add=0.5))
    ),
    "tensor parallel, tokens": lambda group: tensor_parallel(group, rows=IDS, **NOISE),
    "sequence parallel": lambda group: sequence_parallel(group, **NOISE),
    "Llama": llama,
}

# ------------------------------------------------------------------------------------------------------- processes


def all_cases(group: Group | None = None) -> dict[str, Found]:
    """What all cases give in a process."""
    return {name: case(group) for name, case in CASES.items()}


def _rank(rank: int, size: int, folder: Path, run: Callable[[Group], Any]) -> None:
    torch.set_num_threads(1)
    with in_group(rank, size, folder) as group:
        torch.save(run(group), folder / f"{rank}.pt")


@contextlib.contextmanager
def in_group(rank: int, size: int, folder: Path) -> Iterator[Group]:
    """A process of several that meet in a folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    yield Group(rank, size, init_device_mesh("cpu", (size,)))
    (folder / f"{rank} is done").touch()
    while not all((folder / f"{other} is done").exists() for other in range(size)):
        time.sleep(0.01)  # a process that leaves early breaks the others' connections
    dist.destroy_process_group()


def in_processes(size: int, folder: Path, run: Callable[[Group], Any]) -> list[Any]:
    """What each of so many processes finds."""
    torch.multiprocessing.spawn(_rank, (size, folder, run), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def compared(one: Found, several: list[Found]) -> tuple[int, int]:
    """How many values there are, and how many differ in any of the processes."""
    differing = 0
    for found in several:
        assert found.keys() == one.keys() and all(found[name].shape == one[name].shape for name in one)
        differing += sum(int((found[name] != one[name]).sum()) for name in one)
    return len(several) * sum(value.numel() for value in one.values()), differing


def table(sizes: list[int]) -> list[str]:
    """How many values were compared in so many processes, and how many differ, as lines of Markdown."""
    one, several = all_cases(), {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            several[size] = in_processes(size, Path(folder), all_cases)
    columns = [f"{size} process{'es' * (size > 1)}: values | differences" for size in sizes]
    lines = [f"| {' | '.join(['the same by', *columns])} |", f"|---|{'---:|---:|' * len(sizes)}"]
    for name in CASES:
        counts = [compared(one[name], [found[name] for found in several[size]]) for size in sizes]
        lines.append(f"| {name} | {' | '.join(f'{number:,} | {other}' for number, other in counts)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table([int(size) for size in sys.argv[1:]])))
