"""Drop-in functions and layers with noise and hardware inside; knows a running model only by the signals it sends."""

from noisykernels.nn.functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    linear,
    matmul,
)
from noisykernels.nn.modules import (
    NoiseSite,
    NoisyConv1d,
    NoisyConv2d,
    NoisyConv3d,
    NoisyConvTranspose1d,
    NoisyConvTranspose2d,
    NoisyConvTranspose3d,
    NoisyLinear,
)
from noisykernels.nn.signals import cached

__all__ = [
    "NoiseSite",
    "NoisyConv1d",
    "NoisyConv2d",
    "NoisyConv3d",
    "NoisyConvTranspose1d",
    "NoisyConvTranspose2d",
    "NoisyConvTranspose3d",
    "NoisyLinear",
    "cached",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "matmul",
]
