"""What users get wrong of hardware and arithmetic."""

from __future__ import annotations

import torch
from bad_calls import WEIGHTS, Table, X, Y, hardware, injected, net
from torch import nn

import noisykernels as nk
from noisykernels.experiments import worst_of


def saturated(limit: float) -> list[nk.hardware.Device]:
    return [nk.Serial(low=-limit, high=limit)]


def searched() -> nk.Study:
    """A search that has found a midpoint."""
    x = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]).repeat(20, 1)
    model = nn.Linear(4, 2, bias=False)
    nn.init.eye_(model.weight)
    return nk.walk(model, (x, (x[:, 0] < 0).long()), noise=WEIGHTS, target="weight", search=nk.Search(0.9), seed=0)


CASES: Table = {
    "Hardware": [
        ("one device that is none", lambda _: hardware(nk.Noise(add=0.1)), TypeError),
        ("noise of weights relative to a word", lambda _: nk.WeightNoise(add=0.1, relative="row"), ValueError),
        ("negative noise of conductances", lambda _: nk.hardware.DifferentialPair(-0.1), ValueError),
        ("no conductance", lambda _: nk.hardware.DifferentialPair(0.1, g_max=0.0), ValueError),
        ("no level", lambda _: nk.hardware.DifferentialPair(0.1, levels=0), ValueError),
        ("levels that are no number", lambda _: nk.hardware.DifferentialPair(0.1, levels=2.5), TypeError),
        ("largest weight of a word", lambda _: nk.hardware.PCM(over="column"), ValueError),
        ("time before programming", lambda _: nk.hardware.PCM(time=-1.0), ValueError),
        ("time of another type", lambda _: nk.hardware.PCM(time="day"), TypeError),
        ("converter of too many bits", lambda _: nk.hardware.DAC(32, 1.0), ValueError),
        ("signed converter of one bit", lambda _: nk.hardware.ADC(1, 1.0), ValueError),
        ("no limit", lambda _: nk.hardware.ADC(8, 0.0), ValueError),
        ("limit that depends on the batch", lambda _: nk.hardware.ADC(8, "batch"), ValueError),
        ("limits of other channels", lambda _: hardware(nk.hardware.ADC(8, torch.ones(5))), ValueError),
        ("rounding of another name", lambda _: nk.hardware.DAC(8, 1.0, rounding="up"), ValueError),
        ("a level for each column", lambda _: nk.hardware.ColumnOffset(torch.ones(3)), ValueError),
        (
            "the same stream twice",
            lambda _: hardware(nk.hardware.ColumnGain(0.1), nk.hardware.ColumnGain(0.2)),
            ValueError,
        ),
        ("two noises of the weights", lambda _: hardware(*[nk.WeightNoise(add=0.1)] * 2), ValueError),
        ("both terms, not folded", lambda _: nk.WeightNoise(add=0.1, mul=0.1), ValueError),
        ("negative noise of products", lambda _: nk.MacNoise(per_product=-0.1), ValueError),
        ("a reading for each channel", lambda _: nk.MacNoise(read=torch.ones(3)), ValueError),
        (
            "hardware of no site",
            lambda _: injected(noise=None, hardware={"fc1": [nk.hardware.DAC(6, "row")]}),
            ValueError,
        ),
        ("chips that are all the same", lambda _: nk.chips(net(), (X, Y), seed=0), ValueError),
        ("no chip", lambda _: nk.chips(net(), (X, Y), hardware=[WEIGHTS], draws=0, seed=0), ValueError),
        ("worst of no chip", lambda _: worst_of([0.9, 0.8], 0), ValueError),
        ("chips of a search", lambda _: searched().chips(), ValueError),
    ],
    "Arithmetic": [
        ("format of another name", lambda _: nk.Serial("fp12"), ValueError),
        ("format without mantissa", lambda _: nk.arithmetic.FloatFormat(0, 5), ValueError),
        ("values beyond float32", lambda _: nk.arithmetic.FloatFormat(4, 8, bias=100), ValueError),
        ("fixed point of too many bits", lambda _: nk.arithmetic.FixedFormat(40, 20), ValueError),
        ("fixed point that the data cannot hold", lambda _: nk.quantize(X, "L20R20"), ValueError),
        ("largest value that is none", lambda _: nk.arithmetic.FloatFormat(3, 4, largest=450.0), ValueError),
        ("rounding of no such name", lambda _: nk.arithmetic.FloatFormat(3, 4, rounding="up"), ValueError),
        ("limits without zero", lambda _: nk.Serial(low=1.0), ValueError),
        ("leak that grows", lambda _: nk.Serial(leak=1.5), ValueError),
        ("order of no such name", lambda _: nk.Serial(order="random"), ValueError),
        ("order that is no permutation", lambda _: nk.Serial(order=[0, 0, 1]), ValueError),
        ("order of another length", lambda _: hardware(nk.Serial(order=[1, 0])), ValueError),
        ("two arithmetics", lambda _: hardware(nk.Serial(), nk.Serial("fp16")), ValueError),
        ("arithmetic and noise of products", lambda _: hardware(nk.Serial(), nk.MacNoise(per_product=0.1)), ValueError),
        ("arithmetic that is none", lambda _: nk.linear(X, torch.zeros(3, 4), arithmetic="fp16"), TypeError),
        ("gradient of no such name", lambda _: nk.Serial(gradient="exact"), ValueError),
        ("parameter without values", lambda _: nk.walk_parameter(net(), (X, Y), saturated, [], seed=0), ValueError),
        ("no format to search", lambda _: nk.experiments.sweep_formats(net(), (X, Y), [], seed=0), ValueError),
    ],
}
