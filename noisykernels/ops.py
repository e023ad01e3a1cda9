"""The operators' public functions (the convolutions' are in convolutions.py), and what they share.

Every operator is a function of its arguments alone; the seed, the ids and the levels are tensors, so that compiled,
checkpointed and exported programs draw the same noise as eager ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels.contraction import Arithmetic, Contraction, Device
from noisykernels.hardware import run, with_arithmetic
from noisykernels.noise import (
    ID_LIMIT,
    KINDS,
    OPERANDS,
    Noise,
    ids_tensor,
    largest_level,
    level_tensor,
    seed_tensor,
)

__all__ = ["eps", "linear", "matmul", "perturb", "perturb_relu_max_pool2d"]

_ops = torch.ops.noisykernels

FLOAT32_MAX = largest_level(torch.float32)

Seed = int | Tensor | None
Ids = Tensor | Sequence[int] | None
Size = int | Sequence[int]


def noise_args(
    op: str,
    x: Tensor,
    noise: Noise | None,
    seed: Seed,
    site: int,
    draws: Ids,
    shared: bool,
    rows: Ids,
    first_row: int,
) -> tuple[Any, ...]:
    """The trailing arguments that every operator shares, in the schema's order."""
    if not isinstance(noise, Noise):
        raise TypeError(f"{op}: noise must be a Noise, got {type(noise).__name__}")
    if not torch.compiler.is_compiling() and FLOAT32_MAX < noise.largest > largest_level(x.dtype):
        raise ValueError(f"{op}: a level must be finite in {x.dtype}, got {noise.largest}")
    return (
        level_tensor(op, "add", noise.add, x, noise.trusted),
        level_tensor(op, "mul", noise.mul, x, noise.trusted),
        *key_args(op, x, seed, draws, rows, first_row),
        first_row,
        site,
        noise.mode_index,
        noise.kind_index,
        shared,
    )


def operand_number(op: str, operand: str) -> int:
    """The number of an operand's stream."""
    if operand not in OPERANDS:
        raise ValueError(f"{op}: operand must be one of {', '.join(OPERANDS)}, got {operand!r}")
    return OPERANDS.index(operand)


def key_args(
    op: str, x: Tensor, seed: Seed, draws: Ids, rows: Ids, first_row: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Seed, draws and rows of a call as the operators take them."""
    if rows is not None and not (isinstance(first_row, int) and first_row == 0):
        raise ValueError(f"{op}: give rows or first_row, not both")
    if isinstance(first_row, int) and not 0 <= first_row < ID_LIMIT:
        raise ValueError(f"{op}: first_row must lie in [0, 2^32), got {first_row}")
    device = x.device
    return (
        seed_tensor(op, seed, device),
        ids_tensor(op, "draws", draws, device),
        ids_tensor(op, "rows", rows, device),
    )


# ------------------------------------------------------------------------------------------------- public functions

_COMMON = """
        noise: which noise, and its levels.
        seed: 64-bit seed, an int in [0, 2^64) or an int64 tensor; None draws one from torch's default generator
            (`torch.manual_seed` works).
        site: id of the place where the noise enters, in [0, 2^24).
        draws: int64 vector (D) of draw ids in [0, 2^32); None is the one draw 0.
        shared: give every draw the same rows: the value has B rows and the result D * B, draw by draw.
            Otherwise the value already holds D * B rows, draw by draw.
        rows: int64 vector (B), the data-set index of each row in [0, 2^32); None numbers them from ``first_row``.
        first_row: index of the first row in the data set.
"""


def document_common(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Fills the arguments that all operators share into a docstring."""
    assert function.__doc__ is not None
    function.__doc__ = function.__doc__.replace("        {common}\n", _COMMON.lstrip("\n"))
    return function


def eps(
    shape: Sequence[int],
    *,
    kind: str = "gaussian",
    seed: Seed,
    site: int = 0,
    operand: str = "add",
    draw: int = 0,
    rows: Ids = None,
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
        rows: int64 vector, the data-set index of each row; None numbers them from ``first_row``.
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
    if kind not in KINDS:
        raise ValueError(f"eps: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if isinstance(draw, int) and not 0 <= draw < ID_LIMIT:
        raise ValueError(f"eps: draw must lie in [0, 2^32), got {draw}")
    if isinstance(first_row, int) and not 0 <= first_row < ID_LIMIT:
        raise ValueError(f"eps: first_row must lie in [0, 2^32), got {first_row}")
    where = torch.device("cpu" if device is None else device)
    return _ops.eps.default(
        list(shape),
        KINDS.index(kind),
        seed_tensor("eps", seed, where).to(where, non_blocking=True),  # the operator works where its seed is
        site,
        operand_number("eps", operand),
        draw,
        ids_tensor("eps", "rows", rows, where),
        first_row,
    )


@document_common
def perturb(
    x: Tensor,
    noise: Noise,
    *,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: Ids = None,
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
    number = operand_number("perturb", operand)
    if number != 0 and noise.mode in ("mul_add", "add_mul"):
        raise ValueError(
            f"perturb: noise at operand {operand!r} has one term, additive or multiplicative (or both folded into one, "
            f"fold=True), got {noise!r}"
        )
    args = noise_args("perturb", x, noise, seed, site, draws, shared, rows, first_row)
    return _ops.perturb.default(x, number, *args)


@document_common
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    noise: Noise | None = None,
    hardware: Sequence[Device] | None = None,
    arithmetic: Arithmetic | None = None,
    relu: bool = False,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: Ids = None,
    first_row: int = 0,
) -> Tensor:
    """Linear layer with noise on its output: ``relu?(noise(x @ weight.T + bias))``.

    Args:
        x: (B, ..., K), or (D * B, ..., K) with D draws, or (K): one row.
        weight: (N, K), the dtype of ``x``.
        bias: (N) or None.
        noise, seed, site, ...: see below; noise None: none, with hardware.
        hardware: what happens inside: `WeightNoise`, `InputNoise`, `MacNoise` and other devices, in order.
        arithmetic: how products are added up: `Serial`; the same as at the end of the list ``hardware``.
        relu: apply a rectifier after the noise.
        {common}

    Returns:
        (B, ..., N), or (D * B, ..., N).

    Raises:
        ValueError, RuntimeError: as `perturb`.

    Example:
        >>> w = torch.eye(3)
        >>> linear(torch.ones(2, 3), w, noise=Noise(mul=0.1), seed=1).shape
        torch.Size([2, 3])
    """
    hardware = with_arithmetic("linear", hardware, arithmetic)
    if hardware is not None:
        return with_hardware(
            Contraction("linear"), x, weight, bias, hardware, noise, relu, seed, site, draws, shared, rows, first_row
        )
    return _ops.linear.default(
        x, weight, bias, relu, *noise_args("linear", x, noise, seed, site, draws, shared, rows, first_row)
    )


def with_hardware(
    contraction: Contraction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hardware: Sequence[Device],
    noise: Noise | None,
    relu: bool,
    seed: Seed,
    site: int,
    draws: Ids,
    shared: bool,
    rows: Ids,
    first_row: int,
) -> Tensor:
    """A contraction as hardware makes it, then noise and a rectifier on its output."""
    seed, draws, rows = key_args(contraction.name, x, seed, draws, rows, first_row)
    key: dict[str, Any] = dict(seed=seed, draws=draws, rows=rows, site=site, first_row=first_row)
    batched = x.dim() > 1 if contraction.geometry is None else x.dim() == weight.dim()
    if not batched and draws is not None and draws.shape[0] != 1:
        count = draws.shape[0]
        raise ValueError(f"{contraction.name}: an unbatched value is one row and takes one draw, got {count}")
    y = run(contraction, x if batched else x.unsqueeze(0), weight, bias, hardware, shared=shared, **key)
    if noise is not None:
        y = perturb(y, noise, **key)
    y = torch.relu(y) if relu else y
    return y if batched else y.squeeze(0)


@document_common
def matmul(
    a: Tensor,
    b: Tensor,
    *,
    noise: Noise,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: Ids = None,
    first_row: int = 0,
) -> Tensor:
    """Matrix product with noise on its result: ``noise(a @ b)``, rows being dimension 0 of the broadcast result.

    Args:
        a, b: as for `torch.matmul`, of one dtype.
        {common}

    Returns:
        The shape of ``torch.matmul(a, b)``, with D times the rows if ``shared``.

    Raises:
        ValueError, RuntimeError: as `perturb`.

    Example:
        >>> matmul(torch.ones(5, 2, 3), torch.ones(3, 4), noise=Noise(add=0.1), seed=1).shape
        torch.Size([5, 2, 4])
    """
    return _ops.matmul.default(a, b, *noise_args("matmul", a, noise, seed, site, draws, shared, rows, first_row))


@document_common
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
    rows: Ids = None,
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
    kernel, padding_ = ints(op, "kernel_size", kernel_size, 2), ints(op, "padding", padding, 2)
    stride_ = kernel if stride is None else ints(op, "stride", stride, 2)
    args = noise_args(op, x, noise, seed, site, draws, shared, rows, first_row)
    return _ops.perturb_relu_max_pool2d.default(x, kernel, stride_, padding_, *args)


def ints(op: str, name: str, value: Size, dims: int) -> list[int]:
    """One number for each dimension; one alone stands for all."""
    numbers = [value] if isinstance(value, int) else list(value)
    if len(numbers) not in (1, dims):
        raise ValueError(f"{op}: {name} must be a number or {dims} numbers, got {value!r}")
    return numbers * dims if len(numbers) == 1 else numbers
