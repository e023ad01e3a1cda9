"""Weights of rows and positions that come with the data: any measure of rows or sums, each as often as its weight says.

A study's value is `sum w x / sum w` over all rows and positions, x the measure's own numbers; of sums over rows (mean
IoU, AUROC) each row or position counts w times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.checks import shown
from noisykernels.metrics.base import Metric
from noisykernels.metrics.chance import Seen
from noisykernels.metrics.law import ALL, NAN, Bounded, Law
from noisykernels.metrics.names import MetricLike, named
from noisykernels.metrics.rows import PerRow, spread_over
from noisykernels.metrics.sums import OfSums, Torchmetrics

__all__ = ["Weighed", "Weighted", "joined_targets", "weighed"]


@dataclass(frozen=True)
class Weighed:
    """Targets of some rows with their weights, cut as a tensor of targets is.

    Args:
        targets: [rows, ...].
        weights: [rows], or [rows, *positions].

    Example:
        >>> both = Weighed(torch.tensor([3, 1, 2]), torch.tensor([1.0, 0.0, 2.0]))
        >>> len(both), both[1:].weights.tolist()
        (3, [0.0, 2.0])
    """

    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Any) -> Weighed:
        return Weighed(self.targets[rows], self.weights[rows])


def weighed(targets: Any, weights: Tensor | None) -> Any:
    """Targets with their weights, where they have some."""
    return targets if weights is None else Weighed(targets, weights)


def joined_targets(parts: Sequence[Any]) -> Any:
    """The targets of batches, one after the other."""
    if isinstance(parts[0], Tensor):
        return torch.cat([*parts])
    return Weighed(torch.cat([part.targets for part in parts]), torch.cat([part.weights for part in parts]))


class Weighted(PerRow):
    """A measure with weights that the data bring: `sum w x / sum w` over rows and positions.

    Args:
        metric: of rows or of sums over them, by name or object; not of a whole pass, nor of torchmetrics.
        weights: their key in data by name (a dict, a named tuple, a table): `"attention_mask"`, say, which the model is
            given as well if its forward has an argument of that name. In tuples (inputs, targets, weights) they are the
            third member.

    Raises:
        TypeError: what is no measure, or no key.
        ValueError: a measure that knows no weights.

    Example:
        >>> metric = Weighted("accuracy")
        >>> rows = Weighed(torch.tensor([1, 1, 0]), torch.tensor([2.0, 1.0, 1.0]))
        >>> metric = metric.prepared("f", rows)
        >>> numbers = metric.of_rows(torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.2, 0.8]]]), rows)
        >>> metric.name, float(numbers.mean())
        ('weighted accuracy', 0.5)
    """

    of_all: ClassVar[bool] = True

    def __init__(self, metric: MetricLike, weights: str = "weights") -> None:
        inner: Any = named("Weighted", metric)
        if not isinstance(weights, str) or not weights:
            raise TypeError(f"Weighted: weights must be their key in the data, got {shown(weights)}")
        if not hasattr(inner, "check_data"):
            raise ValueError(
                "Weighted: metric must say its direction, write nk.metrics.ByRow(function, higher_is_better=...)"
            )
        of_pass = inner.law.block == ALL or isinstance(inner, Torchmetrics | Weighted)
        if of_pass or not (inner.law.name == "binary" or isinstance(inner, PerRow)):
            raise ValueError(f"Weighted: metric must be of rows, or of sums over them, got {inner!r}")
        self._set(inner, weights)

    def _set(self, inner: Any, key: str) -> None:
        self.metric: Metric = inner
        self.key = key
        self.name = f"weighted {inner.name}"  # type: ignore[misc]
        self.unit = {"fraction of rows": "fraction of weights"}.get(inner.unit, inner.unit)  # type: ignore[misc]
        self.higher_is_better = inner.higher_is_better  # type: ignore[misc]
        self.against_clean = inner.against_clean
        self.sums = inner.law.block > 1
        self.dtype = torch.float64 if self.sums else torch.float32  # type: ignore[misc]
        binary = inner.law.name == "binary"
        self.bounds = Bounded(0.0, 1.0, worst=0.0) if binary else getattr(inner, "bounds", None)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Weighted({self.metric!r}, {self.key!r})"

    def identity(self) -> str:
        """By which stores and studies tell it from others."""
        return f"{self.metric.identity() or repr(self.metric)} weighted by {self.key!r}"

    @property
    def law(self) -> Law:
        """Of sums that of the measure itself; else numbers in parts of the mean weight."""
        return self.metric.law if self.sums else super().law

    # ------------------------------------------------------------------------------------- what is measured

    def of_rows(self, scores: Tensor, labels: Any) -> Tensor:
        """Of each row [copies, rows], or of sums those of all these rows [copies, width]."""
        if isinstance(self.metric, OfSums):
            return self.metric.of_weighted(scores, labels.targets, labels.weights.double() / (self.scale or 1.0))
        return super().of_rows(scores, labels)

    def parts(self, outputs: Tensor, targets: Any) -> Tensor:
        """See `PerRow`."""
        if self.metric.law.name != "binary":
            return self.metric.parts(outputs, targets.targets)  # type: ignore[attr-defined, no-any-return]
        found = self.metric.of_rows(outputs, targets.targets)
        return found.to(torch.float32).masked_fill_(found == NAN, torch.nan)

    def weights(self, targets: Any) -> Tensor | None:
        """Those of the data, and of the measure's own."""
        given: Tensor = targets.weights
        own = self.metric.weights(targets.targets) if isinstance(self.metric, PerRow) else None
        if own is None:
            return given
        shape = max(own.shape, given.shape, key=len)
        return spread_over(own, shape) * spread_over(given, shape)

    @property
    def divisor(self) -> float:
        """See `PerRow`: with that of the measure, whose own weights are in these."""
        own = self.metric.divisor / (self.metric.scale or 1.0) if isinstance(self.metric, PerRow) else 1.0
        return own * super().divisor

    def positions(self, outputs: Sequence[int], labels: Tensor) -> int:
        """As the measure says."""
        return self.metric.positions(outputs, labels) if isinstance(self.metric, PerRow) else 1

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """As the measure tells it."""
        return self.metric.value(pooled)

    def number(self, value: float) -> float:
        """As the measure has it."""
        return self.metric.number(value)

    # ------------------------------------------------------------------------------------- what is checked

    def check_data(self, op: str, inputs: Tensor, labels: Any) -> None:
        """Data that the measure takes, and weights."""
        targets = inputs if self.against_clean else labels.targets  # which are not known before
        if not self.against_clean:
            self.metric.check_data(op, inputs, targets)
        weights = labels.weights
        if weights.is_complex() or weights.dim() == 0 or len(weights) != len(targets):
            raise ValueError(
                f"{op}: weights must be real numbers, one for each row or position, got {shown(weights)} beside "
                f"{shown(targets)}"
            )
        if not self.against_clean:
            self._check_places(op, weights, targets)
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError(f"{op}: weights must be finite and not negative, got {shown(weights)}")

    def check_scores(self, op: str, scores: object, rows: int) -> Tensor:
        """As the measure says."""
        return self.metric.check_scores(op, scores, rows)

    def check_clean(self, op: str, scores: Tensor, labels: Any) -> None:
        """Outputs and targets that go together, and weights with them; those of no weight may hold anything."""
        self.metric.check_clean(op, scores, labels.targets)
        if not self.sums:
            self._check_places(op, labels.weights, self.parts(scores[:1].unsqueeze(0).float(), labels[:1])[0])

    def _check_places(self, op: str, weights: Tensor, numbers: Tensor) -> None:
        """Weights of the rows of numbers [rows, *positions], or of the first of their positions' dimensions."""
        if [*weights.shape[1:]] != [*numbers.shape[1 : weights.dim()]]:
            wanted = [", ".join(["rows", *map(str, numbers.shape[1:n])]) for n in range(1, numbers.dim() + 1)]
            raise ValueError(
                f"{op}: weights of {self.metric.name} must be [{'] or ['.join(wanted)}], got {list(weights.shape)}"
            )

    def prepared(self, op: str, labels: Any, weights: Tensor | None = None) -> PerRow:
        """With the mean weight of the rows of a study."""
        found = Weighted.__new__(Weighted)
        found._set(self.metric.prepared(op, labels.targets, labels.weights), self.key)
        own = found.weights(labels) if not self.against_clean else labels.weights
        assert own is not None
        return found.in_parts_of(op, own)

    def after(self, op: str, clean: Seen) -> PerRow:
        """See `PerRow`."""
        found = Weighted.__new__(Weighted)
        found._set(self.metric.after(op, clean), self.key)
        found.scale, found.most = self.scale, self.most
        return found

    def floor(self, outputs: Sequence[int], labels: Any, weights: Tensor | None = None) -> float | None:
        """That of the measure, of targets as often as their weights say."""
        return self.metric.floor(outputs, labels.targets, labels.weights)
