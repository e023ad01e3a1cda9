"""Groups: several sites noisy together are one place of a walk, as a loop over `inject` finds it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.hardware import DAC, WeightNoise

LEVELS, DRAWS = [0.1, 1.0, 3.0], 2
GRID: dict[str, Any] = dict(levels=LEVELS, draws=DRAWS, seed=5)


class Blocks(nn.Module):
    """A stem, two blocks of which one holds a sequence, a head, and a call of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for part in self.parts:
            x = x + part(x)
        return self.head(x)


MEMBERS = {
    "input": ["input"],
    "stem": ["stem:linear#0"],
    ":tanh#0": [":tanh#0"],
    "parts.0": ["parts.0.0:linear#0", "parts.0.1:relu#0"],
    "parts.1": ["parts.1:linear#0"],
    "head": ["head:linear#0"],
}


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, x = Blocks().eval(), torch.randn(60, 6)
    return model, (x, model(x).argmax(1))


def looped(members: dict[str, list[str]], **placed: Any) -> list[tuple[str, float, int, int]]:
    """Counts by a plain loop: name of the group, level, draw, correct rows."""
    model, (x, y) = problem()
    found = []
    for name, sites in members.items():
        for level in LEVELS:
            for draw in range(DRAWS):
                how = {key: value(sites, level) for key, value in placed.items()}
                with nk.inject(model, **how) as noisy, nk.noise_state(noisy, seed=5, draws=[draw]):
                    found.append((name, level, draw, int((noisy(x).argmax(1) == y).sum())))
    return found


def counts(study: nk.Study) -> list[tuple[str, float, int, int]]:
    return [(r.site, r.level, r.draw, r.correct) for r in study.records]


def additive(sites: list[str], level: float) -> dict[str, nk.Noise]:
    return dict.fromkeys(sites, nk.Noise(add=level))


@pytest.mark.parametrize(
    "groups, members",
    [
        ("block", MEMBERS),
        ("all", {"all": [site for sites in MEMBERS.values() for site in sites]}),
        ({"ends": ["stem", "head"], "first": 0}, {"ends": ["stem:linear#0", "head:linear#0"], "first": ["input"]}),
        ({"ends": "*:linear#0"}, {"ends": [s for v in MEMBERS.values() for s in v if ":linear" in s]}),
    ],
    ids=["block", "all", "dict", "pattern"],
)
def test_groups_are_what_a_loop_over_inject_finds(groups: Any, members: dict[str, list[str]]) -> None:
    model, data = problem()
    study = nk.walk(model, data, noise=nk.Noise(add=1.0), groups=groups, **GRID)
    assert counts(study) == looped(members, noise=additive)
    assert study.meta.sites == tuple(members) and study.meta.plan["groups"] == members
    assert "why" not in study.meta.plan and study.meta.plan["verification"]["sites"] == len(members)
    assert "the sites of a group noisy together" in study.table()
    assert len({r.correct for r in study.records}) > 3


def test_weights_and_parameters_of_a_group() -> None:
    linear = {"ends": ["stem:linear#0", "head:linear#0"]}
    model, data = problem()
    words = {"ends": ["stem", "head"]}
    chips = nk.walk(model, data, noise=nk.Noise(add=1.0), target="weight", groups=words, **GRID)
    assert counts(chips) == looped(
        linear, noise=lambda *_: None, hardware=lambda sites, a: {site: [WeightNoise(add=a)] for site in sites}
    )
    bits = [2.0, 3.0, 4.0]
    study = nk.walk_parameter(
        model, data, lambda b: [DAC(int(b), "row")], bits, name="bits", axis="linear", seed=5, groups=words
    )
    with nk.inject(model, None, hardware={"stem": [DAC(2, "row")], "head": [DAC(2, "row")]}):
        found = int((model(data[0]).argmax(1) == data[1]).sum())
    assert study.records[0].correct == found and [r.site for r in study.records] == ["ends"] * 3


def test_workers_stores_and_searches(tmp_path: Path) -> None:
    model, data = problem()
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), groups="block")
    alone = nk.walk(model, data, **how, **GRID)
    with ThreadPoolExecutor(2) as executor:
        together = nk.walk(model, data, **how, **GRID, compute=nk.Compute(executor=executor, threads=1))
    assert together.records == alone.records
    store = tmp_path / "a.db"
    nk.walk(model, data, **how, **{**GRID, "levels": LEVELS[:2]}, store=store)
    assert nk.walk(model, data, **how, **GRID, store=store).records == alone.records
    with pytest.raises(nk.walking.StoreError):
        nk.walk(model, data, noise=nk.Noise(add=1.0), groups="all", **GRID, store=store)
    with pytest.raises(nk.walking.StoreError):
        nk.walk(model, data, noise=nk.Noise(add=1.0), **GRID, store=store)
    mixed = nk.walk_mixed(model, data, ratios=[0.0, 1.0], groups="all", **GRID)
    assert [len(study.records) for study in mixed.studies] == [6, 6]
    torch.manual_seed(1)
    x = torch.randn(1500, 6)
    found = nk.walk(model, (x, model(x).argmax(1)), noise=nk.Noise(add=1.0), groups="all", seed=1)
    (midpoint,) = found.midpoints()
    grid = nk.walk(
        model, (x, model(x).argmax(1)), noise=nk.Noise(add=1.0), groups="all", seed=2, draws=3,
        levels=[midpoint.low, midpoint.high],
    )  # fmt: skip
    (low, high) = (curve_mean for curve_mean in grid.curves()[0].mean)
    assert midpoint.status == "ok" and low > (1 + 1 / 3) / 2 > high  # clean is 1, the floor a third


def test_what_is_refused() -> None:
    model, data = problem()
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), **GRID)
    for groups, error, message in [
        ("blocks", TypeError, 'groups must be "all", "block", or a dict'),
        ({}, ValueError, "got an empty dict"),
        ({"head:linear#0": ["stem"]}, ValueError, "a group must have a name of its own"),
        ({"a": ["nothing"]}, ValueError, "no site 'nothing'"),
        ({"a": []}, ValueError, "at least one site"),
        ({1: ["stem"]}, TypeError, "a dict of names and their sites"),
    ]:
        with pytest.raises(error, match=message):
            nk.walk(model, data, groups=groups, **how)
    with pytest.raises(ValueError, match="leave out sites="):
        nk.walk(model, data, groups={"a": ["stem"]}, sites=["stem"], **how)


def test_a_report_says_it_and_runs_it_again(tmp_path: Path) -> None:
    model, data = problem()
    study = nk.walk(model, data, noise=nk.Noise(add=1.0), groups={"ends": ["stem", "head"]}, **GRID)
    page = study.report(tmp_path / "a.html").read_text()
    assert "all sites of a group at a time: 1 of 1 groups" in page and "groups={" in page and "sites=" not in page
