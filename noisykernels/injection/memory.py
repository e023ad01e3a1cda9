"""Which operands of a product are arrays: the memory of a model's parameters and buffers, and how they are stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Array", "Memory", "array_of_views"]


class Array(NamedTuple):
    """Which operand of a product is an array, and its dimensions in the order in which the model stores them."""

    operand: int
    order: tuple[int, ...]


class Memory:
    """The memory of a model's parameters and buffers, as it is now."""

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[int, Tensor] = {}
        for t in (*model.buffers(), *model.parameters()):
            if (where := _place(t)) is not None:
                self._held[where] = t

    def holds(self, operands: tuple[Tensor, ...]) -> bool:
        """Whether all operands lie in this memory."""
        return all(_place(t) in self._held for t in operands)

    def array(self, operands: tuple[Tensor, ...]) -> Array | None:
        """The operand that lies in this memory, the last one if several do."""
        for number in reversed(range(len(operands))):
            where = _place(operands[number])
            if where is not None and where in self._held:
                return Array(number, _stored_order(operands[number], self._held[where]))
        return None


def array_of_views(operands: tuple[Tensor, ...], module: nn.Module) -> Array | None:
    """The same in compiled code, which knows no memory but what views look at: parameters, and buffers of a module."""
    for number in reversed(range(len(operands))):
        t = operands[number]
        base = t if t._base is None else t._base
        if isinstance(base, nn.Parameter) or any(base is held for held in module._buffers.values()):
            return Array(number, _stored_order(t, base))
    return None


def _place(t: Tensor) -> int | None:
    """Which memory a tensor lies in; None: it has none of its own."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    try:
        return t.untyped_storage()._cdata if t.numel() else None
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return None


def _stored_order(t: Tensor, held: Tensor) -> tuple[int, ...]:
    """The dimensions of a view as the tensor that it looks at has them; where that is not clear, as they are."""
    natural = tuple(range(t.dim()))
    strides = held.stride()
    if len(set(strides)) < len(strides) or t.dim() > held.dim() or any(step not in strides for step in t.stride()):
        return natural
    if len(set(t.stride())) < t.dim():
        return natural
    return tuple(sorted(natural, key=lambda d: strides.index(t.stride(d))))


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
_stored_order._dynamo_marked_constant = True  # type: ignore[attr-defined]
