"""Walks over a parameter of hardware: against a loop over the whole model, for rising and falling curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from weight_models import MODELS, problem

import noisykernels as nk
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.store import StoreError
from noisykernels.arithmetic import FixedFormat, Serial
from noisykernels.stats import fit_midpoint
from noisykernels.study import Study
from noisykernels.study.html_report import _snippet
from noisykernels.walking import PARAMETERS, walk_parameter

SEED, DRAWS = 2**63 + 5, [3, 0]

MAKES: dict[str, tuple[Callable[[float], Any], list[float]]] = {
    "limit": (lambda v: [Serial(low=-v, high=v)], [0.1, 0.5, 3.0]),
    "leak": (lambda v: [Serial(leak=1 - v)], [0.0, 0.1, 0.5]),
    "bits of the sums": (lambda v: [Serial(FixedFormat(4, int(v), rounding="stochastic"))], [0, 2, 5]),
    "noise of steps": (lambda v: Serial(step_noise=v), [0.0, 0.3, 1.0]),
    "bits of inputs and outputs": (
        lambda v: [nk.hardware.DAC(int(v), "row"), nk.hardware.ADC(int(v), "row")],
        [2, 3, 4],
    ),
    "offsets": (lambda v: [nk.hardware.ColumnOffset(v), nk.hardware.ColumnGain(v)], [0.0, 0.3, 1.0]),
}


def limit(value: float) -> list[Any]:
    """A function of a module, which workers can be sent."""
    return [Serial(low=-value, high=value)]


def naive(model: nn.Module, x: Tensor, y: Tensor, make: Callable[[float], Any], values: list[float]) -> list[Any]:
    """(site, value, draw, correct) by a loop: the whole model with hardware at one array."""
    found = []
    for site in nk.sites(model, x[:2]):
        for value in values if site.calls else []:
            for draw in sorted(DRAWS):
                hardware = {call: make(value) for call in site.calls}
                with (
                    torch.inference_mode(),
                    nk.inject(model, None, example_input=x[:2], hardware=hardware),
                    nk.noise_state(model, seed=SEED, draws=[draw], rows=range(len(y))),
                ):
                    found.append((site.name, float(value), draw, int((model(x).argmax(1) == y).sum())))
    return found


def counts(study: Study) -> list[Any]:
    return [(r.site, r.level, r.draw, r.correct) for r in study.records]


@pytest.mark.filterwarnings("ignore:walk. for these sites")
@pytest.mark.parametrize("name", MODELS)
def test_a_walk_is_what_a_loop_finds(name: str, one_thread: None) -> None:
    """Every count, on models with skips, shared modules, attention, groups and transposed convolutions."""
    model, (x, y) = problem(name, 30)
    for make, values in MAKES.values() if name in ("mlp", "convolutions") else list(MAKES.values())[:3:2]:
        study = walk_parameter(model, (x, y), make, values, draws=DRAWS, seed=SEED, compute=nk.Compute(engine="auto"))
        assert counts(study) == naive(model, x, y, make, values)
        assert len({r.correct for r in study.records}) > 1


def test_work_is_shared_and_nothing_depends_on_the_cut(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem("lenet", 40)
    make, values = MAKES["noise of steps"]
    kept: list[Evaluator] = []
    init = Evaluator.__init__
    monkeypatch.setattr(Evaluator, "__init__", lambda self, *a, **k: kept.append(self) or init(self, *a, **k))
    expected = walk_parameter(model, data, make, values, draws=3, seed=1)
    (evaluator,) = kept
    walked = list(evaluator.shared.suffixes)
    assert sorted(walked) == sorted({r.site for r in expected.records}) and len(walked) == 5
    for how in ({"memory": 300_000}, {"batch_rows": 7}, {"draws_per_pass": 1, "engine": "plain"}, {"engine": "plain"}):
        assert counts(walk_parameter(model, data, make, values, draws=3, seed=1, compute=nk.Compute(**how))) == counts(
            expected
        )
    halves = [
        walk_parameter(model, tuple(t[part] for t in data), make, values, draws=3, seed=1, rows=torch.arange(40)[part])
        for part in (slice(0, 13), slice(13, 40))
    ]
    both = [a + b for a, b in zip(*([r.correct for r in half.records] for half in halves), strict=True)]
    assert both == [r.correct for r in expected.records]
    some = walk_parameter(model, data, make, values[1:2], draws=[2], seed=1, sites=["fc1", 0 + 5])
    assert {r.site for r in some.records} == {"fc1:linear#0", "conv2:conv2d#0"}
    wanted = {c[:3]: c[3] for c in counts(expected)}
    assert all(wanted[c[:3]] == c[3] for c in counts(some))


@pytest.mark.parametrize("axis", ["log", "linear"])
@pytest.mark.parametrize("draws", [1, 8])
def test_a_rising_curve_is_a_falling_one_turned_round(axis: Any, draws: int) -> None:
    rng = np.random.default_rng(0)
    levels = np.array([0.1, 0.3, 1.0, 3.0, 10.0]) if axis == "log" else np.arange(2.0, 9.0)
    t = np.log10(levels) if axis == "log" else levels
    truth = 0.1 + 0.8 / (1 + np.exp(-4.0 * (t - t.mean() - 0.07)))
    accuracy = rng.binomial(500, truth[:, None], (len(levels), draws)) / 500
    common: dict[str, Any] = {"clean": 0.9, "floor": 0.1, "rows": 500, "axis": axis, "independent_rows": False}
    found = fit_midpoint(levels, accuracy, rising=True, **common)
    turn = (lambda v: 1 / v) if axis == "log" else (lambda v: 2 * levels[-1] - v)
    other = fit_midpoint(turn(levels), accuracy, **common)
    assert found.status == other.status == "ok" and found.rising and not other.rising
    assert [found.level, found.low, found.high] == pytest.approx(
        [turn(v) for v in (other.level, other.high, other.low)]
    )
    assert found.low < found.level < found.high and found.crossing_low < found.crossing < found.crossing_high
    assert found.crossing_low in levels and found.crossing_high in levels  # to the bit
    place = math.log10(found.level) if axis == "log" else found.level
    assert place == pytest.approx(t.mean() + 0.07, abs=0.15) and found.slope > 0


def test_tested_values_come_back_to_the_bit() -> None:
    """Though 1 / (1 / 49) is not 49."""
    found = fit_midpoint([49.0, 98.0, 103.0], [[0.1], [0.5], [0.9]], clean=0.9, floor=0.1, rows=9000, rising=True)
    assert (found.crossing_low, found.crossing_high) == (49.0, 103.0) and 1 / (1 / 49.0) != 49.0


@pytest.mark.parametrize("axis", ["log", "linear"])
def test_rising_curves_that_never_cross(axis: Any) -> None:
    common: dict[str, Any] = {"clean": 0.9, "floor": 0.1, "rows": 5000, "axis": axis, "rising": True}
    high = fit_midpoint([1.0, 2.0, 4.0], [[0.85], [0.9], [0.9]], **common)
    assert (high.status, high.low, high.high, high.above) == ("none", 0.0, 1.0, False) and math.isnan(high.level)
    low = fit_midpoint([1.0, 2.0, 4.0], [[0.1], [0.1], [0.12]], **common)
    assert (low.status, low.low, low.high, low.above) == ("below", 4.0, math.inf, True)
    wavy = fit_midpoint([1.0, 2.0, 4.0, 5.0, 7.0], [[0.1], [0.9], [0.1], [0.1], [0.9]], **common)
    assert len(wavy.crossings) == 3 and list(wavy.crossings) == sorted(wavy.crossings) and wavy.crossing > 5


def small() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network that saturates at one limit in one layer, and at a tenth of it in the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight *= 10
        model[2].weight /= 10
        x = torch.randn(200, 6)
        model[2].bias -= model(x).mean(0)
        return model, (x, model(x).argmax(1))


def test_midpoints_are_in_units_of_the_parameter(one_thread: None, tmp_path: Path) -> None:
    model, data = small()
    values = torch.logspace(-2, 3, 16, dtype=torch.float64)
    limits = walk_parameter(model, data, limit, values, name="limit (units)", seed=1, description=("net", "data"))
    first, second = limits.midpoints()
    assert first.status == second.status == "ok" and 3 < first.level / second.level < 100
    assert first.low < first.level < first.high
    inverse = walk_parameter(
        model, data, lambda v: limit(1 / v), 1 / values, name="inverse", larger="worse", seed=1
    ).midpoints()
    for m, turned in zip((first, second), inverse, strict=True):
        assert [turned.level, turned.low, turned.high] == pytest.approx([1 / m.level, 1 / m.high, 1 / m.low])
    curve = limits.curves()[0]
    assert curve.mean[0] < 0.6 and curve.mean[-1] == 1.0 and limits.meta.clean == 1.0
    table = limits.table()
    assert "16 levels x 1 draws of the limit (units), log axis" in table and " ok" in table
    beyond = walk_parameter(model, data, limit, [100.0, 200.0], name="limit", seed=1)
    assert re.findall(r"< 100 +never", beyond.table()) and beyond.midpoints()[0].high == 100
    short = walk_parameter(model, data, limit, [1e-4, 1e-3], name="limit", seed=1, floor=0.5)
    assert re.findall(r"> 0.001 +below", short.table())
    limits.save(tmp_path / "s.json")
    assert Study.load(tmp_path / "s.json") == limits
    assert limits.meta.noise == {"parameter": "limit (units)", "larger": "better"} and limits.meta.rising


def test_pictures_and_reports_speak_of_the_parameter(one_thread: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    model, data = small()
    values = [0.01, 0.1, 1.0, 10.0, 100.0]
    study = walk_parameter(model, data, limit, values, name="limit <units>", seed=1, description=("net", "data"))
    curves, profile = study.plot().axes
    assert curves.get_xlabel() == "limit <units>" and profile.get_ylabel() == "midpoint of the limit <units>"
    page = study.report(tmp_path / "r.html").read_text()
    assert "Accuracy against limit &lt;units&gt;" in page and "noise level" not in page
    assert "The weakest of 2 sites is 0:linear#0: it is half-way to the floor" in page and "1/" in page
    names: dict[str, Any] = {"model": model, "data": data, "make": limit, "walk_parameter": walk_parameter}
    exec(_snippet(study).replace("nk.walk_parameter", "walk_parameter"), names)
    assert names["study"].records == study.records and names["study"].meta.noise == study.meta.noise
    edges = walk_parameter(model, data, limit, [1e-4, 300.0, 400.0], name="limit", seed=1, floor=0.9, sites=[1])
    for some in (edges, walk_parameter(model, data, limit, [300.0, 400.0], name="limit", seed=1)):
        some.plot()
        some.report(tmp_path / "r.html")
    assert "stands above half-way even at 300" in (tmp_path / "r.html").read_text()
    down = walk_parameter(model, data, limit, [1e-4, 1e-3], name="limit", seed=1, floor=0.5)
    assert "has not risen above half-way up to 0.001" in down.report(tmp_path / "r.html").read_text()
    pyplot.close("all")


def test_a_store_and_workers(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = small()
    how: dict[str, Any] = {"name": "limit", "seed": 1, "store": tmp_path / "s.db"}
    whole = walk_parameter(model, data, limit, [1.0, 3.0, 10.0], name="limit", seed=1)
    asked: list[int] = []
    correct = Evaluator.answers

    def counted(self: Evaluator, requests: Any, *rest: Any) -> Any:
        asked.extend(len(r.levels) for r in requests)
        return correct(self, requests, *rest)

    monkeypatch.setattr(Evaluator, "answers", counted)
    walk_parameter(model, data, limit, [1.0, 3.0], **how)
    asked.clear()
    assert counts(walk_parameter(model, data, limit, [1.0, 3.0, 10.0], **how)) == counts(whole)
    assert asked == [1, 1]  # one new value at each of two sites
    for change in ({"name": "other"}, {"make": lambda v: [Serial(high=v)]}, {"values": [2.0]}):
        given = {"make": limit, "values": [1.0], **how, **change}
        with pytest.raises(StoreError, match="results of another study: the target differs"):
            walk_parameter(model, data, **given)
    orders = [nk.arithmetic.random_order(model[0].in_features, k) for k in (1, 2)]  # which print the same
    how["store"] = tmp_path / "orders.db"
    how["sites"] = "0:linear#0"
    for order in (orders[0], orders[0].clone()):
        walk_parameter(model, data, lambda v, order=order: [Serial(high=v, order=order)], [1.0], **how)
    with pytest.raises(StoreError, match="the target differs"):
        walk_parameter(model, data, lambda v: [Serial(high=v, order=orders[1])], [1.0], **how)
    with ThreadPoolExecutor(1) as executor:
        found = walk_parameter(
            model, data, limit, [1.0, 3.0, 10.0], name="limit", seed=1, compute=nk.Compute(executor=executor)
        )
    assert counts(found) == counts(whole)


def test_draws_that_draw_nothing_tell_nothing(one_thread: None) -> None:
    """Of hardware without noise, more draws are the same rows again: no interval shrinks."""
    model, data = small()
    one, several = (walk_parameter(model, data, limit, [0.01, 0.1, 0.5, 3.0], draws=d, seed=0) for d in (1, 5))
    assert repr(one.midpoints()) == repr(several.midpoints())
    assert any(m.status == "ok" and m.low < m.level < m.high for m in one.midpoints())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"make": [nk.hardware.ADC(4, 1.0)]}, TypeError, "make must be a function, got"),
        ({"make": lambda v: nk.Noise(add=v)}, TypeError, "walk_parameter: hardware must be a list of devices"),
        (
            {"make": lambda v: [nk.hardware.ADC(int(v), 1.0)], "values": [4, 99]},
            ValueError,
            "ADC: bits must be a whole number from 2 to 24, got 99",
        ),
        ({"make": PARAMETERS["mantissa"].make, "values": [2.5]}, ValueError, "must be whole numbers of bits, got 2.5"),
        ({"make": PARAMETERS["input-bits"].make, "values": [4.1]}, ValueError, "must be whole numbers of bits"),
        ({"make": PARAMETERS["output-bits"].make, "values": [4.1]}, ValueError, "must be whole numbers of bits"),
        ({"make": PARAMETERS["leak"].make, "values": [2.0]}, ValueError, "share that leaks must be at most 1, got 2"),
        ({"larger": "faster"}, ValueError, "larger must be 'better' or 'worse', got 'faster'"),
        ({"axis": "cubic"}, ValueError, "axis must be 'log' or 'linear', got 'cubic'"),
        ({"name": ""}, ValueError, "name must be a text, got ''"),
        ({"values": []}, ValueError, "walk_parameter: levels must be finite, not negative, and at least one"),
        ({"values": [1.0, -1.0]}, ValueError, "must be finite, not negative"),
        ({"values": [1.0, math.inf]}, ValueError, "each item of values must be a finite number, got inf"),
        ({"values": ["a"]}, TypeError, "walk_parameter: each item of values must be a finite number, got 'a'"),
        ({"sites": "1"}, ValueError, "walk_parameter: no site '1'; the model has 1 0:linear#0, 3 2:linear#0"),
        ({"draws": 0}, ValueError, "draws must be a whole number from 1"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, Any], error: type, said: str) -> None:
    model, data = small()
    with pytest.raises(error, match=said):
        walk_parameter(model, data, **{"make": limit, "values": [1.0], "seed": 1, **change})
    assert type(model) is nn.Sequential
    with pytest.raises(ValueError, match="target must be 'activation' or 'weight', got 'bias'"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1, target="bias")
    with pytest.raises(ValueError, match="target='parameter' is for walk_parameter"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1, target="parameter")
