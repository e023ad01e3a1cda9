"""All names of the package that recorded cases use, taken once, and its calls with many arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from options import gathered
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import _C
from noisykernels.study import Study

Noise, WeightNoise, InputNoise, MacNoise, Serial = nk.Noise, nk.WeightNoise, nk.InputNoise, nk.MacNoise, nk.Serial
ADC, DAC, ColumnGain, ColumnOffset = nk.hardware.ADC, nk.hardware.DAC, nk.hardware.ColumnGain, nk.hardware.ColumnOffset
DifferentialPair, PCM = nk.hardware.DifferentialPair, nk.hardware.PCM
FixedFormat, FloatFormat, NoisyConv2d, NoisyLinear, NoiseSite = (
    nk.arithmetic.FixedFormat, nk.arithmetic.FloatFormat, nk.NoisyConv2d, nk.NoisyLinear, nk.NoiseSite
)  # fmt: skip
inject, noise_state, sites_of = nk.inject, nk.noise_state, nk.sites
compare, report = nk.compare, nk.study.report
set_cpu_level = _C.set_cpu_level


def walk(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.walk(model, data, **gathered(how))


def walk_parameter(model: nn.Module, data: Any, make: Any, values: Sequence[float], **how: Any) -> Study:
    return nk.walk_parameter(model, data, make, values, **gathered({"seed": 0, **how}))


def walk_mixed(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.walk_mixed(model, data, **gathered(how))


def vote(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.vote(model, data, **gathered(how))


def chips(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.chips(model, data, **gathered(how))


def sweep_formats(model: nn.Module, data: Any, formats: Any, **how: Any) -> Any:
    return nk.experiments.sweep_formats(model, data, formats, **gathered({"seed": 0, **how}))


def search_format(model: nn.Module, data: Any, predictor: Any, **how: Any) -> Any:
    return nk.experiments.search_format(model, data, predictor, **gathered({"seed": 0, **how}))


def layer_formats(model: nn.Module, data: Any, start: str, **how: Any) -> Any:
    return nk.experiments.layer_formats(model, data, start, **gathered({"seed": 0, **how}))


def order_sensitivity(model: nn.Module, data: Any, arithmetic: Any, **how: Any) -> Any:
    return nk.experiments.order_sensitivity(model, data, arithmetic, **gathered(how))


def running_sums(x: Tensor, weight: Tensor, arithmetic: Any, **how: Any) -> Tensor:
    return nk.experiments.running_sums(x, weight, arithmetic, **how)


def op(name: str) -> Callable[..., Tensor]:
    """An operator: `eps`, `perturb`, `linear`, `conv2d`, ..., `quantize`."""
    function: Callable[..., Tensor] = getattr(nk, name)
    return function
