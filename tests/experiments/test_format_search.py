"""Searches for number formats, of a network and of its layers, against loops and made-up networks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from format_networks import COST, SAME, Problem, made_sweep, made_up
from torch import nn

import noisykernels as nk
from noisykernels._engine import session
from noisykernels._util.inputs import Call
from noisykernels.arithmetic import CostModel, FixedFormat, FloatFormat, Format, Serial, as_format
from noisykernels.experiments import (
    FormatChoice,
    LinearPredictor,
    design_space,
    exhaustive_search,
    layer_formats,
    search_format,
    sweep_formats,
)
from noisykernels.experiments.format_layers import operations
from noisykernels.experiments.format_runs import FormatRuns
from noisykernels.experiments.format_search import changed, refined
from noisykernels.zoo import LeNet5

# --------------------------------------------------------------------------------------------------------------- search


def test_the_line_is_the_least_squares_line() -> None:
    points = [(0.0, 0.1), (0.2, 0.4), (0.7, 0.6), (0.9, 0.95), (1.0, 0.97)]
    x, y = np.array(points).T
    free = LinearPredictor.fit([made_sweep(points[:2]), made_sweep(points[2:])], anchored=False)
    assert [free.slope, free.intercept] == pytest.approx(np.polyfit(x, y, 1))
    assert free.correlation == pytest.approx(np.corrcoef(x, y)[0, 1]) and free.points == 5
    line = LinearPredictor.fit([made_sweep(points)])
    assert line.predict(1.0) == 1.0 and line.correlation == free.correlation
    slopes = np.linspace(0, 2, 20001)
    errors = ((1 - y[:, None]) - slopes * (1 - x[:, None])) ** 2
    assert line.slope == pytest.approx(slopes[errors.sum(0).argmin()], abs=1e-4)
    for bad in ([(0.5, 0.5)], [(0.5, 0.5)] * 4):
        with pytest.raises(ValueError, match="must hold three formats that differ"):
            LinearPredictor.fit([made_sweep(bad)])


def test_searches_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two evaluations the exhaustive choice, with one never below the target, and never more than asked for; where
    the prediction errs by one bit at most."""
    space = design_space()
    for bits, error, only in itertools.product((3, 6, 9), (-0.012, 0.0, 0.012), (FloatFormat, FixedFormat)):
        truth = made_up(bits)
        agreement = {f: truth(f) + (error if truth(f) < 1 else 0) for f in space if isinstance(f, only)}
        best = max((f for f in agreement if truth(f) >= 0.99), key=COST.speedup)
        for count in range(5):
            seen: list[Format] = []
            found = refined(agreement, SAME, lambda f, s=seen, t=truth: s.append(f) or t(f), COST, 0.99, count)
            assert [f for f, _ in found.tried] == seen and found.evaluations <= count and len(set(seen)) == len(seen)
            assert found.normalised == (truth(found.format) if found.format in seen else None)
            if count >= 1:
                assert truth(found.format) >= 0.99
            if count >= 2:
                assert found.format == best


def test_a_prediction_that_errs_by_bits_is_mended_bit_by_bit() -> None:
    space = design_space(range(1, 24), [5], [], [])
    truth = made_up(12)
    low = {f: truth(f) + 0.1 for f in space}  # five bits too optimistic
    steps = [refined(low, SAME, truth, COST, 0.995, n) for n in (0, 1, 3, 9)]
    assert [f.format.mantissa for f in steps] == [7, 8, 10, 12]
    assert [f.normalised for f in steps] == [None, None, None, 1.0] and steps[3].evaluations == 6
    high = {f: truth(f) - 0.04 for f in space}  # nothing is expected to be good enough: the best, then down from it
    found = refined(high, SAME, truth, COST, 0.995, 4)
    assert found.format.mantissa == 12 and found.tried[0][0].mantissa == 12 and found.predicted == 0.96
    widest = {f: 0.5 + f.mantissa / 100 for f in space}
    found = refined(widest, SAME, lambda f: 0.5, COST, 0.9, 10)  # nor is it: the widest, and no further
    assert found.format.mantissa == 23 and found.tried == ((found.format, 0.5),) and found.normalised == 0.5
    assert refined({space[0]: 1.0}, SAME, lambda f: 1.0, COST, 0.9, 5).evaluations == 1


def test_the_bit_that_brings_most_speed_is_taken_first() -> None:
    """Of mantissa and exponent, though the agreement speaks for the other; the exponent's when that fails."""
    truth = {"M5E5": 1.0, "M4E5": 0.992, "M5E4": 0.995, "M3E5": 0.9, "M4E4": 0.991}
    agreement = {
        as_format(f): a for f, a in {"M5E5": 1.0, "M4E5": 0.985, "M5E4": 0.989, "M3E5": 0.5, "M4E4": 0.8}.items()
    }
    found = refined(agreement, SAME, lambda f: truth[str(f)], COST, 0.99, 9)
    assert [str(f) for f, _ in found.tried] == ["M5E5", "M4E5", "M3E5", "M4E4"] and str(found.format) == "M4E4"


def test_a_search_of_a_network(problem: Problem) -> None:
    model, data = problem
    sweep = sweep_formats(model, data, seed=0)
    line = LinearPredictor.fit([sweep])
    best = exhaustive_search(sweep, 0.95)
    assert best is not None and best.format.bits < 20
    truth = {r.format: r for r in sweep.results}
    for count in (0, 2, 40):
        told: list[tuple[int, int]] = []
        found = search_format(
            model, data, line, target=0.95, evaluations=count, progress=lambda *at, t=told: t.append(at), seed=0
        )
        assert isinstance(found, FormatChoice) and found.forwards == 3430 + 70 * found.evaluations
        assert all(n == truth[f].normalised for f, n in found.tried) and found.evaluations <= count
        assert told[-1] == (343, 343) and found.predicted == line.predict(truth[found.format].r2)
        assert found.speedup == truth[found.format].speedup <= best.speedup or truth[found.format].normalised < 0.95
    for wrong, said in (
        ({"target": 0.0}, r"target must lie in \(0, 1\], got 0.0"),
        ({"evaluations": -1}, "evaluations must be a whole number from 0 to .*, got -1"),
        ({"formats": []}, "formats must hold at least one format"),
        ({"formats": ["M3"]}, "format must be one of"),
        ({"inputs": 0}, "inputs must be a whole number from 1 to .*, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            search_format(model, data, line, **{"seed": 0, **wrong})
    with pytest.raises(ValueError, match="no linear layer or convolution, so no format to choose"):
        sweep_formats(nn.Flatten(), (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), ["M7E6"], seed=0)
    with pytest.raises(ValueError, match="gets no row of the data right"):
        sweep_formats(model, (data[0], (data[1] + 1) % 3), ["M7E6"], seed=0)


def test_names_of_one_bit_more_or_less() -> None:
    assert [str(f) for f in changed(as_format("M23E8"), 1)] == []
    assert [str(f) for f in changed(as_format("M1E2"), -1)] == []
    assert [str(f) for f in changed(as_format("L1R0"), -1)] == []
    assert {f.rounding for f in changed(FloatFormat(3, 4, rounding="nearest"), 1)} == {"nearest"}


# ------------------------------------------------------------------------------------------------------------ layers


def test_operations_of_lenet5() -> None:
    """Known sizes: 24 x 24 outputs of 25 products for each of 6 channels, and so on."""
    model = LeNet5()
    x = torch.randn(3, 1, 28, 28)
    with FormatRuns("test", session.Problem.of(Call("test"), model, (x, model(x).argmax(1)), seed=0), 1, None) as runs:
        found = operations(runs)
    assert list(found.values()) == [24 * 24 * 6 * 25, 8 * 8 * 16 * 150, 256 * 120, 120 * 84, 84 * 10]


def test_formats_of_layers(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = problem
    found = layer_formats(model, (x, y), "M10E5", target=0.97, seed=0)
    assert found.normalised >= 0.97 and all(f.bits <= 16 for f in found.formats.values())
    assert min(f.bits for f in found.formats.values()) < 16 and found.speedup > COST.speedup("M10E5")
    with torch.inference_mode(), nk.inject(model, None, example_input=x[:2], hardware=found.hardware()):
        assert float((model(x).argmax(1) == y).double().mean()) == pytest.approx(found.normalised)
    for site, fmt in found.formats.items():  # no layer can lose another bit, as the others are
        rest = found.hardware() | {site: [Serial(fmt)]}
        last = site == min(found.macs, key=lambda s: found.macs[s])
        for less in changed(fmt, -1) if last else []:
            with (
                torch.inference_mode(),
                nk.inject(model, None, example_input=x[:2], hardware=rest | {site: [Serial(less)]}),
            ):
                assert float((model(x).argmax(1) == y).double().mean()) < 0.97
    whole = sum(found.macs.values())
    assert found.speedup == pytest.approx(
        whole / sum(n / COST.speedup(found.formats[s]) for s, n in found.macs.items())
    )
    assert "speed-up" in found.table() and "0:conv2d#0" in found.table()
    tried: list[dict[str, Format]] = []
    normalised = FormatRuns.normalised

    def recorded(self: FormatRuns, hardware: Any) -> float:
        tried.append({site: device.format_of_sum for site, (device,) in hardware.items()})
        return normalised(self, hardware)

    monkeypatch.setattr(FormatRuns, "normalised", recorded)
    few = layer_formats(model, (x, y), "M10E5", target=0.97, evaluations=3, seed=0)
    assert few.evaluations == len(tried) == 3 and few.speedup < found.speedup
    assert found.macs == {"0:conv2d#0": 576, "3:linear#0": 512, "5:linear#0": 24}
    assert [str(t["0:conv2d#0"]) for t in tried] == ["M10E5", "M9E5", "M8E5"]  # where most is done, what brings most
    bad = layer_formats(model, (x, y), "M1E2", target=0.97, seed=0)
    assert set(bad.formats.values()) == {as_format("M1E2")} and bad.evaluations == 1 and bad.normalised < 0.97
    with pytest.raises(ValueError, match=r"evaluations must be a whole number from 1 to .*, got 0"):
        layer_formats(model, (x, y), "M7E6", evaluations=0, seed=0)
    with pytest.raises(ValueError, match=r"layer_formats: target must lie in \(0, 1\], got 5"):
        layer_formats(model, (x, y), "M7E6", target=5, seed=0)
    table = CostModel({"fp32": (4, 4), "M10E5": (2, 2), "M9E5": (1, 1)})
    sold = layer_formats(model, (x, y), "M10E5", target=0.9, cost=table, seed=0)
    assert set(sold.formats.values()) == {as_format("M9E5")}  # there are no others
