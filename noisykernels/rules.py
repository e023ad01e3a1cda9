"""Rules of the operators under torch's transforms: fake tensors, autograd, vmap and autocast.

An operator's trailing ten arguments are the noise's (`_noise_args` in ops.py); one table says how many tensors come first and
how the gradient of the contraction is taken. The noise's own gradient is the same for all: additive noise passes it, a factor
multiplies it by the same factor, drawn again from the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.noise import MODES

_ops = torch.ops.noisykernels
_NOISE = 10  # number of trailing noise arguments
_MUL = MODES.index("mul")
_FOLD = MODES.index("fold")
_WITH_FACTOR = (_MUL, MODES.index("mul_add"), MODES.index("add_mul"))

# ------------------------------------------------------------------------------------------------------------- fake


def _is_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and not x.is_contiguous() and x.is_contiguous(memory_format=formats[x.dim()])


def _fake_noise(clean: Tensor, noise_args: tuple[Any, ...]) -> Tensor:
    draws, shared = noise_args[3], noise_args[9]
    shape = list(clean.shape)
    if shared and draws is not None and shape:
        shape[0] = draws.shape[0] * shape[0]
    out = clean.new_empty(shape)
    if _is_channels_last(clean):
        out = out.contiguous(memory_format=torch.channels_last if clean.dim() == 4 else torch.channels_last_3d)
    return out


def _clean_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _clean_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    batched = x.dim() == weight.dim()
    out = torch.ops.aten.convolution(x if batched else x.unsqueeze(0), weight, bias, *args[:-1])
    return out if batched else out.squeeze(0)


def _clean_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return F.max_pool2d(x.new_empty(x.shape), kernel, stride, padding)


def _fake_eps(shape: list[int], kind: int, seed: Tensor, *_: Any) -> Tensor:
    return seed.new_empty(shape, dtype=torch.float32)


# --------------------------------------------------------------------------------------------------------- autograd


def _noise_gradient(grad: Tensor, noise_args: tuple[Any, ...]) -> Tensor:
    """The gradient with respect to the clean value."""
    _, mul, seed, draws, rows, first_row, site, mode, kind, shared = noise_args
    if mode in _WITH_FACTOR:
        grad = _ops.perturb(grad, None, mul, seed, draws, rows, first_row, site, _MUL, kind, False)
    if shared and draws is not None:
        grad = grad.reshape(draws.shape[0], -1, *grad.shape[1:]).sum(0)
    return grad


def _linear_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    flat = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if needs[0] else None,
        flat.T @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
        flat.sum(0) if needs[2] else None,
    )


def _convolution_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    batched = x.dim() == weight.dim()
    needs = ctx.needs_input_grad
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad if batched else grad.unsqueeze(0),
        x if batched else x.unsqueeze(0),
        weight,
        [ctx.bias_size],
        *ctx.settings,
        [needs[0], needs[1], needs[2]],
    )
    return dx if batched or dx is None else dx.squeeze(0), dw, db


def _matmul_gradients(ctx: Any, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    a2 = a.unsqueeze(0) if a.dim() == 1 else a
    b2 = b.unsqueeze(1) if b.dim() == 1 else b
    g = grad.unsqueeze(-2) if a.dim() == 1 and b.dim() > 1 else grad
    g = g.unsqueeze(-1) if b.dim() == 1 else g
    g = g.unsqueeze(-1) if a.dim() == b.dim() == 1 else g
    da = (g @ b2.transpose(-1, -2)).sum_to_size(a2.shape).reshape(a.shape) if ctx.needs_input_grad[0] else None
    db = (a2.transpose(-1, -2) @ g).sum_to_size(b2.shape).reshape(b.shape) if ctx.needs_input_grad[1] else None
    return da, db


def _identity_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (grad,)


def _register_autograd(name: str, operands: int, relu_at: int | None, gradients: Callable[..., Any]) -> None:
    """Autograd of an operator whose first `operands` inputs are needed for the gradients of its contraction."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        noise_args = inputs[-_NOISE:]
        if noise_args[7] == _FOLD and any(ctx.needs_input_grad):
            raise RuntimeError(f"noisykernels::{name}: folded noise (fold=True) has no gradient; use the two-term form")
        ctx.static = (*noise_args[5:],)
        ctx.relu = relu_at is not None and inputs[relu_at]
        if name == "convolution":
            ctx.bias_size = inputs[1].shape[0] if not inputs[6] else inputs[1].shape[1] * inputs[8]
            ctx.settings = inputs[3:9]
        ctx.inputs = len(inputs)
        ctx.save_for_backward(*inputs[:operands], *noise_args[:5], output if ctx.relu else None)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, output = ctx.saved_tensors
        if ctx.relu:
            grad = grad * (output > 0)
        grad = _noise_gradient(grad, (*saved[operands:], *ctx.static))
        grads = gradients(ctx, grad, *saved[:operands])
        return (*grads, *([None] * (ctx.inputs - len(grads))))

    torch.library.register_autograd(f"noisykernels::{name}", backward, setup_context=setup)


# ------------------------------------------------------------------------------------------------- vmap and autocast


def _register_vmap(name: str) -> None:
    op = getattr(_ops, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call for each element of the mapped dimension: every element draws what it would draw alone."""

        def at(i: int) -> list[Any]:
            return [a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)]

        return torch.stack([op(*at(i)) for i in range(info.batch_size)]), 0

    torch.library.register_vmap(f"noisykernels::{name}", rule)


def _register_autocast(library: torch.library.Library, name: str, operands: int, device: str, key: str) -> None:
    """The operands (not the levels) in the lower type that autocast wants just now."""
    op = getattr(_ops, name)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def rule(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        lower = [a.to(dtype) if a is not None and a.is_floating_point() and a.dtype != torch.float64 else a for a in args[:operands]]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*lower, *args[operands:])

    library.impl(name, rule, key)


# ----------------------------------------------------------------------------------------------------- registration


def _register() -> torch.library.Library:
    # name, tensors that come first, those that the gradient needs, position of `relu`, shape of the clean value, gradients
    table: tuple[tuple[str, int, int, int | None, Callable[..., Tensor], Callable[..., Any] | None], ...] = (
        ("perturb", 0, 0, None, lambda x: x, _identity_gradient),
        ("linear", 3, 2, 3, _clean_linear, _linear_gradients),
        ("convolution", 3, 2, 9, _clean_convolution, _convolution_gradients),
        ("matmul", 2, 2, None, torch.matmul, _matmul_gradients),
        ("perturb_relu_max_pool2d", 0, 0, None, _clean_pool, None),
    )
    library = torch.library.Library("noisykernels", "IMPL")
    for name, tensors, needed, relu_at, clean, gradients in table:

        def fake(*args: Any, clean: Callable[..., Tensor] = clean) -> Tensor:
            return _fake_noise(clean(*args[:-_NOISE]), args[-_NOISE:])

        torch.library.register_fake(f"noisykernels::{name}", fake)
        if gradients is not None:
            _register_autograd(name, needed, relu_at, gradients)
        _register_vmap(name)
        if tensors:
            _register_autocast(library, name, tensors, "cpu", "AutocastCPU")
            _register_autocast(library, name, tensors, "cuda", "AutocastCUDA")
    torch.library.register_fake("noisykernels::eps", _fake_eps)
    _register_vmap("eps")
    return library


LIBRARY = _register()  # the registrations live as long as this object
