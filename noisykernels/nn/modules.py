"""Drop-in layers: torch's own, with noise on their output, and `NoiseSite`, which is noise alone.

In a model that `inject` or `noise_state` knows, a layer is a site like any other. Used alone it has
no site: it draws a fresh seed from torch's default generator at each forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.checks import flag
from noisykernels.hardware.device import Arithmetic, Device
from noisykernels.hardware.execute import checked, with_arithmetic
from noisykernels.nn.functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    linear,
)
from noisykernels.nn.layers import check_layer
from noisykernels.nn.signals import draw_layer
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb

__all__ = [
    "NoiseSite",
    "NoisyConv1d",
    "NoisyConv2d",
    "NoisyConv3d",
    "NoisyConvTranspose1d",
    "NoisyConvTranspose2d",
    "NoisyConvTranspose3d",
    "NoisyLayer",
    "NoisyLinear",
]


class NoisyLayer:
    """What the noisy layers share: their noise, and when it is on."""

    noise: Noise | None
    hardware: tuple[Device, ...] | None
    in_training: bool
    in_eval: bool
    training: bool

    def __init__(
        self,
        *args: Any,
        noise: Noise | None = None,
        in_training: bool = True,
        in_eval: bool = True,
        hardware: Sequence[Device] | None = None,
        arithmetic: Arithmetic | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if noise is not None and not isinstance(noise, Noise):
            raise TypeError(f"{name}: noise must be a Noise or None, got {type(noise).__name__}")
        check_layer(name, type(self), args, kwargs)
        super().__init__(*args, **kwargs)
        self.noise = noise
        self.in_training, self.in_eval = flag(name, "in_training", in_training), flag(name, "in_eval", in_eval)
        hardware = with_arithmetic(name, hardware, arithmetic)
        self.hardware = None if hardware is None else checked(name, hardware)

    @property
    def noisy(self) -> bool:
        """Whether this layer draws noise in its present mode."""
        switch = self.in_training if self.training else self.in_eval
        return switch and (self.noise is not None or self.hardware is not None)

    def drawn(self, op: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
        """What the layer's operator makes, with its noise and hardware."""
        inside: dict[str, Any] = {} if self.hardware is None else {"hardware": self.hardware}
        return draw_layer(op, op.__name__, self.noise, x, *args, **inside)

    def extra_repr(self) -> str:
        """Of the layer it is, then what is inside."""
        parent = super().extra_repr()  # type: ignore[misc]
        hardware = "" if self.hardware is None else f", hardware={list(self.hardware)!r}"
        return f"{parent}{', ' if parent else ''}noise={self.noise!r}{hardware}"


class NoiseSite(NoisyLayer, nn.Module):
    """Noise alone, for values that no noisy layer produces.

    Args:
        noise: the noise; None passes values through.
        in_training, in_eval: whether it enters in training, in evaluation mode.

    Example:
        >>> NoiseSite(Noise(add=0.1))
        NoiseSite(noise=Noise(add=0.1))
    """

    def __init__(self, noise: Noise | None = None, *, in_training: bool = True, in_eval: bool = True) -> None:
        super().__init__(noise=noise, in_training=in_training, in_eval=in_eval)

    def forward(self, x: Tensor) -> Tensor:
        """x with noise, of the same shape."""
        return draw_layer(_perturb, "noise", self.noise, x) if self.noisy and self.noise is not None else x


def _perturb(x: Tensor, *, noise: Noise, **key: Any) -> Tensor:
    return perturb(x, noise, **key)


class NoisyLinear(NoisyLayer, nn.Linear):
    """`torch.nn.Linear` with ``noise`` on its output, ``hardware`` inside it, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyLinear(4, 3, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 4)).shape
        torch.Size([2, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in_features) -> (B, ..., out_features)."""
        if not self.noisy:
            return super().forward(input)
        return self.drawn(linear, input, self.weight, self.bias)


class _NoisyConv(NoisyLayer):
    """The forward of the three convolutions."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.noisy:
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc,no-any-return]
        conv: Any = self
        padding = conv.padding
        if conv.padding_mode != "zeros":
            input = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        op = (conv1d, conv2d, conv3d)[weight.dim() - 3]
        return self.drawn(op, input, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


class NoisyConv1d(_NoisyConv, nn.Conv1d):
    """`torch.nn.Conv1d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConv1d(3, 4, 3, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 3, 8)).shape
        torch.Size([2, 4, 6])
    """


class NoisyConv2d(_NoisyConv, nn.Conv2d):
    """`torch.nn.Conv2d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConv2d(3, 4, 3, padding="same", noise=Noise(mul=0.1))
        >>> layer(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """


class NoisyConv3d(_NoisyConv, nn.Conv3d):
    """`torch.nn.Conv3d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConv3d(1, 2, 3, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 1, 4, 4, 4)).shape
        torch.Size([2, 2, 2, 2, 2])
    """


class _NoisyConvTranspose(NoisyLayer):
    """The forward of the three transposed convolutions."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, in_channels, ...) -> (B, out_channels, ...)."""
        if not self.noisy:
            return super().forward(input, output_size)  # type: ignore[misc,no-any-return]
        conv: Any = self
        dims = conv.weight.dim() - 2
        output_padding = conv._output_padding(
            input, output_size, conv.stride, conv.padding, conv.kernel_size, dims, conv.dilation
        )
        op = (conv_transpose1d, conv_transpose2d, conv_transpose3d)[dims - 1]
        sizes = conv.stride, conv.padding, output_padding, conv.groups, conv.dilation
        return self.drawn(op, input, conv.weight, conv.bias, *sizes)


class NoisyConvTranspose1d(_NoisyConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConvTranspose1d(3, 4, 2, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 3, 8)).shape
        torch.Size([2, 4, 9])
    """


class NoisyConvTranspose2d(_NoisyConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConvTranspose2d(3, 4, 2, stride=2, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 4, 8, 8])
    """


class NoisyConvTranspose3d(_NoisyConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with ``noise`` on its output, ``hardware`` inside, ``in_training`` and ``in_eval``.

    Example:
        >>> layer = NoisyConvTranspose3d(1, 2, 2, noise=Noise(add=0.1))
        >>> layer(torch.ones(2, 1, 3, 3, 3)).shape
        torch.Size([2, 2, 4, 4, 4])
    """
