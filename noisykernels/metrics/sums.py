"""Measures of sums over rows, which no mean of rows is: overlaps of classes, ranks, calibration; others' metrics, too.

Sums are kept of blocks of rows (`law.Sums`), so that memory does not grow with the data. A value is a ratio of sums: it
does not depend on how many times all rows are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, in_range, shown
from noisykernels.metrics.chance import check_targets_differ
from noisykernels.metrics.classes import OfClasses
from noisykernels.metrics.identity import digest, of_parameters
from noisykernels.metrics.law import Law, Sums
from noisykernels.metrics.rows import PerRow, class_axis, classes_last, spread_over, wide

__all__ = ["AUROC", "ECE", "F1", "MeanIoU", "OfSums", "Torchmetrics"]

STEP = 2.0**-32  # what sums of shares are whole multiples of: so they add up to the same in any order


class OfSums(PerRow):
    """A measure of sums over rows. Subclasses give `width`, `totals` and `value`."""

    dtype: ClassVar[torch.dtype] = torch.float64
    width: int

    @property
    def law(self) -> Law:
        """Sums of blocks of rows."""
        return Sums(self.width)

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sums [copies, width], from outputs [copies, rows, ...] of at least single precision and targets; of rows or
        positions as often as their weights say, see `Weighted`, where there are any."""
        raise NotImplementedError

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The sums of all these rows [copies, width]; NaN for a copy whose outputs hold one that counts."""
        return self.of_weighted(scores, labels, None)

    def of_weighted(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The same of rows or positions with weights; None: all count once."""
        lost = self.lost(scores, labels, weights).flatten(1).any(-1, keepdim=True)
        given = (labels,) if weights is None else (labels, weights)
        return self.totals(wide(scores), *given).double().masked_fill(lost, torch.nan)

    def lost(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Where outputs that count hold NaN [copies, rows]."""
        none = scores.isnan().flatten(2).any(-1) if scores.dim() > 2 else scores.isnan()
        return none if weights is None else none & (weights.reshape(len(weights), -1) > 0).any(-1)

    def number(self, value: float) -> float:
        """Sums are not told by a value."""
        raise ValueError(f"{self.name} is of sums over rows, which its value does not tell")


class _OfPositions(OfClasses, OfSums):
    """Sums over positions of the classes that scores say."""

    def lost(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """See `OfSums`: at positions that count."""
        return classes_last(scores, labels, self.dim).isnan().any(-1) & self.counts(labels, weights)

    def each(self, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which positions count, flat, and how often each of these does: whole multiples of `STEP`."""
        there = self.counts(targets, weights).flatten()
        if weights is None:
            return there, torch.ones(int(there.sum()), dtype=torch.float64, device=targets.device)
        return there, stepped(spread_over(weights, targets.shape).flatten()[there])


class _OfPairs(_OfPositions):
    """A measure of how often each class is said and true; see `MeanIoU`."""

    of_all: ClassVar[bool] = True
    classes_held: tuple[int, ...] = ()  # by the labels

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of each class: both said and true, said or true."""
        return 2 * max(1, len(self.classes_held))

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """With the classes that the labels hold."""
        held = labels[self.counts(labels, weights)].unique().tolist()
        if len(held) < 2:
            raise ValueError(f"{op}: {self.name} needs labels of two classes or more, got {held}")
        found = type(self)(self.ignore_index, self.dim)
        object.__setattr__(found, "classes_held", tuple(map(int, held)))
        return found

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `OfSums`."""
        scores, _ = self.classes(outputs, targets)
        there, each = self.each(targets, weights)
        meant, said = targets.flatten()[there], scores.argmax(-1).flatten(1)[:, there]
        sums = []
        for held in self.classes_held:
            mine, theirs = (said == held).double() @ each, (meant == held).double() @ each
            both = ((said == held) & (meant == held)).double() @ each
            sums += [both, mine + theirs - both]
        return torch.stack(sums, 1)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Of classes that are said as often as each other, whatever is true."""
        said = 1 / outputs[class_axis(self.name, outputs, labels.shape[1:], self.dim)]
        shares = self.frequencies(labels, weights)[list(self.classes_held)].numpy(force=True)
        both = shares * said
        return float(self.value(np.stack([both, shares + said - both], 1).reshape(-1)))


@dataclass(frozen=True)
class MeanIoU(_OfPairs):
    """Intersection over union of what is said and what is true, over all positions; the mean over the labels' classes.

    Args:
        ignore_index: targets that do not count.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> labels = torch.tensor([[0, 1, 1]])
        >>> metric = MeanIoU().prepared("f", labels)
        >>> outputs = torch.tensor([[[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]]])
        >>> metric.value(metric.of_rows(outputs, labels).numpy()).tolist()
        [0.5]
    """

    name: ClassVar[str] = "mean_iou"
    higher_is_better: ClassVar[bool] = True

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """The mean of both / either."""
        both, either = pooled[..., 0::2], pooled[..., 1::2]
        return (both / either).mean(-1)


@dataclass(frozen=True)
class F1(_OfPairs):
    """Harmonic mean of precision and recall, `2 both / (said + true)`; the mean over the labels' classes.

    Args:
        ignore_index: targets that do not count.
        dim: that counts classes, 1 or -1; None: as the shapes say.

    Example:
        >>> labels = torch.tensor([[0, 1, 1]])
        >>> metric = F1().prepared("f", labels)
        >>> outputs = torch.tensor([[[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]]])
        >>> metric.value(metric.of_rows(outputs, labels).numpy()).round(3).tolist()
        [0.667]
    """

    name: ClassVar[str] = "f1"
    higher_is_better: ClassVar[bool] = True

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """said + true = both + either."""
        both, either = pooled[..., 0::2], pooled[..., 1::2]
        return (2 * both / (both + either)).mean(-1)


@dataclass(frozen=True)
class AUROC(OfSums):
    """Area under the receiver's operating characteristic, of binned probabilities: how often a row of class 1 is ranked
    above one of class 0, ties half; its floor is 1/2.

    Outputs are one logit for each row, or scores of two classes.

    Args:
        bins: of the probability of class 1.

    Example:
        >>> metric = AUROC(bins=10)
        >>> sums = metric.of_rows(torch.tensor([[[2.0], [-1.0], [1.5]]]), torch.tensor([1, 0, 0]))
        >>> metric.value(sums.numpy()).tolist()
        [0.75]
    """

    bins: int = 1000
    name: ClassVar[str] = "auroc"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks it."""
        object.__setattr__(self, "bins", in_range("AUROC", "bins", self.bins, Range(2, 10**6, whole=True)))

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of each bin: rows of class 0 and of class 1."""
        return 2 * self.bins

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `OfSums`."""
        logits = outputs.reshape(*outputs.shape[:2], -1)
        logit = logits[..., 1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]
        place = (logit.sigmoid() * self.bins).nan_to_num(0.0).long().clamp(max=self.bins - 1)
        place = place + self.bins * (targets.reshape(-1) != 0)
        found = torch.zeros(len(outputs), self.width, dtype=torch.float64, device=outputs.device)
        each = torch.ones(len(targets), dtype=torch.float64, device=outputs.device)
        each = each if weights is None else stepped(weights.reshape(len(weights), -1).mean(-1))
        return found.scatter_add_(1, place, each.expand(place.shape))

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """Pairs in the right order, and half of those in one bin, of all pairs."""
        no, yes = pooled[..., : self.bins], pooled[..., self.bins :]
        below = np.cumsum(no, -1) - no
        return (yes * (below + no / 2)).sum(-1) / (no.sum(-1) * yes.sum(-1))

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """Yes and no."""
        super().check_data(op, inputs, labels)
        held = labels.unique().tolist()
        if not set(held) <= {0, 1}:
            raise ValueError(f"{op}: auroc needs labels of 0 and 1, got others in {shown(labels)}")

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """See `PerRow`: of both classes."""
        held = (labels if weights is None else labels[spread_over(weights, labels.shape) > 0]).unique().tolist()
        if len(held) < 2:
            raise ValueError(f"{op}: auroc needs labels of both classes, got {'none' if not held else held[0]} alone")
        return super().prepared(op, labels, weights)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """One logit, or two scores."""
        super().check_clean(op, scores, labels)
        if scores[0].numel() > 2 or labels.numel() != len(labels):
            raise ValueError(
                f"{op}: auroc needs one logit, or two scores, and a label for each row, got outputs "
                f"{list(scores.shape)} and labels {list(labels.shape)}"
            )

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Of ranks that say nothing."""
        return 0.5


@dataclass(frozen=True)
class ECE(_OfPositions):
    """Expected calibration error: how far confidence is from accuracy, in bins of it, weighted by positions.

    Args:
        ignore_index: targets that do not count.
        dim: that counts classes, 1 or -1; None: as the shapes say.
        bins: of the highest probability.

    Example:
        >>> metric = ECE()
        >>> sums = metric.of_rows(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]), torch.tensor([0, 0]))
        >>> metric.value(sums.numpy()).tolist()
        [0.5]
    """

    bins: int = 15
    name: ClassVar[str] = "ece"

    def __post_init__(self) -> None:
        """Checks it."""
        super().__post_init__()
        object.__setattr__(self, "bins", in_range("ECE", "bins", self.bins, Range(1, 10**6, whole=True)))

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of each bin: positions, their confidences, the right ones."""
        return 3 * self.bins

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `OfSums`."""
        scores, picked = self.classes(outputs, targets)
        there, each = self.each(targets, weights)
        sure, said = (t.flatten(1)[:, there] for t in scores.softmax(-1).max(-1))
        right = (said == picked.flatten(1)[:, there]).double()
        sure = stepped(sure)
        place = (sure * self.bins).nan_to_num(0.0).long().clamp(max=self.bins - 1)
        found = torch.zeros(len(outputs), 3, self.bins, dtype=torch.float64, device=outputs.device)
        for k, what in enumerate((torch.ones_like(sure), sure, right)):
            found[:, k].scatter_add_(1, place, what * each if weights is None else stepped(what * each))
        return found.flatten(1)

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """Of all bins."""
        count, sure, right = np.moveaxis(pooled.reshape(*pooled.shape[:-1], 3, self.bins), -2, 0)
        return np.abs(sure - right).sum(-1) / count.sum(-1)


def stepped(values: Tensor) -> Tensor:
    """The nearest whole multiples of `STEP`."""
    return (values.double() / STEP).round() * STEP


class Torchmetrics(OfSums):
    """A metric of torchmetrics whose states all reduce by "sum".

    Args:
        metric: as torchmetrics makes it; it is copied, and called with (outputs, targets).
        name: what a reader calls it; None: its class.
        higher_is_better: None: as the metric itself says.

    Raises:
        TypeError: it has no states, or some that reduce otherwise.
        ValueError: it does not say its direction.
    """

    def __init__(self, metric: Any, name: str | None = None, higher_is_better: bool | None = None) -> None:
        check_arguments(Torchmetrics.__init__, locals())
        states = getattr(metric, "_defaults", None)
        if not isinstance(states, dict) or not states or not hasattr(metric, "update"):
            raise TypeError(f"Torchmetrics: metric must be one of torchmetrics, with states, got {shown(metric)}")
        reductions = getattr(metric, "_reductions", {})
        wrong = [
            key for key, start in states.items()
            if not isinstance(start, Tensor) or "sum" not in getattr(reductions.get(key), "__name__", "")
        ]  # fmt: skip
        if wrong:
            raise TypeError(
                f"Torchmetrics: metric must have states that reduce by 'sum', got {type(metric).__name__} with "
                f"{', '.join(wrong)}: a function of the whole pass takes any, nk.metrics.WholePass(lambda y, t: ...)"
            )
        direction = getattr(metric, "higher_is_better", None) if higher_is_better is None else higher_is_better
        if direction is None:
            raise ValueError(
                f"Torchmetrics: {type(metric).__name__} does not say its direction: give higher_is_better=True or False"
            )
        self.metric = deepcopy(metric)
        if hasattr(metric, "cpu"):
            self.metric.cpu()
        self.name = type(metric).__name__ if name is None else name  # type: ignore[misc]
        self.higher_is_better = bool(direction)  # type: ignore[misc]
        self.sizes = {key: start.numel() for key, start in states.items()}
        self.width = sum(self.sizes.values())

    def __repr__(self) -> str:
        return f"Torchmetrics({self.metric!r}, {self.name!r})"

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """See `PerRow`: of labels, where they are classes, that are not all the same."""
        if not labels.is_floating_point():
            check_targets_differ(op, self.name, labels.flatten())
        return self

    def identity(self) -> str:
        """By its words, and the metric's parameters, which it may not print."""
        return f"{type(self.metric).__name__} {digest(of_parameters(self.metric))}"

    def totals(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `OfSums`."""
        found = []
        targets = targets.cpu()
        for output in outputs.cpu():
            self.metric.reset()
            self.metric.update(output, targets)
            found.append(torch.cat([getattr(self.metric, key).detach().double().flatten() for key in self.sizes]))
        self.metric.reset()
        return torch.stack(found).to(outputs.device)

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """What the metric computes from its states."""
        flat = np.asarray(pooled).reshape(-1, self.width)
        return np.array([self._computed(row) for row in flat]).reshape(np.asarray(pooled).shape[:-1])

    def _computed(self, sums: NDArray[np.float64]) -> float:
        if not np.isfinite(sums).all():
            return float("nan")
        self.metric.reset()
        parts = torch.from_numpy(np.asarray(sums, np.float64).copy()).split([*self.sizes.values()])
        for (key, _), part in zip(self.sizes.items(), parts, strict=True):
            start = self.metric._defaults[key]
            setattr(self.metric, key, part.reshape(start.shape).to(start.dtype))
        if hasattr(self.metric, "_update_count"):
            self.metric._update_count = 1
        found = self.metric.compute()
        self.metric.reset()
        return float(found)
