"""A running forward of a model of which every process holds a part (tensor parallel): where values lie in the whole.

Of a DTensor torch tells. A plain value may be a part too, as behind ``ColwiseParallel``, and nothing at it tells so: it
is held against the shape that it has in the whole model (`whole`), and a copy against those of the other processes.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.warning import warn_user
from noisykernels.injection.doors import paths_of
from noisykernels.injection.rows import Rows
from noisykernels.injection.site import is_input
from noisykernels.injection.tokens import Place
from noisykernels.noise.description import Noise
from noisykernels.noise.shards import block_of, from_part, gathered, is_dtensor, on_all, spread_out

__all__ = ["Parallel", "Whole", "in_group", "is_tensor_parallel", "parallel_of", "tensors_of"]

_LOOKED_AT = 64  # elements by which copies are compared


def in_group() -> bool:
    """Whether this process is one of torch's distributed ones."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def parallel_of(model: nn.Module, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parallel | None:
    """What a forward of a model that processes share out knows of parts; None: each has all of its values.

    Args:
        state: of the model, see `state.NoiseState`.
        args, kwargs: of the call, with the rows of every draw.

    Raises:
        RuntimeError: no seed, of which every process would draw another.
    """
    if torch.compiler.is_compiling():
        if any(getattr(m, "_distribute_module_applied", False) for m in model.modules()):
            raise RuntimeError("a tensor-parallel injected model cannot be compiled: run it as it is")
        return None
    if not is_tensor_parallel(model, (args, kwargs)):
        _tell_of_rows(model, state)
        return None
    if state.seed is None or state.find_whole is None:
        raise RuntimeError(
            "noise_state: seed must be given for a tensor-parallel model, got None, of which each process makes another"
        )
    held = tensors_of(model)
    find = functools.partial(state.find_whole, model, args, kwargs, held)
    return Parallel(model, find, (args, kwargs), _digest(state))


def _digest(state: Any) -> Tensor:
    """A number for all that a block of `noise_state` says."""
    tokens = () if state.tokens is None else (state.tokens.length, state.tokens.sequence, state.tokens.position)
    said = (state.seed, state.draws, state.rows, state.level, state.next_row, state.calls, *tokens)
    text = repr([t.tolist() if isinstance(t, Tensor) else t for t in said])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.tensor([int.from_bytes(digest, "little", signed=True)])


def _tell_of_rows(model: nn.Module, state: Any) -> None:
    """Warns once where processes have rows of their own, and all of them number theirs from 0."""
    known = state.rows is not None or (state.tokens is not None and state.tokens.sequence is not None)
    if known or state.told_of_ranks or not state.for_rows or torch.distributed.get_world_size() == 1:
        return
    if nn.parallel.DistributedDataParallel._active_ddp_module is not None or _has_fsdp(model):
        state.told_of_ranks = True
        warn_user(
            "noise_state: each of the processes numbers its rows from 0, so that different rows have the same noise in "
            "all of them: give rows=..., the ids of the rows in the data set (datasets.numbered(loader) has them)"
        )


def _has_fsdp(model: nn.Module) -> bool:
    """Whether parameters are gathered for each forward."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in model.modules())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def is_tensor_parallel(model: nn.Module, given: Any) -> bool:
    """Whether values of a model may be parts: it is tensor parallel, or is given DTensors.

    FSDP's parameters are DTensors too, but whole while the model runs.
    """
    if any(map(is_dtensor, pytree.tree_leaves(given))):
        return True
    if any(getattr(m, "_distribute_module_applied", False) for m in model.modules()):
        return True
    return any(map(is_dtensor, model.parameters())) and not _has_fsdp(model)


class Whole(NamedTuple):
    """What a run of the whole model without content has shown.

    Args:
        shapes: of the values at its sites.
        operands: shapes of what goes into its contractions.
        unknown: why there was no such run.
    """

    shapes: dict[str, tuple[int, ...]]
    operands: dict[str, list[tuple[int, ...]]]
    unknown: str = ""


class Running(Protocol):
    """What is asked of the mode that runs; see `mode.SiteMode`."""

    key: Any
    token_places: Any
    tokens: Any

    def at_rows(self, name: str, noise: Any, clean: Tensor, row_dim: int | None) -> Tensor: ...

    def rows_at(self, name: str, row_dim: int | None = None) -> Rows | None: ...


class Parallel:
    """What one forward knows of parts.

    Args:
        find: runs the whole model.
        given: to the model.
        digest: of the seed, the draws, the rows and the levels.
    """

    def __init__(self, model: nn.Module, find: Callable[[], Whole], given: Any, digest: Tensor) -> None:
        self._model, self._find, self._digest = model, find, digest
        self._meshes: list[Any] = []  # over which values have been seen to be shared out
        self._early: list[tuple[str, Tensor]] = []  # copies that came before the first of these
        self._operands: list[tuple[int, ...]] = []  # shapes of what the linear layer that runs has been given
        # transformers' layers make local tensors of parameters before any operation sees them. Those that are gathered
        # lie in meshes of other processes, too, which have rows of their own.
        self._see(given if _has_fsdp(model) else (given, list(model.parameters())))

    def see(self, kind: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Takes note of what goes into an operation, and of the processes that share it."""
        self._see((args, kwargs))
        given = pytree.tree_leaves((args, kwargs)) if kind == "linear" else ()
        self._operands = [tuple(a.shape) for a in given if isinstance(a, Tensor)]

    def _see(self, given: Any) -> None:
        for value in pytree.tree_leaves(given):
            if is_dtensor(value) and value.device_mesh not in self._meshes:
                self._meshes.append(value.device_mesh)
                _compare_digests(self._digest, value.device_mesh)
                for name, few in self._early:
                    _compare(name, few, value.device_mesh)

    def at(self, mode: Running, name: str, noise: Any, clean: Any, row_dim: int | None) -> Any:
        """The noisy value at a site: the part of the whole's."""
        if not is_dtensor(clean):
            spread = self._spread(mode, name, clean, row_dim)
            if spread is None:
                return mode.at_rows(name, noise, clean, row_dim)
            noisy = self.at(mode, name, noise, spread, row_dim).to_local()
            here = zip(spread.placements, spread.device_mesh.get_coordinate(), strict=True)
            # Of the parts of a sum, one is the noisy sum, to which the others add nothing.
            return noisy if all(number == 0 for p, number in here if p.is_partial()) else torch.zeros_like(noisy)
        self._see(clean)
        spread = spread_out(f"site {name!r}", clean)
        whole = spread.whole(filled=not isinstance(noise, Noise) or noise.relative is not None)
        return spread.like(mode.at_rows(name, noise, whole, row_dim))

    def contracted(self, name: str, run: Callable[..., Any], args: Any, kwargs: Any, product: Any) -> Any:
        """What hardware makes of a contraction, of which every process makes the whole."""
        given = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        parts: list[Any] = [a for a in given if is_dtensor(a)]
        if not parts:
            whole = self._find()
            if whole.unknown or whole.operands.get(name) != [tuple(a.shape) for a in given]:
                raise _lost(name, given[0], "hardware needs the whole of what goes into it" + _because(whole))
            return run(args, kwargs, product)
        args, kwargs = pytree.tree_map_only(Tensor, gathered, (args, kwargs))
        if product is not None:
            product = replace(product, operands=tuple(map(gathered, product.operands)))
        made = run(args, kwargs, product)
        return pytree.tree_map_only(Tensor, lambda t: on_all(t, parts[0].device_mesh), made)

    def _spread(self, mode: Running, name: str, value: Tensor, row_dim: int | None) -> Any:
        """A plain value as the DTensor that it is a part of; None: each process has all of it."""
        shape = tuple(value.shape)
        if is_input(name):  # as it was given
            self._refuse_sums(name, value)
            return None
        whole = self._find()
        size = whole.shapes.get(name)
        if size is None:
            raise _lost(name, value, "the whole model does not come to it" + _because(whole))
        others = [d for d in range(len(size)) if len(size) != len(shape) or size[d] != shape[d]]
        if not others:
            if self._adds_up(name, whole):
                return self._parts_of_sum(name, value, whole)
            self._refuse_sums(name, value)
            return None
        if len(size) != len(shape) or len(others) > 1:
            raise _lost(name, value, f"in the whole model it is {list(size)}")
        dim = others[0]
        if dim == _dim_of_rows(mode, name, row_dim, len(size)) and size[dim] != mode.key.batch:
            raise _lost(name, value, f"in the whole model it is {list(size)}, where rows are folded with what is cut")
        if name.rpartition(":")[0] in self._packed():
            raise _lost(
                name, value, f"in the whole model it is {list(size)}, of which a packed layer has several blocks"
            )
        return self._as_dtensor(name, value, size, dim, size[dim], shape[dim])

    def _adds_up(self, name: str, whole: Whole) -> bool:
        """Whether a linear layer has multiplied parts of its columns by parts of what goes in: its result is to be
        added up."""
        here, there = self._operands, whole.operands.get(name, [])
        return len(here) >= 2 and len(there) >= 2 and here[1][:-1] == there[1][:-1] and here[1][-1] != there[1][-1]

    def _parts_of_sum(self, name: str, value: Tensor, whole: Whole) -> Any:
        (of_x, *_), (there, *others) = self._operands, whole.operands[name]
        if len(self._operands) != len(others) + 1:
            raise _lost(name, value, "it is part of a sum to which a bias comes only afterwards")
        if value.requires_grad:
            raise _lost(name, value, "it is part of a sum, with gradients")
        return self._as_dtensor(name, value, tuple(value.shape), None, there[-1], of_x[-1])

    def _packed(self) -> set[str]:
        """Modules of which a process has several blocks of each parameter, as of two layers in one."""
        found = set()
        for path, module in paths_of(self._model):
            parameters: dict[str, Any] = module._parameters
            if any(is_dtensor(p) and type(p.placements[-1]).__name__ == "_StridedShard" for p in parameters.values()):
                found.add(path)
        return found

    def _as_dtensor(
        self, name: str, value: Tensor, shape: tuple[int, ...], dim: int | None, size: int, held: int
    ) -> Any:  # fmt: skip
        """A process's part of a value of this shape as a DTensor: a block along `dim`, or one of a sum; `size` is what
        has been cut, and `held` of it is here."""
        cuts = [
            (mesh, axis)
            for mesh in self._meshes
            for axis, number in enumerate(mesh.get_coordinate())
            if block_of(size, mesh.size(axis), number)[1] == held
        ]
        if len(cuts) != 1:
            raise _lost(name, value, f"in the whole model it is of {size}, here of {held}: {len(cuts)} meshes cut so")
        from torch.distributed.tensor import Partial, Replicate, Shard  # noqa: PLC0415  # loaded, where there is a mesh

        mesh, axis = cuts[0]
        placements: list[Any] = [Replicate()] * mesh.ndim
        placements[axis] = Partial() if dim is None else Shard(dim)
        return from_part(value, mesh, placements, shape)

    def _refuse_sums(self, name: str, value: Tensor) -> None:
        """Refuses a value as large as in the whole model that is not the same everywhere."""
        flat = value.detach().reshape(-1)
        if flat.numel() > 0:
            places = torch.linspace(0, flat.numel() - 1, min(_LOOKED_AT, flat.numel()), device=flat.device)
            few = flat[places.long()].float().contiguous()
            for mesh in self._meshes:
                _compare(name, few, mesh)
            if not self._meshes:
                self._early.append((name, few))


def _dim_of_rows(mode: Running, name: str, row_dim: int | None, rank: int) -> int | None:
    """The dimension of a value in which its rows lie, or its sequences."""
    if mode.tokens is not None:
        place = mode.token_places.get(name)
        return place.batch if isinstance(place, Place) else None
    rows = mode.rows_at(name, row_dim)
    return None if rows is None or rows.outer == 0 else rows.dim % rank


def _because(whole: Whole) -> str:
    return f" (it cannot be run without content: {whole.unknown})" if whole.unknown else ""


def _lost(name: str, value: Tensor, why: str) -> RuntimeError:
    """The error of a plain value of which it is not known which part of the whole it is."""
    return RuntimeError(
        f"site {name!r}: in a tensor-parallel model it must be known which part of a value each process holds, got a "
        f"plain tensor of shape {list(value.shape)}: {why}; keep it a DTensor (use_local_output=False), or leave it "
        "out with where=..."
    )


def _compare_digests(digest: Tensor, mesh: Any) -> None:
    """Refuses processes that share a model and have been told of different noise."""
    for axis in range(mesh.ndim):
        if len({int(other) for other in _from_all(digest.to(mesh.device_type), mesh, axis)}) > 1:
            raise RuntimeError(
                "noise_state: seed, draws, rows and level must be the same in all processes that share a "
                "tensor-parallel model, got others"
            )


def _from_all(value: Tensor, mesh: Any, axis: int) -> list[Tensor]:
    """What all processes along an axis have."""
    found = [torch.empty_like(value) for _ in range(mesh.size(axis))]
    torch.distributed.all_gather(found, value, group=mesh.get_group(axis))
    return found


def _compare(name: str, few: Tensor, mesh: Any) -> None:
    """Refuses elements of a value that differ between processes by more than roundings."""
    for axis in range(mesh.ndim):
        parts = _from_all(few, mesh, axis)
        # All processes come to the same answer, or some would wait for others that have raised.
        largest = max(float(p.abs().max()) for p in parts)
        if not all(torch.allclose(p, parts[0], rtol=1e-2, atol=1e-3 * largest, equal_nan=True) for p in parts):
            raise RuntimeError(
                f"site {name!r}: in a tensor-parallel model a plain tensor of the whole's shape must be the same in "
                "all processes, got other values: noise on parts of a sum would come once in each; add them up first, "
                "or leave it out with where=..."
            )
