"""Rules of the operators under torch's transforms: fake tensors, autograd, vmap and autocast.

An operator's trailing ten arguments are the noise's: levels, key, mode, kind, shared; one table says how
many tensors come first and how the derivatives of the contraction are taken (`derivatives`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from noisykernels.noise.contract import MODES
from noisykernels.noise.derivatives import (
    Grads,
    convolution_gradients,
    convolution_product,
    linear_gradients,
    matmul_gradients,
    matmul_product,
    noise_gradient,
    noise_tangent,
    product_tangent,
)  # fmt: skip
from noisykernels.noise.operands import refuse_layouts, register_fake
from noisykernels.noise.units import by_torch

_ops = torch.ops.noisykernels

_NOISE = 10  # number of trailing noise arguments
_FOLD = MODES.index("fold")


@dataclass(frozen=True)
class _Op:
    """What the rules must know of an operator."""

    name: str
    clean: Callable[..., Tensor]  # a value of the noiseless result's shape, from all but the noise
    rows: Callable[..., int | None]  # of that value; None: it is one row without a dimension for it
    gradients: Callable[..., Grads] | None  # of the leading tensors; None: there is no gradient
    product: Callable[[Any], Callable[..., Tensor]] | None  # from arguments: of operands, in each of which it is linear
    tensors: int = 1  # how many arguments come first that are tensors
    saved: int = 0  # how many of them the gradients need
    relu: int | None = None  # position of the argument `relu`
    operand: int | None = None  # position of the argument `operand`, where it is not the output's


# ------------------------------------------------------------------------------------------- fake


def is_channels_last(x: Tensor) -> bool:
    """Whether memory goes through the channels first; not where that is the plain order as well."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() not in formats or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=formats[x.dim()])


def empty_like(clean: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of another shape in the memory format of a value."""
    out = clean.new_empty(shape)
    if is_channels_last(clean):
        out = out.contiguous(memory_format=torch.channels_last if clean.dim() == 4 else torch.channels_last_3d)
    return out


def _fake_noise(clean: Tensor, noise_args: tuple[Any, ...]) -> Tensor:
    draws, shared = noise_args[3], noise_args[9]
    shape = list(clean.shape)
    if shared and draws is not None and shape:
        shape[0] = draws.shape[0] * shape[0]
    return empty_like(clean, shape)


def _clean_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _clean_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    batched = x.dim() == weight.dim()
    x = x if batched else x.unsqueeze(0)
    out: Tensor = torch.ops.aten.convolution(x, weight, bias, *args[:-1])
    return out if batched else out.squeeze(0)


def _clean_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return F.max_pool2d(x.new_empty(x.shape), kernel, stride, padding)


def _fake_eps(shape: list[int], kind: int, seed: Tensor, *_: Any) -> Tensor:
    return seed.new_empty(shape, dtype=torch.float32)


def _fake_row_scale(x: Tensor, statistic: int) -> Tensor:
    return x.new_empty(x.shape[0] if x.dim() > 0 else 1, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- rows


def _clean_perturb(x: Tensor, operand: int) -> Tensor:
    return x


def _rows(x: Tensor, *_: Any) -> int | None:
    return x.shape[0] if x.dim() > 0 else None


def _linear_rows(x: Tensor, *_: Any) -> int | None:
    return x.shape[0] if x.dim() > 1 else None


def _convolution_rows(x: Tensor, weight: Tensor, *_: Any) -> int | None:
    return x.shape[0] if x.dim() == weight.dim() else None


def _matmul_rows(a: Tensor, b: Tensor) -> int | None:
    if a.dim() > 2 or b.dim() > 2:
        batch: Sequence[int] = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return batch[0]
    dims: tuple[int | None, ...] = (*a.shape[:-1], *b.shape[1:], None)
    return dims[0]


# --------------------------------------------------------------------------------------- autograd


def _convolution(arguments: Sequence[Any]) -> Callable[..., Tensor]:
    return functools.partial(convolution_product, arguments[3:9])


def _identity_gradient(ctx: Any, grad: Tensor) -> Grads:
    return (grad,)


def no_forward(op: str) -> NotImplementedError:
    """What to say where an operator has only gradients."""
    return NotImplementedError(f"{op}: there is no forward-mode derivative; take reverse mode (torch.func.vjp, jacrev)")


class _Seen:
    """A context with tangents in place of what requires grad."""

    def __init__(self, ctx: Any, tangents: Sequence[Any]) -> None:
        self.ctx, self.needs_input_grad = ctx, tuple(t is not None for t in tangents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)


def register_autograd(
    library: torch.library.Library,
    name: str,
    keep: Callable[[Any, tuple[Any, ...], Tensor], tuple[Any, ...]],
    backward: Callable[..., Grads],
    refuse: Callable[[Any, tuple[Any, ...]], str | None],
    forward: Callable[[Any, Sequence[Tensor | None]], Tensor] | None = None,
) -> None:
    """Autograd of an operator, to any order.

    As torch.library.register_autograd, which (as of torch 2.13) neither works under torch.func.grad
    nor notices forward-mode inputs: those would silently get zero tangents.

    Args:
        keep: (ctx, arguments, output) -> what is saved for the gradient.
        backward: (ctx, gradient of each output) -> gradients of the leading arguments.
        refuse: (ctx, arguments) -> why there is no gradient, if there is none.
        forward: (ctx, tangents of all arguments) -> that of the output; None: there is no forward-mode derivative.
    """
    op = getattr(_ops, name).default

    def below(keys: torch._C.DispatchKeySet, args: Sequence[Any]) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out: Tensor = op.redispatch(keys & torch._C._after_autograd_keyset, *args)
            return out

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            *args, keys = inputs
            if any(ctx.needs_input_grad) and (reason := refuse(ctx, tuple(args))) is not None:
                raise RuntimeError(f"{op}: {reason}")
            output = below(keys, args)
            ctx.arguments = [None if isinstance(a, Tensor) else a for a in args]
            saved = keep(ctx, tuple(args), output)
            ctx.save_for_backward(*saved)
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(*saved)
            ctx.set_materialize_grads(False)
            return output

        @staticmethod
        def backward(ctx: Any, *along: Tensor) -> Grads:
            grads = () if along[0] is None else backward(ctx, *along)
            return (*grads, *[None] * (len(ctx.arguments) + 1 - len(grads)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensor:
            if forward is None:
                raise no_forward(str(op))
            seen = _Seen(ctx, tangents)
            if (reason := refuse(seen, ctx.arguments)) is not None:
                raise RuntimeError(f"{op}: {reason}")
            return forward(ctx, tangents[:-1])

    # torch.autograd.Function.apply without its detour through functorch: inside the dispatcher, one
    # level of transforms is being worked on.
    apply: Callable[..., Any] = super(torch.autograd.Function, Noisy).apply

    def kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Tensor:
        backward = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if not backward and forward_ad._current_level < 0:
            return below(keys, args)
        with enable_single_level_autograd_function():
            out: Tensor = apply(*args, keys)
            return out

    library.impl(name, kernel, "Autograd", with_keyset=True)


NO_FOLD = "folded noise (fold=True) has no gradient; use the two-term form"
NO_LEVEL = "there is no gradient with respect to a level"


def _register_output_noise(library: torch.library.Library, rules: _Op) -> None:
    """Autograd of an operator with noise on its output."""

    def refuse(ctx: Any, args: tuple[Any, ...]) -> str | None:
        if rules.gradients is None:
            return "it is inference only, but input requires grad"
        if args[7 - _NOISE] == _FOLD:
            return NO_FOLD
        return NO_LEVEL if any(ctx.needs_input_grad[-_NOISE - 1 : -1]) else None

    def keep(ctx: Any, args: tuple[Any, ...], output: Tensor) -> tuple[Any, ...]:
        ctx.relu = rules.relu is not None and args[rules.relu]
        ctx.rows = rules.rows(*args[: rules.tensors])
        return (*args[: rules.saved], *args[-_NOISE:][:5], output if ctx.relu else None)

    def backward(ctx: Any, grad: Tensor) -> Grads:
        *saved, output = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        noise_args = (*saved[rules.saved :], *ctx.arguments[5 - _NOISE :])
        operand = 0 if rules.operand is None else ctx.arguments[rules.operand]
        grad = noise_gradient(grad, noise_args, ctx.rows, operand)
        assert rules.gradients is not None
        return rules.gradients(ctx, grad, *saved[: rules.saved])

    def forward(ctx: Any, tangents: Sequence[Tensor | None]) -> Tensor:
        *saved, output = ctx.saved_tensors
        noise_args = (*saved[rules.saved :], *ctx.arguments[5 - _NOISE :])
        if rules.product is None:
            (tangent,) = tangents[: rules.tensors]
            assert tangent is not None
        else:
            a, b = saved[:2]
            tangent = product_tangent(rules.product(ctx.arguments), a, b, tangents[: rules.tensors])
        operand = 0 if rules.operand is None else ctx.arguments[rules.operand]
        tangent = noise_tangent(tangent, noise_args, ctx.rows, operand)
        return torch.where(output > 0, tangent, 0) if ctx.relu else tangent

    register_autograd(library, rules.name, keep, backward, refuse, forward)


# ------------------------------------------------------------------------------- vmap and autocast


def register_vmap(name: str) -> None:
    """The rule of `torch.func.vmap` of an operator."""
    op = getattr(_ops, name)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """One call for each element of the mapped dimension: it draws what it would draw alone."""

        def at(i: int) -> list[Any]:  # the dimension of a list is a list of None
            return [
                a.select(d, i).contiguous() if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)
            ]

        results = [op(*at(i)) for i in range(info.batch_size)]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(outputs) for outputs in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0

    torch.library.register_vmap(f"noisykernels::{name}", rule)


def register_autocast(library: torch.library.Library, name: str, operands: int) -> None:
    """The operands (not the levels) in the lower type that autocast wants just now."""
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _register_autocast_on(library, name, operands, device, key)


def _register_autocast_on(library: torch.library.Library, name: str, operands: int, device: str, key: str) -> None:
    op = getattr(_ops, name)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def lower(a: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if a is None or not a.is_floating_point() or a.dtype == torch.float64:
            return a
        return a.to(dtype)

    def rule(*args: Any) -> Tensor:
        dtype, leading = torch.get_autocast_dtype(device), args[:operands]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if args[0].device.type == device:  # a seed or a level alone may be of another device
                leading = tuple(lower(a, dtype) for a in leading)
            out: Tensor = op(*leading, *args[operands:])
            return out

    library.impl(name, rule, key)


# ----------------------------------------------------------------------------------- registration


_TABLE = (
    _Op("perturb", _clean_perturb, _rows, _identity_gradient, None, operand=1),
    _Op("linear", _clean_linear, _linear_rows, linear_gradients, lambda _: F.linear, 3, 2, relu=3),
    _Op("convolution", _clean_convolution, _convolution_rows, convolution_gradients, _convolution, 3, 2, relu=9),
    _Op("matmul", torch.matmul, _matmul_rows, matmul_gradients, lambda _: matmul_product, 2, 2),
    _Op("perturb_relu_max_pool2d", _clean_pool, _rows, None, None),
)


def _register() -> torch.library.Library:
    library = torch.library.Library("noisykernels", "IMPL")
    for rules in _TABLE:

        def fake(*args: Any, clean: Callable[..., Tensor] = rules.clean) -> Tensor:
            return _fake_noise(clean(*args[:-_NOISE]), args[-_NOISE:])

        register_fake(rules.name, fake)
        refuse_layouts(library, rules.name)
        _register_output_noise(library, rules)
        register_vmap(rules.name)
        if rules.tensors > 1:  # contractions; noise alone keeps the type it finds
            register_autocast(library, rules.name, rules.tensors)
    register_fake("eps", _fake_eps)
    register_fake("row_scale", _fake_row_scale)
    for name in ("eps", "row_scale"):
        refuse_layouts(library, name)
        register_vmap(name)
    library.impl("row_scale", by_torch, "CUDA")
    return library


LIBRARY = _register()  # the registrations live as long as this object
