"""Measures of yes and no: one logit for each label, of one label or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from noisykernels._util.checks import one_of, shown
from noisykernels.metrics.chance import check_targets_differ
from noisykernels.metrics.law import BINARY, NAN, Bounded, Law
from noisykernels.metrics.rows import PerRow

__all__ = ["BinaryAccuracy", "MultiLabel"]


class _OfLogits(PerRow):
    """A measure of logits whose sign is yes or no, against labels 0 and 1 of their shape."""

    unit: ClassVar[str] = "fraction of rows"
    higher_is_better: ClassVar[bool] = True

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """Yes and no."""
        super().check_data(op, inputs, labels)
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"{op}: {self.name} needs labels of 0 and 1, got others in {shown(labels)}")

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """A label for each logit."""
        super().check_clean(op, scores, labels)
        if scores.numel() != labels.numel():
            raise ValueError(
                f"{op}: {self.name} needs a label for each output, got labels {list(labels.shape)} and outputs "
                f"{list(scores.shape)}"
            )

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """See `PerRow`: of labels that are not the same for all rows."""
        check_targets_differ(op, self.name, labels if weights is None else labels[weights > 0])
        return super().prepared(op, labels, weights)

    def hits(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What outputs [copies, rows, ...] say, and what labels do: [copies, rows, outputs] and [rows, outputs]."""
        return (scores > 0).reshape(*scores.shape[:2], -1), labels.reshape(len(labels), -1) != 0


class BinaryAccuracy(_OfLogits):
    """The share of rows whose one logit has the sign of its label, 1 or 0; its floor is 1/2.

    Example:
        >>> BinaryAccuracy().of_rows(torch.tensor([[[2.0], [-1.0]]]), torch.tensor([1, 1])).tolist()
        [[1, 0]]
    """

    name: ClassVar[str] = "binary_accuracy"
    dtype: ClassVar[torch.dtype] = torch.int8
    law: ClassVar[Law] = BINARY

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """1 where the sign is right, 0 where not, `NAN` where the logit is none: int8."""
        said, meant = self.hits(scores, labels)
        found = (said == meant).all(-1).to(torch.int8)
        return found.masked_fill_(scores.isnan().reshape(*scores.shape[:2], -1).any(-1), NAN)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """One logit."""
        super().check_clean(op, scores, labels)
        if scores.numel() != len(scores):
            raise ValueError(
                f"{op}: binary_accuracy needs one logit for each row, got outputs {list(scores.shape)}: write "
                "metric='multilabel' for several"
            )

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Of a coin."""
        return 0.5


@dataclass(frozen=True)
class MultiLabel(_OfLogits):
    """Logits of several labels: the share of rows that have all of them right, or how much of what is said or true is
    both.

    Args:
        of: ``"exact"``: all labels of a row are right; ``"jaccard"``: |said and true| / |said or true|, 1 where both
            are nothing.

    Example:
        >>> outputs, labels = torch.tensor([[[1.0, 1.0, -1.0]]]), torch.tensor([[1, 0, 0]])
        >>> MultiLabel().of_rows(outputs, labels).tolist(), MultiLabel("jaccard").of_rows(outputs, labels).tolist()
        ([[0]], [[0.5]])
    """

    of: Literal["exact", "jaccard"] = "exact"
    bounds: ClassVar[Bounded] = Bounded(0.0, 1.0, worst=0.0)

    def __post_init__(self) -> None:
        """Checks it."""
        one_of("MultiLabel", "of", self.of, ("exact", "jaccard"))

    @property
    def name(self) -> str:  # type: ignore[override]
        """By what it is of."""
        return "multilabel" if self.of == "exact" else "jaccard"

    @property
    def unit(self) -> str:  # type: ignore[override]
        """By what it is of."""
        return "fraction of rows" if self.of == "exact" else "share of labels"

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """By what it is of."""
        return torch.int8 if self.of == "exact" else torch.float32

    @property
    def law(self) -> Law:
        """By what it is of."""
        return BINARY if self.of == "exact" else super().law

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Of each row [copies, rows]."""
        if self.of == "jaccard":
            return super().of_rows(scores, labels)
        said, meant = self.hits(scores, labels)
        none = scores.isnan().reshape(*scores.shape[:2], -1).any(-1)
        return (said == meant).all(-1).to(torch.int8).masked_fill_(none, NAN)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`: what is said and true of what is either."""
        said, meant = self.hits(outputs, targets)
        both, either = (said & meant).sum(-1), (said | meant).sum(-1)
        share = torch.where(either == 0, 1.0, both / either.clamp(min=1))
        return share.masked_fill_(outputs.isnan().reshape(*outputs.shape[:2], -1).any(-1), torch.nan)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """Several logits."""
        super().check_clean(op, scores, labels)
        if scores.numel() == len(scores):
            raise ValueError(f"{op}: {self.name} needs several logits for each row, got one: metric='binary_accuracy'")

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Of a coin for each label."""
        count = math.prod(outputs)
        if self.of == "exact":
            return 0.5**count
        trues = (labels.reshape(len(labels), -1) != 0).sum(1)
        each = torch.ones_like(trues) if weights is None else weights
        each = each.double() / each.double().sum()
        return sum(float(each[trues == n].sum()) * _jaccard_of_coins(int(n), count) for n in trues.unique().tolist())


def _jaccard_of_coins(true: int, count: int) -> float:
    """Expected share of labels, `true` of which are, that coins and truth both say among those that either does."""
    rest = count - true
    if true == 0:
        return 0.5**rest
    return true / 2 * math.fsum(math.comb(rest, k) / 2**rest / (true + k) for k in range(rest + 1))
