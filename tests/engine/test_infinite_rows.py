"""Values that are infinite in a few rows of the data, which neither the recording nor the check has seen: a direction
that is not finite is no noise times its level, so these sites run whole, and the counts are the plain engine's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

ROWS = (20, 21, 37)  # neither among the first nor among the last
NOISES = {
    "add": nk.Noise(add=1.0), "mul": nk.Noise(mul=1.0), "both": nk.Noise(add=1.0, mul=1.0),
    "turned": nk.Noise(add=1.0, mul=1.0, order="add_mul"), "own": nk.Noise(mul=nk.per_channel(torch.ones(6), 2)),
}  # fmt: skip


class Net(nn.Module):
    """Scores that are finite although values before them are not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.a, self.b = kind, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        infinite = torch.where(x < -1e8, torch.inf, x)
        if self.kind == "at the site":
            return self.b(3 * torch.exp(-torch.relu(infinite)))
        if self.kind == "carried":  # through what is linear
            h = torch.relu(infinite).unflatten(1, (2, 3)) * 2
            return self.b(3 * torch.exp(-(h - h.new_ones(3)).flatten(1)))
        return self.b(self.a(infinite).sigmoid())  # into a contraction


def data(kind: str) -> tuple[Tensor, Tensor]:
    """Rows, some of them with entries that become infinite, and the labels that the model gives."""
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    for row in ROWS:
        x[row, row % 5] = -1e9
    return x, Net(kind)(x).argmax(1)


def walked(kind: str, noise: Any, engine: Any, **asked: Any) -> tuple[nk.Study, list[str]]:
    """A walk, and what it warns of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        study = nk.walk(
            Net(kind), data(kind), noise=noise, levels=[0.1, 0.6], draws=4, seed=1, compute=nk.Compute(engine=engine),
            **asked,
        )  # fmt: skip
    return study, [str(w.message) for w in told if "every pass runs" in str(w.message)]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["at the site", "carried"])
def test_sites_of_infinite_directions_run_whole(kind: str, noise: str) -> None:
    plain, _ = walked(kind, NOISES[noise], "plain", sites=[":relu#0"])
    shared, told = walked(kind, NOISES[noise], "shared", sites=[":relu#0"])
    assert [r.correct for r in shared.records] == [r.correct for r in plain.records]
    assert len({r.correct for r in plain.records}) > 2
    reason = "what noise makes of its values is not finite in some rows"
    whole = [f"walk: for these sites every pass runs the whole model: :relu#0 ({reason})"]
    assert told == ([] if noise == "add" else whole)  # the direction of additive noise is finite, and shared


def test_weights_that_meet_infinite_inputs() -> None:
    plain, _ = walked("into it", nk.WeightNoise(add=1.0), "plain", target="weight")
    shared, told = walked("into it", nk.WeightNoise(add=1.0), "shared", target="weight")
    assert [r.correct for r in shared.records] == [r.correct for r in plain.records]
    assert ["a:linear#0 (what noise makes" in line for line in told] == [True]
