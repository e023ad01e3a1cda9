"""Measures of classes: which are ranked highest, how probable the right one is, at each position of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, in_range, shown
from noisykernels.metrics.accuracy import Accuracy
from noisykernels.metrics.chance import check_targets_differ, check_told_apart
from noisykernels.metrics.law import NAN, Bounded
from noisykernels.metrics.rows import PerRow, class_axis, classes_last, spread_over

__all__ = ["NLL", "Brier", "OfClasses", "Perplexity", "TokenAccuracy", "TopK"]


class TopK(Accuracy):
    """The share of rows whose label is among the k classes with the highest scores.

    Args:
        k: how many.

    Example:
        >>> metric = TopK(2)
        >>> metric.of_rows(torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.5]]), torch.tensor([2, 1])).tolist()
        [1, 0]
    """

    by_argmax = False

    def __init__(self, k: int) -> None:
        check_arguments(TopK.__init__, locals(), k=Range(1, 2**31, whole=True))
        self.k = in_range("TopK", "k", k, Range(1, 2**31, whole=True))
        self.name = f"top{self.k}"

    def __repr__(self) -> str:
        return f"TopK({self.k})"

    def identity(self) -> str:
        """Its words."""
        return repr(self)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """More classes than k."""
        super().check_clean(op, scores, labels)
        if scores.shape[1] <= self.k:
            raise ValueError(
                f"{op}: {self.name} of {scores.shape[1]} classes is 1 whatever the model gives: TopK(k) needs "
                f"k from 1 to {scores.shape[1] - 1}"
            )

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> Accuracy:
        """As it is, of labels that are not all the same."""
        check_targets_differ(op, self.name, labels if weights is None else labels[weights > 0])
        return self

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """1 where the label is among them, 0 where not, `NAN` where the scores hold one: int8 [..., rows]."""
        found = (scores.topk(self.k, -1).indices == labels.unsqueeze(-1)).any(-1).to(torch.int8)
        return found.masked_fill_(scores.isnan().any(-1), NAN)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float:
        """Chance: k / classes."""
        return float(self.k / outputs[-1])


@dataclass(frozen=True)
class OfClasses(PerRow):
    """A measure of the scores of classes at the positions of a row, [rows, *positions, classes] or [rows, classes,
    *positions], against whole-number targets [rows, *positions].

    Args:
        ignore_index: targets that do not count: padding.
        dim: that counts classes, 1 or -1; None: as the shapes say.
    """

    ignore_index: int = -100
    dim: int | None = None

    def __post_init__(self) -> None:
        """Checks both."""
        name = type(self).__name__
        object.__setattr__(self, "ignore_index", in_range(name, "ignore_index", self.ignore_index,
                                                          Range(-(2**63), 2**63 - 1, whole=True)))  # fmt: skip
        if self.dim not in (None, 1, -1) or isinstance(self.dim, bool):
            raise ValueError(f"{name}: dim must be 1, -1 or None, got {shown(self.dim)}")

    def weights(self, targets: Tensor) -> Tensor | None:
        """1 for what counts; None where everything does."""
        there = targets != self.ignore_index
        return None if bool(there.all()) and self.scale is None else there

    def positions(self, outputs: Sequence[int], labels: Tensor) -> int:
        """See `PerRow`: those that count."""
        return max(1, round(self.scale or math.prod(labels.shape[1:])))

    def classes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [copies, rows, *positions, classes], and targets to pick from them [copies, rows, *positions, 1]."""
        outputs = classes_last(outputs, targets, self.dim)
        picked = targets.masked_fill(targets == self.ignore_index, 0).long().unsqueeze(-1)
        return outputs, picked.expand(outputs.shape[0], *picked.shape)

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """Whole numbers."""
        super().check_data(op, inputs, labels)
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"{op}: {self.name} needs whole-number labels, got {shown(labels)}")

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """Shapes that go together, and labels that are classes."""
        super().check_clean(op, scores, labels)
        classes = scores.shape[1:][class_axis(op, scores.shape[1:], labels.shape[1:], self.dim)]
        there = labels[labels != self.ignore_index]
        check_told_apart(op, self.name, classes)
        if there.numel():
            low, high = (int(v) for v in torch.aminmax(there))
            if low < 0 or high >= classes:
                raise ValueError(
                    f"{op}: labels must lie in 0..{classes - 1}, or be {self.ignore_index} (ignore_index), got "
                    f"{low}..{high}"
                )

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """See `PerRow`: of labels that are not all the same."""
        found = super().prepared(op, labels, weights)
        check_targets_differ(op, self.name, labels[self.counts(labels, weights)])
        return found

    def counts(self, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Which labels count."""
        there = labels != self.ignore_index
        return there if weights is None else there & (spread_over(weights, labels.shape) > 0)

    def frequencies(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of the classes, float64."""
        there = self.counts(labels, weights)
        each = None if weights is None else spread_over(weights, labels.shape)[there].double()
        found = torch.bincount(labels[there].long(), each).double()
        return found / found.sum().clamp(min=torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class NLL(OfClasses):
    """Mean negative logarithm of the right class's probability, in nats; its floor is the labels' entropy.

    Args:
        ignore_index: targets that do not count: padding.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> NLL().of_rows(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([0, 1]))
        tensor([[0.6931, 9.0001]])
    """

    name: ClassVar[str] = "nll"
    unit: ClassVar[str] = "nats"

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        scores, picked = self.classes(outputs, targets)
        return scores.logsumexp(-1) - scores.gather(-1, picked).squeeze(-1)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """The labels' entropy."""
        shares = self.frequencies(labels, weights)
        return float(-torch.special.xlogy(shares, shares).sum())


@dataclass(frozen=True)
class Perplexity(NLL):
    """exp of the mean negative logarithm of the right class's probability, over all positions that count.

    Args:
        ignore_index: targets that do not count: padding.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> round(float(Perplexity().value(np.array(0.6931472))), 3)
        2.0
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = ""

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """exp; infinite where that is beyond all numbers."""
        with np.errstate(over="ignore"):
            return np.exp(pooled)

    def number(self, value: float) -> float:
        """log."""
        return float(np.log(value))

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """exp of the labels' entropy."""
        entropy = super().floor(outputs, labels, weights)
        return None if entropy is None else float(np.exp(entropy))


@dataclass(frozen=True)
class TokenAccuracy(OfClasses):
    """The share of positions whose target has the highest score: of tokens, of pixels.

    Args:
        ignore_index: targets that do not count: padding.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> scores = torch.tensor([[[[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]]])
        >>> TokenAccuracy().of_rows(scores, torch.tensor([[0, 0, -100]])).tolist()
        [[0.5]]
    """

    name: ClassVar[str] = "token_accuracy"
    unit: ClassVar[str] = "fraction of positions"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[Bounded] = Bounded(0.0, 1.0, worst=0.0)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        scores, picked = self.classes(outputs, targets)
        hit = (scores.argmax(-1) == picked.squeeze(-1)).to(torch.float32)
        return hit.masked_fill_(scores.isnan().any(-1), torch.nan)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Chance: 1 / classes."""
        return float(1 / outputs[class_axis(self.name, outputs, labels.shape[1:], self.dim)])


@dataclass(frozen=True)
class Brier(OfClasses):
    """Mean squared distance of the probabilities from the right class: from 0 to 2; its floor is that of the labels'
    frequencies.

    Args:
        ignore_index: targets that do not count: padding.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> Brier().of_rows(torch.tensor([[[0.0, 0.0]]]), torch.tensor([0])).tolist()
        [[0.5]]
    """

    name: ClassVar[str] = "brier"
    bounds: ClassVar[Bounded] = Bounded(0.0, 2.0, worst=2.0)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        scores, picked = self.classes(outputs, targets)
        shares = scores.softmax(-1)
        return shares.square().sum(-1) - 2 * shares.gather(-1, picked).squeeze(-1) + 1

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """That of the labels' frequencies."""
        return 1 - float(self.frequencies(labels, weights).square().sum())
