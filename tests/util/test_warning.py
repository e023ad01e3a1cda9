"""Warnings of studies point at the line that asked, however deep they arise and whenever."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.verification import Check
from noisykernels._graph.suffix import Suffix
from noisykernels.walking import walks

GRID: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.3, 3.0], draws=2, seed=1)


class Small(nn.Module):
    """Two layers; if asked to, it ranks the rows of the batch."""

    def __init__(self, ranks: bool = False) -> None:
        super().__init__()
        self.ranks, self.a, self.o = ranks, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.o(torch.relu(self.a(x)))
        return scores.sort(0).values if self.ranks else scores


def fails_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Check, "_near", lambda *args: ((1.0, 1.0), 2.0))


def fails_late(patch: pytest.MonkeyPatch) -> None:
    """On more rows than the check has."""
    scores = Suffix.scores

    def failing(self: Any, *args: Any) -> Tensor:
        if args[5] > 20:
            raise IndexError("out of bounds")
        return scores(self, *args)

    patch.setattr(Suffix, "scores", failing)


def differs_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Check, "why_not", lambda *args: "it differs")


def is_tied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walks, "tied", lambda session: 0.9)


def gives_nan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(nk.metrics.ACCURACY.law), "missing", lambda self, answer: answer == answer)


def ranks(patch: pytest.MonkeyPatch) -> None:
    """The model does."""


@pytest.mark.parametrize(("fault", "said"), [
    (fails_early, "for these sites every pass"), (fails_late, "for these sites every pass"),
    (differs_late, "for these sites every pass"), (is_tied, "tied"), (gives_nan, "hold NaN"),
    (ranks, "every pass runs the whole model"),
])  # fmt: skip
def test_a_warning_points_at_the_caller(fault: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Small(fault is ranks).eval(), torch.randn(60, 4)
    fault(monkeypatch)
    compute = nk.Compute(verify="full" if fault is differs_late else "sample")
    frame = inspect.currentframe()
    assert frame is not None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        line = frame.f_lineno + 1
        nk.walk(model, (x, torch.arange(60) % 3), **GRID, compute=compute)
    assert any(said in str(w.message) for w in told)
    assert all((w.filename, w.lineno) == (__file__, line) for w in told)
