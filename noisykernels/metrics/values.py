"""Measures of numbers: how far outputs are from their targets, be these labels or the outputs without noise."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from noisykernels._util.checks import flag, one_of, shown
from noisykernels.metrics.chance import Seen, check_targets_differ
from noisykernels.metrics.law import Bounded
from noisykernels.metrics.rows import PerRow, spread_over

__all__ = ["MSE", "Cosine", "RelativeMSE"]


class _OfValues(PerRow):
    """A measure of outputs against targets of their own shape."""

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """Numbers that are real."""
        super().check_data(op, inputs, labels)
        if labels.is_complex():
            raise ValueError(f"{op}: {self.name} needs real targets, got {shown(labels)}")

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """A target for each output."""
        super().check_clean(op, scores, labels)
        if _alike(scores.shape[1:]) != _alike(labels.shape[1:]):
            raise ValueError(
                f"{op}: {self.name} needs targets of the outputs' shape, got targets {list(labels.shape)} and outputs "
                f"{list(scores.shape)}"
            )

    def together(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets [1, rows, ...] in the shape and type of the outputs."""
        return targets.reshape(len(targets), *outputs.shape[2:]).to(outputs.dtype).unsqueeze(0)


def _alike(shape: Sequence[int]) -> list[int]:
    """A row's shape; one number is one, be it in a dimension of its own."""
    return [] if [*shape] == [1] else [*shape]


@dataclass(frozen=True)
class _OfEither(_OfValues):
    """Against labels or the outputs without noise.

    Args:
        against: ``"labels"``, or the outputs without noise, ``"clean"``: no labels are needed then.
    """

    against: Literal["labels", "clean"] = "labels"

    def __post_init__(self) -> None:
        """Checks it."""
        one_of(type(self).__name__, "against", self.against, ("labels", "clean"))

    @property
    def against_clean(self) -> bool:  # type: ignore[override]
        """Whether the targets are the outputs without noise."""
        return self.against == "clean"


@dataclass(frozen=True)
class MSE(_OfEither):
    """Mean squared distance of outputs from their targets; its floor is the targets' variance.

    Args:
        against: ``"labels"``, or the outputs without noise, ``"clean"``, which has no floor.

    Example:
        >>> import torch
        >>> MSE().of_rows(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[1.0, 1.0]])).tolist()
        [[2.0]]
    """

    name: ClassVar[str] = "mse"

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        return (outputs - self.together(outputs, targets)).square()

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """The variance of the targets, of each element over the rows."""
        return None if self.against_clean else _variance(labels, weights)


@dataclass(frozen=True)
class RelativeMSE(_OfEither):
    """Mean squared distance of outputs from their targets, in parts of the targets' variance: 1 - R^2; its floor is 1.

    Args:
        against: ``"labels"``, or the outputs without noise, ``"clean"``: the power of what noise adds in parts of the
            signal's.
        decibels: tell ``10 log10`` of it; the floor is then 0 dB. Not against the outputs without noise, of which the
            clean value would be -inf.

    Example:
        >>> import torch
        >>> targets = torch.tensor([[0.0], [2.0]])
        >>> metric = RelativeMSE().prepared("f", targets)
        >>> metric.of_rows(torch.tensor([[[1.0], [2.0]]]), targets).tolist()
        [[1.0, 0.0]]
        >>> metric.value(np.array([0.5])).tolist()
        [0.5]
    """

    name: ClassVar[str] = "relative_mse"
    decibels: bool = False
    variance: ClassVar[float] = 1.0
    in_value: ClassVar[tuple[str, ...]] = (*PerRow.in_value, "variance")

    def __post_init__(self) -> None:
        """Checks both."""
        super().__post_init__()
        if flag("RelativeMSE", "decibels", self.decibels) and self.against_clean:
            raise ValueError("RelativeMSE: decibels need targets: against='clean' is 0 without noise, which is -inf dB")

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What it is told in."""
        return "dB" if self.decibels else "parts of the targets' variance"

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """With the variance of the targets."""
        if self.against_clean:
            return self
        check_targets_differ(op, self.name, labels if weights is None else labels[weights > 0], "targets")
        return self._of_variance(op, _variance(labels, weights))

    def after(self, op: str, clean: Seen) -> PerRow:
        """With the variance of the outputs without noise."""
        super().after(op, clean)
        return self._of_variance(op, clean.variance)

    def _of_variance(self, op: str, variance: float) -> PerRow:
        if not 0 < variance < np.inf:
            raise ValueError(f"{op}: {self.name} needs targets of a finite variance above 0, got {variance:g}")
        found = copy(self)
        object.__setattr__(found, "variance", variance)
        return found

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`: the variance comes in with `value`, as it may be known only then."""
        return (outputs - self.together(outputs, targets)).square()

    @property
    def divisor(self) -> float:
        """See `PerRow`: and the variance."""
        return super().divisor * self.variance

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """The ratio, or its decibels."""
        ratio = pooled / self.variance
        if not self.decibels:
            return ratio
        with np.errstate(divide="ignore"):
            return 10 * np.log10(ratio)

    def number(self, value: float) -> float:
        """The mean squared distance."""
        return self.variance * (float(10 ** (value / 10)) if self.decibels else value)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """That of the targets' mean."""
        return 0.0 if self.decibels else 1.0


@dataclass(frozen=True)
class Cosine(_OfEither):
    """Cosine of the angle between a row's output and its target, over the last dimension; its floor is 0.

    Args:
        against: ``"labels"``, or the outputs without noise, ``"clean"``.

    Example:
        >>> import torch
        >>> Cosine().of_rows(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0.7071]])
    """

    name: ClassVar[str] = "cosine"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[Bounded] = Bounded(-1.0, 1.0, worst=-1.0)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        together = self.together(outputs, targets).expand_as(outputs)
        return cosine_similarity(outputs, together, dim=-1).clamp(-1, 1)

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """Vectors."""
        super().check_clean(op, scores, labels)
        if scores.dim() < 2 or scores.shape[-1] < 2:
            raise ValueError(f"{op}: cosine of a single output is its sign alone: write metric='mse'")
        if self.against_clean and (none := int((scores == 0).all(-1).sum())):
            raise ValueError(f"{op}: cosine needs outputs that point somewhere, got {none} of zeros without noise")

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """See `PerRow`: of targets that point somewhere, and not all the same way."""
        if not self.against_clean:
            there = labels if weights is None else labels[weights > 0]
            vectors = there.reshape(-1, there.shape[-1] if there.dim() > 1 else 1)
            if none := int((vectors == 0).all(-1).sum()):
                raise ValueError(
                    f"{op}: cosine needs targets that point somewhere, got {none} of zeros: leave them out, or give "
                    "them no weight (nk.metrics.Weighted)"
                )
            unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
            check_targets_differ(op, self.name, (unit @ unit[0] * 1e9).round(), "directions")
        return super().prepared(op, labels, weights)

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Of a vector that knows nothing of the target."""
        return 0.0


def _variance(targets: Tensor, weights: Tensor | None = None) -> float:
    """Of each element of targets over the rows, on average over elements."""
    flat = targets.double().reshape(len(targets), -1)
    if weights is None:
        return float(flat.var(0, correction=0).mean())
    each = spread_over(weights, targets.shape).double().reshape(flat.shape)
    there = each.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    mean = (each * flat).sum(0) / there
    return float((each * (flat - mean).square()).sum() / each.sum())
