"""What a measure of predictions has to say of itself: `Metric`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels.metrics.law import Law

__all__ = ["Metric"]


class Metric(Protocol):
    """A measure: one number for each row, or sums over rows, from the model's outputs and the targets.

    Studies hand outputs and targets over as they come, and take the numbers to statistics by their law: the walk, its
    engines and its stores do not know what is measured.
    """

    @property
    def name(self) -> str:
        """What a reader calls it: on axes and in tables."""

    @property
    def unit(self) -> str:
        """Of its value, for axes."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""

    @property
    def by_argmax(self) -> bool:
        """Whether the order of a row's scores alone decides: only then can a cell be proved."""

    @property
    def against_clean(self) -> bool:
        """Whether the targets are the outputs without noise: labels are not needed then."""

    @property
    def law(self) -> Law:
        """How the numbers of rows are kept and counted."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of what `of_rows` gives."""

    def identity(self) -> str:
        """By which stores and studies tell it from others; empty: that of `Accuracy`, which they need not name."""

    def check_data(self, op: str, inputs: Tensor, labels: Tensor) -> None:
        """Refuses data that cannot be measured: ValueError."""

    def check_scores(self, op: str, scores: object, rows: int) -> Tensor:
        """What a model gave for so many rows, if it can be measured: ValueError."""

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        """Refuses outputs without noise, or targets, that make no sense together: ValueError."""

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The number of each row [copies, rows], or its sums [copies, rows, width], from outputs [copies, rows, ...]
        and targets [rows, ...]."""

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """What is told, from what the law has pooled over rows: [...], of sums from [..., width]."""

    def floor(self, outputs: int, labels: Tensor) -> float | None:
        """Its value for a model that knows nothing of the input and gives so many outputs; None: it has none."""
