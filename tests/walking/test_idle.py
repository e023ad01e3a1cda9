"""Sites on which the scores do not depend: nothing is run for them, and what seems so but is not is found out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.evaluator import Evaluator
from noisykernels.arithmetic import Serial
from noisykernels.walking import walk_mixed, walk_parameter

IDLE = ["head:linear#0", "act:relu#0"]


class UnusedHead(nn.Module):
    """Its second head is computed, rectified and thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out, self.head, self.act = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        self.act(self.head(h))
        scores: Tensor = self.out(h)
        return scores


class Hidden(UnusedHead):
    """The second head's largest value scales the scores by way of a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        loud = self.act(self.head(h)).max().item() > 1e3
        scores: Tensor = self.out(h)
        return -scores if loud else scores


def problem(kind: type[nn.Module] = UnusedHead) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(60, 6)
    return model, (x, model(x).argmax(1))


def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sites that anything is evaluated for, from now on."""
    asked: list[str] = []
    given = Evaluator.answers

    def watched(self: Evaluator, requests: Any, *rest: Any) -> Any:
        asked.extend(r.site.name for r in requests)
        return given(self, requests, *rest)

    monkeypatch.setattr(Evaluator, "answers", watched)
    return asked


WALKS: dict[str, Any] = {
    "grid": lambda m, d, how: nk.walk(m, d, noise=nk.Noise(add=1.0), levels=[0.0, 1.0, 1e9], draws=2, seed=1, **how),
    "plateaus": lambda m, d, how: nk.walk(
        m, d, noise=nk.Noise(mul=1.0), levels=[0.3, 1.0], draws=2, seed=1, plateaus=0.03, **how),
    "weight": lambda m, d, how: nk.walk(
        m, d, noise=nk.Noise(add=1.0), target="weight", levels=[0.5, 5.0], draws=2, seed=1, **how),
    "parameter": lambda m, d, how: walk_parameter(m, d, lambda v: [Serial(low=-v, high=v)], [0.1, 1.0], seed=1, **how),
    "ratios": lambda m, d, how: walk_mixed(m, d, ratios=[0.0, 1.0], levels=[1.0], draws=2, seed=1, **how).studies[1],
}  # fmt: skip


@pytest.mark.parametrize("name", list(WALKS))
def test_their_counts_are_the_clean_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the plain engine, which runs them, under every target; and said so, once."""
    model, data = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = WALKS[name](model, data, {"compute": nk.Compute(engine="plain")})
    asked = evaluated(monkeypatch)
    with pytest.warns(UserWarning, match=r"do not depend on these sites, whose counts are the clean ones") as warned:
        study = WALKS[name](model, data, {})
    assert len(warned) == 1 and "every pass" not in str(warned[0].message)
    assert warned[0].filename == __file__ or name == "ratios"
    idle = [r for r in study.records if r.site in IDLE]
    assert idle and {r.status for r in idle} == {"proved"} and {r.correct for r in idle} == {60}
    assert [r[:6] for r in study.records] == [r[:6] for r in plain.records]
    assert asked and not set(asked) & set(IDLE)
    assert {r.correct for r in study.records if r.site not in IDLE} != {60}


@pytest.mark.parametrize("target", ["activation", "weight"])
def test_a_search_does_not_look_for_their_midpoints(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem()
    asked = evaluated(monkeypatch)
    done: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match="clean ones"):
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), target=target, seed=1, search=nk.Search(0.3),
                        progress=lambda *at: done.append(at))  # fmt: skip
    points = {p.site: p for p in study.midpoints()}
    assert not set(asked) & set(IDLE) and done[-1] == (len(points), len(points))
    for site in set(IDLE) & set(points):
        assert points[site].status == "none" and points[site].low == 1e25
        assert {(r.status, r.correct) for r in study.records if r.site == site} == {("proved", 60)}
    assert points["body:linear#0"].status == "ok"


def test_what_the_recording_does_not_see_is_found_out() -> None:
    """A number that Python takes from a value is no operation: only a pass shows that the scores depend on it."""
    model, (x, y) = problem(Hidden)
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1.0, 1e6], draws=2, seed=1, sites=["head"])
    with pytest.warns(UserWarning, match="every pass runs the whole model"):
        study = nk.walk(model, (x, y), **how)
    assert study.records == nk.walk(model, (x, y), **how, compute=nk.Compute(engine="plain")).records
    assert {r.status for r in study.records} == {"evaluated"} and len({r.correct for r in study.records}) > 1
