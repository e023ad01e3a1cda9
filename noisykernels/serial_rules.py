"""Rules under torch's transforms of the operators with a defined arithmetic: rounding to a format, and serial sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisykernels.rules import Grads, register_autograd, register_vmap

_ops = torch.ops.noisykernels
_MASKED = 18  # positions of these arguments of `serial`
_TENSORS = (0, 1, 2, 11, 13, 14, 15)


def _no_level(ctx: Any, args: tuple[Any, ...]) -> str | None:
    return "there is no gradient with respect to step_noise" if any(ctx.needs_input_grad[2:-1]) else None


def _fake_quantize(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_serial(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    count = a.shape[0] if b.shape[0] == 1 else b.shape[0] if a.shape[0] == 1 else max(a.shape[0], b.shape[0])
    return a.new_empty(count, a.shape[1], b.shape[2])


def _fake_gradient(grad: Tensor, last: Tensor, a: Tensor, b: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, args: tuple[Any, ...], output: Tensor) -> tuple[Any, ...]:
    return tuple(args[i] for i in _TENSORS)


def _serial_gradients(ctx: Any, grad: Tensor) -> Grads:
    args = list(ctx.arguments)
    for i, tensor in zip(_TENSORS, ctx.saved_tensors, strict=True):
        args[i] = tensor
    a, b, order = args[:3]
    grad = grad.to(a.dtype)
    times_a, times_b = len(grad) // max(1, len(a)), len(grad) // max(1, len(b))
    if args[_MASKED]:
        of_a, of_b = _masked(args, grad, a.repeat(times_a, 1, 1), b.repeat(times_b, 1, 1), order)
        return of_a.view(times_a, *a.shape).sum(0), of_b.view(times_b, *b.shape).sum(0)
    # The operand that several matrices share is not laid out for each of them: it can be a weight, for every row.
    few = min(len(a), len(b))
    pull, x, w = (t.reshape(len(t) // max(1, few), few, *t.shape[1:]) for t in (grad, a, b))
    da = db = None
    if ctx.needs_input_grad[0]:
        da = torch.einsum("rtij,rtkj->tik" if len(x) == 1 else "rtij,tkj->rtik", pull, w if len(x) == 1 else w[0])
    if ctx.needs_input_grad[1]:
        db = torch.einsum("rtij,tik->rtkj" if len(x) == 1 else "rtij,rtik->tkj", pull, x[0] if len(x) == 1 else x)
    return None if da is None else da.reshape(a.shape), None if db is None else db.reshape(b.shape)


def _masked(args: list[Any], grad: Tensor, a: Tensor, b: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the operands after the last clamp of each output get, by the leak of the steps that follow them."""
    steps, leak = a.shape[2], args[7]
    last = _ops.serial.default(*args[: _MASKED + 1], True)
    if order is not None and order.dim() > 1:
        return _masked_in_their_orders(grad, last, a, b, order, leak)
    position = torch.arange(steps, dtype=torch.int32, device=a.device)
    if order is not None:
        position = torch.empty_like(position).scatter_(0, order.long(), position)
    da, db = _ops.serial_gradient.default(grad, last, a, b, position)
    if leak != 1:
        left = leak ** (steps - 1 - position).to(a.dtype)
        da, db = da * left, db * left.unsqueeze(1)
    return da, db


def _no_second(ctx: Any, *_: Tensor) -> Grads:
    raise NotImplementedError("serial: masked gradients have no derivatives of their own")


def _masked_in_their_orders(
    grad: Tensor, last: Tensor, a: Tensor, b: Tensor, order: Tensor, leak: float
) -> tuple[Tensor, Tensor]:
    """The same where every output has its own order (T, I, J, K)."""
    positions = torch.arange(a.shape[2], dtype=torch.int32, device=a.device).expand(order.shape)
    position = torch.empty_like(order).scatter(3, order.long(), positions)
    pull = torch.where(last.unsqueeze(-1) < position, grad.unsqueeze(-1), 0)
    if leak != 1:
        pull = pull * leak ** (a.shape[2] - 1 - position).to(a.dtype)
    return torch.einsum("tijk,tkj->tik", pull, b), torch.einsum("tijk,tik->tkj", pull, a)


def _register() -> torch.library.Library:
    library = torch.library.Library("noisykernels", "IMPL")
    fakes: dict[str, Any] = {"quantize": _fake_quantize, "serial": _fake_serial, "serial_gradient": _fake_gradient}
    for name, fake in fakes.items():
        torch.library.register_fake(f"noisykernels::{name}", fake)
    register_autograd(library, "quantize", lambda *_: (), lambda _, grad: (grad,), lambda *_: None)
    register_autograd(library, "serial", _keep, _serial_gradients, _no_level)
    register_autograd(library, "serial_gradient", lambda *_: (), _no_second, lambda *_: None)
    for name in fakes:
        register_vmap(name)
    return library


LIBRARY = _register()  # the registrations live as long as this object
