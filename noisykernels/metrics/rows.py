"""What measures of single rows share: positions within a row, their weights, and large outputs judged in slices."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.checks import shown
from noisykernels.metrics.chance import Seen
from noisykernels.metrics.identity import of_parameters
from noisykernels.metrics.law import Bounded, Law, Real

__all__ = ["PerRow", "class_axis", "classes_last", "spread_over", "wide"]

OWN = __name__.rpartition(".")[0]
SLICE = 1 << 22  # values of outputs that are judged at once: what a measure computes of them takes some times as much


class PerRow:
    """A measure of one number for each row: the mean over the row's positions, which may have weights.

    Over all rows it is the weighted mean of positions, too: a row counts with its own weights' share. Subclasses give
    `parts`, and `weights` where not all positions count alike.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    by_argmax: ClassVar[bool] = False
    bounds: ClassVar[Bounded | None] = None  # of a position's number
    dtype: ClassVar[torch.dtype] = torch.float32
    against_clean: bool = False
    of_all: ClassVar[bool] = False  # the numbers of rows are known only with the targets of all of them
    in_value: ClassVar[tuple[str, ...]] = ("scale", "most")  # what `prepared` sets that need not change these
    scale: float | None = None  # mean of the rows' weights, known once there are data
    most: float = 1.0  # of a row's weights, in parts of that

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def law(self) -> Law:
        """How the numbers of rows are kept and counted."""
        if self.bounds is None:
            return Real()
        worst = self.bounds.worst  # the same for all rows: numbers are counted from there, see `_numbers`
        low, high = (worst + self.most * (v - worst) for v in (self.bounds.low, self.bounds.high))
        return Bounded(low, high, worst)

    def identity(self) -> str:
        """By which stores and studies tell it from others: its words, and of a class of a user's own its parameters."""
        if type(self).__module__.startswith(OWN):
            return repr(self)
        return f"{self!r} {of_parameters(self, without=('scale', 'most'))}"

    # ------------------------------------------------------------------------------------- what is measured

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The number of each position [copies, rows, *positions], from outputs [copies, rows, ...] of at least single
        precision and targets [rows, ...]."""
        raise NotImplementedError

    def weights(self, targets: Tensor) -> Tensor | None:
        """Of the positions [rows, *positions], or the first dimensions of these; None: all count alike."""
        return None

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The number of each row [copies, rows], from outputs [copies, rows, ...] and targets [rows, ...]."""
        if scores.numel() <= SLICE:
            return self._numbers(scores, labels)
        copies, rows = scores.shape[:2]
        found = scores.new_empty((copies, rows), dtype=self.dtype)
        step = max(1, SLICE * copies * rows // scores.numel())
        for copy_ in range(copies):
            for low in range(0, rows, step):
                some = slice(low, low + step)
                found[copy_, some] = self._numbers(scores[copy_ : copy_ + 1, some], labels[some])[0]
        return found

    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        parts, weights = self.parts(wide(scores), labels), self.weights(labels)
        if weights is None:
            return (parts.flatten(2).mean(-1) if parts.dim() > 2 else parts).to(self.dtype)
        if parts.dim() > weights.dim() + 1:
            parts = parts.flatten(weights.dim() + 1).mean(-1)
        weights = weights.to(parts.dtype)
        origin = 0.0 if self.bounds is None else self.bounds.worst  # a row without a number counts so, however heavy
        counted = torch.where(weights == 0, 0.0, (parts - origin) * weights).reshape(*parts.shape[:2], -1).sum(-1)
        whole = weights.reshape(len(weights), -1).sum(-1) if self.scale is None else self.scale
        return (counted / whole + origin).to(self.dtype)

    def shares(self, targets: Tensor) -> Tensor | None:
        """Of the rows in all weights, in parts of their mean [rows]; None: all count alike."""
        if self.scale is None or (weights := self.weights(targets)) is None:
            return None
        return weights.reshape(len(weights), -1).double().sum(-1) / self.scale

    @property
    def divisor(self) -> float:
        """What the sum over positions of a row is divided by, once there are data, but for what is in its parts."""
        return 1.0 if self.scale is None else self.scale

    def positions(self, outputs: Sequence[int], labels: Tensor) -> int:
        """How many places with classes a row's number is the mean of, from the shape of a row's outputs and targets."""
        return 1

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """What is told of the mean over rows."""
        return pooled

    def number(self, value: float) -> float:
        """The mean over rows at which so much is told."""
        return value

    # ------------------------------------------------------------------------------------- what is checked

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> PerRow:
        """This measure for the rows of a study, whose targets these are. Weights: of rows or positions, see
        `Weighted`, which go with them but are no part of this measure's numbers."""
        own = None if self.against_clean else self.weights(labels)
        return self if own is None else self.in_parts_of(op, own)

    def in_parts_of(self, op: str, weights: Tensor) -> PerRow:
        """This measure with numbers of rows in parts of the mean weight of these, of all rows."""
        sums = weights.reshape(len(weights), -1).double().sum(-1)
        if not float(sums.sum()) > 0:
            raise ValueError(f"{op}: {self.name} needs at least one target that counts, got none")
        found = copy(self)
        object.__setattr__(found, "scale", float(sums.mean()))
        object.__setattr__(found, "most", float(sums.max() / sums.mean()))
        return found

    def counts_as(self, before: Any) -> bool:
        """Whether this measure, prepared, gives rows the numbers that it gave before: as it does where all rows have
        the same weight, a whole number, which rounds nowhere."""
        own, had = ({k: v for k, v in vars(one).items() if k not in self.in_value} for one in (self, before))
        even = self.scale is None or (self.scale == round(self.scale) and self.most == 1.0)
        return type(self) is type(before) and own == had and even

    def after(self, op: str, clean: Seen) -> PerRow:
        """Of what is held against the outputs without noise: this measure, once those of all rows are known."""
        clean.check_differ(op, self.name)
        return self

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """As many targets as rows."""
        if inputs.dim() == 0 or labels.dim() == 0 or not len(inputs) == len(labels) > 0:
            raise ValueError(
                f"{op}: data must be inputs (rows, ...) and targets (rows, ...), not empty, "
                f"got {shown(inputs)} and {shown(labels)}"
            )
        if labels.is_floating_point() and not bool(labels.isfinite().all()):
            raise ValueError(f"{op}: targets must be finite, got NaN or infinity in {shown(labels)}")

    def check_scores(self, op: str, scores: object, rows: int) -> Tensor:
        """Numbers for each row."""
        if not isinstance(scores, Tensor) or scores.dim() == 0 or scores.shape[0] != rows:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"{op}: the model must give a tensor of shape [{rows}, ...], got {got}")
        if not scores.is_floating_point():
            raise ValueError(f"{op}: {self.name} needs floating-point outputs, got {scores.dtype}")
        return scores

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """No NaN without noise."""
        if bool(scores.isnan().any()):
            raise ValueError(f"{op}: the model gives NaN without noise")

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Its value for a model that knows nothing of the input; None: it has none."""
        return None


def spread_over(weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Weights of rows, or of the first of their positions' dimensions, as those of all positions [rows, *positions]."""
    return weights.reshape(weights.shape + (1,) * (len(shape) - weights.dim())).expand(*shape)


def wide(outputs: Tensor) -> Tensor:
    """In at least single precision."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def class_axis(op: str, outputs: Sequence[int], positions: Sequence[int], dim: int | None) -> int:
    """Which dimension of a row's outputs counts classes, the first (0) or the last (-1), where its targets are so many.

    Args:
        op: for errors.
        outputs: shape of a row's outputs.
        positions: shape of a row's targets.
        dim: as the user says it, rows included: 1 or -1; None: as the shapes say.

    Raises:
        ValueError: the shapes do not go together, or go together in either way.
    """
    last, first = [*outputs[:-1]] == [*positions], [*outputs[1:]] == [*positions]
    fits = {-1: bool(outputs) and last, 0: bool(outputs) and first}
    if dim is not None:
        fits = {axis: there and (axis == (-1 if dim == -1 else 0) or len(outputs) == 1) for axis, there in fits.items()}
    if not any(fits.values()):
        where = {None: "first or last", -1: "last", 1: "first"}[dim]
        wanted = f"[rows, {', '.join([*map(str, positions), 'classes'])}]"
        raise ValueError(
            f"{op}: outputs must be of the targets' shape with a dimension of classes, {where} of a row's, such as "
            f"{wanted}, got [rows, {', '.join(map(str, outputs))}]"
        )
    if fits[-1] and fits[0] and len(outputs) > 1:
        raise ValueError(
            f"{op}: outputs [rows, {', '.join(map(str, outputs))}] may have their classes in the first or in the last "
            "dimension of a row's: say dim=1 or dim=-1 of the metric"
        )
    return -1 if fits[-1] else 0


def classes_last(outputs: Tensor, targets: Tensor, dim: int | None) -> Tensor:
    """Outputs [copies, rows, ...] with their classes in the last dimension."""
    return outputs.movedim(2, -1) if class_axis("metric", outputs.shape[2:], targets.shape[1:], dim) == 0 else outputs
