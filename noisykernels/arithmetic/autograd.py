"""Rules under torch's transforms of the operators with a defined arithmetic: rounding to a format, and serial sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisykernels.noise.autograd import no_forward, register_autograd, register_vmap
from noisykernels.noise.derivatives import Grads, product_tangent
from noisykernels.noise.operands import refuse_layouts, register_fake

_ops = torch.ops.noisykernels

_MASKED = 18  # positions of these arguments of `serial`
_ELEMENTS = 1 << 24  # of gradients that are not yet added up
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
    if not args[_MASKED]:  # which has no use for the order, and that of every output is large
        return (*args[:2], *[None] * (len(_TENSORS) - 2))
    return tuple(args[i] for i in _TENSORS)


def _serial_gradients(ctx: Any, grad: Tensor) -> Grads:
    args = list(ctx.arguments)
    for i, tensor in zip(_TENSORS, ctx.saved_tensors, strict=True):
        args[i] = tensor
    a, b, order = args[:3]
    grad = grad.to(a.dtype)
    if args[_MASKED]:
        return _masked(args, grad, a, b, order)
    # The operand that several matrices share is not laid out for each of them: it can be a weight, for every row.
    few = min(len(a), len(b))
    pull, x, w = (t.reshape(len(t) // max(1, few), few, *t.shape[1:]) for t in (grad, a, b))
    da = db = None
    if ctx.needs_input_grad[0]:
        da = torch.einsum("rtij,rtkj->tik" if len(x) == 1 else "rtij,tkj->rtik", pull, w if len(x) == 1 else w[0])
    if ctx.needs_input_grad[1]:
        db = torch.einsum("rtij,tik->rtkj" if len(x) == 1 else "rtij,rtik->tkj", pull, x[0] if len(x) == 1 else x)
    return None if da is None else da.reshape(a.shape), None if db is None else db.reshape(b.shape)


def _passed(ctx: Any, tangents: Sequence[Tensor | None]) -> Tensor:
    """A rounding lets a tangent pass as it does a gradient."""
    assert tangents[0] is not None
    return tangents[0]


def _serial_tangent(ctx: Any, tangents: Sequence[Tensor | None]) -> Tensor:
    """The derivative of the exact sums, as the gradient that passes straight through has it."""
    if ctx.arguments[_MASKED]:
        raise no_forward("noisykernels::serial, with gradient='masked'")
    a, b = ctx.saved_tensors[:2]
    return product_tangent(_exact_sums, a, b, tangents[:2])


def _exact_sums(a: Tensor, b: Tensor, _: None) -> Tensor:
    few = max(1, min(len(a), len(b)))  # the operand with fewer matrices is used again and again
    a, b = (t.reshape(len(t) // few, few, *t.shape[1:]) for t in (a, b))
    sums: Tensor = (a @ b).flatten(0, 1)
    return sums


def _masked(args: list[Any], grad: Tensor, a: Tensor, b: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the operands after the last clamp of each output get, by the leak of the steps that follow them."""
    steps, leak = a.shape[2], args[7]
    last = _ops.serial.default(*args[: _MASKED + 1], True)
    position = torch.arange(steps, dtype=torch.int32, device=a.device)
    of_each = order is not None and order.dim() > 1
    if order is not None and not of_each:
        position = torch.empty_like(position).scatter_(0, order.long(), position)
    # Matrices that share an operand have gradients of their own at first, so some at a time: multiples of `few`.
    few = max(1, min(len(a), len(b)))
    some = few * max(1, _ELEMENTS // max(1, (a.numel() // max(1, len(a)) + b.numel() // max(1, len(b))) * few))
    parts_of_a, parts_of_b = [torch.zeros_like(a[:0])], [torch.zeros_like(b[:0])]
    for first in range(0, len(grad), some):
        here = slice(first, first + some)
        times = len(grad[here]) // few
        x, w = (t[here] if len(t) == len(grad) else t.repeat(times, 1, 1) for t in (a, b))
        if order is not None and of_each:
            of_a, of_b = _masked_in_their_orders(grad[here], last[here], x, w, order[here], leak)
        else:
            of_a, of_b = _ops.serial_gradient.default(grad[here], last[here], x, w, position)
        parts_of_a.append(of_a if len(a) == len(grad) else of_a.view(times, *a.shape).sum(0))
        parts_of_b.append(of_b if len(b) == len(grad) else of_b.view(times, *b.shape).sum(0))
    da = torch.cat(parts_of_a) if len(a) == len(grad) else sum(parts_of_a[1:], torch.zeros_like(a))
    db = torch.cat(parts_of_b) if len(b) == len(grad) else sum(parts_of_b[1:], torch.zeros_like(b))
    if leak != 1 and not of_each:
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
        register_fake(name, fake)
        refuse_layouts(library, name)
    register_autograd(library, "quantize", lambda *_: (), lambda _, grad: (grad,), lambda *_: None, _passed)
    register_autograd(library, "serial", _keep, _serial_gradients, _no_level, _serial_tangent)
    register_autograd(library, "serial_gradient", lambda *_: (), _no_second, lambda *_: None)
    for name in fakes:
        register_vmap(name)
    return library


LIBRARY = _register()  # the registrations live as long as this object
