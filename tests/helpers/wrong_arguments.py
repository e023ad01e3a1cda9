"""A good call of public functions, and wrong values for each of its arguments, chosen by what the signature says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import noisykernels as nk
from noisykernels import datasets, experiments, stats, study, training, zoo

NAN, INF, HUGE = float("nan"), float("inf"), 10**400


class Odd:
    """An object of no use."""

    def __repr__(self) -> str:
        return "<an odd object>"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


_FIXED = torch.Generator().manual_seed(0)  # the same whatever ran before
X, Y = torch.randn(6, 4, generator=_FIXED), torch.tensor([0, 1, 2, 0, 1, 2])
DATA, NOISE = (X, Y), nk.Noise(add=0.1)
IMAGE, KERNEL = torch.randn(2, 3, 6, 6, generator=_FIXED), torch.randn(3, 3, 3, 3, generator=_FIXED)
LABELS, VOTES = [0, 1], [[0, 1], [1, 1]]
SCORES = np.zeros((2, 2, 3))
MIDPOINTS = {"a": 1.0, "b": 2.0}
FIT: dict[str, Any] = dict(
    levels=[0.1, 1.0, 10.0], accuracy=[[0.9], [0.5], [0.1]], clean=0.9, floor=0.1, rows=[[100]] * 3
)


def sequence(**more: Any) -> dict[str, Any]:
    """Arguments of all operators that matter to all of them."""
    return dict(noise=NOISE, seed=1, site=0, draws=[0], rows=None, first_row=0) | more


# function -> its arguments in a good call
GOOD: dict[Callable[..., Any], Callable[[], dict[str, Any]]] = {
    nk.Noise: lambda: dict(add=0.1, mul=0.1, order="mul_add", kind="gaussian"),
    nk.Noise.amplitude: lambda: dict(A=1.0, ratio=0.5, order="mul_add", kind="gaussian"),
    nk.InputNoise: lambda: dict(add=0.1, mul=0.0, kind="gaussian"),
    nk.WeightNoise: lambda: dict(add=0.1, mul=0.0, relative=None, kind="gaussian"),
    nk.MacNoise: lambda: dict(per_product=0.1, per_step=0.1, read=0.1, relative=None),
    nk.Search: lambda: dict(rel_ci=0.1),
    nk.Compute: lambda: dict(engine="auto", batch_rows=5, draws_per_pass=2, memory=2**20, threads=1, executor=None),
    nk.Serial: lambda: dict(
        fmt=None,
        order="natural",
        low=-1.0,
        high=1.0,
        leak=0.5,
        synapse_limit=1.0,
        synapse_decay=0.1,
        step_noise=0.1,
        gain=1.0,
        gradient="masked",
    ),
    nk.arithmetic.FloatFormat: lambda: dict(
        mantissa=3, exponent=4, bias=None, overflow="saturate", rounding="truncate"
    ),
    nk.arithmetic.FixedFormat: lambda: dict(left=4, right=4, rounding="truncate"),
    nk.arithmetic.as_format: lambda: dict(given="fp16"),
    nk.arithmetic.random_order: lambda: dict(steps=4, seed=1, name=None, number=0),
    nk.hardware.ADC: lambda: dict(bits=4, limit=1.0, rounding="nearest"),
    nk.hardware.DAC: lambda: dict(bits=4, limit=1.0, rounding="nearest"),
    nk.hardware.ColumnGain: lambda: dict(sigma=0.1),
    nk.hardware.ColumnOffset: lambda: dict(sigma=0.1),
    nk.hardware.DifferentialPair: lambda: dict(sigma=0.1, g_max=1.0, levels=8, over="layer", rounding="floor"),
    nk.hardware.PCM: lambda: dict(time=1.0, over="layer", programming=1.0, drift=1.0, read=1.0),
    nk.brainscales.BrainScaleS2: lambda: dict(
        gain=0.1,
        noise_std=1.0,
        num_sends=1,
        avg=1,
        input_limit=None,
        low=-1.0,
        high=1.0,
        order="natural",
        leak=0.5,
        synapse_limit=None,
        synapse_decay=0.1,
        gradient="masked",
    ),
    nk.brainscales.ConvertingReLU: lambda: dict(shift=1),
    nk.eps: lambda: dict(shape=(2, 3), kind="gaussian", seed=1, site=0, operand="add", draw=0, rows=None, first_row=0),
    nk.perturb: lambda: sequence(x=X, operand="add"),
    nk.perturb_relu_max_pool2d: lambda: sequence(x=IMAGE, kernel_size=2, stride=None, padding=0),
    nk.linear: lambda: sequence(x=X, weight=torch.randn(3, 4), bias=None, hardware=None, arithmetic=None),
    nk.conv2d: lambda: sequence(x=IMAGE, weight=KERNEL, bias=None, stride=1, padding=0, dilation=1, groups=1),
    nk.conv_transpose2d: lambda: sequence(
        x=IMAGE, weight=KERNEL, stride=1, padding=0, output_padding=0, dilation=1, groups=1
    ),
    nk.matmul: lambda: sequence(a=X, b=torch.randn(4, 3)),
    nk.quantize: lambda: dict(x=X, fmt="M7E6", seed=1, site=0, operand="rounding_sum", draw=0, rows=None, first_row=0),
    nk.per_draw: lambda: dict(values=[0.1], ndim=2),
    nk.per_row: lambda: dict(values=[0.1], ndim=2),
    nk.per_channel: lambda: dict(values=[0.1], ndim=2),
    nk.NoiseSite: lambda: dict(noise=NOISE),
    nk.inject: lambda: dict(model=net(), noise=NOISE, where=None, repeats=1, hardware=None, arithmetic=None),
    nk.remove: lambda: dict(model=nk.inject(net(), NOISE).model),
    nk.sites: lambda: dict(model=net(), example_input=X),
    nk.vote: lambda: dict(
        model=net(),
        data=DATA,
        noise=NOISE,
        draws=2,
        seed=1,
        sites=None,
        kinds=("majority", "logit"),
        repeats=1,
        subsets=2,
        rows=None,
        compute=None,
        progress=False,
    ),
    nk.chips: lambda: dict(
        model=net(),
        data=DATA,
        noise=NOISE,
        hardware=None,
        draws=2,
        seed=1,
        sites=None,
        rows=None,
        metric=nk.metrics.ACCURACY,
        compute=None,
        progress=False,
    ),
    nk.walk: lambda: dict(
        model=net(),
        data=DATA,
        noise=NOISE,
        levels=[1.0],
        draws=1,
        seed=1,
        sites=None,
        target="activation",
        rows=None,
        metric=nk.metrics.ACCURACY,
        floor=None,
        axis=None,
        search=None,
        plateaus=None,
        compute=None,
        store=None,
        progress=False,
        description=("", ""),
    ),
    nk.walk_mixed: lambda: dict(
        model=net(), data=DATA, ratios=[0.5], order="mul_add", kind="gaussian", seed=1, levels=[1.0], draws=1
    ),
    nk.walk_parameter: lambda: dict(
        model=net(),
        data=DATA,
        make=lambda v: [nk.Serial(low=-v, high=v)],
        values=[1.0],
        name="a",
        larger="better",
        axis="log",
        draws=1,
        seed=1,
        sites=None,
        rows=None,
        metric=nk.metrics.ACCURACY,
        floor=None,
        compute=None,
        store=None,
        progress=False,
        description=("", ""),
    ),
    experiments.sweep_formats: lambda: dict(
        model=net(),
        data=DATA,
        formats=["M7E6"],
        cost=None,
        inputs=2,
        seed=1,
        rows=None,
        metric=nk.metrics.ACCURACY,
        compute=None,
        store=None,
        progress=False,
        name="",
    ),
    experiments.layer_formats: lambda: dict(
        model=net(),
        data=DATA,
        start="M7E6",
        target=0.5,
        evaluations=1,
        cost=None,
        seed=1,
        rows=None,
        metric=nk.metrics.ACCURACY,
        compute=None,
        progress=False,
    ),
    experiments.order_sensitivity: lambda: dict(
        model=net(),
        data=DATA,
        arithmetic=nk.Serial(low=-1, high=1),
        permutations=1,
        orders=("natural",),
        seed=1,
        rows=None,
        metric=nk.metrics.ACCURACY,
        compute=None,
        progress=False,
    ),
    experiments.running_sums: lambda: dict(x=X[0], weight=X[1], arithmetic=None, seed=0),
    experiments.worst_of: lambda: dict(accuracy=[0.5, 0.6], count=1),
    experiments.design_space: lambda: dict(mantissa=[3], exponent=[4], left=[3], right=[3], rounding="truncate"),
    stats.wilson: lambda: dict(correct=5, rows=10, confidence=0.95),
    stats.band: lambda: dict(accuracy=[[0.5, 0.6]], rows=[[10, 10]], confidence=0.95),
    stats.fit_midpoint: lambda: dict(FIT, axis="log", confidence=0.95, seed=0),
    stats.majority: lambda: dict(predictions=VOTES, labels=LABELS, classes=2, n=None),
    stats.mean_scores: lambda: dict(scores=SCORES, labels=LABELS, n=None, kind="logit", subsets=2, seed=0),
    stats.executions_needed: lambda: dict(curve=[0.5, 0.6], accuracy=0.55),
    study.uniform: lambda: dict(sites=["a", "b"], repeats=2),
    study.tailored: lambda: dict(midpoints=MIDPOINTS, repeats=2, mapping="inverse"),
    training.train: lambda: dict(
        model=net(),
        data=DATA,
        epochs=0,
        lr=0.1,
        batch_size=4,
        augment=None,
        clamp=None,
        seed=0,
        device=None,
        progress=False,
        on_epoch=None,
        on_step=None,
        val=None,
    ),
    training.accuracy: lambda: dict(model=net(), data=DATA, batch_size=4),
    training.clamp_weights: lambda: dict(model=net(), limit=0.1),
    training.recalibrate_bn: lambda: dict(model=nn.BatchNorm1d(4), data=X, seed=None, batch_size=3),
    training.site_statistics: lambda: dict(model=net(), data=X, seed=None, level=None, batch_size=3),
    training.gradient_norms: lambda: dict(model=net(), data=DATA, seed=None, level=None, batch_size=3),
    training.weight_statistics: lambda: dict(model=net()),
    training.m_sharpness: lambda: dict(model=net(), data=DATA, rho=0.05, ascent=training.SAM, batch_size=3),
    training.noisy_steps: lambda: dict(model=nk.inject(net(), NOISE).model, seed=1, level=1.0),
    training.Schedule: lambda: dict(points=[(0, 0.0), (1, 1.0)]),
    training.VarianceAware: lambda: dict(sigma=1.0, alpha=0.5, theta=0.5, seed=1, form="folded", every=None),
    training.DenoisingBlock: lambda: dict(features=4, bottleneck=None, dims=0, kernel_size=3),
    training.insert_denoising: lambda: dict(
        model=net(), where="0:linear#0", example_input=X, bottleneck=None, kernel_size=3
    ),
    training.SAM: lambda: dict(params=net().parameters(), base_optimizer=torch.optim.SGD, rho=0.1, model=None, lr=0.1),
    training.ASAM: lambda: dict(
        params=net().named_parameters(), base_optimizer=torch.optim.SGD, rho=0.1, eta=0.1, model=None, lr=0.1
    ),
    training.SAMSON: lambda: dict(
        params=net().named_parameters(), base_optimizer=torch.optim.SGD, rho=0.1, eta=0.1, p=2.0, model=None, lr=0.1
    ),
    training.bimodality: lambda: dict(values=X),
    training.two_means: lambda: dict(values=X),
    datasets.load: lambda: dict(name="digits", split="test", root=None, limit=5),
    datasets.info: lambda: dict(name="digits"),
    datasets.augmentation: lambda: dict(data_name="digits"),
    datasets.crop_flip: lambda: dict(x=IMAGE, generator=torch.Generator(), pad=1, fill=(0.0, 0.0, 0.0)),
    datasets.synthetic_recordings: lambda: dict(takes=1, speakers=1, seed=0),
    zoo.build: lambda: dict(name="mlp", shape=(1, 8, 8), classes=10),
    zoo.fresh: lambda: dict(model_name="mlp", data_name="digits", seed=0),
    zoo.LeNet5: lambda: dict(in_channels=1, size=28, classes=10),
    zoo.MLP: lambda: dict(in_features=4, classes=3, width=4, hidden=1),
}


def wrong(annotation: str, good: Any) -> Iterator[Any]:
    """Values that no argument of a kind can be."""
    parts = set(re.split(r"\s*\|\s*", annotation))
    yield Odd()
    if not parts & {"Progress", "Any", "Augment", "Step"} and "Callable" not in annotation:
        yield type
    if not parts & {"None", "Any", "Seed", "Ids", "ArrayLike"} and good is not None:
        yield None
    number = parts & {"float", "int", "SupportsIndex", "Seed"}
    if number:
        yield from (NAN, [], HUGE, -HUGE)
    if parts & {"int", "Seed", "SupportsIndex"} and not parts & {"float"}:
        yield from (1.5, INF, True)
    if "float" in parts:
        yield 1j
    if not parts & {"str", "Any"} and "str" not in annotation and "Literal" not in annotation:
        yield from ("", "nonsense")
    if "Literal" in annotation:
        yield from ("", "nonsense", 3)
    if "Tensor" in parts and not number:
        yield from (3, HUGE)
    if "nn.Module" in parts or annotation in ("Noise", "Data", "Metric"):
        yield from (3, "nonsense")
    if "PathLike" in annotation:
        yield from ("", "\0", 3, b"x")


def cases() -> Iterator[tuple[str, str, Any, Callable[[], object]]]:
    """Name of the function and of the argument, a wrong value, and the call with it."""
    for function, good in GOOD.items():
        signature = inspect.signature(function)
        for name, value in good().items():
            annotation = str(signature.parameters[name].annotation) if name in signature.parameters else "Any"
            for bad in wrong(annotation, value):

                def call(function: Any = function, good: Any = good, name: str = name, bad: Any = bad) -> object:
                    return function(**good() | {name: bad})

                yield function.__qualname__, name, bad, call
