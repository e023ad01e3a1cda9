"""What a measure of predictions has to say of itself: `Metric`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from noisykernels.metrics.law import Law

__all__ = ["Metric"]


class Metric(Protocol):
    """A measure: one number for each row, from the model's outputs and the labels.

    Studies hand outputs and labels over as they come, and take the numbers to statistics by their law: the walk, its
    engines and its stores do not know what is measured. They take metrics whose law is binary and of which higher is
    better; others raise ValueError.
    """

    @property
    def name(self) -> str:
        """What a reader calls it: on axes and in tables."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""

    @property
    def by_argmax(self) -> bool:
        """Whether the order of a row's scores alone decides: only then can a cell be proved."""

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
        """Refuses scores without noise, or labels, that make no sense together: ValueError."""

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The number of each row [..., rows], from scores [..., rows, outputs] and labels [rows]."""

    def floor(self, outputs: int) -> float | None:
        """Its value under unbounded noise, of a model with so many outputs; None: the caller must say it."""
