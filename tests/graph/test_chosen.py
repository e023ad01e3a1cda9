"""Entries that values choose, each of one row: what of them is understood, and what is left alone by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable, Tape
from noisykernels.injection import inject

WIDTH = 4


class Net(nn.Module):
    """A layer before and one for the entries, and a forward that is given rows of tokens and the tokens alone."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run, self.a, self.e, self.n = run, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.run(self, h.reshape(-1, WIDTH)).reshape(h.shape).sum(1)


def where(h: Tensor) -> Tensor:
    return torch.where(h[:, 0] > 0)[0]


def added(h: Tensor, k: Tensor, y: Tensor) -> Tensor:
    return h.index_add(0, k, y)


UNDERSTOOD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a layer": lambda m, h: added(h, where(h), m.e(h[where(h)])),
    "norms and functions": lambda m, h: added(h, where(h), F.gelu(m.n(h.index_select(0, where(h)))).softmax(-1)),
    "parts of each": lambda m, h: added(h, where(h), h[where(h)].view(-1, 2, 2).flip(1).view(-1, WIDTH)),
    "masks twice": lambda m, h: written(m, h),
    "entries of two dimensions": lambda m, h: two_dimensions(h),
}
LEFT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "the first of them": (lambda m, h: added(h, where(h)[:3], h[where(h)[:3]]), "__getitem__ takes as many"),
    "a mean of all": (lambda m, h: added(h, where(h), h[where(h)] - h[where(h)].mean(0)), "mean takes as many"),
    "a sum that goes on": (lambda m, h: added(h, where(h), h[where(h)].cumsum(0)), "cumsum takes as many"),
    "in order": (lambda m, h: added(h, where(h), h[where(h)].sort(0)[0]), "sort takes as many"),
    "turned": (lambda m, h: added(h, where(h), h[where(h)].flip(0)), "flip takes as many"),
    "scaled by the largest": (lambda m, h: added(h, where(h), h[where(h)] / h[where(h)].amax()), "amax takes as many"),
    "moved on": (lambda m, h: added(h, where(h), h[where(h)].roll(1, 0)), "roll takes as many"),
    "given to others": (lambda m, h: added(h, where(h) * 0, h[where(h)]), "index_add takes as many"),
    "counted": (lambda m, h: h * len(where(h)), "turns values into numbers"),
    "counted by shape": (lambda m, h: h * h[h[:, 0] > 0].shape[0], "turns values into numbers"),
    "what is there beside rows": (lambda m, h: added(h, where(h), h[where(h)] + h.mean(0)), "mixes rows"),
}  # fmt: skip


def written(m: Any, h: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[h[:, 0] > 0] = torch.tanh(m.e(h[h[:, 0] > 0]))
    y[h[:, 0] <= 0] = h[h[:, 0] <= 0] * 0.5
    return y


def two_dimensions(h: Tensor) -> Tensor:
    i = F.one_hot(h.argmax(-1), WIDTH).T  # (features, tokens)
    place, token = torch.where(i > 0)
    return h.index_add(0, token, h[None, token].reshape(-1, WIDTH) * i[place, token, None])


def tape_of(run: Callable[[Any, Tensor], Tensor]) -> tuple[Tape, nn.Module, Tensor]:
    model, x = Net(run).eval(), torch.randn(40, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        return record_tape(injected, x[:4]), model, x


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_entries_that_come_back_to_their_rows_are_understood(name: str) -> None:
    tape, model, x = tape_of(UNDERSTOOD[name])
    assert {"input", "a:linear#0"} <= set(tape.sites), tape.refused
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(tape.run(x)[tape.result], expected)


@pytest.mark.parametrize("name", LEFT)
def test_entries_that_look_at_each_other_are_left_alone(name: str) -> None:
    run, reason = LEFT[name]
    try:
        tape, *_ = tape_of(run)
    except NotTraceable as told:
        said = [str(told)]
    else:
        assert not tape.sites
        said = list(tape.refused.values())
    assert any(reason in why for why in said), said
