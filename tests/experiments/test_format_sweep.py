"""The design space and sweeps over number formats, against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_networks import COST, SAME, Problem, in_format
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.store import Store, StoreError
from noisykernels.arithmetic import CostModel, FixedFormat, FloatFormat, Serial, as_format
from noisykernels.experiments import (
    FormatResult,
    Sweep,
    design_space,
    exhaustive_search,
    format_runs,
    layer_formats,
    search_format,
    sweep_formats,
)
from noisykernels.experiments.format_runs import FormatRuns, r_squared
from noisykernels.zoo import MLP

# ------------------------------------------------------------------------------------------------------------ space


def test_the_design_space_has_hundreds_of_formats_of_both_kinds() -> None:
    space = design_space()
    floats = [f for f in space if isinstance(f, FloatFormat)]
    fixed = [f for f in space if isinstance(f, FixedFormat)]
    assert len(set(space)) == len(space) == 343 and len(floats) == 161 and len(fixed) == 182
    assert max(f.bits for f in fixed) == 25 and as_format("M23E8") in space and as_format("L8R16") in space
    assert {f.rounding for f in design_space([7], [6], [2], [2], rounding="nearest")} == {"nearest"}
    assert all(f.mantissa == 3 for f in design_space([3], left=[]))


# ------------------------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_is_what_loops_find(problem: Problem) -> None:
    model, (x, y) = problem
    names = ["M2E4", "M5E5", "L3R5", "L8R14", "fp16", "M23E8"]
    model.train()
    sweep = sweep_formats(model, (x, y), names, inputs=x[5:15], name="net", compute=nk.Compute(batch_rows=30), seed=0)
    assert type(model) is nn.Sequential and model.training and sweep.clean == 1.0 and sweep.rows == 70
    for name, result in zip(names, sweep.results, strict=True):
        scores = in_format(model, x, name)
        assert result.format == as_format(name)
        assert result.normalised == pytest.approx(float((scores.argmax(1) == y).double().mean()))
        expected = np.corrcoef(scores[5:15].flatten().numpy(), model(x[5:15]).flatten().detach().numpy())[0, 1] ** 2
        assert result.r2 == pytest.approx(expected, abs=1e-5)  # float32 scores
        assert (result.speedup, result.saving) == (COST.speedup(name), COST.saving(name))
    assert sweep.results[-1].normalised == 1 and sweep.results[0].normalised < 1
    assert repr(sweep) == "<Sweep of net: 6 formats, 70 rows, clean 1.0000>"
    frame = sweep.to_pandas()
    assert frame["point"].tolist() == ["float", "float", "fixed", "fixed", "float", "float"]
    again = sweep_formats(model, [(x[:33], y[:33]), (x[33:], y[33:])], names, inputs=x[5:15], seed=0)
    assert again.results == sweep.results


def test_scores_that_are_not_finite_are_wrong_and_agree_with_nothing(problem: Problem) -> None:
    model, data = problem
    with torch.no_grad():
        model[0].weight *= 1e6
    infinite = FloatFormat(10, 5, subnormals=True, overflow="infinity", rounding="nearest")
    (result,) = sweep_formats(model, (data[0], model(data[0]).argmax(1)), [infinite], seed=0).results
    scores = in_format(model, data[0], infinite)
    right = (scores.argmax(1) == model(data[0]).argmax(1)) & ~scores.isnan().any(1)
    assert scores.isnan().any() and result.r2 == 0 and result.normalised == pytest.approx(float(right.double().mean()))
    assert r_squared(torch.ones(4), torch.arange(4.0)) == 0


def test_an_arithmetic_of_ones_own(problem: Problem) -> None:
    model, data = problem
    (plain,) = sweep_formats(model, data, ["M4E5"], seed=0).results
    (turned,) = sweep_formats(model, data, ["M4E5"], arithmetic=lambda f: Serial(f, order="reversed"), seed=0).results
    (again,) = sweep_formats(model, data, ["M4E5"], arithmetic=lambda f: Serial(f), seed=0).results
    assert again == plain and turned.r2 != plain.r2


def test_a_sweep_goes_on_where_it_stopped(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = problem
    evaluated: list[str] = []
    correct = FormatRuns.value

    def counted(self: FormatRuns, hardware: Any) -> int:
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(repr(hardware))
        return correct(self, hardware)

    monkeypatch.setattr(format_runs.FormatRuns, "value", counted)
    names, store = ["M4E5", "L3R6", "M6E5", "L4R8"], tmp_path / "sweep.db"
    with pytest.raises(KeyboardInterrupt):
        sweep_formats(model, (x, y), names, store=store, seed=0)
    assert type(model) is nn.Sequential
    whole: list[str] = []
    monkeypatch.setattr(format_runs.FormatRuns, "value", lambda s, h: whole.append(repr(h)) or correct(s, h))
    kept = sweep_formats(model, (x, y), names, store=store, seed=0)
    assert len(whole) == 2 and kept.results == sweep_formats(model, (x, y), names, seed=0).results
    whole.clear()
    cost = CostModel({"fp32": (1, 1), **dict.fromkeys([*names, "M7E6"], (1, 2))})
    more = sweep_formats(model, (x, y), [*names, "M7E6"], store=store, cost=cost, seed=0)
    assert len(whole) == 1 and {r.speedup for r in more.results} == {0.5}
    for change in ({"data": (x + 1, y)}, {"seed": 1}, {"inputs": 5}, {"arithmetic": lambda f: Serial(f, leak=0.5)}):
        with pytest.raises(StoreError, match="results of another study"):
            sweep_formats(model, **{"data": (x, y), "seed": 0, **change}, formats=names, store=store)


class Rounds(nk.hardware.Device):
    """A device that prints itself with its address."""

    def __init__(self, step: float) -> None:
        self.step = step

    def output(self, y: Tensor, draw: nk.hardware.Draw) -> Tensor:
        return (y / self.step).round() * self.step


@pytest.mark.parametrize(
    "result", [None, "abc", {"correct": 10**6, "r2": 1.0}, {"correct": 1}, {"correct": 1, "r2": 7.0}]
)
def test_a_stored_result_that_is_none_is_refused(
    result: object, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, y) = problem
    monkeypatch.setattr(Store, "done", lambda self: {"M4E5": result})
    with pytest.raises(StoreError, match=r"s\.db: damaged: the result of task M4E5: expected a count"):
        sweep_formats(model, (x, y), ["M4E5"], store=tmp_path / "s.db", seed=0)


def test_a_store_tells_apart_what_prints_the_same(problem: Problem, tmp_path: Path) -> None:
    model, (x, y) = nn.Sequential(*list(problem[0])[2:]), (torch.randn(40, 64), torch.randint(3, (40,)))

    def found(store: str, **how: Any) -> list[FormatResult]:
        return sweep_formats(model, (x, y), ["M2E4"], store=tmp_path / store, **{"seed": 0, **how}).results

    turned = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    orders = [nk.arithmetic.random_order(64, seed) for seed in (1, 2)]
    for k, order in enumerate((*orders, orders[0].clone())):
        sweep = {"arithmetic": lambda f, order=order: Serial(f, order=order), "store": tmp_path / "orders.db"}
        if k == 1:
            with pytest.raises(StoreError, match="arithmetic"):
                sweep_formats(turned, (x, y), ["M2E4"], **{"seed": 0, **sweep})
        else:
            sweep_formats(turned, (x, y), ["M2E4"], **{"seed": 0, **sweep})
    first = found("devices.db", arithmetic=lambda f: Rounds(0.5))
    assert found("devices.db", arithmetic=lambda f: Rounds(0.5)) == first
    with pytest.raises(StoreError, match="arithmetic"):
        found("devices.db", arithmetic=lambda f: Rounds(0.25))
    found("inputs.db", inputs=x[:5])
    with pytest.raises(StoreError, match=r"inputs: .* in the file"):
        found("inputs.db", inputs=x[:5].flip(1))  # of the same sum


def test_batches_that_come_only_once(problem: Problem, tmp_path: Path) -> None:
    model, (x, y) = problem
    once = zip(x.split(20), y.split(20), strict=True)
    assert (
        sweep_formats(model, once, ["M4E5"], store=tmp_path / "s.db", seed=0).results
        == sweep_formats(model, (x, y), ["M4E5"], seed=0).results
    )


def test_what_is_wrong_is_said_before_any_work(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = problem
    with pytest.raises(ValueError, match=r"sweep_formats: inputs must be rows of size \[1, 6, 6\], got .* \[5, 3\]"):
        sweep_formats(model, (x, y), ["M4E5"], inputs=torch.randn(5, 3), seed=0)
    with pytest.raises(ValueError, match="inputs must be rows"):
        sweep_formats(model, (x, y), ["M4E5"], inputs=x[:0], seed=0)
    with pytest.raises(TypeError, match="evaluations must be a whole number"):
        search_format(model, (x, y), SAME, evaluations=1.5, seed=0)  # type: ignore[arg-type]
    monkeypatch.setattr(FormatRuns, "scores", lambda *_: pytest.fail("work"))
    table = CostModel({"fp32": (2, 4), "M7": (1, 1)})
    for lacking in (
        lambda: sweep_formats(model, (x, y), ["M7E4", "M6E4"], cost=table, seed=0),
        lambda: search_format(model, (x, y), SAME, formats=["M7E4", "M6E4"], cost=table, seed=0),
        lambda: layer_formats(model, (x, y), "M6E4", cost=table, seed=0),
    ):
        with pytest.raises(ValueError, match="table must have a row for M6E4 or M6"):
            lacking()


def test_front_and_fastest_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    made = [
        FormatResult(f, 1.0, float(n), float(s), 1.0)
        for f, n, s in zip(design_space(), rng.integers(80, 101, 343) / 100, rng.integers(1, 30, 343), strict=True)
    ]
    sweep = Sweep(made, 0.9, 100)
    pairs = {(r.speedup, r.normalised) for r in made}
    beaten = {a for a in pairs for b in pairs if b != a and b[0] >= a[0] and b[1] >= a[1]}
    assert {(r.speedup, r.normalised) for r in sweep.front()} == pairs - beaten
    best = sweep.fastest(0.95)
    good = [(r.speedup, r.normalised) for r in made if r.normalised >= 0.95]
    assert best is not None and (best.speedup, best.normalised) == max(good)
    found = exhaustive_search(sweep, 0.95)
    assert found is not None and found.format == best.format and found.evaluations == 343 and found.forwards == 34300
    assert sweep.fastest(1.01) is None and exhaustive_search(sweep, 1.01) is None


def test_an_mlp_needs_as_many_bits_as_a_loop_says(one_thread: None) -> None:
    """A multilayer perceptron with biases, in float64: the sweep is the loop's there too."""
    torch.manual_seed(1)
    model = MLP(12, 4, width=8).double()
    x = torch.randn(60, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    for result in sweep_formats(model, (x, y), ["M3E4", "L3R4", "L10R30"], seed=0).results:
        scores = in_format(model, x, result.format)
        assert result.normalised == pytest.approx(float((scores.argmax(1) == y).double().mean()))
    assert result.normalised == 1 and result.r2 == pytest.approx(1)
