"""Values of which every process holds a part, as torch's DTensors: where it lies in the whole, and noise by the ids
that its elements have there.

The noise of a part is that of the whole, of which the part is taken: each process draws all of it. A part that is no
block of the whole is refused: ids counted in it would be other ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisykernels._util.tensors import is_plain
from noisykernels.noise.description import Noise

__all__ = [
    "PACKAGE",
    "Part",
    "Spread",
    "block_of",
    "from_part",
    "gathered",
    "is_dtensor",
    "on_all",
    "perturb_parts",
    "spread_out",
]

PACKAGE = "torch.distributed.tensor"  # which takes a while to load, and makes all DTensors


def is_dtensor(value: Any) -> bool:
    """Whether it is a DTensor, of which there is none where their package has not been loaded."""
    if not isinstance(value, Tensor) or is_plain(value):
        return False
    package = sys.modules.get(PACKAGE)
    return package is not None and isinstance(value, package.DTensor)


class Part(NamedTuple):
    """What one process holds of a value: a block of the whole.

    Args:
        shape: of the whole.
        starts, sizes: of the block, along each dimension.
    """

    shape: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def is_all(self) -> bool:
        """Whether it is the whole."""
        return self.shape == self.sizes

    @property
    def block(self) -> tuple[slice, ...]:
        """Where it lies; along a dimension of which it has all, everywhere."""
        each = zip(self.shape, self.starts, self.sizes, strict=True)
        return tuple(slice(None) if size == whole else slice(start, start + size) for whole, start, size in each)

    def within(self, local: Tensor, others: Tensor | None = None) -> Tensor:
        """A value of the shape of the whole with the part in its place, and zeros around it, or the others' parts."""
        if self.is_all:
            return local
        whole = local.new_zeros(self.shape) if others is None else others.detach().clone()
        whole[self.block] = local
        return whole

    def taken(self, whole: Tensor) -> Tensor:
        """The part of a value of the shape of the whole, in memory of its own."""
        return whole if self.is_all else whole[self.block].contiguous()


def block_of(size: int, parts: int, number: int) -> tuple[int, int]:
    """Start and size of what a process holds of a dimension that torch has cut into parts.

    Example:
        >>> [block_of(10, 4, number) for number in range(4)], block_of(2, 3, 2)
        ([(0, 3), (3, 3), (6, 3), (9, 1)], (2, 0))
    """
    each = -(-size // parts)
    start = min(size, each * number)
    return start, min(each, size - start)


def from_part(part: Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> Any:
    """The DTensor of this shape of which this process holds a part."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    of_all = {"shape": torch.Size(shape), "stride": tuple(strides[: len(shape)])}
    package = sys.modules[PACKAGE]
    return package.DTensor.from_local(part, mesh, placements, run_check=False, **of_all)


def on_all(whole: Tensor, mesh: Any) -> Any:
    """The DTensor of which every process has all."""
    replicate = sys.modules[PACKAGE].Replicate()
    return from_part(whole, mesh, [replicate] * mesh.ndim, whole.shape)


class Spread(NamedTuple):
    """A value that is spread over processes, none of which holds partial sums.

    Args:
        value: the DTensor.
        part: what this process holds of it.
    """

    value: Any
    part: Part

    def whole(self, filled: bool) -> Tensor:
        """A value of the whole's shape with this process's part: with the others', too, if it is `filled`."""
        local: Tensor = self.value.to_local()
        others = gathered(self.value.detach()) if filled and not self.part.is_all else None
        return self.part.within(local, others)

    def like(self, whole: Tensor) -> Any:
        """A value of the whole's shape (or with other rows, of which every process has all), spread as this one is."""
        return from_part(self.part.taken(whole), self.value.device_mesh, self.value.placements, whole.shape)


def _replicated(value: Any, dims: Sequence[int] | None = None) -> Any:
    """A DTensor of which every process has all; or only all along these dimensions, and no partial sums."""
    package = sys.modules[PACKAGE]
    kept = [
        p if dims is not None and p.is_shard() and p.dim % value.dim() not in dims else package.Replicate()
        for p in value.placements
    ]
    return value if list(value.placements) == kept else value.redistribute(placements=kept)


def gathered(value: Any) -> Tensor:
    """The whole of a DTensor as this process's own, through which gradients flow; anything else as it is."""
    if not is_dtensor(value):
        return value  # type: ignore[no-any-return]
    whole: Tensor = _replicated(value).to_local()
    return whole


def spread_out(op: str, value: Any, all_of: Sequence[int] = ()) -> Spread:
    """A DTensor and the block of it that this process holds: sums are added up, and of the dimensions `all_of` every
    process gets all.

    Raises:
        ValueError: placements of which torch does not say that a part is one block.
    """
    package = sys.modules[PACKAGE]
    for placement in value.placements:
        if not isinstance(placement, package.Partial) and type(placement) not in (package.Shard, package.Replicate):
            raise ValueError(
                f"{op}: a DTensor must have the placements Shard, Replicate or Partial, got {placement!r}: which "
                "elements a process holds is not known; redistribute() it"
            )
    value = _replicated(value, all_of)
    mesh, starts, sizes = value.device_mesh, [0] * value.dim(), list(value.shape)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"{op}: a DTensor must be of a mesh that holds this process, got {mesh}")
    for axis, placement in enumerate(value.placements):
        if placement.is_shard():
            start, sizes[placement.dim] = block_of(sizes[placement.dim], mesh.size(axis), coordinate[axis])
            starts[placement.dim] += start
    part = Part(tuple(value.shape), tuple(starts), tuple(sizes))
    if (held := value.to_local().shape) != part.sizes:
        raise ValueError(
            f"{op}: of a DTensor of shape {list(part.shape)} with {value.placements} this process must hold "
            f"{list(part.sizes)}, got {list(held)}"
        )
    return Spread(value, part)


def perturb_parts(
    op: str, perturb: Callable[..., Tensor], value: Any, noise: Noise, *, seed: Any, shared: bool, **key: Any
) -> Any:
    """A DTensor with noise: that of the whole, of which each process has its part.

    Args:
        op: name of the operator, for errors.
        perturb: `noise.functional.perturb`.
        value: with partial sums, it is added up first: noise comes once, and not on every part of a sum.

    Raises:
        ValueError: no seed, of which every process would draw another; levels that are DTensors.
    """
    if seed is None:
        raise ValueError(f"{op}: seed must be given for a DTensor, got None: each process would draw one of its own")
    if any(is_dtensor(level) for level in (noise.add, noise.mul)):
        raise ValueError(f"{op}: a level must be a tensor of which every process has all, got a DTensor: full_tensor()")
    spread = spread_out(op, value, (0,) if shared else ())
    whole = spread.whole(filled=noise.relative is not None)
    return spread.like(perturb(whole, noise, seed=seed, shared=shared, **key))
