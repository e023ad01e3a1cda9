"""The plain engine: for every site, level and draw the whole noisy model runs.

This is the reference that the other engine is held against: correct and readable first. All it does for speed is to
fold draws into the batch, to hold the data in memory, and to run without autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from noisykernels._engine.plan import SILENT, Passes
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.session import scores_of
from noisykernels._engine.targets import Walked
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.api import noise_state
from noisykernels.injection.state import state_of
from noisykernels.metrics.accuracy import judged
from noisykernels.noise.description import Noise

__all__ = ["Plain"]


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
