"""What the tests of ordered sums share: layers, a call that is checked against the naive reference, plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from operators import assert_same_bits
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import Serial
from noisykernels.reference import serial as reference_serial

KEY: dict[str, Any] = dict(seed=2**63 + 5, site=9)

LAYERS: dict[str, dict[str, Any]] = {
    "linear": dict(x=(5, 37), w=(7, 37)),
    "linear wide": dict(x=(6, 9), w=(70, 9)),
    "linear 3-d": dict(x=(4, 3, 20), w=(5, 20)),
    "linear one": dict(x=(3, 1), w=(1, 1)),
    "conv1d": dict(x=(4, 4, 11), w=(6, 4, 3), stride=2, dilation=2, padding=3),
    "conv2d": dict(x=(3, 4, 8, 7), w=(6, 2, 3, 2), groups=2, padding=(1, 2), stride=(2, 1), dilation=(1, 2)),
    "conv2d wide": dict(x=(2, 3, 9, 9), w=(5, 3, 3, 3), padding=1),
    "conv2d depthwise": dict(x=(3, 4, 6, 5), w=(8, 1, 3, 3), groups=4, padding=1),
    "conv3d": dict(x=(2, 2, 5, 4, 6), w=(4, 2, 3, 2, 3), padding=1),
    "conv_transpose1d": dict(x=(4, 4, 6), w=(4, 3, 3), dilation=2, stride=3, output_padding=1),
    "conv_transpose2d": dict(x=(3, 4, 5, 5), w=(4, 3, 3, 3), stride=2, padding=1, output_padding=1, groups=2),
    "conv_transpose3d": dict(x=(2, 3, 3, 3, 4), w=(3, 2, 2, 2, 2), stride=(1, 2, 3), padding=(1, 0, 0)),
}


def made(name: str, dtype: torch.dtype = torch.float32, rows: int | None = None) -> tuple[Any, list[Tensor], Any]:
    """The operator of a layer, its operands x, weight and bias, and its geometry (None: linear)."""
    how = dict(LAYERS[name])
    x, w = how.pop("x"), how.pop("w")
    features = w[1] * how.get("groups", 1) if "transpose" in name else w[0]
    g = torch.Generator().manual_seed(len(name))
    x = (rows or x[0], *x[1:])
    operands = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in (x, w, (features,))]
    return getattr(nk, name.split()[0]), operands, None if name.startswith("linear") else how


def plainly(name: str, geometry: dict[str, Any] | None) -> dict[str, Any] | None:
    """The geometry as the naive reference takes it."""
    return None if geometry is None else dict(geometry, transposed="transpose" in name)


def checked(name: str, operands: list[Tensor], how: Serial, geometry: dict[str, Any] | None, **ids: Any) -> Tensor:
    """A layer's compiled result, which is the naive reference's to the bit."""
    ids = {**KEY, **ids}
    x, w, *rest = operands
    bias = rest[0] if rest else None
    y = getattr(nk, name.split()[0])(x, w, bias, **(geometry or {}), hardware=[how], **ids)
    expected = reference_serial.contract(x, w, bias, how, plainly(name, geometry), **ids)
    assert_same_bits(y, expected, f"{name} {how!r}")
    return y


def summed(products: Any, how: Serial, **ids: Any) -> float:
    """The ordered sum of given products: of numbers with ones."""
    x = torch.as_tensor(products, dtype=ids.pop("dtype", torch.float32))[None]
    return checked("linear", [x, torch.ones_like(x)], how, None, **ids).item()


def small_wholes(*shape: int) -> Tensor:
    """Whole numbers from -4 to 4: their sums are exact in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(math.prod(shape))).float()


def loop(x: Any, w: Any, kind: Any) -> Any:
    """Products and sums one after the other in a number type of NumPy: x (B, K), w (N, K)."""
    x, w = np.asarray(x).astype(kind), np.asarray(w).astype(kind)
    v = np.zeros((len(x), len(w)), kind)
    with np.errstate(all="ignore"):
        for k in range(x.shape[1]):
            v = v + x[:, None, k] * w[None, :, k]
            assert v.dtype == kind
    return v
