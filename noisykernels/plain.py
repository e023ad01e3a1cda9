"""The plain engine: for every site, level and draw the whole noisy model runs.

This is the reference that the other engine is held against: correct and readable first. All it does for speed is to
fold draws into the batch, to hold the data in memory, and to run without autograd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisykernels.adaptive import Answer, Request
from noisykernels.hardware import WeightNoise
from noisykernels.inject import noise_state
from noisykernels.injected import state_of
from noisykernels.noise import Noise
from noisykernels.reuse import judged
from noisykernels.sites import Placement, Site
from noisykernels.weights import Walked

__all__ = ["SILENT", "Passes", "Plain", "choose_passes", "clean_correct", "scores_of"]

SILENT = Placement(layers_own=False)


def scores_of(op: str, model: nn.Module, inputs: Tensor, rows: int) -> Tensor:
    """The model's scores, checked."""
    scores = model(inputs)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != rows:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{op}: the model must give scores of shape [{rows}, classes], got {got}")
    return scores


def clean_correct(
    op: str, model: nn.Module, inputs: Tensor, labels: Tensor, batch_rows: int
) -> tuple[NDArray[np.bool_], int]:
    """Which predictions are correct without noise, and the number of classes."""
    found, classes = [], 0
    for x, y in zip(inputs.split(batch_rows), labels.split(batch_rows), strict=True):
        scores = scores_of(op, model, x, len(y))
        if bool(scores.isnan().any()):
            raise ValueError(f"{op}: the model gives NaN without noise")
        classes = scores.shape[1]
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{op}: labels must lie in 0..{classes - 1}, got {low}..{high}")
        found.append(scores.argmax(1) == y)
    return torch.cat(found).cpu().numpy(), classes


@dataclass(frozen=True)
class Passes:
    """Rows of a pass of the whole model, and how many draws of them at once."""

    rows: int
    draws: int


def choose_passes(sites: Sequence[Site], memory: int, rows: int, draws: int) -> Passes:
    """At most so many rows and draws, and no more than fit into `memory` bytes: a pass holds about four values of the
    size of the largest at once (what an operation takes and gives, its noise, and the library's own copy)."""
    row = 4 * max(8 * math.prod(s.shape) // max(1, s.shape[s.row_dim or 0]) for s in sites)
    rows = max(1, min(rows, memory // row))
    return Passes(rows, max(1, min(draws, memory // (row * rows))))


class Plain:
    """Runs an injected model for each level and draw.

    Args:
        model: the injected model.
        passes: their size.
        noises: of the study, at level 1.
        seed: of the study.
    """

    def __init__(self, model: nn.Module, passes: Passes, noises: Sequence[Walked], seed: int) -> None:
        self.model, self.rows, self.draws = model, passes.rows, passes.draws
        self.noises, self.seed = noises, seed

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Tensor, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """See `evaluator.Engine`."""
        state = state_of(self.model)
        for k, request in enumerate(requests):
            inputs, labels, rows = (part[request.start - first : request.end - first] for part in data)
            levels = []
            for level in request.levels:
                noise = self.noises[request.which].scaled(level)
                if isinstance(noise, Noise):
                    state.placement = replace(SILENT, noise=noise, where=request.site.name)
                else:
                    devices = [noise] if isinstance(noise, WeightNoise) else noise
                    state.placement = replace(SILENT, hardware={request.site.name: devices})
                levels.append(torch.cat([
                    self._draws(request.draws[i : i + self.draws], inputs, labels, rows)
                    for i in range(0, len(request.draws), self.draws)
                ]))  # fmt: skip
                state.placement = SILENT
            yield k, torch.stack(levels).cpu().numpy()

    def _draws(self, draws: Sequence[int], inputs: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        with noise_state(self.model, seed=self.seed, draws=list(draws), rows=rows):
            scores = scores_of("walk", self.model, inputs, len(draws) * len(labels))
        return judged(scores.view(len(draws), len(labels), -1), labels)
