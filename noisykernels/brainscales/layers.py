"""Layers that hold the weights of BrainScaleS-2, and the digital operations between them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from noisykernels._util.checks import in_range, whole
from noisykernels._util.tensors import number, straight_through
from noisykernels.brainscales.device import ADC_HIGH, INPUT_MAX, WEIGHT_MAX, BrainScaleS2
from noisykernels.hardware.device import Device, Draw
from noisykernels.nn.modules import NoisyConv2d, NoisyLayer, NoisyLinear

__all__ = ["BSS2Conv2d", "BSS2Linear", "BSS2ReLU", "ClampedWeight", "ConvertingReLU"]


# ------------------------------------------------------------------------------------------------------------- layers


class ClampedWeight(Device):
    """Weights that stop at a limit; the gradient passes straight through, so that a weight can come back.

    Args:
        limit: the largest magnitude.

    Example:
        >>> import noisykernels as nk
        >>> nk.linear(torch.ones(1, 1), torch.tensor([[3.0]]), hardware=[ClampedWeight(2.0)])
        tensor([[2.]])
    """

    def __init__(self, limit: float) -> None:
        self.limit = float(number("ClampedWeight", "limit", limit, positive=True))

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """The weight within the limits."""
        return straight_through(weight.clamp(-self.limit, self.limit), weight)

    def __repr__(self) -> str:
        return f"ClampedWeight({self.limit:g})"


class _BSS2Layer(NoisyLayer):
    """A layer with its weights in the chip's units."""

    weight: Any
    bias: Any

    def __init__(self, *args: Any, device: BrainScaleS2 | None = None, **kwargs: Any) -> None:
        self._core = BrainScaleS2() if device is None else device
        if not isinstance(self._core, BrainScaleS2) or self._core.input_limit is not None:
            raise ValueError(f"{type(self).__name__}: device must be a BrainScaleS2 without input_limit, got {device}")
        super().__init__(*args, hardware=[ClampedWeight(WEIGHT_MAX), self._core], **kwargs)

    def reset_parameters(self) -> None:
        """Weights of a normal distribution with a deviation of 2 sqrt(2) / (g n sqrt(K)), at most 21; biases 0."""
        std = 2 * math.sqrt(2) / (self._core.gain * self._core.num_sends * math.sqrt(self.weight[0].numel()))
        std = min(std, WEIGHT_MAX / 3)
        nn.init.trunc_normal_(self.weight, std=std, a=-WEIGHT_MAX, b=WEIGHT_MAX)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BSS2Linear(_BSS2Layer, NoisyLinear):
    """A linear layer on BrainScaleS-2: inputs of [0, 31], weights that are clamped to [-63, 63], results in LSB.

    Args:
        in_features, out_features, bias: as for `torch.nn.Linear`.
        device: a `BrainScaleS2` without ``input_limit``; None: one with default parameters.
        noise, in_training, in_eval: as for `NoisyLinear`. Where the switch is off, the layer is `torch.nn.Linear`.

    Raises:
        ValueError: another device.

    Source: the layers of hxtorch, whose start of the weights is for a `ConvertingReLU` with a shift of 1 behind.

    Example:
        >>> layer = BSS2Linear(256, 10, bias=False)
        >>> layer(torch.full((2, 256), 15.0)).shape
        torch.Size([2, 10])
    """


class BSS2Conv2d(_BSS2Layer, NoisyConv2d):
    """A convolution on BrainScaleS-2; as `BSS2Linear`, with the arguments of `torch.nn.Conv2d`.

    Example:
        >>> layer = BSS2Conv2d(1, 4, 3, bias=False)
        >>> layer(torch.full((2, 1, 8, 8), 15.0)).shape
        torch.Size([2, 4, 6, 6])
    """


class BSS2ReLU(nn.Module):
    r"""The rectifier of BrainScaleS-2's digital part, ``clamp(floor(x), 0, 127)``.

    The gradient is 1 where x > 0, else 0.

    Source: hxtorch.

    Example:
        >>> BSS2ReLU()(torch.tensor([-3.0, 5.7, 200.0]))
        tensor([  0.,   5., 127.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers of [0, 127]."""
        return straight_through(x.floor().clamp(0, ADC_HIGH), x.relu())


class ConvertingReLU(nn.Module):
    r"""The rectifier that makes inputs of the next layer: :math:`\lfloor\mathrm{clamp}(\lfloor x \rfloor, 0, 127) /
    2^s\rfloor` clamped to [0, 31].

    The gradient is :math:`2^{-s}` where x > 0, else 0.

    Args:
        shift: *s*, bits that are dropped; with 2, all of [0, 127] is told.

    Raises:
        ValueError: a negative shift.

    Source: hxtorch.

    Example:
        >>> ConvertingReLU(shift=2)(torch.tensor([-3.0, 5.7, 200.0]))
        tensor([ 0.,  1., 31.])
    """

    def __init__(self, shift: int = 1) -> None:
        super().__init__()
        self.shift = in_range("ConvertingReLU", "shift", shift, whole(0, 7))

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers of [0, 31]."""
        exact = (x.floor().clamp(0, ADC_HIGH) / 2**self.shift).floor().clamp(0, INPUT_MAX)
        return straight_through(exact, x.relu() / 2**self.shift)

    def extra_repr(self) -> str:
        """Its shift."""
        return f"shift={self.shift}"
