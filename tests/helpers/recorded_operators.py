"""Recorded results of operators, with noise, hardware and defined sums, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from recorded_digests import KINDS_THEN, Cases, Parts, six
from recorded_models import NOISES, whole
from recorded_names import (
    ADC,
    DAC,
    PCM,
    ColumnGain,
    ColumnOffset,
    DifferentialPair,
    FixedFormat,
    FloatFormat,
    InputNoise,
    MacNoise,
    Noise,
    Serial,
    WeightNoise,
    op,
    set_cpu_level,
)
from torch import Tensor

import noisykernels as nk
from noisykernels.brainscales import BrainScaleS2
from noisykernels.noise.contract import OPERANDS

case = Cases()


MODES = {**{k: NOISES[k] for k in ("add", "mul", "mul_add", "add_mul", "fold")},
         "uniform": Noise(add=0.5, mul=0.25, kind="uniform"), "laplace": Noise(mul=0.5, kind="laplace")}  # fmt: skip
KEY: dict[str, Any] = {"seed": 2**63 + 5, "site": 77, "draws": [0, 5, 2**32 - 1], "rows": [4, 0, 2**32 - 1, 9]}
ONE: dict[str, Any] = {"seed": 9, "site": 3, "first_row": 6}


@case
def op_eps() -> Parts:
    parts: Parts = {}
    for kind in KINDS_THEN:
        for operand in OPERANDS:
            parts[f"{kind} {operand}"] = op("eps")((5, 3, 7), kind=kind, seed=12, site=8, operand=operand, draw=2)
        parts[f"{kind} long"] = op("eps")((2, 5003), kind=kind, seed=2**64 - 1, site=2**24 - 1, rows=[2**32 - 1, 1])
    return parts


@case
def op_noise() -> Parts:
    """Every noise on values and on results of contractions of whole numbers."""
    parts: Parts = {}
    x, w, b = whole((4, 9), -5, 5, 1), whole((6, 9), -3, 3, 2), whole((6,), -2, 2, 3)
    image, kernel = whole((4, 4, 6, 6), -5, 5, 4), whole((6, 2, 3, 3), -3, 3, 5)
    back, volume = whole((4, 3, 2, 2), -3, 3, 6), whole((4, 2, 3, 4, 3), -3, 3, 7)
    for mode, noise in MODES.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            parts[f"perturb {mode} {dtype}"] = op("perturb")(x.to(dtype), noise, shared=True, **KEY)
        how: dict[str, Any] = {"noise": noise, "shared": True, **KEY}
        parts[f"linear {mode}"] = op("linear")(x, w, b, **how)
        parts[f"linear relu float64 {mode}"] = op("linear")(x.double(), w.double(), None, relu=True, **how)
        parts[f"matmul {mode}"] = op("matmul")(x.view(4, 1, 9), w.T, **how)
        parts[f"conv2d {mode}"] = op("conv2d")(image, kernel, b, 1, "same", groups=2, **how)
        parts[f"conv_transpose2d {mode}"] = op("conv_transpose2d")(image, back, None, 2, 1, 1, **how)
        parts[f"conv1d {mode}"] = op("conv1d")(image[:, :, 0], kernel[:, :, 0], stride=2, groups=2, **how)
        parts[f"conv3d {mode}"] = op("conv3d")(volume, whole((3, 2, 2, 2, 2), -2, 2, 8), relu=True, **how)
        parts[f"pool {mode}"] = op("perturb_relu_max_pool2d")(image, noise, 2, shared=True, **KEY)
    draws, rows = nk.per_draw([0.5, 1.0, 2.0], 2), nk.per_row([1.0, 0.0, 2.0, 4.0], 2)
    for name, noise in {
        "draw": Noise(add=draws), "row": Noise(mul=rows), "channel": Noise(add=nk.per_channel(torch.arange(9.0), 2)),
        "both": Noise(add=draws, mul=rows),
    }.items():  # fmt: skip
        parts[f"levels by {name}"] = op("perturb")(x, noise, shared=True, **KEY)
    for operand in ("input", "weight", "programming"):
        parts[f"operand {operand}"] = op("perturb")(x, Noise(add=1.0), operand=operand, **ONE)
    return parts


def one_hot(rows: int, columns: int) -> Tensor:
    """One power of two in each row."""
    made = torch.zeros(rows, columns)
    made[range(rows), [(5 * r + 2) % columns for r in range(rows)]] = 2.0 ** whole((rows,), -1, 2, rows)
    return made


@case
def op_hardware() -> Parts:
    """Devices inside contractions; one product of each sum differs from zero where noise enters them."""
    parts: Parts = {}
    dense, sparse = whole((4, 9), -5, 5, 1), one_hot(4, 9)
    w, w_sparse, b = whole((6, 9), -3, 3, 2), one_hot(6, 9), whole((6,), -2, 2, 3)
    key = {"shared": True, **KEY}
    of_weights = {
        "absolute": WeightNoise(add=0.5), "layer": WeightNoise(add=0.5, relative="layer"),
        "channel": WeightNoise(add=0.5, relative="channel"), "mul": WeightNoise(mul=0.25, kind="laplace"),
        "fold": WeightNoise(add=0.5, mul=0.25, fold=True), "pair": DifferentialPair(0.125),
        "pair of levels": DifferentialPair(0.125, levels=8, over="channel"),
        "explicit products": MacNoise(0.5, explicit=True),
    }  # fmt: skip
    for name, device in of_weights.items():
        parts[f"weights {name}"] = op("linear")(sparse, w, b, hardware=[device], **key)
        parts[f"weights {name} conv2d"] = op("conv2d")(
            sparse.view(4, 9, 1, 1), w.view(6, 9, 1, 1), b, padding=1, hardware=[device], **key
        )
        parts[f"weights {name} conv_transpose2d"] = op("conv_transpose2d")(
            sparse.view(4, 9, 1, 1), w.T.reshape(9, 6, 1, 1), b, stride=2, hardware=[device], **key
        )
    parts["weights drift"] = six(op("linear")(sparse, w, b, hardware=[PCM(time=86400.0, pair=False)], **key))
    of_inputs = {
        "noise": InputNoise(add=0.5), "mul": InputNoise(mul=0.25, kind="uniform"), "converter": DAC(3, 4.0),
        "converter by row": DAC(4, "row"), "unsigned": DAC(3, 4.0, signed=False, rounding="floor"),
    }  # fmt: skip
    for name, device in of_inputs.items():
        parts[f"inputs {name}"] = op("linear")(dense, w_sparse, b, hardware=[device], **key)
    of_outputs = {
        "adc": ADC(5, 64.0), "adc by row": ADC(4, "row"), "gain": ColumnGain(0.125), "offset": ColumnOffset(0.5),
        "macs": MacNoise(0.5, 0.25, 0.125), "macs by layer": MacNoise(0.0, 0.0, 0.5, relative="layer"),
        "chip": BrainScaleS2(gain=0.25, noise_std=1.0), "chip in order": BrainScaleS2(0.25, 1.0, ordered=True),
    }  # fmt: skip
    for name, device in of_outputs.items():
        x = dense.abs() if "chip" in name else dense
        parts[f"outputs {name}"] = op("linear")(x, w, b, hardware=[device], **key)
        parts[f"outputs {name} and noise"] = op("linear")(
            x, w, b, hardware=[device], noise=MODES["mul"], relu=True, **key
        )
        image, kernel = whole((4, 2, 5, 5), 0, 5, 4), whole((6, 2, 3, 3), -3, 3, 5)
        y = op("conv2d")(image, kernel, b, 2, 1, hardware=[device], **key)
        rounded = "macs" in name  # torch may fuse a product and a sum
        parts[f"outputs {name} conv2d"] = torch.round(16 * y) if rounded else y
    several = [InputNoise(mul=0.25), DAC(6, 16.0), ColumnGain(0.125), ADC(6, 64.0)]
    parts["several"] = op("linear")(dense, w_sparse, b, hardware=several, noise=MODES["mul_add"], **key)
    return parts


@case
def op_serial() -> Parts:
    """Sums in a defined order: every operation is rounded as it is defined, so any values will do."""
    parts: Parts = {}
    x, w = op("eps")((4, 21), seed=1, site=1), op("eps")((5, 21), seed=1, site=2)
    image, kernel = op("eps")((3, 4, 5, 5), seed=1, site=3), op("eps")((6, 2, 3, 3), seed=1, site=4)
    permuted = torch.argsort(whole((21,), 0, 10**6, 1))
    made: dict[str, Serial] = {
        **{fmt: Serial(fmt) for fmt in ("M2E4", "M7E6", "fp16", "bf16", "L4R4", "L2R9")},
        **{fmt: Serial(fmt) for fmt in ("M4E5 stochastic", "L5R5 stochastic")},
        "float": Serial(FloatFormat(3, 4, subnormals=True, overflow="infinity", rounding="nearest")),
        "fixed": Serial(FixedFormat(3, 5)),
        "parts": Serial(operands="M4E5", product="exact", sum="L6R6"),
        **{order: Serial("M5E5", order=order)
           for order in ("reversed", "positive_first", "negative_first", "ascending", "descending")},
        "permuted": Serial(order=permuted), "limits": Serial(low=-1.5, high=2.0), "leak": Serial(leak=0.875),
        "synapse": Serial(synapse_limit=1.0, synapse_decay=0.5), "step noise": Serial(step_noise=0.25, gain=2.0),
    }  # fmt: skip
    for name, arithmetic in made.items():
        parts[f"linear {name}"] = op("linear")(x, w, w[:, 0], arithmetic=arithmetic, shared=True, **KEY)
        if name != "permuted":
            parts[f"conv2d {name}"] = op("conv2d")(image, kernel, padding=1, groups=2, arithmetic=arithmetic, **ONE)
    parts["linear float64"] = op("linear")(x.double(), w.double(), arithmetic=Serial("L8R8"), **ONE)
    parts["conv_transpose2d"] = op("conv_transpose2d")(image, kernel[:4], stride=2, arithmetic=Serial("M5E5"), **ONE)
    for fmt in ("M2E4", "M7E6 stochastic", "fp16", "bf16", "L4R4", "L3R8 nearest", "L3R8 stochastic"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            parts[f"quantize {fmt} {dtype}"] = op("quantize")(
                (4 * x).to(dtype), fmt, seed=4, site=2, draw=3, first_row=5
            )
    return parts


@case
def op_gradients() -> Parts:
    """Gradients of sums that are exact, on one thread with the portable kernels."""
    parts: Parts = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    set_cpu_level("portable")
    try:
        for mode in ("add", "mul", "mul_add", "add_mul", "uniform"):
            noise = MODES[mode]
            for name, (x, w) in {
                "perturb": (whole((4, 9), -5, 5, 1), None),
                "linear": (one_hot(4, 9), one_hot(9, 6).T.contiguous()),
                "conv2d": (one_hot(4, 9).view(4, 9, 1, 1), one_hot(9, 6).T.reshape(6, 9, 1, 1)),
                "conv_transpose2d": (one_hot(4, 9).view(4, 9, 1, 1), one_hot(9, 6).view(9, 6, 1, 1)),
            }.items():
                x = x.clone().requires_grad_()
                if w is None:
                    y = op(name)(x, noise, **ONE)
                    given: list[Tensor] = [x]
                else:
                    w = w.clone().requires_grad_()
                    y, given = op(name)(x, w, noise=noise, **ONE), [x, w]
                y.backward(whole(tuple(y.shape), -3, 3, 8))
                for which, tensor in zip("xw", given, strict=False):
                    parts[f"{name} {mode} {which}"] = tensor.grad
        devices = {"adc": ADC(5, 8.0), "serial": Serial(low=-2, high=2), "masked": Serial(high=2, gradient="masked"),
                   "weight": WeightNoise(add=0.5)}  # fmt: skip
        for name, device in devices.items():
            x, w = one_hot(4, 9).requires_grad_(), one_hot(9, 6).T.contiguous().requires_grad_()
            y = op("linear")(x, w, hardware=[device], **ONE)
            y.backward(whole(tuple(y.shape), -3, 3, 8))
            parts[f"linear {name} x"], parts[f"linear {name} w"] = x.grad, w.grad
    finally:
        set_cpu_level("auto")
        torch.set_num_threads(before)
    return parts
