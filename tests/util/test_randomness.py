"""Random numbers of every kind are put back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from noisykernels._util.randomness import generator_of, keeping_random


def test_random_numbers_go_on_as_if_none_had_been_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = [torch.zeros(16), torch.ones(16)]  # of two devices
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [t.clone() for t in cuda])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: cuda.__setitem__(slice(None), states))

    def drawn() -> list[float]:
        return [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002

    with keeping_random():
        first = drawn()
        cuda[1] += 1
    assert float(cuda[1][0]) == 1.0
    with pytest.raises(ValueError, match="a model's own"), keeping_random():
        assert drawn() == first
        raise ValueError("a model's own")
    assert drawn() == first != drawn()


@pytest.mark.parametrize(
    ("made", "draw"),
    [
        (torch.Generator, lambda g: float(torch.rand((), generator=g))),
        (lambda: np.random.default_rng(1), lambda g: g.normal()),
        (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal()),
        (lambda: np.random.RandomState(1), lambda g: g.normal()),
        (lambda: random.Random(1), lambda g: g.gauss(0, 1)),
    ],
    ids=["torch", "numpy", "mersenne twister", "numpy of old", "python"],
)
def test_a_generator_is_put_back(made: object, draw: object) -> None:
    one = made()
    draw(one)
    set_state, state = generator_of(one)
    first = [draw(one) for _ in range(3)]
    set_state(state)
    assert [draw(one) for _ in range(3)] == first


def test_what_is_no_generator() -> None:
    assert all(generator_of(x) is None for x in (1, None, random.SystemRandom(), np.zeros(2), random))
