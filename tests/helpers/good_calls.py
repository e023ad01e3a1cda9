"""A good call of each public function of the operators, layers, hardware and studies: its arguments, made anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import noisykernels as nk
from noisykernels import arithmetic, brainscales, experiments, hardware

Good = dict[Callable[..., Any], Callable[[], dict[str, Any]]]  # function -> its arguments in a good call

_FIXED = torch.Generator().manual_seed(0)  # the same whatever ran before
X, Y = torch.randn(6, 4, generator=_FIXED), torch.tensor([0, 1, 2, 0, 1, 2])
DATA, NOISE = (X, Y), nk.Noise(add=0.1)
WEIGHTS, RANGES = nk.WeightNoise(add=0.1), nk.noise.Ranges({"input": 1.0})
VALUES = [torch.randn(2, 3, *[6] * n, generator=_FIXED) for n in (1, 2, 3)]  # of one, two and three dimensions
KERNELS = [torch.randn(3, 3, *[3] * n, generator=_FIXED) for n in (1, 2, 3)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def _ranges() -> Path:
    path = Path(tempfile.mkdtemp()) / "ranges.json"
    RANGES.save(path)
    return path


def injected() -> nn.Module:
    return nk.inject(net(), NOISE).model


def sequence(**more: Any) -> dict[str, Any]:
    """Arguments of all operators that matter to all of them."""
    return dict(noise=NOISE, seed=1, site=0, draws=[0], shared=False, rows=None, first_row=0) | more


def convolution(n: int) -> Callable[[], dict[str, Any]]:
    """Arguments of a convolution of n dimensions."""
    return lambda: sequence(
        x=VALUES[n - 1], weight=KERNELS[n - 1], bias=None, stride=1, padding=0, dilation=1, groups=1, hardware=None,
        arithmetic=None, relu=False, array=None, array_seed=None,
    )  # fmt: skip


def transposed(n: int) -> Callable[[], dict[str, Any]]:
    return lambda: convolution(n)() | dict(output_padding=0)


LAYER: dict[str, Any] = dict(noise=NOISE, in_training=True, in_eval=True, hardware=None, arithmetic=None)
LINEAR: dict[str, Any] = dict(in_features=4, out_features=3, bias=True, device=None, dtype=None)
CONV: dict[str, Any] = dict(
    in_channels=2, out_channels=4, kernel_size=3, stride=1, padding=0, dilation=1, groups=1, bias=True,
    padding_mode="zeros", device=None, dtype=None,
)  # fmt: skip
ROUNDING: dict[str, Any] = dict(order="natural", ordered=True, leak=0.5, synapse_decay=0.1, gradient="masked")
LIMITS = dict(low=-1.0, high=1.0)


def study(**more: Any) -> dict[str, Any]:
    """Arguments that all studies share."""
    return (
        dict(
            model=net(), data=DATA, seed=1, rows=None, compute=None, progress=False, root="", forward=None, output=None
        )
        | more
    )


def measured(**more: Any) -> dict[str, Any]:
    return study(metric=nk.metrics.ACCURACY, **more)


def walked(**more: Any) -> dict[str, Any]:
    """Arguments that all walks share."""
    return measured(
        **dict(
            draws=1,
            sites=None,
            groups=None,
            floor=None,
            at="half",
            axis=None,
            store=None,
            description=("", ""),
            arrays="module",
            detail=None,
        )
        | more
    )


OPERATORS: Good = {
    nk.Noise: lambda: dict(add=0.1, mul=0.1, order="mul_add", kind="gaussian", fold=False, relative="rms"),
    nk.Noise.amplitude: lambda: dict(A=1.0, ratio=0.5, order="mul_add", kind="gaussian", fold=False, relative="rms"),
    nk.Noise.at: lambda: dict(self=nk.Noise(add=0.1, relative=RANGES), site="input"),
    nk.noise.Ranges: lambda: dict(sizes={"input": 1.0}, method="max"),
    nk.noise.Ranges.at: lambda: dict(self=RANGES, site="input"),
    nk.noise.Ranges.load: lambda: dict(path=_ranges()),
    nk.noise.Ranges.of: lambda: dict(told=RANGES.told()),
    nk.noise.Ranges.save: lambda: dict(self=RANGES, path=_ranges()),
    nk.calibrate: lambda: dict(
        model=net(), data=X, method="moving", share=0.5, batch_size=3, forward=None, output=None
    ),
    nk.noise.row_scale: lambda: dict(x=X, statistic="rms"),
    nk.Noise.scaled: lambda: dict(self=NOISE, factor=2.0),
    nk.eps: lambda: dict(
        shape=(2, 3), kind="gaussian", seed=1, site=0, operand="add", draw=0, rows=None, first_row=0, device=None
    ),
    nk.perturb: lambda: sequence(x=X, operand="add"),
    nk.perturb_relu_max_pool2d: lambda: sequence(x=VALUES[1], kernel_size=2, stride=None, padding=0),
    nk.linear: lambda: sequence(
        x=X,
        weight=torch.randn(3, 4),
        bias=None,
        hardware=None,
        arithmetic=None,
        relu=False,
        array=None,
        array_seed=None,
    ),
    nk.conv1d: convolution(1),
    nk.conv2d: convolution(2),
    nk.conv3d: convolution(3),
    nk.conv_transpose1d: transposed(1),
    nk.conv_transpose2d: transposed(2),
    nk.conv_transpose3d: transposed(3),
    nk.matmul: lambda: sequence(a=X, b=torch.randn(4, 3)),
    nk.quantize: lambda: dict(x=X, fmt="M7E6", seed=1, site=0, operand="rounding_sum", draw=0, rows=None, first_row=0),
    nk.per_draw: lambda: dict(values=[0.1], ndim=2),
    nk.per_row: lambda: dict(values=[0.1], ndim=2),
    nk.per_channel: lambda: dict(values=[0.1], ndim=2),
    nk.NoiseSite: lambda: dict(noise=NOISE, in_training=True, in_eval=True),
    nk.NoisyLinear: lambda: LINEAR | LAYER,
    nk.NoisyConv1d: lambda: CONV | LAYER,
    nk.NoisyConv2d: lambda: CONV | LAYER,
    nk.NoisyConv3d: lambda: CONV | LAYER | dict(stride=(1, 1, 1)),
    nk.NoisyConvTranspose1d: lambda: CONV | LAYER | dict(output_padding=0),
    nk.NoisyConvTranspose2d: lambda: CONV | LAYER | dict(output_padding=0),
    nk.NoisyConvTranspose3d: lambda: CONV | LAYER | dict(output_padding=0),
    nk.inject: lambda: dict(
        model=net(),
        noise=NOISE,
        where=None,
        repeats=1,
        hardware=None,
        arithmetic=None,
        in_training=True,
        in_eval=True,
        example_input=X,
        row_dims=None,
        normalize_to_input_size=False,
        arrays="module",
        bias="digital",
        detail=None,
        root="",
    ),
    nk.TokenRows: lambda: dict(length=8, sequence=[0, 1], position=[0, 1, 2]),
    nk.nn.cached: lambda: dict(key=VALUES[1], value=VALUES[1], layer=0, cross=False),
    nk.noise_state: lambda: dict(model=injected(), seed=1, draws=[0], rows=None, level=None, advance=False),
    nk.remove: lambda: dict(model=injected()),
    nk.sites: lambda: dict(model=net(), example_input=X, detail=None, root=""),
    nk.injection.Coverage.share: lambda: dict(self=nk.coverage(injected(), X), what="noise"),
    nk.coverage: lambda: dict(model=net(), example_input=X, root=""),
    nk.injection.programmed: lambda: dict(model=injected(), example_input=X, seed=1, draw=0),
}

HARDWARE: Good = {
    nk.presets.afm: lambda: dict(stage="training", tiles=True),
    nk.presets.aihwkit_pcm: lambda: dict(time=1.0),
    nk.presets.joshi: lambda: dict(eta=0.1),
    nk.presets.memse: lambda: dict(sigma=0.1),
    nk.InputNoise: lambda: dict(add=0.1, mul=0.0, kind="gaussian", fold=False, relative="rms"),
    nk.InputNoise.scaled: lambda: dict(self=nk.InputNoise(add=0.1), factor=2.0),
    nk.WeightNoise: lambda: dict(add=0.1, mul=0.0, relative=None, kind="gaussian", fold=False),
    nk.WeightNoise.of: lambda: dict(noise=NOISE, relative=None),
    nk.WeightNoise.scaled: lambda: dict(self=WEIGHTS, factor=2.0),
    nk.MacNoise: lambda: dict(per_product=0.1, per_step=0.1, read=0.1, relative=None, explicit=False),
    hardware.Device.scaled: lambda: dict(self=nk.MacNoise(read=0.1), factor=2.0),
    hardware.ADC: lambda: dict(bits=4, limit=1.0, rounding="nearest", signed=True),
    hardware.DAC: lambda: dict(bits=4, limit=1.0, rounding="nearest", signed=True),
    hardware.ColumnGain: lambda: dict(sigma=0.1),
    hardware.ColumnOffset: lambda: dict(sigma=0.1),
    hardware.DifferentialPair: lambda: dict(sigma=0.1, g_max=1.0, levels=8, over="layer", rounding="floor", clip=True),
    hardware.PCM: lambda: dict(
        time=1.0, over="layer", programming=1.0, drift=1.0, read=1.0, compensate=True, pair=True
    ),
    nk.Serial: lambda: dict(
        fmt=None, synapse_limit=1.0, step_noise=0.1, gain=1.0, operands=None, product=None, sum=None, **ROUNDING,
        **LIMITS,
    ),
    arithmetic.FloatFormat: lambda: dict(
        mantissa=3, exponent=4, bias=None, subnormals=True, overflow="saturate", rounding="truncate", largest=None
    ),
    arithmetic.FloatFormat.rounded: lambda: dict(self=arithmetic.FloatFormat(3, 4), rounding="nearest"),
    arithmetic.FixedFormat: lambda: dict(left=4, right=4, rounding="truncate"),
    arithmetic.FixedFormat.rounded: lambda: dict(self=arithmetic.FixedFormat(4, 4), rounding="nearest"),
    arithmetic.as_format: lambda: dict(given="fp16"),
    arithmetic.random_order: lambda: dict(steps=4, seed=1, name=None, number=0),
    arithmetic.CostModel: lambda: dict(table=None, reference="fp32"),
    **{
        method: lambda: dict(self=arithmetic.CostModel(), fmt="M7E6")
        for method in (
            arithmetic.CostModel.cost, arithmetic.CostModel.knows, arithmetic.CostModel.saving,
            arithmetic.CostModel.speedup,
        )
    },
    arithmetic.CostModel.to_pandas: lambda: dict(self=arithmetic.CostModel(), formats=["M7E6"]),
    brainscales.BrainScaleS2: lambda: dict(
        gain=0.1, noise_std=1.0, num_sends=1, avg=1, input_limit=None, synapse_limit=None, **ROUNDING, **LIMITS
    ),
    brainscales.ConvertingReLU: lambda: dict(shift=1),
    brainscales.BSS2Linear: lambda: LINEAR | dict(device=brainscales.BrainScaleS2()),
    brainscales.BSS2Conv2d: lambda: CONV | dict(device=brainscales.BrainScaleS2()),
    brainscales.bss2_calibration: lambda: dict(measured=X * 2, exact=X),
}  # fmt: skip

STUDIES: Good = {
    nk.Search: lambda: dict(rel_ci=0.1, most=None),
    nk.Compute: lambda: dict(
        engine="auto", batch_rows=5, draws_per_pass=2, memory=2**20, threads=1, executor=None, verify="sample"
    ),
    nk.vote: lambda: measured(
        noise=NOISE, draws=2, sites=None, kinds=("majority", "logit"), repeats=1, subsets=2, hardware=None,
        arrays="module", detail=None,
    ),
    nk.chips: lambda: measured(noise=NOISE, hardware=None, draws=2, sites=None, arrays="module", detail=None),
    nk.walk: lambda: walked(
        noise=NOISE, levels=[1.0], target="activation", search=None, plateaus=None, detail=None
    ),
    nk.walk_mixed: lambda: dict(
        model=net(), data=DATA, ratios=[0.5], order="mul_add", kind="gaussian", relative="rms", seed=1, levels=[1.0],
        draws=1,
    ),
    nk.walk_parameter: lambda: walked(
        make=lambda v: [nk.Serial(low=-v, high=v)], values=[1.0], name="a", larger="better", axis="log"
    ),
    experiments.sweep_formats: lambda: measured(
        formats=["M7E6"], cost=None, inputs=2, store=None, name="", arithmetic=nk.Serial, arrays="module"
    ),
    experiments.layer_formats: lambda: measured(
        start="M7E6", target=0.5, evaluations=1, cost=None, arithmetic=nk.Serial, arrays="module"
    ),
    experiments.search_format: lambda: measured(
        predictor=experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 3), formats=["M7E6"], target=0.5, evaluations=1,
        cost=None, inputs=2, arithmetic=nk.Serial, arrays="module",
    ),
    experiments.order_sensitivity: lambda: measured(
        arithmetic=nk.Serial(**LIMITS), permutations=1, orders=("natural",), arrays="module", sites=None
    ),
    experiments.order_of: lambda: dict(arithmetic=nk.Serial(**LIMITS), x=X[0], weight=X[1]),
    experiments.running_sums: lambda: dict(x=X[0], weight=X[1], arithmetic=None, seed=0),
    experiments.worst_of: lambda: dict(values=[0.5, 0.6], count=1),
    experiments.design_space: lambda: dict(mantissa=[3], exponent=[4], left=[3], right=[3], rounding="truncate"),
}  # fmt: skip
