"""Models that several files of walks look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="module")
def classifier() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small classifier and its rows; its loss rises without bounds under noise."""
    torch.manual_seed(0)
    x, w = torch.randn(600, 6), torch.randn(6, 3)
    y = (x @ w + 0.5 * torch.randn(600, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), (x, y)
