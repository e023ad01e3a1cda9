"""Small grids of large models are run whole: the numbers are the same, the plan says so, and a store never has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine import plan, rounding, verification
from noisykernels._engine import recorded as engine_recorded
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.plan import CALL, CHECK, CHECKED, CLEAN, LARGE, RECORDING, Passes, why_whole
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.targets import Activation
from noisykernels._util.inputs import Call
from noisykernels.injection import Site

HOW: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.3, 3.0], draws=2, seed=1, sites=["2", "4"])


def large() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """With more than a thousand values at its sites, which is large here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(3 * 16, 4)).eval()
    x = torch.randn(6, 3, 32, 32)
    return model, (x, model(x).argmax(1))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts recordings; five sites with some values make a model large."""
    monkeypatch.setattr(plan, "LARGE", 5 * CALL + 1000)
    calls: list[int] = []
    given = engine_recorded.record_tape
    monkeypatch.setattr(engine_recorded, "record_tape", lambda *args: (calls.append(1), given(*args))[1])
    return calls


def test_a_small_grid_of_a_large_model_is_not_recorded(recorded: list[int]) -> None:
    model, data = large()
    study = nk.walk(model, data, **HOW)
    assert not recorded and study.meta.plan["engine"] == "plain" and "chunk_rows" not in study.meta.plan
    assert study.meta.plan["why"] == "recording costs more than it saves for 2 sites x 24 evaluations"
    whole = nk.walk(model, data, **HOW, compute=nk.Compute(engine="plain"))
    assert study.records == whole.records and "engine" not in whole.meta.plan
    shared = nk.walk(model, data, **HOW, compute=nk.Compute(engine="shared"))
    assert recorded and "chunk_rows" in shared.meta.plan and "why" not in shared.meta.plan
    assert shared.records == study.records and len({r.correct for r in shared.records}) > 2


@pytest.mark.parametrize(
    "more",
    [dict(levels=[10.0 ** (k / 4) for k in range(-16, 16)]), dict(draws=64), dict(plateaus=0.03)],
    ids=["levels", "draws", "plateaus"],
)  # fmt: skip
def test_a_larger_one_is(more: dict[str, Any], recorded: list[int]) -> None:
    model, (x, y) = large()
    study = nk.walk(model, (x, y), **HOW | more)
    assert recorded and "chunk_rows" in study.meta.plan and "engine" not in study.meta.plan


def test_what_a_store_keeps_can_be_enlarged(tmp_path: Path, recorded: list[int]) -> None:
    """A kept study shares work however small it is: a larger one must find the plan that it began with."""
    model, data = large()
    path = tmp_path / "kept.db"
    small = nk.walk(model, data, **HOW, store=path)
    assert recorded and "chunk_rows" in small.meta.plan
    larger = nk.walk(model, data, **HOW | dict(draws=64), store=path)
    assert [r for r in larger.records if r.draw < 2] == small.records


def test_small_models_are_recorded_however_small_the_grid(recorded: list[int]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(6, 4)
    assert not recorded
    assert (
        "chunk_rows"
        in nk.walk(model, (x, model(x).argmax(1)), **HOW | dict(levels=[1.0], draws=1, sites=None)).meta.plan
    )


def test_the_plain_engine_is_chosen_where_its_passes_cost_less() -> None:
    """Against the cost written out: all sites have half of the model behind them, and calls are shared."""
    sites = [Site(f"s{k}", k, k, "relu", (2, (LARGE - 40 * CALL) // 40), 0) for k in range(40)]
    call, row = 40 * CALL, LARGE - 40 * CALL
    for grids, rows in ((g, r) for g in (1, 7, 40) for r in (1, 6, 250)):
        fewest = next(n for n in range(1, 10**6) if not why_whole(sites, grids, n, 1, rows, Passes(100, 8)))
        chunks = -(-rows // 100)
        before = RECORDING * (call + row) + CLEAN * (chunks * call + rows * row)
        at_each = CHECK * call + CHECKED * row
        for n, whole in ((fewest - 1, True), (fewest, False)):
            saved = n * chunks * call + n * rows * row / 2
            assert (saved < before / grids + at_each) == whole
        assert not why_whole(sites[:-1], grids, 1, 1, rows, Passes(100, 8))


class Deep(nn.Module):
    """60 layers and rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(60))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        scores: Tensor = self.last(x)
        return scores


@pytest.fixture(scope="module")
def deep() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, x = Deep().eval(), torch.randn(40, 16)
    return model, (x, model(x).argmax(1))


def test_small_models_of_many_sites_are_run_whole_where_that_is_cheaper(deep: Any) -> None:
    """122 of them, whose check would be most of the work."""
    how = dict(noise=nk.Noise(add=1.0), seed=1, sites="*relu*", draws=1)
    few, many = (nk.walk(*deep, **how, levels=[0.01 * 1.2**k for k in range(n)]).meta.plan for n in (5, 20))
    assert few["engine"] == "plain" and "why" in few
    assert "engine" not in many and not many["verification"]["differing"]


@pytest.mark.parametrize("walked", [3, 30])
def test_the_check_of_a_site_takes_few_passes(deep: Any, walked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: the plain one's at two places, and as many that tell the bound, as if all scores differed; what these
    multiply values with is drawn once for all sites."""
    monkeypatch.setattr(verification, "_alike", lambda a, b: torch.zeros(a.shape, dtype=torch.bool))
    passes, drawn = [], []
    scores, run, draw = Session.scores, rounding.Rounding._run, rounding._Factors._drawn
    monkeypatch.setattr(Session, "scores", lambda self, *args: (passes.append(1), scores(self, *args))[1])
    monkeypatch.setattr(rounding.Rounding, "_run", lambda self, *args: (passes.append(1), run(self, *args))[1])
    monkeypatch.setattr(rounding._Factors, "_drawn", lambda self, value: (drawn.append(1), draw(self, value))[1])
    sites = [s.name for s in nk.sites(deep[0], deep[1][0][:2])][:walked]
    with Session("walk", problem_of(*deep)) as session:
        Evaluator.of(session, [s for s in session.sites if s.name in sites], [0.1, 1.0])
    assert 4 * walked <= len(passes) <= 4 * walked + 17
    assert len(drawn) <= 2 * 124  # of a run at either place: the input, each site, and the sum of one and its noise


def problem_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Problem:
    return replace(Problem.of(Call("walk"), model, data, seed=1), targets=(Activation(nk.Noise(add=1.0)),))
