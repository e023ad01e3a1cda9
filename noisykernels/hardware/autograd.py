"""Rules under torch's transforms of the contractions whose weights and products are noisy.

What the forward drew is drawn again for a derivative: nothing random is stored, and no noisy weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from noisykernels.hardware import panels
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.macs import deviation
from noisykernels.hardware.noises import WeightNoise
from noisykernels.noise.arguments import OF_THE_CALL, Key
from noisykernels.noise.autograd import (
    NO_FOLD,
    NO_LEVEL,
    empty_like,
    register_autocast,
    register_autograd,
    register_vmap,
)
from noisykernels.noise.contract import MODES, OPERANDS
from noisykernels.noise.derivatives import (
    Grads,
    convolution_gradients,
    linear_gradients,
    noise_gradient,
    noise_tangent,
    product_tangent,
)
from noisykernels.noise.operands import refuse_layouts, register_fake

_ops = torch.ops.noisykernels

_FOLD = MODES.index("fold")
_WEIGHT, _PER_PRODUCT = OPERANDS.index("weight"), OPERANDS.index("per_product")

_NOISE = ("add", "mul", "mode", "kind")
_MACS = ("per_product", "per_step", "read")
_GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
_ARGUMENTS = {  # in the order of the schemas
    "analog_linear": ("x", "weight", "bias", *_NOISE, *_MACS, "seed", "draws", "rows", "first_row", "site", "shared"),
    "analog_convolution": ("x", "weight", "bias", *_GEOMETRY, *_NOISE, "seed", "draws", "site", "shared"),
}


def _named(name: str, args: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS[name], args, strict=True))


def _contraction(a: dict[str, Any]) -> Contraction:
    geometry = tuple(a[n] for n in _GEOMETRY) if "stride" in a else None
    return Contraction("linear" if geometry is None else "convolution", geometry)


def _batched(a: dict[str, Any]) -> bool:
    x: Tensor = a["x"]
    weight: Tensor = a["weight"]
    return x.dim() == weight.dim() if "stride" in a else x.dim() > 1


def _fake(name: str, args: Sequence[Any]) -> Tensor:
    a = _named(name, args)
    x, weight, draws = a["x"], a["weight"], a["draws"]
    if not _batched(a):
        return _fake(name, (x.unsqueeze(0), *args[1:])).squeeze(0)
    clean = _contraction(a)(x, weight, a["bias"]) if "stride" in a else x.new_empty((*x.shape[:-1], weight.shape[0]))
    count = draws.shape[0] if a["shared"] and draws is not None else 1
    return empty_like(clean, (count * clean.shape[0], *clean.shape[1:]))


def _register(library: torch.library.Library, name: str) -> None:
    tensors = [
        n for n in _ARGUMENTS[name] if n not in ("bias", "mode", "kind", "first_row", "site", "shared", *_GEOMETRY)
    ]

    def refuse(ctx: Any, args: tuple[Any, ...]) -> str | None:
        if _named(name, args)["mode"] == _FOLD:
            return NO_FOLD
        return NO_LEVEL if any(ctx.needs_input_grad[3:-1]) else None

    def keep(ctx: Any, args: tuple[Any, ...], output: Tensor) -> tuple[Any, ...]:
        a = _named(name, args)
        return tuple(a[n] for n in tensors)

    def backward(ctx: Any, grad: Tensor) -> Grads:
        a = _named(name, ctx.arguments) | dict(zip(tensors, ctx.saved_tensors, strict=True))
        if _batched(a):
            return _gradients(ctx, a, grad)
        dx, dw, db = _gradients(ctx, {**a, "x": a["x"].unsqueeze(0)}, grad.unsqueeze(0))
        return None if dx is None else dx.squeeze(0), dw, db

    def forward(ctx: Any, tangents: Sequence[Tensor | None]) -> Tensor:
        a = _named(name, ctx.arguments) | dict(zip(tensors, ctx.saved_tensors, strict=True))
        if _batched(a):
            return _tangent(a, tangents)
        of_x, *rest = tangents
        of_row = None if of_x is None else of_x.unsqueeze(0)
        return _tangent({**a, "x": a["x"].unsqueeze(0)}, (of_row, *rest)).squeeze(0)

    register_fake(name, lambda *args: _fake(name, args))
    refuse_layouts(library, name)
    register_autograd(library, name, keep, backward, refuse, forward)
    register_vmap(name)
    register_autocast(library, name, 3)


def _gradients(ctx: Any, a: dict[str, Any], grad: Tensor) -> Grads:
    """Gradients of input, weight and bias. The mean is bilinear in the input and the noisy weight; the deviation is
    differentiated with its eps held.
    """
    x, weight, draws, shared, noisy = a["x"], a["weight"], a["draws"], a["shared"], a["mode"] >= 0
    count = 1 if draws is None else draws.shape[0]
    key = Key(a["seed"], draws, a.get("rows"), a.get("first_row", 0), a["site"])
    eps = None
    levels: Any = tuple(a.get(n) for n in _MACS)
    if any(level is not None for level in levels):
        one = torch.ones((), dtype=torch.float64)
        eps = _ops.perturb(torch.zeros_like(grad), _PER_PRODUCT, one, None, *key, 0, 0, False) * grad
    if count == 0:  # nothing came of them
        shapes = (x.shape, weight.shape, (_contraction(a).features(weight),))
        return tuple(
            grad.new_zeros(s) if need else None for s, need in zip(shapes, ctx.needs_input_grad[:3], strict=True)
        )
    if noisy and eps is None and _goes_in_panels(a):
        return _in_panels(ctx, a, grad, key)
    # Draws that share their weights are one contraction.
    parts = count if noisy else 1
    if shared and not noisy:
        grad, eps = (None if g is None else g.view(count, -1, *g.shape[1:]).sum(0) for g in (grad, eps))  # type: ignore[assignment]
    held = [weight]
    of_weight = (a["add"], a["mul"], *key.of_chip(OF_THE_CALL), a["mode"], a["kind"], True)
    if noisy:
        held = _ops.perturb(weight, _WEIGHT, *of_weight).chunk(count)
    contraction, clean = _contraction(a), convolution_gradients if "stride" in a else linear_gradients
    found = []
    for d in range(parts):
        part = x if shared else x.chunk(parts)[d]
        grads = list(clean(ctx, grad.chunk(parts)[d], part, held[d]))
        if eps is not None:
            spread = eps.chunk(parts)[d]

            def deviations(p: Tensor, q: Tensor, shape: torch.Size = spread.shape) -> Tensor:
                return deviation(levels, contraction, p, q).expand(shape)

            pull = torch.func.vjp(deviations, part, held[d])[1]
            for i, more in enumerate(pull(spread)):
                if grads[i] is not None:
                    grads[i] = grads[i] + more
        found.append(grads)
    dxs, dws, dbs = ([g for g in each if g is not None] for each in zip(*found, strict=True))
    dx = (sum(dxs[1:], dxs[0]) if shared else torch.cat(dxs)) if dxs else None
    dw = torch.cat(dws) if dws else None
    if dw is not None and noisy:
        dw = noise_gradient(dw, of_weight, len(weight), _WEIGHT)  # without draws there is one, and nothing to add up
    return dx, dw, sum(dbs[1:], dbs[0]) if dbs else None


def _tangent(a: dict[str, Any], tangents: Sequence[Tensor | None]) -> Tensor:
    """The derivative along tangents of input, weight and bias: of the mean, and of the deviation with its eps held."""
    x, weight, shared, noisy = a["x"], a["weight"], a["shared"], a["mode"] >= 0
    levels: Any = tuple(a.get(n) for n in _MACS)
    contraction = _contraction(a)
    count = 1 if a["draws"] is None else len(a["draws"])
    if count == 0:  # nothing came of them
        return contraction(x[:0], weight)
    key = Key(a["seed"], a["draws"], a.get("rows"), a.get("first_row", 0), a["site"])
    of_weight = (a["add"], a["mul"], *key.of_chip(OF_THE_CALL), a["mode"], a["kind"], True)
    of_x, of_w, of_b = tangents[:3]
    held = _ops.perturb(weight, _WEIGHT, *of_weight).chunk(count) if noisy else [weight] * count
    if of_w is not None:
        of_w = noise_tangent(of_w, of_weight, len(weight), _WEIGHT) if noisy else torch.cat([of_w] * count)
    along = [None if t is None else [t] * count if same else t.chunk(count)
             for t, same in ((of_x, shared), (of_w, False), (of_b, True))]  # fmt: skip
    values = [x] * count if shared else x.chunk(count)
    parts = [
        product_tangent(contraction, values[d], held[d], [None if t is None else t[d] for t in along])
        for d in range(count)
    ]
    found = torch.cat(parts)
    if all(level is None for level in levels):
        return found
    spread = []
    for d in range(count):
        with forward_ad._set_fwd_grad_enabled(True):
            primals = (forward_ad.unpack_dual(v).primal for v in (values[d], held[d]))
            duals = [v if t is None else forward_ad.make_dual(v, t[d]) for v, t in zip(primals, along, strict=False)]
            tangent = forward_ad.unpack_dual(deviation(levels, contraction, *duals)).tangent
        spread.append((torch.zeros_like(parts[d]) if tangent is None else tangent).expand_as(parts[d]))
    one = torch.ones((), dtype=torch.float64)
    eps = _ops.perturb(torch.zeros_like(found), _PER_PRODUCT, one, None, *key, 0, 0, False)
    return torch.addcmul(found, eps, torch.cat(spread))


def _goes_in_panels(a: dict[str, Any]) -> bool:
    """Whether the noisy weight is large, and nothing looks at how its gradient is made."""
    return (
        a["weight"].numel() >= panels.LARGE
        and not a.get("transposed")
        and a.get("groups", 1) == 1
        and not torch.is_grad_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _in_panels(ctx: Any, a: dict[str, Any], grad: Tensor, key: Key) -> Grads:
    """See `_gradients`, of noisy weights alone: they are made again in panels of output features."""
    x, weight, shared = a["x"], a["weight"], a["shared"]
    linear, count = "stride" not in a, 1 if a["draws"] is None else len(a["draws"])
    clean = linear_gradients if linear else convolution_gradients
    need_x, need_w, need_b = ctx.needs_input_grad[:3]
    dx = torch.zeros_like(x) if need_x else None
    dw = torch.empty_like(weight) if need_w else None
    db = grad.new_empty(len(weight)) if need_b else None
    inputs = [x] * count if shared else x.chunk(count)
    sums = None if dx is None else [dx] * count if shared else dx.chunk(count)
    size = panels.rows_of_panel(weight, WeightNoise.takes[1])
    for first in range(0, len(weight), size):
        rows = weight[first : first + size]
        levels = (None if a[n] is None else panels.level_of_rows(a[n], first, len(rows)) for n in ("add", "mul"))
        of_rows = (*levels, *key.of_chip(OF_THE_CALL).of_rows(first, len(rows)), a["mode"], a["kind"], True)
        held = _ops.perturb(rows, _WEIGHT, *of_rows).chunk(count)
        part = grad.narrow(-1 if linear else 1, first, len(rows)).chunk(count)
        found: list[Any] = [clean(ctx, part[d], inputs[d], held[d]) for d in range(count)]
        for d, (of_x, _, of_b) in enumerate(found):
            if sums is not None:
                sums[d].add_(of_x)
            if db is not None:
                db[first : first + size] = of_b if d == 0 else db[first : first + size] + of_b
        if dw is not None:
            drawn = torch.cat([of_w for _, of_w, _ in found])
            dw[first : first + size] = noise_gradient(drawn, of_rows, len(rows), _WEIGHT)
    return dx, dw, db


def _register_all() -> torch.library.Library:
    library = torch.library.Library("noisykernels", "IMPL")
    for name in _ARGUMENTS:
        _register(library, name)
    return library


LIBRARY = _register_all()  # the registrations live as long as this object
