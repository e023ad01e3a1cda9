"""Recordings of models and directions of noise: what is recorded, what cannot be, and scores from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traced_models import MODELS, NOISES, Random, made

from noisykernels._graph.directions import directions
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection import inject, noise_state
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import exactly
from noisykernels.injection.state import state_of
from noisykernels.noise.arguments import Key


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_the_plain_ones(name: str, kind: str) -> None:
    """For all levels and draws at once, up to rounding: 2^-24 times the terms of a sum (at most 1,000) and the number
    of layers (10), of the largest score; the noise is the same to the bit.
    """
    model, x = made(name, 6)
    noise, draws, rows = NOISES[kind], [0, 3], torch.tensor([5, 0, 9, 2, 2**31, 7])
    levels = torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=torch.float64)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        tape, state = record_tape(injected, x), state_of(injected)
        clean = tape.run(x)
        assert tape.sites
        for site, number in tape.sites.items():
            key = Key(torch.tensor(5), torch.tensor(draws), rows, 0, state.site_ids[site])
            toward, (mixture,) = directions([noise], clean[number], tape.place(number), 6, key)
            suffix = Suffix(tape, number)
            scores = suffix.scores(clean, suffix.carry(toward, 2, 6), mixture, levels, 2, 6).view(4, 2, 6, -1)
            for i, level in enumerate(levels.tolist()):
                state.placement = Placement(noise=noise.scaled(level), where=exactly(site), layers_own=False)
                with noise_state(injected, seed=5, draws=draws, rows=rows):
                    expected = injected(x).view(2, 6, -1)
                bound = 10 * 1000 * 2.0**-24 * expected.abs().max()
                assert (scores[i] - expected).abs().max() <= bound, (site, level)
            state.placement = Placement(layers_own=False)


def test_a_linear_operation_runs_once_for_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution after the first pool sees directions of the draws, not values of every level."""
    model, x = made("lenet", 4)
    seen: list[int] = []
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        tape = record_tape(injected, x)
        for step in tape.steps:
            if step.name == "conv2d":
                function = step.function

                def counted(x: Tensor, *args: Any, function: Any = function, **kwargs: Any) -> Tensor:
                    seen.append(len(x))
                    return function(x, *args, **kwargs)

                monkeypatch.setattr("noisykernels._graph.linearity.CONTRACTIONS", frozenset({function, counted}))
                step.function = counted
        number = tape.sites["pool1:max_pool2d#0"]
        suffix, clean = Suffix(tape, number), tape.run(x)
        seen.clear()
        key = Key(torch.tensor(1), torch.tensor([0, 1]), torch.arange(4), 0, 1)
        toward, (mixture,) = directions([NOISES["add"]], clean[number], tape.place(number), 4, key)
        levels = torch.linspace(0, 1, 9, dtype=torch.float64)
        suffix.scores(clean, suffix.carry(toward, 2, 4), mixture, levels, 2, 4)
    assert seen == [2 * 4]


class ByRows(nn.Module):
    """Other operations for other numbers of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if len(x) % 2 else x.relu().abs()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ByRows(), "other operations for another number of rows"),
        (Random(), "it draws random numbers of its own"),
    ],
)
def test_what_cannot_be_recorded_says_why(model: nn.Module, reason: str) -> None:
    x = torch.randn(8, 3)
    with inject(model, None) as injected, pytest.raises(NotTraceable, match=reason):
        record_tape(injected, x)


def test_a_recording_leaves_nothing_behind() -> None:
    model, x = made("residual", 6)
    before, copy = model.state_dict(), x.clone()
    with inject(model, None, example_input=x[:2]) as injected:
        tape = record_tape(injected, x)
        tape.run(x)
    assert torch.equal(x, copy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 24, 24), (7, 10), (3, 84), (4, 3, 9, 11), (2, 1500), (1, 1), (0, 4)])
def test_expand_levels_is_one_rounding_of_its_formula(shape: tuple[int, ...], relu: bool, cpu_level: str) -> None:
    """x + A d in float32, rounded once: the exact sum is representable in float64 up to 2^-53."""
    torch.manual_seed(1)
    ops = torch.ops.noisykernels
    x, d = torch.randn(shape), torch.randn(2 * shape[0], *shape[1:])
    levels = torch.tensor([0.0, 0.3, 2e4])
    y = ops.expand_levels(x, d, levels, relu)
    exact = x.double() + levels.double().view(3, 1, *[1] * len(shape)) * d.double().view(2, *shape)
    expected = (exact.relu() if relu else exact).float().reshape(y.shape)
    torch.testing.assert_close(y, expected, rtol=2**-23, atol=0)
    if len(shape) == 4:
        pooled = ops.expand_levels_max_pool2d(x, d, levels, relu, [2, 2], [2, 2], [0, 0])
        assert torch.equal(pooled, F.max_pool2d(y, 2))
        assert torch.equal(
            ops.expand_levels_max_pool2d(x, None, torch.zeros(1), True, [3, 3], [2, 2], [1, 1]),
            F.max_pool2d(x.relu(), 3, 2, 1),
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 3), torch.ones(1)), "direction must hold a multiple of 2 rows, got 3"),
        ((torch.ones(2, 3), torch.ones(2, 4), torch.ones(1)), "must differ in their rows only"),
        ((torch.ones(2, 3).double(), torch.ones(2, 3), torch.ones(1)), "must be float32"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 1)), "levels a vector"),
    ],
)
def test_expand_levels_refuses(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.noisykernels.expand_levels(*args, False)
