"""A model whose contractions are put on one hardware after another: how many predictions stay right."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._engine.plan import SILENT, choose_passes, pass_memory, pass_rows
from noisykernels._engine.session import Data, clean_correct, in_memory, scores_of
from noisykernels._engine.targets import has_weight
from noisykernels._util.checks import whole_size
from noisykernels._util.runtime import evaluating, place_of
from noisykernels.injection.api import inject, noise_state
from noisykernels.injection.state import state_of
from noisykernels.noise.arguments import seed_tensor

__all__ = ["FormatRuns", "r_squared"]


class FormatRuns:
    """A model whose contractions can be put on any hardware, for the length of a block.

    Args:
        model, data: as for `sweep_formats`.
        inputs: number of rows whose last layer is compared, or the inputs themselves.
        seed: of the choice of these rows, and of what the hardware draws.
        batch_rows: rows of a pass.
    """

    def __init__(self, op: str, model: nn.Module, data: Data, inputs: int | Tensor, seed: int, batch_rows: Any) -> None:
        self.op, self.given, self.seed = op, model, seed
        device = place_of(model)
        seed_tensor(op, seed, device)
        self.batch_rows = pass_rows(op, batch_rows, device)
        self.data = [part.to(device) for part in in_memory(op, data, None)]
        if isinstance(inputs, Tensor):
            size = list(self.data[0].shape[1:])
            if inputs.dim() == 0 or len(inputs) == 0 or list(inputs.shape[1:]) != size:
                raise ValueError(f"{op}: inputs must be rows of size {size}, got a tensor of size {list(inputs.shape)}")
            self.few, self.few_rows = inputs.to(device), torch.arange(len(inputs), device=device)
        else:
            count = min(whole_size(op, "inputs", inputs), len(self.data[1]))
            order = torch.randperm(len(self.data[1]), generator=torch.Generator().manual_seed(seed % 2**63))
            self.few_rows = order[:count].to(device)
            self.few = self.data[0][self.few_rows]
        self.evaluations = 0  # of hardware on all rows
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FormatRuns:
        with self._stack as stack:  # taken back if something fails
            stack.enter_context(evaluating(self.given))
            self.model = stack.enter_context(inject(self.given, None, example_input=self.data[0][:2]))
            stack.enter_context(torch.inference_mode())
            state = state_of(self.model)
            state.placement = SILENT
            if not any(has_weight(s) for s in state.traced):
                raise ValueError(f"{self.op}: the model has no linear layer or convolution, so no format to choose")
            memory = pass_memory(self.op, None, self.data[0].device)
            self.passes = choose_passes(state.traced, memory, self.batch_rows, 1)
            inputs, labels, _ = self.data
            correct, self.classes = clean_correct(self.op, self.model, inputs, labels, self.passes.rows)
            self.clean = float(correct.mean())
            if self.clean == 0:
                raise ValueError(f"{self.op}: the model gets no row of the data right")
            self.clean_scores = scores_of(self.op, self.model, self.few, len(self.few)).double().flatten()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def rows(self) -> int:
        """Rows of the data."""
        return len(self.data[1])

    def scores(self, hardware: Any, inputs: Tensor, rows: Tensor) -> Tensor:
        """Scores of some rows on hardware (for all contractions, or a dict from sites to lists)."""
        state = state_of(self.model)
        state.placement = replace(SILENT, hardware=hardware)
        try:
            with noise_state(self.model, seed=self.seed, rows=rows):
                return scores_of(self.op, self.model, inputs, len(inputs))
        finally:
            state.placement = SILENT

    def correct(self, hardware: Any) -> int:
        """Correct predictions on all rows; scores that hold NaN are none."""
        hits = 0
        for x, y, rows in zip(*(part.split(self.passes.rows) for part in self.data), strict=True):
            scores = self.scores(hardware, x, rows)
            hits += int(((scores.argmax(1) == y) & ~scores.isnan().any(1)).sum())
        self.evaluations += 1
        return hits

    def normalised(self, hardware: Any) -> float:
        """Accuracy as a share of that in float32."""
        return self.correct(hardware) / self.rows / self.clean

    def agreement(self, hardware: Any) -> float:
        """R^2 between the last layer's values of the few rows in float32 and on hardware; 0 if they are not finite."""
        return r_squared(self.clean_scores, self.scores(hardware, self.few, self.few_rows).double().flatten())


def r_squared(x: Tensor, y: Tensor) -> float:
    """Coefficient of determination of a linear fit, the square of the correlation; 0 without a finite spread.

    Example:
        >>> round(r_squared(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4, 5])), 4)
        0.9643
    """
    x, y = x - x.mean(), y - y.mean()
    size = float(x.norm() * y.norm())
    return float(x @ y / size) ** 2 if 0 < size < math.inf else 0.0
