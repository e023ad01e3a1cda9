"""What the tests of noise inside contractions share: layers, devices, draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import noisykernels as nk

KEY: dict[str, Any] = dict(seed=2**63 + 5, site=9)
DRAWS: dict[str, dict[str, Any]] = {
    "one": dict(),
    "numbered": dict(draws=[7]),
    "shared": dict(draws=[5, 0, 2**32 - 1], shared=True),
    "expanded": dict(draws=[3, 9]),
}


class Neutral(nk.hardware.Device):
    """Changes nothing, but is no noise of ours: the contraction is then run draw by draw in plain torch."""


LAYERS: dict[str, dict[str, Any]] = {
    "linear": dict(op=nk.linear, x=(4, 5), w=(3, 5)),
    "linear 3-d": dict(op=nk.linear, x=(4, 2, 70), w=(33, 70)),
    "conv2d": dict(op=nk.conv2d, x=(4, 6, 5, 5), w=(8, 3, 3, 3), padding=1, groups=2, stride=2),
    "conv1d": dict(op=nk.conv1d, x=(4, 3, 9), w=(5, 3, 3), dilation=2),
    "small conv_transpose2d": dict(op=nk.conv_transpose2d, x=(2, 2, 2, 2), w=(2, 1, 2, 2), groups=2, stride=2),
    "conv_transpose2d": dict(op=nk.conv_transpose2d, x=(4, 4, 4, 4), w=(4, 3, 3, 3), groups=2, stride=2, padding=1),
}
DEVICES: dict[str, list[nk.hardware.Device]] = {
    "weights": [nk.WeightNoise(add=0.1)],
    "relative weights": [nk.WeightNoise(mul=0.3)],
    "products": [nk.MacNoise(per_product=0.3)],
    "reading": [nk.MacNoise(read=0.2, relative="channel")],
    "steps": [nk.MacNoise(per_step=0.1)],
    "all": [
        nk.InputNoise(add=0.2),
        nk.WeightNoise(add=0.3, relative="channel"),
        nk.MacNoise(0.3, 0.2, 0.1, relative="layer"),
    ],
}


def layer(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Tensor], dict[str, Any]]:
    how = dict(LAYERS[name])
    op, x, w = how.pop("op"), how.pop("x"), how.pop("w")
    n = w[1] * how.get("groups", 1) if "transpose" in name else w[0]
    g = torch.Generator().manual_seed(3)
    operands = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in (x, w, (n,))]
    return op, operands, how
