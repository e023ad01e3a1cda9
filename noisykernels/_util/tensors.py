"""Small facts about single tensors, and checks of arguments that may be one."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from noisykernels._util.checks import Range

__all__ = [
    "Growing",
    "can_look",
    "constructed",
    "dequantized",
    "is_plain",
    "kept_type",
    "number",
    "only_looked_at",
    "or_one",
    "straight_through",
    "unseen",
]


class Growing:
    """Rows that are added in parts, in one piece of memory.

    Small pieces, made between large ones that are freed, would keep the C library from using those again.

    Example:
        >>> rows = Growing()
        >>> rows.add(torch.tensor([1, 2])), rows.add(torch.tensor([3])), rows.all()
        (None, None, tensor([1, 2, 3]))
        >>> pairs = Growing()
        >>> pairs.add(torch.zeros(2, 2)), tuple(pairs.all().shape)
        (None, (2, 2))
    """

    def __init__(self) -> None:
        self.rows, self._held = 0, torch.empty(0)

    @property
    def bytes(self) -> int:
        """Of what is held."""
        return self._held.nbytes

    def add(self, part: Tensor) -> None:
        """Some more."""
        end = self.rows + len(part)
        if end > len(self._held) or self.rows == 0:
            larger = part.new_empty((max(2 * end, 1 << 12), *part.shape[1:]))
            if self.rows:
                larger[: self.rows] = self._held[: self.rows]
            self._held = larger
        self._held[self.rows : end] = part
        self.rows = end

    def all(self) -> Tensor:
        """All of them."""
        return self._held[: self.rows]


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
        t.is_cpu
        and t.layout is torch.strided
        and not t.is_nested
        and not torch.compiler.is_compiling()
        and type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and only_looked_at()
    )


def only_looked_at() -> bool:
    """Whether no mode below torch's functions does more than to look at what runs."""
    return all(getattr(mode, "only_looks", False) for mode in _get_current_dispatch_mode_stack())


def unseen() -> contextlib.AbstractContextManager[Any]:
    """A block whose operations are not shown to modes that only look, which would keep what is made there."""
    return _disable_current_modes() if only_looked_at() else contextlib.nullcontext()


def number(owner: str, name: str, value: float | Tensor, positive: bool = False) -> Tensor:
    """A number or a 0-d tensor as a 0-d float64 tensor; checked where its value can be seen."""
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point() or value.requires_grad:
            got = f"{value.dtype} of shape {list(value.shape)}" + (" that requires grad" if value.requires_grad else "")
            raise ValueError(f"{owner}: {name} must be a number or a 0-d floating-point tensor, got {got}")
        t = value.double()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be a number or a 0-d tensor, got {type(value).__name__}")
    else:
        t = torch.tensor(value if value in Range() else math.inf, dtype=torch.float64, device="cpu")
    if can_look(t) and not (t >= 0 and t.isfinite() and (t > 0 or not positive)):
        raise ValueError(
            f"{owner}: {name} must be finite and {'positive' if positive else 'not negative'}, got {t.item()}"
        )
    return t


def is_plain(t: Tensor) -> bool:
    """Whether a tensor is one of torch's own, which every operator of ours takes."""
    return type(t) is Tensor or type(t) is nn.Parameter


def dequantized(value: Any) -> Any:
    """A quantised tensor of somebody's class as the values that it stands for; anything else as it is."""
    if not isinstance(value, Tensor) or is_plain(value) or type(value).dequantize is Tensor.dequantize:
        return value
    return value.dequantize()


def constructed(owner: str, parts: dict[str, Any]) -> str:
    """A device as it was constructed; of tensors that cannot be looked at, the shape."""

    def text(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        return repr(value.item()) if value.dim() == 0 and can_look(value) else f"<{list(value.shape)}>"

    return f"{owner}({', '.join(f'{name}={text(value)}' for name, value in parts.items())})"
