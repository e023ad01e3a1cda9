"""Small grids of large models are run whole: the numbers are the same, the plan says so, and a store never has it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine import evaluator, plan
from noisykernels._engine.plan import AT_EACH, LARGE, RECORDING, why_whole
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
    """Counts recordings; a thousand values make a model large."""
    monkeypatch.setattr(plan, "LARGE", 1000)
    calls: list[int] = []
    given = evaluator.record_tape
    monkeypatch.setattr(evaluator, "record_tape", lambda *args: (calls.append(1), given(*args))[1])
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


def test_the_plain_engine_is_chosen_where_its_passes_are_fewer() -> None:
    """Against the cost written out: all sites have half of the model behind them."""
    sites = [Site(f"s{k}", k, k, "relu", (2, LARGE // 40), 0) for k in range(40)]
    for walked in (1, 7, 40):
        for rows in (1, 6, 250):
            fewest = next(e for e in range(10**6) if not why_whole(sites, walked, e, rows))
            assert fewest == math.ceil(2 * (RECORDING + AT_EACH * walked + rows) / walked)
            assert not why_whole(sites[:-1], walked, 1, rows)  # less than a million values
