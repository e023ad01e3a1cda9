"""What cannot be right where processes hold parts of a model: all of them run it, and it fails in all, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from process_cases import COLUMNS, NOISE, TOKENS, Found, Group, Net, all_cases, with_local_rows
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import noisykernels as nk

__all__ = ["REFUSED", "all_of"]

SHARED = {"up": ColwiseParallel(), "down": RowwiseParallel()}
SUMS = {"up": RowwiseParallel(input_layouts=Replicate(), output_layouts=Partial()), "down": RowwiseParallel()}


class Written(Net):
    """A net that does this between its layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return self.down(self.between(self.up(x)))


class Cache:
    """What transformers calls one."""

    def get_seq_length(self) -> int:
        return 0


def run(group: Group, model: nn.Module, plan: Any = COLUMNS, given: Any = (), **placed: Any) -> None:
    parallelize_module(model, group.mesh, dict(plan))
    with nk.inject(model, **placed), nk.noise_state(model, seed=1):
        model(TOKENS, *given)


def _folded(x: Tensor) -> Tensor:
    """Heads in the batch."""
    heads = x.unflatten(-1, (-1, 3)).transpose(1, 2)
    again: Tensor = torch.relu(heads.flatten(0, 1)).unflatten(0, heads.shape[:2]).transpose(1, 2).flatten(2)
    return again


def _values(x: Tensor) -> Tensor:
    return torch.relu(x) if x.sum().item() != 0.125 else x


def _products(x: Tensor) -> Tensor:
    return x * (x.unsqueeze(-1) @ x.unsqueeze(-2)).sum((-1, -2), keepdim=True).squeeze(-1)


def no_seed(group: Group) -> None:
    model = Net()
    parallelize_module(model, group.mesh, dict(COLUMNS))
    with nk.inject(model, **NOISE):
        model(TOKENS)


def others(group: Group, **told: Any) -> None:
    model = Net()
    parallelize_module(model, group.mesh, dict(COLUMNS))
    with nk.inject(model, **NOISE), nk.noise_state(model, **{"seed": 1} | told):
        model(TOKENS)


def compiled(group: Group) -> None:
    model = Net()
    parallelize_module(model, group.mesh, dict(COLUMNS))
    with nk.inject(model, **NOISE), nk.noise_state(model, seed=1):
        torch.compile(model, backend="eager", fullgraph=True)(TOKENS)


def walked(group: Group) -> None:
    model = Net()
    parallelize_module(model, group.mesh, dict(COLUMNS))
    nk.walk(
        model, (TOKENS[0], torch.zeros(8, dtype=torch.int64)), noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1
    )


class Packed(nn.Linear):
    """Two layers in one, of each of which a process has some rows."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        return torch.nn.functional.linear(x, weight)


def packed(group: Group) -> None:
    from torch.distributed.tensor.placement_types import _StridedShard  # no name for users

    model, like = Net(), torch.empty(12, 6)
    parallelize_module(model, group.mesh, dict(COLUMNS))
    model.up, placed = Packed(6, 12, bias=False), [_StridedShard(0, split_factor=2)]
    of_all = {"shape": like.shape, "stride": like.stride()}
    rows = torch.ones(12 // group.size, 6)
    model.up.weight = nn.Parameter(DTensor.from_local(rows, group.mesh, placed, run_check=False, **of_all))
    with nk.inject(model, **NOISE), nk.noise_state(model, seed=1):
        model(TOKENS)


def summed(group: Group, grad: bool, bias: bool) -> None:
    model = with_local_rows(group, bias)
    with torch.set_grad_enabled(grad), nk.inject(model, **NOISE), nk.noise_state(model, seed=1):
        model(TOKENS)


def strided(group: Group) -> None:
    from torch.distributed.tensor.placement_types import _StridedShard  # no name for users

    parts = DTensor.from_local(TOKENS, group.mesh, [_StridedShard(1, split_factor=2)], run_check=False)
    nk.perturb(parts, nk.Noise(add=1.0), seed=1)


def spread(group: Group) -> DTensor:
    return distribute_tensor(TOKENS, group.mesh, [Shard(2)])


# What happens -> the words that must be in the message.
REFUSED: dict[str, tuple[Callable[[Group], Any], tuple[str, ...]]] = {
    "a plain partial sum": (lambda g: run(g, Net(), SUMS, where="relu", **NOISE), ("relu:relu#0", "parts of a sum")),
    "heads in the batch": (
        lambda g: run(g, Written(_folded), where="*:relu", **NOISE),
        (":relu#0", "rows are folded with what is cut"),
    ),
    "a cache": (lambda g: run(g, Written(torch.relu), given=[Cache()], **NOISE), ("relu#0", "given a cache")),
    "a model that looks at values": (lambda g: run(g, Written(_values), **NOISE), ("relu#0", "without content")),
    "hardware on parts": (
        lambda g: run(g, Written(_products), noise=None, hardware=[nk.MacNoise(read=0.1)]),
        (":matmul#0", "hardware needs the whole"),
    ),
    "a packed layer": (packed, ("up:linear#0", "several blocks")),
    "parts of a sum and a bias": (lambda g: summed(g, False, True), ("down:linear#0", "a bias comes only afterwards")),
    "parts of a sum and gradients": (lambda g: summed(g, True, False), ("down:linear#0", "a sum, with gradients")),
    "no seed": (no_seed, ("noise_state: seed", "got None")),
    "other seeds": (lambda g: others(g, seed=g.rank), ("noise_state: seed", "got others")),
    "seeds that each has drawn": (lambda g: others(g, seed=None, advance=True), ("noise_state: seed", "got others")),
    "other draws": (lambda g: others(g, draws=[g.rank]), ("noise_state: seed, draws", "got others")),
    "other rows": (lambda g: others(g, rows=[0, 1 + g.rank]), ("noise_state: seed, draws, rows", "got others")),
    "a compiled model": (compiled, ("tensor-parallel", "cannot be compiled")),
    "a walk": (walked, ("walk: model must be whole", "DTensors")),
    "an operator without a seed": (lambda g: nk.perturb(spread(g), nk.Noise(add=1.0)), ("perturb: seed", "got None")),
    "plain weights": (
        lambda g: nk.linear(spread(g), torch.ones(3, 6), noise=nk.Noise(add=1.0), seed=1),
        ("linear: weight must be a DTensor", "got Tensor"),
    ),
    "a level in parts": (
        lambda g: nk.perturb(spread(g), nk.Noise(add=spread(g).abs().unsqueeze(0)), seed=1),
        ("perturb: a level", "got a DTensor"),
    ),
    "uneven rows of tokens, in torch itself": (
        lambda g: torch.nn.functional.linear(
            distribute_tensor(torch.ones(5, 7, 6), g.mesh, [Shard(0)]), distribute_tensor(torch.ones(3, 6), g.mesh)
        ),
        ("Cannot flatten unevenly sharded tensor",),
    ),
    "columns that processes do not divide, as plain tensors, in torch itself": (
        lambda g: parallelize_module(Net(inner=7), g.mesh, dict(COLUMNS))(TOKENS),
        ("a and b must have same reduction dim",),
    ),
    "copies as partial sums, in torch itself": (
        lambda g: run(g, Net(), SUMS, where="up", **NOISE),
        ("Can not redistribute from R to P(sum)",),
    ),
    "mixed operands, in torch itself": (lambda g: spread(g) + torch.ones(6), ("got mixed torch.Tensor and DTensor",)),
    "strided shards": (strided, ("perturb: a DTensor must have the placements", "_StridedShard")),
}  # fmt: skip


def told(group: Group) -> dict[str, str]:
    """The messages of all, and of warnings."""
    torch.manual_seed(group.rank)
    found = {}
    for name, (case, _) in REFUSED.items():
        try:
            case(group)
            found[name] = ""
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    model = Net()
    with warnings.catch_warnings(record=True) as caught, nk.inject(model, **NOISE), nk.noise_state(model, seed=1):
        warnings.simplefilter("always")
        DistributedDataParallel(model)(TOKENS)
        data = TOKENS[0], torch.zeros(8, dtype=torch.int64)
        nk.walk(Net(), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1)
        nk.vote(Net(), data, noise=nk.Noise(add=1.0), draws=2, seed=1)
        nk.chips(Net(), data, noise=nk.Noise(add=1.0), draws=1, seed=1)
    return found | {"warnings": "\n".join(str(w.message) for w in caught)}


def all_of(group: Group) -> tuple[dict[str, Found], dict[str, str]]:
    """What all cases give, and the messages."""
    return all_cases(group), told(group)
