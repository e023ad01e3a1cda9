"""Which predictions are right: the class with the highest score is the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.data import check_labels
from noisykernels.metrics.chance import Seen, check_told_apart, warn_of_one_class
from noisykernels.metrics.law import BINARY, NAN, Binary

__all__ = ["ACCURACY", "Accuracy"]


class Accuracy:
    """The share of rows whose label has the highest score.

    Example:
        >>> accuracy = Accuracy()
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [float("nan"), 1.0]])
        >>> labels = torch.tensor([1, 1, 1])
        >>> accuracy.of_rows(scores, labels).tolist(), accuracy.floor((10,), labels)
        ([1, 0, -1], 0.1)
    """

    name = "accuracy"
    unit = "fraction of rows"
    higher_is_better = True
    by_argmax = True
    against_clean = False
    law: Binary = BINARY
    dtype = torch.int8

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def identity(self) -> str:
        """Stores need not name it."""
        return ""

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """One whole number for each row."""
        whole = not labels.is_floating_point() and not labels.is_complex()
        if labels.dim() != 1 or not whole or inputs.dim() == 0 or not len(inputs) == len(labels) > 0:
            other = "'mse' is of numbers" if labels.is_floating_point() else "'token_accuracy' of positions"
            raise ValueError(
                f"{op}: data must be inputs (rows, ...) and whole-number labels (rows), not empty, "
                f"got {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
                + (f"; metric={other}{_meant(labels)}" if labels.is_floating_point() or labels.dim() > 1 else "")
            )

    def check_scores(self, op: str, scores: object, rows: int) -> Tensor:
        """A score for each row and class."""
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != rows:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"{op}: the model must give scores of shape [{rows}, classes], got {got}")
        return scores

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """No NaN without noise, and labels that are classes."""
        if bool(scores.isnan().any()):
            raise ValueError(f"{op}: the model gives NaN without noise")
        check_told_apart(op, self.name, scores.shape[-1])
        check_labels(op, scores, labels)

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """1 where the label has the highest score, 0 where not, `NAN` where the scores hold one: int8 [..., rows]."""
        found = (scores.argmax(-1) == labels).to(torch.int8)
        return found.masked_fill_(scores.isnan().any(-1), NAN)

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """The share itself."""
        return pooled

    def number(self, value: float) -> float:
        """The share itself."""
        return value

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> Accuracy:
        """As it is: labels may be what the model itself says, of one class, which a warning tells."""
        if not self.against_clean:
            warn_of_one_class(op, self.name, labels if weights is None else labels[weights > 0])
        return self

    def after(self, op: str, clean: Seen) -> Accuracy:
        """As it is."""
        return self

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float:
        """Chance: 1 / classes."""
        return 1 / outputs[-1]


def _meant(labels: Tensor) -> str:
    """What may be written for labels that are numbers of classes in another form."""
    if labels.is_complex() or labels.dim() > 2 or labels.numel() == 0:
        return ""
    if labels.dim() == 2 and labels.shape[1] > 1:
        one_hot = bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all())
        return ", classes are labels.argmax(1)" if one_hot else ""
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        return ""
    flat = ".flatten()" if labels.dim() == 2 else ""
    return f", classes are labels{flat}{'.long()' if labels.is_floating_point() else ''}"


ACCURACY = Accuracy()
