"""Which of torch's functions make sites, of which kind, and which of them write into their first argument."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels.injection.products import PRODUCTS
from noisykernels.nn.functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    linear,
)

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "CONTRACTIONS",
    "CONTRACTION_KINDS",
    "FLEX",
    "GROUPED",
    "INPLACE_AT",
    "KINDS",
    "LEAVES",
    "LOOKUPS",
    "PREPARING",
    "RECURRENT",
    "SEVERAL",
    "SOFTMAX",
    "in_place",
    "offered",
]


ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "hardtanh", "hardswish",
    "hardsigmoid", "tanh", "sigmoid", "logsigmoid", "prelu", "rrelu", "glu", "softsign", "tanhshrink", "hardshrink",
    "softshrink", "threshold",
)  # fmt: skip
_NORMS = "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm"
_POOLS = " ".join(
    f"{kind}_pool{d}d"
    for d in (1, 2, 3)
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
)
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
CONTRACTION_KINDS = {  # whose noisy result our own operators give in one go
    "linear": linear,
    "conv1d": conv1d,
    "conv2d": conv2d,
    "conv3d": conv3d,
    "conv_transpose1d": conv_transpose1d,
    "conv_transpose2d": conv_transpose2d,
    "conv_transpose3d": conv_transpose3d,
}

GROUPED = "grouped_mm"  # of rows by the arrays of their groups, such as tokens by those of their experts
SEVERAL = ("einsum", "multi_dot", "chain_matmul")  # which may multiply more than two operands
CONTRACTIONS = (*CONTRACTION_KINDS, *PRODUCTS, *SEVERAL)
PREPARING = (*PRODUCTS, *SEVERAL)  # which make weights of weights, too: without a value that goes in, no hardware
LOOKUPS = ("embedding", "embedding_bag")  # in an array, which hardware may hold; their results are no sites


def offered(name: str) -> list[Any]:
    """Every function, method and overload that torch offers under this name."""
    places = (F, torch, Tensor, torch._C._nn, torch._VF, torch.linalg)
    found = [function for place in places if (function := getattr(place, name, None)) is not None]
    packet = getattr(torch.ops.aten, name, None)  # what exported programs call
    overloads = packet.overloads() if packet is not None else ()
    return [*found, *(getattr(packet, overload) for overload in overloads)]


def _kinds() -> dict[Any, str]:
    """Kind of the site of every function that makes one."""
    names = (*ACTIVATIONS, *f"{_NORMS} {_POOLS}".split(), *RECURRENT, *CELLS)
    kinds = dict.fromkeys(offered("scaled_dot_product_attention"), "attention")
    for name in (*names, *CONTRACTION_KINDS):
        for alias in (name, f"{name}_", f"{name}_with_indices"):
            kinds.update(dict.fromkeys(offered(alias), name))
    for alias in (GROUPED, f"_{GROUPED}"):
        kinds.update(dict.fromkeys(offered(alias), GROUPED))
    for name in LOOKUPS:
        kinds.update(dict.fromkeys(offered(name), name))
    for name in (*PRODUCTS, *SEVERAL):
        for alias in (name, f"{name}_", f"linalg_{name}", f"__{name}__", f"__r{name}__"):
            kinds.update(dict.fromkeys(offered(alias), name))
    return kinds | {operator.matmul: "matmul"}  # which export shows for `@`


KINDS = _kinds()
FLEX = torch.ops.higher_order.flex_attention  # what `torch.nn.attention.flex_attention` runs
# Sites only where they are parts of an attention.
SOFTMAX = dict.fromkeys((*offered("softmax"), *offered("_softmax"), torch.special.softmax), "softmax")


def _flags() -> dict[Any, int]:
    """Functions that have an argument `inplace`, and its position."""
    found = {}
    for function in filter(inspect.isfunction, KINDS):
        parameters = list(inspect.signature(function).parameters)
        if "inplace" in parameters:
            found[function] = parameters.index("inplace")
    return found


_IN_PLACE = frozenset(f for name in (*ACTIVATIONS, *PRODUCTS) for f in offered(f"{name}_"))
INPLACE_AT = _flags()


def in_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    if func in _IN_PLACE:
        return True
    position = INPLACE_AT.get(func)
    if position is None:
        return False
    return bool(args[position] if len(args) > position else kwargs.get("inplace"))


# The kind of the one site that a layer's forward makes, which is its result; None: it makes none.
LEAVES: dict[type[nn.Module], str | None] = {
    nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d",
    nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm", nn.BatchNorm3d: "batch_norm",
    nn.LayerNorm: "layer_norm", nn.GroupNorm: "group_norm", nn.RMSNorm: "rms_norm",
    nn.ReLU: "relu", nn.ReLU6: "hardtanh", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.SELU: "selu", nn.GELU: "gelu",
    nn.SiLU: "silu", nn.Mish: "mish", nn.Softplus: "softplus", nn.Hardtanh: "hardtanh", nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid",
    nn.MaxPool1d: "max_pool1d", nn.MaxPool2d: "max_pool2d", nn.AvgPool1d: "avg_pool1d", nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d", nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.Identity: None, nn.Flatten: None, nn.Dropout: None,
}  # fmt: skip
