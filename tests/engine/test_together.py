"""Groups of sites, and weights of any product, share what comes before them: the records are those of whole passes."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_models import NOISES
from together_models import MODELS, problem
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.replay import Replay
from noisykernels._graph.tape import Step
from noisykernels.hardware import DAC, WeightNoise

GRID: dict[str, Any] = dict(levels=[0.1, 0.5, 2.0], draws=3, seed=5)
WEIGHTS: dict[str, Any] = dict(noise=WeightNoise(add=1.0, relative="layer"), target="weight")


def walked(model: nn.Module, data: Any, engine: str = "shared", **more: Any) -> nk.Study:
    """A walk without a warning that anything runs whole."""
    compute = nk.Compute(**({"engine": engine} | more.pop("compute", {})))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = nk.walk(model, data, **({"noise": nk.Noise(add=1.0)} | GRID | more), compute=compute)
    assert not [w for w in caught if "whole model" in str(w.message)], [str(w.message) for w in caught]
    assert engine == "plain" or "why" not in study.meta.plan
    return study


def counts(study: nk.Study) -> list[tuple[str, float, int, int]]:
    """Whatever their status: of a site on which nothing depends it is another one."""
    return [(r.site, r.level, r.draw, r.correct) for r in study.records]


@pytest.mark.parametrize("more", [
    dict(groups="all"), dict(groups="block"), dict(groups="all", **WEIGHTS), WEIGHTS,
], ids=["all", "blocks", "weights together", "weights"])  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_records_are_those_of_whole_passes(name: str, more: dict[str, Any]) -> None:
    model, data = problem(name)
    study, plain = walked(model, data, **more), walked(model, data, "plain", **more)
    assert counts(study) == counts(plain)
    assert study.meta.plan["verification"]["worst"] < 0.2 and len({r.correct for r in study.records}) > 1


@pytest.mark.parametrize("name", ["OfGpt", "Twice", "Layers", "Attention"])
def test_a_parameter_of_a_group(name: str) -> None:
    model, data = problem(name)
    found = [
        nk.walk_parameter(
            model, data, lambda v: [DAC(int(v), "row")], [2, 4], seed=5, groups="all", compute=nk.Compute(engine=engine)
        )
        for engine in ("shared", "plain")
    ]
    assert found[0].records == found[1].records and "verification" in found[0].meta.plan


class Elementwise(nn.Module):
    """Nothing that rounds otherwise in another batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.hardtanh(torch.relu(x + 1) * 2, -3, 3)
        return torch.nn.functional.leaky_relu(x.transpose(0, 1) - 0.5, 0.25).transpose(0, 1) * 1.7


@pytest.mark.parametrize("noise", [*NOISES, "steps", "wide"])
def test_every_bit_is_that_of_a_whole_pass(noise: str) -> None:
    """Each row has its level there, where levels run in one batch."""
    torch.manual_seed(0)
    x = torch.randn(30, 12)
    given = NOISES.get(noise) or nk.Noise(add=torch.rand(1, 1, 12), mul=0.3)
    if noise == "wide":
        given = nk.Noise(add=torch.rand(1, 1, 12, dtype=torch.float64), mul=0.3)
    more: dict[str, Any] = dict(noise=given, groups={"both": [":relu#0", ":leaky_relu#0"], "every": "*"}, metric="mse")
    found = [walked(Elementwise(), (x, x), engine, **more).records for engine in ("shared", "plain")]
    assert found[0] == found[1] and len({r.value for r in found[0]}) == len(found[0])


def test_what_comes_before_runs_once_and_levels_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem("Attention", 100)
    steps, passes = Counter[str](), []
    run, replayed = Step.run, Replay.run

    def counted(self: Step, values: dict[int, Any], rows: int) -> None:
        steps[self.name] += rows
        run(self, values, rows)

    def seen(self: Replay, mode: Any, given: Any, clean: Any, copies: int, rows: int) -> Tensor:
        passes.append((copies, rows))
        return replayed(self, mode, given, clean, copies, rows)

    groups: dict[str, Any] = {"ends": [":attention#0", "head"]}
    check = walked(model, data, groups=groups, levels=[0.1], draws=1)
    monkeypatch.setattr(Replay, "run", seen)
    monkeypatch.setattr(Step, "run", counted)
    study = walked(model, data, groups=groups)
    assert study.records[0].correct == check.records[0].correct
    assert (9, 100) in passes and len([p for p in passes if p[1] == 100]) == 1
    assert steps["layer_norm"] < 2 * 100 + 3 * 250 < steps["mean"]


OPTIONS: dict[str, dict[str, Any]] = {
    "little memory": dict(compute=dict(memory=64 * 1024)),
    "hardly any": dict(compute=dict(memory=2048)),
    "rows": dict(compute=dict(batch_rows=7)),
    "verified": dict(compute=dict(verify="full")),
    "workers": dict(compute=dict(executor=1, threads=1)),
    "plateaus": dict(plateaus=0.05),
    "nll": dict(metric="nll"),
    "f1": dict(metric="f1"),
    "kl": dict(metric="kl"),
    "detail": dict(detail="attention"),
    "several": dict(noise=[nk.Noise(add=1.0), nk.Noise(mul=0.5)]),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_whatever_else_is_asked(option: str) -> None:
    (model, data), more = problem("Attention"), OPTIONS[option]
    compute = more.get("compute", {})
    found = [
        nk.walk(model, data, **({"noise": nk.Noise(add=1.0), "groups": "all"} | GRID | more | {
            "compute": nk.Compute(**({"engine": engine} | (compute if engine == "shared" else {})))
        }))
        for engine in ("shared", "plain")
    ]  # fmt: skip
    one, other = ([s] if isinstance(s, nk.Study) else s for s in found)
    for study, plain in zip(one, other, strict=True):
        if "metric" in more:
            values = [torch.tensor([r.value for r in s.records]) for s in (study, plain)]
            assert torch.allclose(*values, rtol=1e-5)
        else:
            assert counts(study) == counts(plain)


def test_a_search_and_a_store_of_groups(tmp_path: Path) -> None:
    model, data = problem("OfGpt", 300)
    more: dict[str, Any] = dict(levels=None, draws=None, groups="block", search=nk.Search(rel_ci=0.3))
    study = walked(model, data, **more)
    assert study.records == walked(model, data, "plain", **more).records
    grid: dict[str, Any] = dict(groups="block", store=tmp_path / "a.db")
    few = walked(model, data, **grid, levels=[0.1])
    assert few.records[0] in walked(model, data, **grid).records
    assert walked(model, data, **grid).records == walked(model, data, "plain", groups="block").records


def test_a_member_that_cannot_be_reached_is_named() -> None:
    """Of an attention's products hardware acts within it."""
    model, data = problem("Attention")
    with pytest.warns(UserWarning, match=r"whole model: one \(:scores#0: it is recorded in parts\)"):
        nk.walk_parameter(
            model, data, lambda v: [DAC(int(v), "row")], [2, 4], seed=5, detail="attention",
            groups={"one": [":scores#0", "head"]},
        )  # fmt: skip


@pytest.mark.parametrize("groups", ["all", "block"])
def test_a_member_that_nothing_depends_on(groups: str) -> None:
    """It is noisy, and changes nothing."""
    model, data = problem("Made")
    study = walked(model, data, groups=groups)
    assert any("unused:linear#0" in members for members in study.meta.plan["groups"].values())
    assert counts(study) == counts(walked(model, data, "plain", groups=groups))
