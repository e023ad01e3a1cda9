"""The noise itself and the operators that put it on a value.

Every operator is a function of its arguments alone; the seed, the ids and the levels are tensors, so that compiled,
checkpointed and exported programs draw the same noise as eager ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noisykernels._util.checks import is_number, one_of, shown
from noisykernels._util.runtime import device_of
from noisykernels.noise.arguments import (
    Ids,
    Key,
    Seed,
    Size,
    document_common,
    flags,
    ids_tensor,
    ints,
    noise_args,
    operand_number,
    seed_tensor,
    tensors,
    word,
)
from noisykernels.noise.contract import ID_LIMIT, KINDS
from noisykernels.noise.description import Noise
from noisykernels.noise.shards import is_dtensor, perturb_parts
from noisykernels.noise.tokens import RowIds, by_tokens, in_tokens
from noisykernels.noise.units import in_units

__all__ = ["eps", "perturb", "perturb_relu_max_pool2d"]

_ops = torch.ops.noisykernels


def eps(
    shape: Sequence[int],
    *,
    kind: str = "gaussian",
    seed: Seed,
    site: int = 0,
    operand: str = "add",
    draw: int = 0,
    rows: RowIds = None,
    first_row: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The raw noise: standardised (mean 0, variance 1) float32 values of the given shape, dimension 0 counting rows.

    Args:
        shape: shape of the result; the element index is the contiguous index inside a row.
        kind: kind of noise, ``"gaussian"``, ``"uniform"`` or ``"laplace"``.
        seed: 64-bit seed, an int in [0, 2^64) or an int64 tensor.
        site: id of the place where the noise enters, in [0, 2^24).
        operand: which of a site's streams: ``"add"``, ``"mul"``, ``"input"``, ``"weight"``, ...
        draw: draw id in [0, 2^32).
        rows: int64 vector, the data-set index of each row; None numbers them from ``first_row``; of rank 2, or
            `TokenRows`: the ids of the tokens along dimensions 0 and 1.
        first_row: index of the first row.
        device: where the result lives; None is the CPU.

    Returns:
        float32 tensor of ``shape``.

    Raises:
        ValueError: an unknown kind or operand, or an id out of range.

    Source: Philox4x32-10, Salmon et al., SC'11; Box-Muller for the Gaussian.

    Example:
        >>> whole = eps((4, 10), seed=7, site=3)
        >>> bool((eps((2, 10), seed=7, site=3, first_row=2) == whole[2:]).all())
        True
    """
    one_of("eps", "kind", kind, KINDS)
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"eps: shape must be whole numbers, got {shown(shape)}")
    if not all(is_number(n) and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"eps: shape must be whole numbers from 0 on, got {shown(shape)}")
    for name, number in (("site", site), ("draw", draw), ("first_row", first_row)):
        word("eps", name, number)
        if name != "site" and isinstance(number, int) and not 0 <= number < ID_LIMIT:
            raise ValueError(f"eps: {name} must lie in [0, 2^32), got {number}")
    where = torch.device("cpu") if device is None else device_of("eps", device)
    if (tokens := in_tokens(rows)) is not None:
        if tuple(shape[:2]) != tuple(tokens.shape):
            raise ValueError(
                f"eps: rows of shape {list(tokens.shape)} are those of tokens: shape must begin so, got {list(shape)}"
            )
        shape, rows = [tokens.numel(), *shape[2:]], tokens.reshape(-1)
    drawn: Tensor = _ops.eps.default(
        list(shape),
        KINDS.index(kind),
        seed_tensor("eps", seed, where).to(where, non_blocking=True),  # the operator works where its seed is
        site,
        operand_number("eps", operand),
        draw,
        ids_tensor("eps", "rows", rows, where),
        first_row,
    )
    return drawn if tokens is None else drawn.unflatten(0, tokens.shape)


@document_common
@by_tokens
def perturb(
    x: Tensor,
    noise: Noise,
    *,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: RowIds = None,
    first_row: int = 0,
    operand: str = "add",
) -> Tensor:
    """Adds noise to a value: ``x + a*eps``, ``x * (1 + m*eps)`` or both, as `Noise` says.

    Args:
        x: (B, *item), or (D * B, *item) with D draws; float32, float64, bfloat16 or float16, any strides.
            The noise of half types is float32, the result rounded once. A 0-d tensor is one row.
        {common}
        operand: which of the site's streams: ``"add"`` is the two of a value, ``"add"`` and ``"mul"``; another one
            (``"input"``, ``"weight"``, ``"programming"``, ...) serves noise of one term.

    Returns:
        (D * B, *item), in the dtype of ``x`` and its memory format where that is dense.

    Raises:
        ValueError: a negative or NaN level, an id out of range.
        RuntimeError: shapes that do not fit. Nothing is computed then.

    Note:
        Values that cannot be looked at (on a device, inside a compiled graph) are not checked: a bad level or id
        makes NaN.

    Source: Walking Noise (arXiv 2212.10430).

    Example:
        >>> x = torch.zeros(8, 3)
        >>> y = perturb(x, Noise(add=1.0), seed=1)
        >>> bool((perturb(x[4:], Noise(add=1.0), seed=1, first_row=4) == y[4:]).all())  # a row keeps its noise
        True
    """
    tensors("perturb", x=x)
    flags("perturb", shared=shared)
    number = operand_number("perturb", operand)
    if number != 0 and noise.mode in ("mul_add", "add_mul"):
        raise ValueError(
            f"perturb: noise at operand {operand!r} has one term, additive or multiplicative (or both folded into one, "
            f"fold=True), got {noise!r}"
        )
    if is_dtensor(x):
        of_call = {"site": site, "draws": draws, "rows": rows, "first_row": first_row, "operand": operand}
        whole: Tensor = perturb_parts("perturb", perturb, x, noise, seed=seed, shared=shared, **of_call)
        return whole
    add, mul, mode, kind = noise_args("perturb", x, noise)
    key = Key.of("perturb", x.device, seed, site, draws, rows, first_row)
    add = in_units("perturb", noise, add, x, key, shared)
    out: Tensor = _ops.perturb.default(x, number, add, mul, *key, mode, kind, shared)
    return out


@document_common
@by_tokens
def perturb_relu_max_pool2d(
    x: Tensor,
    noise: Noise,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    *,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: RowIds = None,
    first_row: int = 0,
) -> Tensor:
    """``max_pool2d(relu(perturb(x)))`` in one pass that writes the pooled map only. Inference only: it has no gradient.

    Args:
        x: (B, C, H, W), or (D * B, C, H, W) with D draws.
        kernel_size, stride, padding: as for `torch.nn.functional.max_pool2d`.
        {common}

    Returns:
        (B, C, H', W'), or (D * B, C, H', W'); equal to the three operations one after the other (a zero may have the
        other sign).

    Raises:
        RuntimeError: ``x`` requires grad while gradients are on.

    Example:
        >>> perturb_relu_max_pool2d(torch.ones(2, 1, 4, 4), Noise(add=0.1), 2, seed=1).shape
        torch.Size([2, 1, 2, 2])
    """
    op = "perturb_relu_max_pool2d"
    tensors(op, x=x)
    flags(op, shared=shared)
    kernel, padding_ = ints(op, "kernel_size", kernel_size, 2), ints(op, "padding", padding, 2)
    stride_ = kernel if stride is None else ints(op, "stride", stride, 2)
    add, mul, mode, kind = noise_args(op, x, noise)
    key = Key.of(op, x.device, seed, site, draws, rows, first_row)
    add = in_units(op, noise, add, x, key, shared)
    out: Tensor = _ops.perturb_relu_max_pool2d.default(x, kernel, stride_, padding_, add, mul, *key, mode, kind, shared)
    return out
