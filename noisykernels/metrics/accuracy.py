"""Which predictions are right: the class with the highest score is the label."""

from __future__ import annotations

import torch
from torch import Tensor

from noisykernels.metrics.base import NAN

__all__ = ["judged"]


def judged(scores: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest score (..., rows, classes) is the label's, 0 where not, NAN where there is none."""
    verdict = (scores.argmax(-1) == labels).to(torch.int8)
    return verdict.masked_fill_(scores.isnan().any(-1), NAN)
