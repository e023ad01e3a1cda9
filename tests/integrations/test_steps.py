"""Noise around steps and evaluations that somebody else's loop begins and ends, as its adapters tell of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.integrations.steps import NoisySteps

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nk.inject(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), nk.Noise(add=0.5)).model


def steps(**more: Any) -> NoisySteps:
    return NoisySteps(
        "steps", **dict(seed=7, level=nk.training.Schedule.ramp(4), evaluation=0.0, statistics=None) | more
    )


def of(model: nn.Module, **told: Any) -> Tensor:
    with nk.noise_state(model, seed=7, **told):
        found: Tensor = model(X)
    return found


def test_a_step_is_its_number_and_a_call_its_place_in_it(model: nn.Module) -> None:
    noise = steps()
    noise.begin_step(model, 2)
    first, second = model(X), model(X)
    with nk.noise_state(model, seed=7, draws=[2], level=0.5, advance=True):
        assert torch.equal(first, model(X)) and torch.equal(second, model(X))
    assert not torch.equal(first, second)
    noise.begin_step(model, 3)
    assert not torch.equal(model(X), first)
    noise.end()


def test_evaluations_within_a_step_leave_it_where_it_was(model: nn.Module) -> None:
    noise, clean = steps(), of(model, level=0.0)
    noise.begin_step(model, 2)
    model(X)
    noise.begin_evaluation(model)
    assert torch.equal(model(X), clean) and noise.step is None
    noise.leave()
    noise.begin_step(model, 2)  # which goes on
    second = model(X)
    noise.end()
    with nk.noise_state(model, seed=7, draws=[2], level=0.5, advance=True):
        model(X)
        assert torch.equal(second, model(X))


def test_each_evaluation_has_the_same_noise_in_whatever_batches(model: nn.Module) -> None:
    noise = steps(evaluation=2.0)
    found = []
    for size in (4, 1):
        noise.begin_evaluation(model)
        found.append(torch.cat([model(part) for part in X.split(size)]))
    noise.end()
    torch.testing.assert_close(*found)  # but for the products' roundings, which depend on the batch
    assert torch.equal(found[0], of(model, level=2.0, draws=[2**32 - 1]))
    assert not noise.is_on


def test_processes_have_draws_of_their_own(model: nn.Module) -> None:
    found = []
    for rank in range(2):
        noise = steps(level=1.0)
        noise.begin_step(model, 3, rank, 2)
        found.append(model(X))
        noise.end()
    assert torch.equal(found[0], of(model, draws=[6])) and torch.equal(found[1], of(model, draws=[7]))


def test_a_seed_is_that_of_the_checkpoint(model: nn.Module) -> None:
    torch.manual_seed(3)
    drawn, large = steps(seed=None), steps(seed=2**64 - 1)
    assert drawn.seed != steps(seed=None).seed and large.state() == {"seed": 2**64 - 1}
    drawn.restore({"seed": 7})
    assert drawn.seed == 7
    with pytest.warns(UserWarning, match="steps: the checkpoint was trained with seed 7, and goes on with it"):
        large.restore({"seed": 7})
    steps().restore({"seed": 7})
    drawn.begin_step(model, 0)
    drawn.end()


def test_what_is_logged(model: nn.Module) -> None:
    with nk.noise_state(model, level=0.0):
        model(X)
    noise = steps(statistics=X, evaluation=0.0)
    noise.begin_evaluation(model)
    found = noise.logged(model, 2)
    assert found["noise/level"] == 0.5 and found["noise/2:linear#0/noise_power"] == pytest.approx(0.5**2 * 0.25)
    noise.end()
    assert steps(statistics=X, level=0.0).logged(model, 0) == {"noise/level": 0.0}
    with nk.inject(nn.Linear(6, 3), nk.Noise(add=0.5), where="input") as part:
        assert set(steps(statistics=X, level=1.0).logged(nn.ModuleList([part]), 0)) == {
            "noise/level", "noise/input/snr_db", "noise/input/noise_power", "noise/input/variance",
        }  # fmt: skip
