"""Where operands lie and how: what no kernel is for is refused in one sentence, and not taken for something else.

A tensor on the meta device sends a call to the operator's rule for fake tensors, which makes a value without content,
on whatever device the others are: so that rule looks first. Sparse, quantized and nested tensors have keys of their
own in torch's dispatcher, and there a kernel that refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_operands", "refuse_complex", "refuse_layouts", "register_fake"]

_KEYS = (
    *(f"{kind}{place}" for kind in ("Sparse", "SparseCsr", "NestedTensor") for place in ("CPU", "CUDA", "Meta")),
    "QuantizedCPU",
    "QuantizedCUDA",
    "MkldnnCPU",
)
_ONE_NUMBER = ("add", "mul", "per_product", "per_step", "read", "step_noise")  # 0-d ones may be on the CPU


def check_operands(op: str, given: Mapping[str, Any]) -> None:
    """Raises an error unless all tensors are dense and on the device of the first; a seed and 0-d levels may be on the
    CPU.
    """
    first: tuple[str, Tensor] | None = None
    for name, t in given.items():
        if not isinstance(t, Tensor):
            continue
        if t.is_nested or t.is_quantized or t.layout is not torch.strided:
            kind = "nested" if t.is_nested else "quantized" if t.is_quantized else str(t.layout).removeprefix("torch.")
            raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind} one")
        refuse_complex(op, name, t)
        if first is None:
            first = name, t
        elif t.device != first[1].device and not (
            t.is_cpu and (name == "seed" or (name in _ONE_NUMBER and t.dim() == 0))
        ):
            raise RuntimeError(
                f"{op}: all tensors must be on the same device, got {first[0]} on {first[1].device} and {name} on "
                f"{t.device}"
            )


def refuse_complex(op: str, name: str, t: Tensor) -> None:
    """Noise and hardware are of real values: of complex ones they would reach a part, or fail halfway."""
    if t.is_complex():
        kind = str(t.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be real, got {kind}: make real and imaginary parts values of their own")


def _named(name: str, args: tuple[Any, ...]) -> dict[str, Any]:
    schema = getattr(torch.ops.noisykernels, name).default._schema
    return {a.name: value for a, value in zip(schema.arguments, args, strict=False)}


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """The rule of an operator for tensors without content, which are on one device as others must be."""

    def checked(*args: Any) -> Any:
        check_operands(f"noisykernels::{name}", _named(name, args))
        return fake(*args)

    torch.library.register_fake(f"noisykernels::{name}", checked)


def refuse_layouts(library: torch.library.Library, name: str) -> None:
    """Refuses what is not dense, by name."""

    def refuse(*args: Any) -> Any:
        check_operands(f"noisykernels::{name}", _named(name, args))
        raise TypeError(f"noisykernels::{name}: operands must be dense tensors")

    for key in _KEYS:
        library.impl(name, refuse, key)
