"""Derivatives of what operators compute, to either side: gradients of their operands, and tangents of their results.

The noise's own derivative is the same for all: additive noise passes it, a factor multiplies it by the same factor,
drawn again from the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels.noise.contract import MODES

__all__ = [
    "Grads", "convolution_gradients", "convolution_product", "linear_gradients", "matmul_gradients",
    "matmul_product", "noise_gradient", "noise_tangent", "product_tangent",
]  # fmt: skip

_ops = torch.ops.noisykernels

_MUL = MODES.index("mul")
_WITH_FACTOR = (_MUL, MODES.index("mul_add"), MODES.index("add_mul"))

Grads = tuple[Tensor | None, ...]


def noise_gradient(grad: Tensor, noise_args: tuple[Any, ...], rows: int | None, operand: int = 0) -> Tensor:
    """The gradient with respect to the clean value, which has so many rows."""
    _, mul, seed, draws, *rest, mode, kind, shared = noise_args
    if rows is None:  # one row, as in the forward
        grad = grad.unsqueeze(0)
    if mode in _WITH_FACTOR:
        grad = _ops.perturb(grad, operand, None, mul, seed, draws, *rest, _MUL, kind, False)
    if rows is None:
        return grad.squeeze(0)
    if shared and draws is not None:
        grad = grad.reshape(draws.shape[0], rows, *grad.shape[1:]).sum(0)
    return grad


def linear_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Grads:
    """Of input, weight and bias, those that are needed."""
    needs = ctx.needs_input_grad
    flat = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if needs[0] else None,
        flat.T @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
        flat.sum(0) if needs[2] else None,
    )


def convolution_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Grads:
    """Of input, weight and bias, those that are needed."""
    batched = x.dim() == weight.dim()
    transposed, groups = ctx.arguments[6], ctx.arguments[8]
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad if batched else grad.unsqueeze(0),
        x if batched else x.unsqueeze(0),
        weight,
        [weight.shape[1] * groups if transposed else weight.shape[0]],
        *ctx.arguments[3:9],
        list(ctx.needs_input_grad[:3]),
    )
    return dx if batched or dx is None else dx.squeeze(0), dw, db


def convolution_product(geometry: Sequence[Any], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution, batched or not."""
    batched = x.dim() == weight.dim()
    out: Tensor = torch.ops.aten.convolution(x if batched else x.unsqueeze(0), weight, bias, *geometry)
    return out if batched else out.squeeze(0)


def matmul_product(a: Tensor, b: Tensor, _: None) -> Tensor:
    """A product of matrices, which has no bias."""
    return a @ b


def product_tangent(
    product: Callable[[Tensor, Tensor, Any], Tensor], x: Tensor, weight: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    """The derivative of a product along tangents of its operands and its bias."""
    of_x, of_weight, of_bias = (*tangents, None)[:3]
    if of_weight is None:
        return product(torch.zeros_like(x) if of_x is None else of_x, weight, of_bias)
    found = product(x, of_weight, of_bias)
    return found if of_x is None else found + product(of_x, weight, None)


def noise_tangent(tangent: Tensor, noise_args: tuple[Any, ...], rows: int | None, operand: int = 0) -> Tensor:
    """The derivative along that of the clean value, which has so many rows: the counterpart of `noise_gradient`."""
    _, mul, seed, draws, *rest, mode, kind, shared = noise_args
    if rows is None:
        tangent = tangent.unsqueeze(0)
    if mode in _WITH_FACTOR:
        tangent = _ops.perturb(tangent, operand, None, mul, seed, draws, *rest, _MUL, kind, shared)
    elif shared and draws is not None:
        tangent = tangent.repeat(len(draws), *[1] * (tangent.dim() - 1))
    return tangent.squeeze(0) if rows is None else tangent


def matmul_gradients(ctx: Any, grad: Tensor, a: Tensor, b: Tensor) -> Grads:
    """Of both operands, those that are needed."""
    a2 = a.unsqueeze(0) if a.dim() == 1 else a
    b2 = b.unsqueeze(1) if b.dim() == 1 else b
    g = grad.unsqueeze(-1) if b.dim() == 1 else grad
    g = g.unsqueeze(-2) if a.dim() == 1 else g
    da = db = None
    if ctx.needs_input_grad[0]:
        da = (g @ b2.transpose(-1, -2)).sum_to_size(a2.shape).reshape(a.shape)
    if ctx.needs_input_grad[1]:
        db = (a2.transpose(-1, -2) @ g).sum_to_size(b2.shape).reshape(b.shape)
    return da, db
