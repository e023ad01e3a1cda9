"""Linear layers, products of matrices and convolutions, with noise on what comes out and hardware inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._util.checks import in_range
from noisykernels._util.runtime import as_autocast
from noisykernels.hardware.contraction import Contraction, Geometry
from noisykernels.hardware.device import Arithmetic, Device
from noisykernels.hardware.execute import run, with_arithmetic
from noisykernels.nn.shards import by_parts
from noisykernels.noise.arguments import (
    PLACE,
    Chip,
    Ids,
    Key,
    Seed,
    Size,
    document_common,
    flags,
    ints,
    noise_args,
    tensors,
    word,
)
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb
from noisykernels.noise.tokens import RowIds, by_tokens, in_tokens
from noisykernels.noise.units import in_units

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul"]

_ops = torch.ops.noisykernels


@document_common
@by_parts(F.linear)
@by_tokens
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
    rows: RowIds = None,
    first_row: int = 0,
    array: int | None = None,
    array_seed: Seed = None,
) -> Tensor:
    """Linear layer with noise on its output: ``relu?(noise(x @ weight.T + bias))``.

    Args:
        x: (B, ..., K), or (D * B, ..., K) with D draws, or (K): one row.
        weight: (N, K), the dtype of ``x``.
        bias: (N) or None.
        noise, seed, site, ...: see below; noise None: none, with hardware.
        hardware: what happens inside: `WeightNoise`, `InputNoise`, `MacNoise` and other devices, in the order in which
            a signal passes them: those of inputs and weights, of products, of outputs.
        arithmetic: how products are added up: `Serial`; the same as in the list, before the devices of outputs.
        relu: apply a rectifier after the noise.
        {common}
        array, array_seed: id of what holds the weight, in [0, 2^24), and its seed: what belongs to the chip is drawn
            for them; None: ``site``, ``seed``.

    Returns:
        (B, ..., N), or (D * B, ..., N).

    Raises:
        ValueError, RuntimeError: as `perturb`.

    Example:
        >>> w = torch.eye(3)
        >>> linear(torch.ones(2, 3), w, noise=Noise(mul=0.1), seed=1).shape
        torch.Size([2, 3])
    """
    tensors("linear", x=x, weight=weight)
    held = _checked("linear", x, bias, relu, shared, array, array_seed)
    hardware = with_arithmetic("linear", hardware, arithmetic)
    # Before the key: where the noise is refused, no seed is drawn.
    of_noise: tuple[Any, ...] = noise_args("linear", x, noise) if hardware is None else ()
    key = Key.of("linear", x.device, seed, site, draws, rows, first_row)
    if hardware is not None or in_steps(noise):
        return with_hardware(Contraction("linear"), x, weight, bias, hardware, noise, relu, key, shared, held)
    add, mul, mode, kind = of_noise
    out: Tensor = _ops.linear.default(x, weight, bias, relu, add, mul, *key, mode, kind, shared)
    return out


def in_steps(noise: Noise | None) -> bool:
    """Whether the noise of a contraction must know its result first."""
    return noise is not None and noise.relative is not None


def _checked(
    name: str, x: Tensor, bias: Tensor | None, relu: bool, shared: bool, array: int | None, array_seed: Seed
) -> Chip:
    """What holds the weight; the switches and the bias of a contraction are looked at beside it."""
    flags(name, relu=relu, shared=shared)
    if array is not None:
        in_range(name, "array", array, PLACE)
    if bias is not None:
        tensors(name, bias=bias)
    return Chip.of(name, x.device, array, array_seed)


def with_hardware(
    contraction: Contraction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hardware: Sequence[Device] | None,
    noise: Noise | None,
    relu: bool,
    key: Key,
    shared: bool,
    array: Chip,
) -> Tensor:
    """A contraction as hardware makes it, or the library, then noise and a rectifier on its output."""
    batched = x.dim() > 1 if contraction.geometry is None else x.dim() == weight.dim()
    if not batched and key.draws is not None and (count := key.draws.shape[0]) != 1:
        raise ValueError(f"{contraction.name}: an unbatched value is one row and takes one draw, got {count}")
    x = x if batched else x.unsqueeze(0)
    if hardware is None:
        contraction.check(as_autocast(x), as_autocast(weight))
        y = contraction(x, weight, bias)
    else:
        y, shared = run(contraction, x, weight, bias, hardware, key, shared, array), False
    if noise is not None:
        add, mul, mode, kind = noise_args("perturb", y, noise)
        add = in_units(contraction.name, noise, add, y, key, shared)
        y = _ops.perturb.default(y, 0, add, mul, *key, mode, kind, shared)
    y = torch.relu(y) if relu else y
    return y if batched else y.squeeze(0)


@document_common
@by_parts(torch.matmul)
def matmul(
    a: Tensor,
    b: Tensor,
    *,
    noise: Noise,
    seed: Seed = None,
    site: int = 0,
    draws: Ids = None,
    shared: bool = False,
    rows: RowIds = None,
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
    tensors("matmul", a=a, b=b)
    flags("matmul", shared=shared)
    add, mul, mode, kind = noise_args("matmul", a, noise)
    if in_tokens(rows) is not None or in_steps(noise):
        of_call: dict[str, Any] = {"draws": draws, "shared": shared, "rows": rows, "first_row": first_row}
        return perturb(torch.matmul(a, b), noise, seed=seed, site=site, **of_call)
    key = Key.of("matmul", a.device, seed, site, draws, rows, first_row)
    out: Tensor = _ops.matmul.default(a, b, add, mul, *key, mode, kind, shared)
    return out


def _same_padding(
    padding: Size | str, weight: Tensor, stride: list[int], dilation: list[int], dims: int, name: str
) -> Size:
    """torch's string paddings as numbers; "same" with an uneven total has no such number."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return 0
    if padding != "same":
        raise ValueError(f"{name}: padding must be numbers, 'valid' or 'same', got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{name}: padding='same' needs stride 1, got {stride}")
    return [dilation[d] * (weight.shape[2 + d] - 1) for d in range(dims)]  # the total, both sides together


@functools.lru_cache(maxsize=2**10)
def geometry_of(dims: int, stride: Size, padding: Size, dilation: Size, groups: int) -> Geometry:
    """Of a convolution that is not transposed, from sizes that a module holds, as the operator takes it."""
    name = f"conv{dims}d"
    stride_, padding_ = ints(name, "stride", stride, dims), ints(name, "padding", padding, dims)
    return stride_, padding_, ints(name, "dilation", dilation, dims), False, [0] * dims, groups


def placed(
    dims: int, x: Tensor, weight: Tensor, sizes: tuple[Size, Size | str, Size, bool, Size, int]
) -> tuple[str, Tensor, Geometry]:
    """A convolution's name, its input (padded where the geometry cannot say so), and its geometry from sizes as they
    are given, in the order of `Geometry`."""
    stride, padding, dilation, transposed, output_padding, groups = sizes
    name = f"conv{'_transpose' if transposed else ''}{dims}d"
    tensors(name, x=x, weight=weight)
    word(name, "groups", groups)
    if weight.dim() != dims + 2:
        raise ValueError(f"{name}: weight must have {dims + 2} dimensions, got shape {list(weight.shape)}")
    stride_, dilation_ = ints(name, "stride", stride, dims), ints(name, "dilation", dilation, dims)
    if transposed and isinstance(padding, str):
        raise ValueError(f"{name}: padding must be a number or {dims} numbers, got {padding!r}")
    total = _same_padding(padding, weight, stride_, dilation_, dims, name)
    padding_ = ints(name, "padding", total, dims)
    if padding == "same":
        if any(p % 2 for p in padding_):  # torch pads the far side by one more
            x = F.pad(x, [p for t in reversed(padding_) for p in (t // 2, t - t // 2)])
            padding_ = [0] * dims
        else:
            padding_ = [t // 2 for t in padding_]
    output_padding_ = ints(name, "output_padding", output_padding, dims)
    return name, x, (stride_, padding_, dilation_, transposed, output_padding_, groups)


def _convolution(dims: int) -> Callable[..., Tensor]:
    def conv(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        noise: Noise | None = None,
        hardware: Sequence[Device] | None = None,
        arithmetic: Arithmetic | None = None,
        relu: bool = False,
        seed: Seed = None,
        site: int = 0,
        draws: Ids = None,
        shared: bool = False,
        rows: RowIds = None,
        first_row: int = 0,
        array: int | None = None,
        array_seed: Seed = None,
    ) -> Tensor:
        name, x, geometry = placed(dims, x, weight, (stride, padding, dilation, False, 0, groups))
        held = _checked(name, x, bias, relu, shared, array, array_seed)
        hardware = with_arithmetic(name, hardware, arithmetic)
        of_noise: tuple[Any, ...] = noise_args(name, x, noise) if hardware is None else ()
        key = Key.of(name, x.device, seed, site, draws, rows, first_row)
        if hardware is not None or in_steps(noise):
            inside = Contraction(name, geometry)
            return with_hardware(inside, x, weight, bias, hardware, noise, relu, key, shared, held)
        add, mul, mode, kind = of_noise
        out: Tensor = _ops.convolution.default(x, weight, bias, *geometry, relu, add, mul, *key, mode, kind, shared)
        return out

    size = "".join(f", {c}" for c in "DHW"[3 - dims :])
    kernel = "".join(f", k{c}" for c in "DHW"[3 - dims :])
    conv.__name__ = conv.__qualname__ = f"conv{dims}d"
    conv.__doc__ = f"""{dims}-d convolution with noise on its output: ``relu?(noise(conv{dims}d(x, weight) + bias))``.

    Args:
        x: (B, C{size}), or (D * B, C{size}) with D draws, or (C{size}): one row.
        weight: (N, C / groups{kernel}), the dtype of ``x``.
        bias: (N) or None.
        stride, padding, dilation, groups: as for `torch.nn.functional.conv{dims}d`.
        relu: apply a rectifier after the noise.
        {{common}}
        array, array_seed: as for `linear`.

    Returns:
        (B, N, ...), or (D * B, N, ...).

    Raises:
        ValueError, RuntimeError: as `perturb`.

    Example:
        >>> x, w = torch.ones(2, 3{", 8" * dims}), torch.ones(4, 3{", 3" * dims})
        >>> conv{dims}d(x, w, padding=1, noise=Noise(add=0.1), seed=1).shape
        torch.Size([2, 4{", 8" * dims}])
    """
    return document_common(by_parts(getattr(F, conv.__name__))(by_tokens(conv)))


def _convolution_transpose(dims: int) -> Callable[..., Tensor]:
    def conv_transpose(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        noise: Noise | None = None,
        hardware: Sequence[Device] | None = None,
        arithmetic: Arithmetic | None = None,
        relu: bool = False,
        seed: Seed = None,
        site: int = 0,
        draws: Ids = None,
        shared: bool = False,
        rows: RowIds = None,
        first_row: int = 0,
        array: int | None = None,
        array_seed: Seed = None,
    ) -> Tensor:
        name, x, geometry = placed(dims, x, weight, (stride, padding, dilation, True, output_padding, groups))
        held = _checked(name, x, bias, relu, shared, array, array_seed)
        hardware = with_arithmetic(name, hardware, arithmetic)
        of_noise: tuple[Any, ...] = noise_args(name, x, noise) if hardware is None else ()
        key = Key.of(name, x.device, seed, site, draws, rows, first_row)
        if hardware is not None or in_steps(noise):
            inside = Contraction(name, geometry)
            return with_hardware(inside, x, weight, bias, hardware, noise, relu, key, shared, held)
        add, mul, mode, kind = of_noise
        out: Tensor = _ops.convolution.default(x, weight, bias, *geometry, relu, add, mul, *key, mode, kind, shared)
        return out

    size = "".join(f", {c}" for c in "DHW"[3 - dims :])
    kernel = "".join(f", k{c}" for c in "DHW"[3 - dims :])
    conv_transpose.__name__ = conv_transpose.__qualname__ = f"conv_transpose{dims}d"
    conv_transpose.__doc__ = f"""{dims}-d transposed convolution with noise on its output.

    ``relu?(noise(conv_transpose{dims}d(x, weight) + bias))``

    Args:
        x: (B, C{size}), or (D * B, C{size}) with D draws, or (C{size}): one row.
        weight: (C, N / groups{kernel}), the dtype of ``x``.
        bias: (N) or None.
        stride, padding, output_padding, groups, dilation: as for `torch.nn.functional.conv_transpose{dims}d`.
        relu: apply a rectifier after the noise.
        {{common}}
        array, array_seed: as for `linear`.

    Returns:
        (B, N, ...), or (D * B, N, ...).

    Raises:
        ValueError, RuntimeError: as `perturb`.

    Example:
        >>> x, w = torch.ones(2, 3{", 4" * dims}), torch.ones(3, 5{", 2" * dims})
        >>> conv_transpose{dims}d(x, w, stride=2, noise=Noise(add=0.1), seed=1).shape
        torch.Size([2, 5{", 8" * dims}])
    """
    return document_common(by_parts(getattr(F, conv_transpose.__name__))(by_tokens(conv_transpose)))


conv1d, conv2d, conv3d = (_convolution(d) for d in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_convolution_transpose(d) for d in (1, 2, 3))
