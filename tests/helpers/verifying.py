"""What tests of the check of both engines share: models that tell all of their classes, and how a walk is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_models import made

import noisykernels as nk

Patch = pytest.MonkeyPatch
GRID: dict[str, Any] = dict(levels=[0.1, 2.0], draws=2, seed=3)
PLAIN = nk.Compute(engine="plain")


def problem(name: str = "residual", rows: int = 40) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model that tells all of its classes, and labels that it gets right."""
    model, x = made(name, rows)
    with torch.no_grad():
        scores = model(x)
        last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == scores.shape[1]][-1]
        last.bias -= scores.mean(0)
        return model, (x, model(x).argmax(1))


def counts(study: nk.Study) -> list[Any]:
    return [(r.site, r.level, r.draw, r.correct) for r in study.records]
