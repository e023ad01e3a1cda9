"""Rows of a model that `torch.func.vmap` maps over samples: each sample has ids of its own, as in one batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["Mapped", "mapped_over", "without_maps"]

_functorch = torch._C._functorch


class Mapped(NamedTuple):
    """The maps over samples in which a model runs, the outermost first: their numbers of samples, and the levels of
    these and of all other transforms, whose samples are None."""

    sizes: tuple[int, ...]
    levels: tuple[tuple[int, int | None], ...]

    @property
    def samples(self) -> int:
        """Of all maps together."""
        return math.prod(self.sizes)

    def numbered(self, count: int, device: torch.device) -> Tensor:
        """The numbers of so many rows of each sample, counted through all samples."""
        with temporarily_clear_interpreter_stack():
            return torch.arange(count * self.samples, device=device)

    def apart(self, ids: Tensor) -> Tensor:
        """Of the ids of all rows, sample by sample, those of the sample that runs."""
        with temporarily_clear_interpreter_stack():
            ids = ids.reshape(*self.sizes, -1)
        for level, size in self.levels:
            ids = _functorch._wrap_for_grad(ids, level) if size is None else _functorch._add_batch_dim(ids, 0, level)
        return ids


def mapped_over(data: Tensor) -> Mapped | None:
    """The maps over samples of these data; None: there are none."""
    own = set()
    while _functorch.is_functorch_wrapped_tensor(data):
        if _functorch.is_batchedtensor(data):
            own.add(_functorch.maybe_get_level(data))
        data = _functorch.get_unwrapped(data)
    if not own:
        return None
    levels: list[tuple[int, int | None]] = []
    for interpreter in _functorch.get_interpreter_stack():
        level, key = interpreter.level(), interpreter.key()
        if level in own:
            levels.append((level, _functorch.CVmapInterpreterPtr(interpreter).batchSize()))
        elif key in (_functorch.TransformType.Grad, _functorch.TransformType.Jvp):
            levels.append((level, None))
    return Mapped(tuple(size for _, size in levels if size is not None), tuple(levels))


def without_maps(data: Tensor) -> Tensor:
    """The data of all samples."""
    while _functorch.is_functorch_wrapped_tensor(data):
        data = _functorch.get_unwrapped(data)
    return data
