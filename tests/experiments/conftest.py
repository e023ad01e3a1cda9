"""A network for the tests of number formats."""

from __future__ import annotations

import pytest
import torch
from format_networks import Problem
from torch import nn


@pytest.fixture
def problem(one_thread: None) -> Problem:
    """A small network, and labels that are its own answers, so that it is always right in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(70, 1, 6, 6)
    with torch.no_grad():
        model[5].bias -= model(x).mean(0)
        return model, (x, model(x).argmax(1))
