"""What the tests of device models share: operators, what an array holds, noise and scales in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import noisykernels as nk

FALSE_ALARM = 1e-6  # of each test of a moment
SIGMAS = float(stats.norm.isf(FALSE_ALARM / 2))
SEED, SITE = 5, 3
# name -> (function, shapes of x and weight, its options)
OPS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (nk.linear, (6, 8), (12, 8), {}),
    "conv2d": (nk.conv2d, (6, 4, 5, 5), (12, 2, 3, 3), {"groups": 2, "padding": 1}),
    "conv_transpose2d": (nk.conv_transpose2d, (6, 4, 5, 5), (4, 6, 3, 3), {"groups": 2, "stride": 2}),
}
FEATURES = 12  # of each of them
every_op = pytest.mark.parametrize("op", OPS)


class Seen(nk.hardware.Device):
    """Keeps what the devices before it in the list have made."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
        self.weights.append(weight)
        return weight


def held(device: nk.hardware.Device, weight: Tensor, op: str = "linear", draw: int = 0, seed: int = SEED) -> Tensor:
    """The weight that the array holds."""
    function, x, _, options = OPS[op]
    x = torch.zeros((1, weight.shape[1]) if op == "linear" else x, dtype=weight.dtype)
    seen = Seen()
    function(x, weight, hardware=[device, seen], seed=seed, site=SITE, draws=[draw], **options)
    return seen.weights[0]


def weights(op: str, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(OPS[op][2], dtype=dtype, generator=torch.Generator().manual_seed(1))
    weight.view(-1)[::7] = 0
    return weight


def eps(shape: Any, operand: str, draw: int = 0) -> np.ndarray:
    return nk.eps(tuple(shape), seed=SEED, site=SITE, operand=operand, draw=draw).double().numpy()


def largest(op: str, weight: Tensor, over: str) -> np.ndarray:
    """max |W|, beside the weight; feature n of a transposed convolution is column n % 6 of group n // 6."""
    w = weight.detach().double().abs().numpy()
    if over == "layer":
        return w.max()
    if op != "conv_transpose2d":
        return w.max(tuple(range(1, w.ndim)), keepdims=True)
    result = np.empty_like(w)
    for part in (slice(0, 2), slice(2, 4)):
        result[part] = w[part].max((0, 2, 3), keepdims=True)
    return result


def close(found: Tensor, expected: np.ndarray, size: float, roundings: int) -> None:
    """Equal but for this many roundings of values of this size."""
    unit = torch.finfo(found.dtype).eps / 2
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=0, atol=roundings * unit * size)
