"""torch's own layers in an injected model: from the module's call straight to the operator.

What these layers do is known, so that no torch-function mode is needed to see it: while a model is injected the forward
of such a module asks the running mode once. Everything else (subclasses, layers of users, modules with a forward of
their own) tells the mode when it begins and ends, to the same names and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.tensors import is_plain
from noisykernels.injection.calls import call_leaf, called
from noisykernels.injection.doors import door_of, is_own, standing_in
from noisykernels.injection.kinds import CONTRACTION_KINDS, LEAVES
from noisykernels.injection.laid import leads
from noisykernels.injection.mode import WHOLE, SiteMode
from noisykernels.injection.spot import Spot
from noisykernels.nn.functional import geometry_of

__all__ = ["LEAVES", "is_leaf", "leaf_forward"]


def _special_convolution(mode: SiteMode, told: dict[str, Any]) -> bool:
    return mode.on_hardware or told["padding_mode"] != "zeros" or isinstance(told["padding"], str)


# Whether a layer with these attributes does more than its kind says, or is not made by its own operator: by kind, where
# it can be so.
_SPECIAL: dict[str | None, Callable[[SiteMode, dict[str, Any]], Any]] = {
    "linear": lambda mode, told: mode.on_hardware,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _special_convolution),
    "batch_norm": lambda mode, told: told["training"],
    **dict.fromkeys(("max_pool1d", "max_pool2d"), lambda mode, told: told["return_indices"]),
    **dict.fromkeys(
        ("relu", "hardtanh", "leaky_relu", "elu", "selu", "silu", "mish", "hardswish", "hardsigmoid"),
        lambda mode, told: told["inplace"],
    ),
}

_ops = torch.ops.noisykernels
_linear, _convolution = _ops.linear.default._op, _ops.convolution.default._op
_pop_mode, _push_mode = torch._C._pop_torch_function_stack, torch._C._push_on_torch_function_stack


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers as it comes."""
    return type(module) in LEAVES and not is_own(module)


def _straight(mode: SiteMode, module: Any, known: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call of a leaf, whose forward is `plain`, with its mode out of the way."""
    if torch.compiler.is_dynamo_compiling():  # a part that is compiled alone
        raise RuntimeError(WHOLE)
    told = module.__dict__
    path, kind, stem, first = known
    special = _SPECIAL.get(kind)
    if kind is not None and (kwargs or len(args) != 1 or (special is not None and special(mode, told))):
        mode.enter(path, module)
        try:
            return plain(module, *args, **kwargs)
        finally:
            mode.leave(path)
    _pop_mode()
    try:
        if kind is None or mode.muted:
            return plain(module, *args, **kwargs)
        number = mode.calls.get(stem, 0)
        mode.calls[stem] = number + 1
        name = f"{stem}#{number}" if number else first
        spot = mode.spots.get(name) or mode.spot(name, module)
        if spot.noise is None or not (mode.always or mode.placement.on(module)):
            return plain(module, *args)
        if spot.args is not None and kind in CONTRACTION_KINDS:
            out = _in_one(mode, told, kind, name, spot, args[0])
            if out is not None:
                return out
        return mode.at(name, spot.noise, plain(module, *args))
    finally:
        _push_mode(mode)


def _in_one(mode: SiteMode, told: dict[str, Any], kind: str, name: str, spot: Spot, x: Tensor) -> Tensor | None:
    """A contraction with its noise in one operator, from a layer's attributes; None where the noise must come after."""
    if mode.tokens is not None:
        return _in_one_by_token(mode, told, kind, name, spot, x)
    parameters = told["_parameters"]
    weight, rank = parameters.get("weight"), x.dim()  # which is not there if it is made of others
    known = "bias" in parameters and mode.is_known(spot, x) and not x.is_complex()
    if weight is None or not is_plain(weight) or rank < 2 or not known:
        return None
    add, mul, order, of_kind = spot.args  # type: ignore[misc]
    noise = (False, add, mul, *mode.common, spot.id, order, of_kind, False)
    if kind == "linear":
        return called(_linear, x, weight, parameters["bias"], *noise)
    if rank != weight.dim():
        return None
    sizes = told["stride"], told["padding"], told["dilation"], told["groups"]
    return called(_convolution, x, weight, parameters["bias"], *geometry_of(rank - 2, *sizes), *noise)


def _in_one_by_token(
    mode: SiteMode, told: dict[str, Any], kind: str, name: str, spot: Spot, x: Tensor
) -> Tensor | None:
    """The same of a linear layer on tokens."""
    parameters, lead = told["_parameters"], mode.lead
    weight = parameters.get("weight")
    if kind != "linear" or lead is None or x.dim() < 3 or x.shape[:2] != lead[0] or x.device != mode.place:
        return None
    if weight is None or not is_plain(weight) or "bias" not in parameters or not leads(mode.token_places.get(name)):
        return None
    add, mul, order, of_kind = spot.args  # type: ignore[misc]
    key = (mode.key.seed, mode.key.draws, lead[1], 0, spot.id)
    y: Tensor = called(
        _linear, x.flatten(0, 1), weight, parameters["bias"], False, add, mul, *key, order, of_kind, False
    )
    return y.view(*x.shape[:2], -1)


def leaf_forward(plain: Callable[..., Any], told: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a leaf of torch's while its model is injected, in the place of `plain`; `told` is that of any
    module, for what is no call from within the model."""
    size, top = torch._C._len_torch_function_stack, torch._C._get_function_stack_at
    compiling = torch.compiler.is_dynamo_compiling

    @standing_in(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not compiling() and (count := size()):
            if len(args) == 1 and not kwargs:  # in one step, where nothing about it depends on the call
                out = call_leaf(self, plain, _SPECIAL, args[0])
                if out is not NotImplemented:
                    return out
            mode, door = top(count - 1), door_of(self)
            if (
                door is not None
                and isinstance(mode, SiteMode)
                and mode.knows_leaves
                and mode.owner is door.state
                and type(self).forward is plain  # which other classes may have changed meanwhile
            ):
                return _straight(mode, self, door.leaf, plain, args, kwargs)
        return told(self, *args, **kwargs)

    return forward
