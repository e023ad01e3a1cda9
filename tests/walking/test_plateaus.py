"""Cells on plateaus: what is proved holds, what is settled tells the truth, and everything else is the full grid's."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traced_models import NOISES as noises_of_all_modes

import noisykernels as nk
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.plan import Passes, choose_plan
from noisykernels._engine.request import Request
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.targets import Activation
from noisykernels._graph.recorder import record_tape
from noisykernels._util.inputs import Inputs
from noisykernels.injection import noise_state
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import exactly
from noisykernels.injection.state import state_of
from noisykernels.noise.contract import largest_eps
from noisykernels.reference import noise as reference
from noisykernels.training import train
from noisykernels.zoo import MLP, LeNet5

NOISES = {**noises_of_all_modes, "laplace": nk.Noise(add=0.3, kind="laplace")}


class Skip(nn.Module):
    """Sums, pooling, concatenation-free; all of it can be bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        y = 1.0 - self.norm(self.b(x))
        return self.head(F.max_pool2d(F.avg_pool2d(F.relu(y + x), 2), 2).flatten(1))


@contextlib.contextmanager
def evaluator(model: nn.Module, x: Tensor, y: Tensor, noise: nk.Noise) -> Iterator[Evaluator]:
    problem = Problem(model, (Inputs.of(x), y, torch.arange(len(y))), 3, (Activation(noise),))
    with Session("walk", problem, passes=Passes(50, 4)) as session:
        tape = record_tape(session.model, x[:4])
        yield Evaluator(session, choose_plan(tape, 2**30, 50, torch.device("cpu")), tape)


@pytest.mark.parametrize(
    ("name", "kind"),
    [  # LeNet takes seconds: two kinds of it, of one and of two powers of the level, and the rest in the full tests
        pytest.param(name, kind, marks=pytest.mark.full if name == "lenet" and kind not in ("add", "add_mul") else ())
        for name in ("mlp", "lenet", "skip")
        for kind in NOISES
    ],
)
def test_below_the_proved_level_nothing_flips(name: str, kind: str) -> None:
    """And at the scores themselves, where the worst noise is known, the bound is reached."""
    torch.manual_seed(0)
    model, shape = {
        "mlp": (MLP(12, 4, width=8, norm=True), (12,)), "lenet": (LeNet5(norm=True), (1, 28, 28)),
        "skip": (Skip(), (2, 8, 8)),
    }[name]  # fmt: skip
    model.eval()
    x = torch.randn(24, *shape)
    y, noise = model(x).argmax(1), NOISES[kind]
    with evaluator(model, x, y, noise) as here, torch.inference_mode():
        injected = here.session.model
        state, tape = state_of(injected), here.shared.tape
        for site in state.traced:
            (limit,) = here.proved([Request(site, (1e-9,), (0,), len(x))])
            assert 0 < limit < math.inf, site.name
            state.placement = Placement(noise=noise.scaled(limit), where=exactly(site.name), layers_own=False)
            with noise_state(injected, seed=3, draws=list(range(40)), rows=torch.arange(len(x))):
                noisy = injected(x).view(40, len(x), -1).argmax(2)
            state.placement = Placement(layers_own=False)
            assert bool((noisy == y).all()), site.name
        if kind == "add":
            scores = tape.run(x)[tape.result].double()
            best, second = scores.topk(2, 1).values.unbind(1)
            closest = float((best - second).min()) / (2 * 0.5 * largest_eps("gaussian"))
            assert limit == pytest.approx(closest, rel=0.01)


@pytest.mark.parametrize(
    ("dtype", "noise", "level"),
    [(torch.float32, nk.Noise(add=1e-30), 1e30), (torch.float16, nk.Noise(add=1e-6), 1e6)],
)
def test_what_underflows_is_not_proved(dtype: torch.dtype, noise: nk.Noise, level: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype), torch.randn(100, 6, dtype=dtype)
    y = model(x).argmax(1)
    study = nk.walk(model, (x, y), noise=noise, levels=[level], draws=2, seed=1, plateaus=0.03)
    assert "proved" not in {r.status for r in study.records}


def test_an_activation_with_a_jump_is_not_bounded() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Softplus(1.0, 0.0), nn.Linear(8, 4)), torch.randn(50, 6)
    with evaluator(model, x, model(x).argmax(1), NOISES["add"]) as here, torch.inference_mode():
        site = here.session.sites[0]
        assert here.proved([Request(site, (1e-9,), (0,), len(x))]) == [0.0]


def test_nan_is_not_settled() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 100)), torch.randn(800, 6)
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1e38], draws=1, seed=1, sites=["0"], plateaus=0.03)
    with torch.no_grad():
        model[2].weight.mul_(1e4)
    with pytest.warns(UserWarning, match="of 800 rows of scores hold NaN"):
        study = nk.walk(model, (x, model(x).argmax(1)), **how)
    assert [r.status for r in study.records] == ["evaluated"]


@pytest.mark.parametrize("kind", nk._C.noise_kinds())
def test_the_bound_of_every_kind_holds(kind: str) -> None:
    """And is reached: by words of which some have their bits all alike, or but for the last or the first ones."""
    assert float(nk.eps((1000, 4000), seed=1, kind=kind).abs().max()) <= largest_eps(kind)
    ends = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**29, 3 * 2**29 - 1]
    words = np.array(list(itertools.product(ends, repeat=2)), np.uint32)
    reached = np.abs(reference.KINDS[kind](np.concatenate([words, words], 1))).max()
    assert 0.999 * largest_eps(kind) < reached <= largest_eps(kind)


@pytest.fixture(scope="module")
def studied() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network that has learnt something, and 3,000 rows."""
    torch.manual_seed(0)
    centres = torch.randn(4, 12)
    y = torch.randint(4, (3000,))
    x = centres[y] + 0.7 * torch.randn(3000, 12)
    model = MLP(12, 4, width=16, norm=True)
    train(model, (x, y), epochs=3, seed=0)
    return model.eval(), (x, y)


LEVELS = [0.0, 1e-9, *torch.logspace(-3, 3, 13).tolist()]


@pytest.mark.parametrize("settings", [dict(noise=nk.Noise(add=1.0)), dict(noise=nk.Noise(add=0.3, mul=0.7), floor=0.2)])
def test_cells_on_plateaus_tell_the_truth(studied: Any, settings: dict[str, Any]) -> None:
    """Evaluated and proved cells are the full grid's to the count. Settled ones hold its accuracy in their intervals in
    95 % of the cases; four in five of some hundreds, with cells of a site and draw alike, are far below chance.
    """
    model, data = studied
    how: dict[str, Any] = dict(settings, levels=LEVELS, draws=4, seed=5)
    full = {(r.site, r.level, r.draw): r for r in nk.walk(model, data, **how).records}
    study = nk.walk(model, data, **how, plateaus=0.03)
    assert {(r.site, r.level, r.draw) for r in study.records} == set(full)
    within, count = 0, 0
    near = 0.03 * (study.meta.clean - study.meta.floor)
    for r in study.records:
        whole = full[r.site, r.level, r.draw]
        if r.status == "settled":
            count, within = count + 1, within + (r.low <= whole.accuracy <= r.high)
            level = [s.accuracy for s in study.records if (s.site, s.level) == (r.site, r.level)]
            mean = sum(level) / len(level)
            assert min(abs(mean - study.meta.clean), abs(mean - study.meta.floor)) < near
            assert r.rows == 500 and r.low <= r.accuracy <= r.high
        else:
            assert r[:7] == whole[:7] and r.status in ("evaluated", "proved")
    assert all(r.status == "proved" for r in study.records if r.level == 0)
    assert count > len(full) / 4 and within > 0.8 * count
    by_level = {m.site: m for m in study.midpoints()}
    for m in nk.walk(model, data, **how).midpoints():
        assert by_level[m.site].level == pytest.approx(m.level, rel=0.05)


def test_few_rows_are_run_in_full(studied: Any) -> None:
    model, (x, y) = studied
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0, 1e3], draws=5, seed=5)
    study = nk.walk(model, (x[:4], y[:4]), **how, plateaus=0.03, floor=0.0)
    assert study.records == nk.walk(model, (x[:4], y[:4]), **how, floor=0.0).records


def test_a_store_keeps_plateaus_too(studied: Any, tmp_path: Any) -> None:
    model, data = studied
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=LEVELS, draws=2, seed=5, plateaus=0.03)
    first = nk.walk(model, data, **how, store=tmp_path / "s.db")
    assert first.records == nk.walk(model, data, **how, store=tmp_path / "s.db").records
    assert first.records == nk.walk(model, data, **how).records


@pytest.mark.parametrize("plateaus", [0, 0.5, -1.0])
def test_a_share_out_of_range_is_refused(studied: Any, plateaus: float) -> None:
    model, data = studied
    with pytest.raises(ValueError, match=r"plateaus must be a number above 0 and below 0\.5 or None"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=0, plateaus=plateaus)
    with pytest.raises(ValueError, match="go with levels"):
        nk.walk(model, data, noise=nk.Noise(add=1.0), seed=0, plateaus=0.03)
