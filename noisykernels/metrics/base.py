"""What a measure of predictions has to say of itself: `Metric`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels.metrics.chance import Seen
from noisykernels.metrics.law import Law

__all__ = ["Metric", "is_share", "measure_of"]


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
        """The number of each row [copies, rows], or of a law of sums those of all these rows [copies, width], from
        outputs [copies, rows, ...] and targets [rows, ...]."""

    def value(self, pooled: NDArray[np.float64]) -> Any:
        """What is told, from what the law has pooled over rows: [...], of sums from [..., width]."""

    def number(self, value: float) -> float:
        """The pooled number at which so much is told, of measures of rows: the counterpart of `value`."""

    def prepared(self, op: str, labels: Tensor, weights: Tensor | None = None) -> Metric:
        """This measure for the rows of a study, whose targets these are: ValueError, if a model that knows nothing of
        the input does as well. Weights: of the rows [rows], or of their positions [rows, ...], see `Weighted`."""

    def after(self, op: str, clean: Seen) -> Metric:
        """Of what is held against the outputs without noise: this measure, once those of all rows are known."""

    def floor(self, outputs: Sequence[int], labels: Tensor, weights: Tensor | None = None) -> float | None:
        """Its value for a model that knows nothing of the input.

        Args:
            outputs: shape of a row's outputs.
            labels: of all rows; of nothing where targets are the outputs without noise.
            weights: as for `prepared`.

        Returns:
            The value; None: it has none, and a question must do without.
        """


def is_share(metric: Metric) -> bool:
    """Whether it is a share of rows that are right: of which counts are kept, as of the accuracy."""
    return metric.law.name == "binary" and metric.higher_is_better


def measure_of(metric: Metric) -> dict[str, Any]:
    """What statistics and readers need of a measure that is no share of rows, as JSON can hold it."""
    law = {"binary": "bounded", "sums": "real"}.get(metric.law.name, metric.law.name)
    worst = metric.law.worst
    ends = {} if worst is None else {"worst": float(metric.value(np.array(worst)))}
    return {"law": law, "unit": metric.unit, "higher_is_better": metric.higher_is_better} | ends
