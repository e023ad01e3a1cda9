"""What the inputs of a text model tell of its labels: whether they are the inputs themselves, and what is padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noisykernels._util.forms import mask_of
from noisykernels._util.inputs import Inputs
from noisykernels._util.warning import warn_user
from noisykernels.metrics.base import Metric
from noisykernels.metrics.classes import OfClasses
from noisykernels.metrics.rows import classes_last, spread_over, wide

__all__ = ["TextChecks"]


class TextChecks:
    """Checks of each batch without noise: labels that no shift has put beside what foretells them are refused, and
    padding that is measured is warned of.

    Args:
        op: for errors.
        metric: that measures.
    """

    def __init__(self, op: str, metric: Metric) -> None:
        self.op, self.metric = op, metric
        self.measure: Any = getattr(metric, "metric", metric)  # that which `Weighted` holds
        self.positions = self.padding = 0

    def see(self, inputs: Inputs, scores: Tensor, targets: Tensor) -> None:
        """Takes the next rows.

        Raises:
            ValueError: labels that are the inputs, of a model that foretells what follows.
        """
        if isinstance(self.measure, OfClasses):
            self._check_shifted(inputs, scores, targets)
        if (mask := mask_of(inputs)) is None or scores.shape[1:2] != mask.shape[1:]:
            return
        if self.metric.against_clean:
            counts = mask.new_ones(mask.shape, dtype=torch.bool)
        elif hasattr(self.measure, "ignore_index") and targets.shape == mask.shape:
            counts = targets != self.measure.ignore_index
        else:
            return
        if inputs.weights is not None:
            counts = counts & (spread_over(inputs.weights, mask.shape) > 0)
        self.positions += int(counts.sum())
        self.padding += int((counts & (mask == 0)).sum())

    def close(self) -> None:
        """Warns of padding, if any was measured."""
        if self.padding:
            warn_user(
                f"{self.op}: {self.padding:,} of {self.positions:,} positions that {self.metric.name} measures are "
                "padding by the attention mask: labels of -100 leave them out, or "
                "metric=nk.metrics.Weighted(..., 'attention_mask')"
            )

    def _check_shifted(self, inputs: Inputs, scores: Tensor, targets: Tensor) -> None:
        """Labels that are the tokens the model was given, where it tells the ones after them better."""
        table = dict(zip(inputs.names, inputs.tensors, strict=False))
        read = [table["decoder_input_ids"]] if "decoder_input_ids" in table else inputs.tensors
        ignored = targets == self.measure.ignore_index
        if targets.dim() != 2 or targets.shape[1] < 2 or bool(ignored.all()):
            return
        same = (t.shape == targets.shape and not t.is_floating_point() and bool(((t == targets) | ignored).all())
                for t in read)  # fmt: skip
        if not any(same):
            return
        outputs = wide(classes_last(scores.unsqueeze(0), targets, self.measure.dim)[0])
        losses = [_nll(o, t, self.measure.ignore_index) for o, t in
                  ((outputs[:, :-1], targets[:, :-1]), (outputs[:, :-1], targets[:, 1:]))]  # fmt: skip
        if losses[1] <= losses[0]:
            raise ValueError(
                f"{self.op}: labels must be the tokens that follow, each at the place of the one before it, got the "
                "inputs themselves, of which the model foretells the next better: write "
                "labels = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=-100), or nk.tokens(...)"
            )


def _nll(outputs: Tensor, targets: Tensor, ignored: int) -> float:
    """Cross-entropy of outputs [rows, positions, classes]."""
    return float(F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long(), ignore_index=ignored))
