"""What the tests of searches for number formats share: made-up networks and sweeps, the scores of a format."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.arithmetic import CostModel, FloatFormat, Format, Serial, as_format
from noisykernels.experiments import FormatResult, LinearPredictor, Sweep

Problem = tuple[nn.Module, tuple[Tensor, Tensor]]
SAME = LinearPredictor(1.0, 0.0, 1.0, 0.0, 100)
COST = CostModel()


def in_format(model: nn.Module, x: Tensor, fmt: str | Format) -> Tensor:
    with torch.inference_mode(), nk.inject(model, None, example_input=x[:2], hardware=[Serial(fmt)]):
        return model(x)


def made_sweep(points: list[tuple[float, float]]) -> Sweep:
    return Sweep([FormatResult(as_format("M7E6"), x, y, 1.0, 1.0) for x, y in points], 0.9, 100)


def made_up(bits: int) -> Callable[[Format], float]:
    """A network that needs so many mantissa bits, or bits behind the point, and four before it or of exponent."""

    def normalised(fmt: Format) -> float:
        fine, coarse = (fmt.mantissa, fmt.exponent) if isinstance(fmt, FloatFormat) else (fmt.right, fmt.left)
        return float(np.clip(1 - 0.02 * max(0, bits - fine) - 0.3 * max(0, 4 - coarse), 0, 1))

    return normalised
