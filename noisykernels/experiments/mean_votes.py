"""The mean of several executions' outputs, measured by any metric: what voting is where outputs are no classes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from noisykernels._engine.session import Session
from noisykernels.stats.votes import VoteCurve, subsets_of

__all__ = ["MEANS", "MeanVotes"]

MEANS = ("mean", "probability")


class MeanVotes:
    """What is measured of mean outputs of n executions, over subsets of D draws; batch after batch of rows.

    Args:
        session: whose metric measures.
        kinds: ``"mean"`` of the outputs; ``"probability"``: logarithm of the mean softmax.
        draws: D.
        subsets, seed: see `stats.mean_scores`.
    """

    def __init__(self, session: Session, kinds: tuple[str, ...], draws: int, subsets: int, seed: int) -> None:
        self.draws = draws
        self.chosen = [subsets_of(draws, n, subsets, seed)[0] for n in range(1, draws + 1)]
        self.tallies = {kind: [session.tally(len(some)) for some in self.chosen] for kind in kinds}

    def add(self, row: int, outputs: Tensor, targets: Tensor) -> None:
        """Takes outputs [D, rows, ...] of rows from `row` on, and their targets."""
        for kind, tallies in self.tallies.items():
            every = outputs.double() if kind == "mean" else outputs.double().softmax(-1)
            for some, tally in zip(self.chosen, tallies, strict=True):
                means = torch.stack([every[torch.from_numpy(subset).to(every.device)].mean(0) for subset in some])
                means = means if kind == "mean" else means.log()
                tally.add(row, means.to(outputs.dtype), targets)

    def curves(self) -> dict[str, VoteCurve]:
        """The curve of each kind: the mean over subsets, and its standard error from their spread; NaN where all draws
        make one vote."""
        executions, found = np.arange(1, self.draws + 1), {}
        for kind, tallies in self.tallies.items():
            values = [tally.values("vote") for tally in tallies]
            with np.errstate(invalid="ignore"):  # infinite ones scatter by nothing that is known
                error = [
                    v.std(ddof=1) / math.sqrt(self.draws // n) if self.draws // n > 1 else math.nan
                    for n, v in zip(executions, values, strict=True)
                ]
            found[kind] = VoteCurve(executions, np.array([v.mean() for v in values]), np.array(error))
        return found
