"""Schedules and random levels: known values, their laws, the same in any batch; and what training makes of them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from injecting import small
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id
from noisykernels.reference import noise as reference
from noisykernels.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

ALARM = 1e-6  # a test at fixed seeds fails by chance with this probability, once and for all


def test_schedules_at_known_steps() -> None:
    assert [nk.training.Schedule.constant(0.3)(t) for t in (0, 5, 1e9)] == [0.3] * 3
    assert [nk.training.Schedule.ramp(8)(t) for t in (0, 1, 4, 8, 9)] == [0, 0.125, 0.5, 1, 1]
    assert [nk.training.Schedule.ramp(4, start=1, end=0.5)(t) for t in (0, 2, 4, 5)] == [1, 0.75, 0.5, 0.5]
    assert [nk.training.Schedule.overshoot(8)(t) for t in (0, 2, 4, 6, 8, 99)] == [0, 0.75, 1.5, 1.25, 1, 1]
    assert nk.training.Schedule.overshoot(8, peak=3, end=0)(6) == 1.5
    between = nk.training.Schedule([(10, 2), (20, 1), (21, 5)])
    assert [between(t) for t in (0, 10, 15, 20, 20.5, 21, 30)] == [2, 2, 1.5, 1, 3, 5, 5]
    assert nk.training.Schedule.ramp(1.0)(0.25) == 0.25  # progress instead of steps
    assert repr(pickle.loads(pickle.dumps(between))) == repr(between)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nk.training.Schedule([]), "at least one point and steps that rise"),
        (lambda: nk.training.Schedule([(0, 1), (0, 2)]), r"steps that rise, got steps \[0, 0\]"),
        (lambda: nk.training.Schedule([(0, -1)]), r"factors >= 0, got \(0, -1\)"),
        (lambda: nk.training.Schedule([(0, float("nan"))]), "finite"),
        (lambda: nk.training.Schedule.ramp(0), "Schedule.ramp: steps must be positive, got 0"),
        (lambda: nk.training.Schedule.overshoot(-1), "Schedule.overshoot: steps must be positive"),
        (lambda: nk.training.VarianceAware(-1, 1, 1, 0), "sigma must be a finite number of at least 0, got -1"),
        (lambda: nk.training.VarianceAware(1, 1, float("inf"), 0), "theta must be a finite number"),
        (lambda: nk.training.VarianceAware(1, 1, 1, -1), "VarianceAware: seed must lie in"),
        (
            lambda: nk.training.VarianceAware(1, 1, 1, 0, form="paper"),
            "form must be 'folded' or 'clipped', got 'paper'",
        ),
        (lambda: nk.training.VarianceAware(1, 1, 1, 0, every=0), "every must be a whole number from 1"),
        (lambda: nk.training.VarianceAware(1, 1, 1, 0)(0), "needs the rows, got None"),
        (lambda: nk.training.noisy_steps(small(), seed=1, level=-1.0), "noisy_steps: level must be finite"),
    ],
)
def test_what_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


# ---------------------------------------------------------------------------------------------- random levels


def drawn(**options: Any) -> np.ndarray:
    levels = nk.training.VarianceAware(**{"sigma": 2.0, "alpha": 0.45, "theta": 0.66, "seed": 5, **options})
    return torch.cat([levels(step, torch.arange(2000)) for step in range(10)]).numpy()


def test_folded_levels_have_their_law() -> None:
    found = drawn()
    assert scipy.stats.kstest(found, scipy.stats.halfnorm(loc=0.9, scale=0.66).cdf).pvalue > ALARM
    assert scipy.stats.kstest(found, scipy.stats.halfnorm(loc=0.9, scale=0.60).cdf).pvalue < ALARM  # it can fail


def test_clipped_levels_have_their_law() -> None:
    found = drawn(form="clipped", theta=1.5)
    law = scipy.stats.norm(loc=0.9, scale=1.5)
    zeros = int((found == 0).sum())
    assert (found >= 0).all() and scipy.stats.binomtest(zeros, len(found), law.cdf(0)).pvalue > ALARM
    above = scipy.stats.truncnorm(-0.9 / 1.5, np.inf, loc=0.9, scale=1.5)
    assert scipy.stats.kstest(found[found > 0], above.cdf).pvalue > ALARM


def test_levels_are_the_stream_of_the_reference() -> None:
    rows = torch.tensor([5, 2**32 - 1, 0])
    z = reference.eps((3,), kind="gaussian", seed=9, site=hashed_id("level"), operand="programming", draw=4, rows=rows)
    expected = 0.45 * 2 + 0.66 * torch.as_tensor(np.abs(z.astype(np.float64)))
    assert torch.equal(nk.training.VarianceAware(2.0, 0.45, 0.66, 9)(4, rows), expected)
    assert torch.equal(
        nk.training.VarianceAware(2.0, 0.45, 0.0, 9)(4, rows), torch.full((3,), 0.9, dtype=torch.float64)
    )


def test_an_image_has_its_level_in_any_batch_and_another_at_another_step() -> None:
    levels, rows = nk.training.VarianceAware(1.0, 0.5, 1.0, seed=1), torch.arange(50)
    whole, order = levels(3, rows), torch.randperm(50)
    assert torch.equal(torch.cat([levels(3, part) for part in order.split(7)]), whole[order])
    assert (
        len(
            {*whole.tolist(), *levels(4, rows).tolist(), *nk.training.VarianceAware(1.0, 0.5, 1.0, 2)(3, rows).tolist()}
        )
        == 150
    )
    before = torch.get_rng_state()
    levels(3, rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_level_for_an_epoch() -> None:
    levels = nk.training.VarianceAware(1.0, 0.5, 1.0, seed=1, every=4)
    found = [levels(step, torch.arange(3)) for step in range(12)]
    assert all(level.shape == () for level in found)
    assert [len(set(map(float, found[i : i + 4]))) for i in (0, 4, 8)] == [1, 1, 1] and len(set(map(float, found))) == 3


# ----------------------------------------------------------------------------------------------------- training


def test_training_equals_explicit_levels_to_the_bit() -> None:
    """Three steps of a loop of one's own, against levels written into the noise, a draw for each step."""
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    ramp, spread = nk.training.Schedule.ramp(2), nk.training.VarianceAware(1.0, 0.45, 0.66, seed=8)

    def both(step: int, rows: Tensor | None) -> Tensor:
        return ramp(step) * spread(step, rows)

    mine, theirs = small(), small()
    with nk.inject(mine, nk.Noise(add=0.4, mul=0.3)):
        noisy = nk.training.noisy_steps(mine, seed=7, level=both)
        for step, rows in enumerate(torch.arange(12).split(4)):
            with noisy(step, rows):
                F.cross_entropy(mine(x[rows]), y[rows]).backward()
    for step, rows in enumerate(torch.arange(12).split(4)):
        level = nk.per_row(both(step, rows), 2)
        with nk.inject(theirs, nk.Noise(add=0.4 * level, mul=0.3 * level)):
            with nk.noise_state(theirs, seed=7, draws=[step], rows=rows):
                F.cross_entropy(theirs(x[rows]), y[rows]).backward()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(
    "level",
    [0.7, torch.tensor(0.7), None, nk.training.Schedule.overshoot(6), nk.training.VarianceAware(1.0, 0.4, 0.6, 3),
     nk.training.VarianceAware(1.0, 0.4, 0.6, 3, form="clipped", every=3)],
    ids=["number", "tensor", "none", "schedule", "rows", "epochs"],
)  # fmt: skip
def test_train_is_reproduced_to_the_bit(level: Any) -> None:
    data = torch.randn(40, 6), torch.randint(3, (40,))

    def run(chosen: Any) -> nn.Module:
        model = small(norm=True)
        with nk.inject(model, nk.Noise(add=0.5)):
            train(
                model,
                data,
                epochs=2,
                batch_size=16,
                clamp=0.2,
                on_step=nk.training.noisy_steps(model, seed=1, level=chosen),
            )
        assert all(layer.weight.abs().max() <= 0.2 for layer in (model[0], model[3]))
        return model

    one, same, other = run(level), run(level), run(nk.training.Schedule.constant(3.0))
    assert torch.equal(one[3].weight, same[3].weight) and not torch.equal(one[3].weight, other[3].weight)


def test_a_schedule_changes_levels_and_not_the_graph() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model, x = small(), torch.randn(4, 6)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with nk.inject(model, nk.Noise(add=0.5), example_input=x):
        noisy = nk.training.noisy_steps(model, seed=1, level=nk.training.Schedule.overshoot(4))
        outs = []
        for step in range(5):
            with noisy(step, torch.arange(4)):
                outs.append(compiled(x))
    assert len(graphs) == 1 and len({out.sum().item() for out in outs}) == 5
    torch._dynamo.reset()
    torch.testing.assert_close(outs[0], model(x))  # level 0


def test_variance_aware_training_serves_other_levels_than_its_own() -> None:
    """Noise on the scores: trained at random levels, a network is right at one that a clean-trained copy fails at."""
    x = torch.randn(400, 6)
    y = (x[:, 0] > 0).long()
    x[:, 0] += y * 2.0 - 1.0
    found = []
    for level in (0.0, nk.training.VarianceAware(1.0, alpha=0.45, theta=0.66, seed=2)):
        model = small()
        with nk.inject(model, nk.Noise(add=2.0), where="3"):
            train(
                model,
                (x, y),
                epochs=10,
                lr=0.02,
                batch_size=40,
                on_step=nk.training.noisy_steps(model, seed=1, level=level),
            )
            with nk.noise_state(model.eval(), seed=9, draws=range(10), level=2.0):
                found.append(float((model(x).argmax(1) == y.repeat(10)).float().mean()))
    assert found[1] > found[0] + 0.05
