"""Orders of the operands of a contraction: names, permutations, sorted ones."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole
from noisykernels.noise.contract import hashed_id
from noisykernels.noise.functional import eps

__all__ = ["ORDERS", "checked_order", "random_order", "shown_order", "sorted_orders"]


ORDERS = ("natural", "reversed", "positive_first", "negative_first", "ascending", "descending")


def random_order(steps: int, seed: int, name: str | None = None, number: int = 0) -> Tensor:
    """A random permutation of the operands of a contraction: a pure function of its arguments, the same on every
    machine.

    Args:
        steps: number of products, the *K* of the weight.
        seed: 64-bit seed.
        name: of a layer's site, for orders that differ from layer to layer; None: of no layer.
        number: of the permutation, below 2^32.

    Returns:
        int64 tensor (K), for ``Serial(order=...)``.

    Example:
        >>> random_order(5, seed=1).sort().values.tolist()
        [0, 1, 2, 3, 4]
    """
    check_arguments(random_order, locals(), number=whole(0, 2**32 - 1), steps=whole(0, 2**63 - 1))
    site = 0 if name is None else hashed_id(f"order:{name}")
    drawn = eps((1, steps), kind="uniform", seed=seed, site=site, draw=number, operand="spare")
    return torch.argsort(drawn[0], stable=True)


def shown_order(order: Tensor) -> str:
    """A permutation, in a word by which the keys of stored studies tell it from others."""
    return f"<{len(order)} operands, {hashlib.blake2b(order.cpu().numpy().tobytes(), digest_size=4).hexdigest()}>"


def checked_order(order: Any) -> str | Tensor:
    """A name, or a permutation as a tensor of its own."""
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"Serial: order must be one of {', '.join(ORDERS)} or a permutation, got {order!r}")
        return order
    try:
        given = torch.as_tensor(order).detach().clone()  # what happens to the caller's tensor is not checked
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"Serial: order must be a name or a permutation, got {order!r}") from None
    if given.numel() == 0:
        given = given.long()  # an empty list has no type
    whole = given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if given.dim() != 1 or not whole or not torch.equal(given.long().sort().values.cpu(), torch.arange(len(given))):
        raise ValueError(f"Serial: order must be a permutation of 0 ... K-1, got {given.flatten()[:8].tolist()} ...")
    return given.long()


def sorted_orders(a: Tensor, b: Tensor, order: str) -> Tensor:
    """For each output, its operands sorted by their products: int32 (T, I, J, K)."""
    with torch.no_grad():
        count = max(a.shape[0], b.shape[0])
        wide = a.repeat(count // a.shape[0], 1, 1), b.repeat(count // b.shape[0], 1, 1)
        products = wide[0].unsqueeze(2) * wide[1].transpose(1, 2).unsqueeze(1)
        if order in ("positive_first", "negative_first"):
            keys = ((products < 0) if order == "positive_first" else (products >= 0)).to(torch.uint8)
        else:
            keys = products.abs()
        by = torch.argsort(keys, stable=True, descending=order == "descending")
        return by.to(torch.int32, memory_format=torch.contiguous_format)
