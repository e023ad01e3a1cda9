"""Measures against the outputs without noise, which need no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from noisykernels.metrics.chance import Seen, check_told_apart
from noisykernels.metrics.law import BINARY, NAN, Bounded, Law
from noisykernels.metrics.rows import PerRow

__all__ = ["KL", "Agreement", "TokenAgreement"]


class _OfScores(PerRow):
    """A measure of scores [rows, *positions, classes] against those without noise."""

    against_clean: bool = True

    def positions(self, outputs: Sequence[int], labels: Tensor) -> int:
        """See `PerRow`."""
        return math.prod(outputs[:-1])

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """Two classes or more."""
        super().check_clean(op, scores, labels)
        if scores.dim() < 2:
            raise ValueError(f"{op}: {self.name} needs outputs [rows, ..., classes], got {list(scores.shape)}")
        check_told_apart(op, self.name, scores.shape[-1])


class _OfBest(_OfScores):
    """A measure of the class with the highest score."""

    def after(self, op: str, clean: Seen) -> PerRow:
        """See `PerRow`."""
        clean.check_differ(op, self.name, classes=True)
        return self


class KL(_OfScores):
    """Kullback-Leibler divergence of the probabilities from those without noise, `sum p (log p - log q)`, in nats.

    Example:
        >>> KL().of_rows(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0.1109]])
    """

    name: ClassVar[str] = "kl"
    unit: ClassVar[str] = "nats"

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        clean = targets.to(outputs.dtype).log_softmax(-1)
        apart = clean.exp() * (clean - outputs.log_softmax(-1))
        return torch.where(clean == -torch.inf, 0.0, apart).sum(-1)  # a class without probability says nothing


class Agreement(_OfBest):
    """The share of rows whose highest score is that of the same class as without noise; its floor is 1 / classes.

    Example:
        >>> Agreement().of_rows(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[1.0, 0.0]])).tolist()
        [[0]]
    """

    name: ClassVar[str] = "agreement"
    unit: ClassVar[str] = "fraction of rows"
    higher_is_better: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.int8
    law: ClassVar[Law] = BINARY

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """1 where it is, 0 where not, `NAN` where the scores hold one: int8."""
        found = (scores.argmax(-1) == labels.argmax(-1)).to(torch.int8)
        return found.masked_fill_(scores.isnan().any(-1), NAN)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """A row has no positions."""
        super().check_clean(op, scores, labels)
        if scores.dim() > 2:
            raise ValueError(
                f"{op}: agreement needs outputs [rows, classes], got {list(scores.shape)}: write "
                "metric='token_agreement' for those with positions"
            )

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Chance: 1 / classes."""
        return 1 / outputs[-1]


class TokenAgreement(_OfBest):
    """The share of positions whose highest score is that of the same class as without noise: of tokens, of pixels.

    Example:
        >>> clean = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> TokenAgreement().of_rows(torch.tensor([[[[2.0, 1.0], [0.0, 1.0]]]]), clean).tolist()
        [[0.5]]
    """

    name: ClassVar[str] = "token_agreement"
    unit: ClassVar[str] = "fraction of positions"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[Bounded] = Bounded(0.0, 1.0, worst=0.0)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        same = (outputs.argmax(-1) == targets.argmax(-1)).to(torch.float32)
        return same.masked_fill_(outputs.isnan().any(-1), torch.nan)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Chance: 1 / classes."""
        return 1 / outputs[-1]
