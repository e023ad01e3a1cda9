"""Small facts about single tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["can_look", "kept_type", "or_one", "straight_through"]


def kept_type(value: Tensor) -> torch.dtype:
    """The type that a device calculates in."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def straight_through(exact: Tensor, value: Tensor) -> Tensor:
    """``exact`` to the bit, with the gradient of a finite ``value``."""
    return exact.detach() + (value - value.detach())


def or_one(size: Tensor) -> Tensor:
    """A size to divide by; 1 for that of zeros."""
    return torch.where(size == 0, 1, size)


def can_look(t: Tensor) -> bool:
    """Whether the values of a tensor can be read at no great cost: on the CPU, and not inside a graph or
    a transform.
    """
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and torch._C._len_torch_dispatch_stack() == 0
    )
