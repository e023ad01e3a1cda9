"""How the two parameters of BrainScaleS-2 are taken from measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments

__all__ = ["bss2_calibration"]


# -------------------------------------------------------------------------------------------------------- calibration


def bss2_calibration(measured: Tensor | Sequence[Any], exact: Tensor | Sequence[Any]) -> tuple[float, float]:
    r"""Gain and noise of `BrainScaleS2` from measured results of known products.

    .. math:: g = \mathrm{median}(y / y_{exact}) \qquad
        \sigma = \mathrm{median}_n\, \mathrm{std}(y_n - g\, y_{exact, n})

    Args:
        measured: y (rows, neurons) in LSB, sent once, well within the converter's range.
        exact: the sums of products of whole numbers, of the same shape; zeros take no part in the gain.

    Returns:
        gain, noise_std.

    Raises:
        ValueError: shapes that differ or are not two-dimensional, fewer than two rows, or only zeros.

    Source: the calibration of hxtorch's mock parameters.

    Example:
        >>> exact = torch.tensor([[1000.0, -2000.0], [3000.0, 500.0], [-1000.0, 800.0]])
        >>> gain, noise_std = bss2_calibration(0.002 * exact, exact)
        >>> round(gain, 6), round(noise_std, 6)
        (0.002, 0.0)
    """
    check_arguments(bss2_calibration, locals())
    y, products = (torch.as_tensor(value, dtype=torch.float64) for value in (measured, exact))
    if y.dim() != 2 or y.shape != products.shape or len(y) < 2:
        raise ValueError(
            f"bss2_calibration: expected two arrays (rows, neurons) of at least 2 rows, got {list(y.shape)} and "
            f"{list(products.shape)}"
        )
    used = products != 0
    if not bool(used.any()):
        raise ValueError("bss2_calibration: exact must hold other numbers than 0")
    gain = float(np.median((y[used] / products[used]).numpy()))
    return gain, float(np.median((y - gain * products).std(0).numpy()))
