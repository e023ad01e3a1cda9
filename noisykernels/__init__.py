"""Noisy neural-network hardware in PyTorch: fused kernels, layers, and robustness studies."""

from importlib.metadata import PackageNotFoundError, version

import torch as torch  # the compiled module needs torch's libraries in the process

from noisykernels import _C as _C
from noisykernels import array_rules as array_rules
from noisykernels import rules as rules  # these register autograd, fake, vmap and autocast
from noisykernels import serial_rules as serial_rules
from noisykernels._C import STREAM_VERSION, build_info
from noisykernels.arithmetic import Serial, random_order
from noisykernels.brainscales import BrainScaleS2, BSS2Conv2d, BSS2Linear, BSS2ReLU, ConvertingReLU, bss2_calibration
from noisykernels.chip_study import chips
from noisykernels.compare import compare
from noisykernels.contraction import Arithmetic, Device, Draw
from noisykernels.converters import ADC, DAC, ColumnGain, ColumnOffset
from noisykernels.convolutions import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from noisykernels.cost import CostModel
from noisykernels.denoising import DenoisingBlock, denoising_sites, insert_denoising
from noisykernels.devices import PCM, DifferentialPair
from noisykernels.engine import walk
from noisykernels.flatness import m_sharpness
from noisykernels.format_search import LinearPredictor, exhaustive_search, search_format
from noisykernels.format_sweep import Sweep, design_space, sweep_formats
from noisykernels.formats import FORMATS, FixedFormat, FloatFormat, as_format, quantize
from noisykernels.gradients import gradient_norms
from noisykernels.hardware import InputNoise, WeightNoise
from noisykernels.headers import get_include
from noisykernels.inject import NoiseState, inject, noise_state, remove, sites
from noisykernels.macs import MacNoise
from noisykernels.metrics import MetricLog, bimodality, site_statistics, two_means, weight_statistics
from noisykernels.mixed import walk_mixed
from noisykernels.nn import (
    NoiseSite,
    NoisyConv1d,
    NoisyConv2d,
    NoisyConv3d,
    NoisyConvTranspose1d,
    NoisyConvTranspose2d,
    NoisyConvTranspose3d,
    NoisyLinear,
)
from noisykernels.noise import Noise, per_channel, per_draw, per_row
from noisykernels.ops import eps, linear, matmul, perturb, perturb_relu_max_pool2d
from noisykernels.order_study import order_sensitivity
from noisykernels.parameter_walk import walk_parameter
from noisykernels.per_layer import LayerFormats, layer_formats
from noisykernels.recalibration import recalibrate_bn
from noisykernels.report import report
from noisykernels.running_sum import running_sums
from noisykernels.schedules import Schedule, VarianceAware, noisy_steps
from noisykernels.sharpness import ASAM, SAM, SAMSON
from noisykernels.study import Study
from noisykernels.voting import vote

try:
    __version__ = version("noisykernels")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ADC",
    "ASAM",
    "DAC",
    "FORMATS",
    "PCM",
    "SAM",
    "SAMSON",
    "STREAM_VERSION",
    "Arithmetic",
    "BSS2Conv2d",
    "BSS2Linear",
    "BSS2ReLU",
    "BrainScaleS2",
    "ColumnGain",
    "ColumnOffset",
    "ConvertingReLU",
    "CostModel",
    "DenoisingBlock",
    "Device",
    "DifferentialPair",
    "Draw",
    "FixedFormat",
    "FloatFormat",
    "InputNoise",
    "LayerFormats",
    "LinearPredictor",
    "MacNoise",
    "MetricLog",
    "Noise",
    "NoiseSite",
    "NoiseState",
    "NoisyConv1d",
    "NoisyConv2d",
    "NoisyConv3d",
    "NoisyConvTranspose1d",
    "NoisyConvTranspose2d",
    "NoisyConvTranspose3d",
    "NoisyLinear",
    "Schedule",
    "Serial",
    "Study",
    "Sweep",
    "VarianceAware",
    "WeightNoise",
    "as_format",
    "bimodality",
    "bss2_calibration",
    "build_info",
    "chips",
    "compare",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "denoising_sites",
    "design_space",
    "eps",
    "exhaustive_search",
    "get_include",
    "gradient_norms",
    "inject",
    "insert_denoising",
    "layer_formats",
    "linear",
    "m_sharpness",
    "matmul",
    "noise_state",
    "noisy_steps",
    "order_sensitivity",
    "per_channel",
    "per_draw",
    "per_row",
    "perturb",
    "perturb_relu_max_pool2d",
    "quantize",
    "random_order",
    "recalibrate_bn",
    "remove",
    "report",
    "running_sums",
    "search_format",
    "site_statistics",
    "sites",
    "sweep_formats",
    "two_means",
    "vote",
    "walk",
    "walk_mixed",
    "walk_parameter",
    "weight_statistics",
]
