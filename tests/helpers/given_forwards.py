"""Nets whose forward is given, their recording, and what a loop over the whole noisy model counts.

The reference knows nothing of engines: the whole noisy model for every level and draw, through `inject` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import Tape

LEVELS, DRAWS = [0.0, 0.5, 2.0, 8.0], 2


class Net(nn.Module):
    """Two layers, tables, and a forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.run, self.kept = run, {}
        self.a, self.b, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.table, self.token = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("positions", torch.randn(5, 8))
        self.register_buffer("bits", torch.tensor(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def data(rows: int) -> Tensor:
    return torch.randn(rows, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tape_of(run: Callable[..., Tensor], **told: Any) -> Tape:
    model, x = Net(run), data(12)
    with nk.inject(model, None, example_input=x[:2], **told) as injected, torch.inference_mode():
        return record_tape(injected, x)


def counts(model: nn.Module, x: Tensor, y: Tensor, site: str) -> list[int]:
    """Correct predictions at each level and draw, by the whole model."""
    found = []
    for level in LEVELS:
        for draw in range(DRAWS):
            with nk.inject(model, nk.Noise(add=level), where=site, example_input=x[:2]) as noisy, torch.no_grad():
                with nk.noise_state(noisy, seed=7, draws=[draw], rows=torch.arange(len(x))):
                    found.append(int((noisy(x.clone()).argmax(1) == y).sum()))
    return found
