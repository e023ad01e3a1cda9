"""A model whose contractions are put on one hardware after another: how much stays of what is measured."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.targets import has_weight
from noisykernels._util.checks import in_range
from noisykernels._util.inputs import Inputs
from noisykernels.arithmetic.serial import Serial
from noisykernels.injection.placement import SILENT
from noisykernels.injection.site import exactly
from noisykernels.metrics.base import is_share

__all__ = ["FormatRuns", "r_squared"]


class FormatRuns:
    """A model whose contractions can be put on any hardware, for the length of a block.

    Args:
        problem: the model and its data; the seed is also that of the choice of rows, and of what the hardware draws.
        inputs: number of rows whose last layer is compared, or the inputs themselves.
        compute: sizes of passes.
    """

    def __init__(self, op: str, problem: Problem, inputs: int | Tensor, compute: Compute | None) -> None:
        compute = Compute.of(op, compute, "batch_rows", "memory", "threads")
        self.op, self.metric = op, problem.metric
        self.session = Session(op, problem, replace(compute, draws_per_pass=1))
        all_inputs, device = problem.data[0], problem.device
        if isinstance(inputs, Tensor):
            one = all_inputs[:1].one
            size = None if one is None else list(one.shape[1:])
            if inputs.dim() == 0 or len(inputs) == 0 or list(inputs.shape[1:]) != size:
                expected = "a number, as the model takes several inputs" if size is None else f"rows of size {size}"
                raise ValueError(f"{op}: inputs must be {expected}, got a tensor of size {list(inputs.shape)}")
            self.few, self.few_rows = Inputs((inputs.to(device),)), torch.arange(len(inputs), device=device)
        else:
            count = min(in_range(op, "inputs", inputs), len(all_inputs))
            order = torch.randperm(len(all_inputs), generator=torch.Generator().manual_seed(problem.seed % 2**63))
            picked = order[:count]
            self.few, _, self.few_rows = problem.some(picked)
        self.evaluations = 0  # of hardware on all rows

    def __enter__(self) -> FormatRuns:
        with contextlib.ExitStack() as stack:  # taken back if something fails
            session = stack.enter_context(self.session)
            if not any(has_weight(s) for s in session.sites):
                raise ValueError(f"{self.op}: the model has no linear layer or convolution, so no format to choose")
            self.clean = session.clean_value
            if not self.clean > 0:
                told = "gets no row of the data right" if is_share(self.metric) else "leaves nothing to take shares of"
                raise ValueError(f"{self.op}: the model {told}: its {self.metric.name} is {self.clean:.4g} in float32")
            self.clean_scores = session.scores(self.few).double().flatten()
            self.covered = session.covered(replace(SILENT, hardware=[Serial()]), tell=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def rows(self) -> int:
        """Rows of the data."""
        return len(self.session.labels)

    def scores(self, hardware: Any, inputs: Inputs, rows: Tensor) -> Tensor:
        """Scores of some rows on hardware (for all contractions, or a dict from sites to lists)."""
        if isinstance(hardware, dict):
            hardware = {exactly(site): devices for site, devices in hardware.items()}
        with self.session.placing(replace(SILENT, hardware=hardware)):
            return self.session.scores(inputs, rows)

    def value(self, hardware: Any) -> float:
        """What is measured on all rows."""
        tally, row = self.session.tally(), 0
        for x, y, rows in self.session.batches():
            tally.add(row, self.scores(hardware, x, rows).unsqueeze(0), self.session.targets(x, y))
            row += len(rows)
        self.evaluations += 1
        return float(tally.values(self.op)[0])

    def share(self, value: float) -> float:
        """How much of what is measured in float32 is left: value / clean, clean / value where lower is better."""
        if self.metric.higher_is_better:
            return value / self.clean
        return 0.0 if math.isnan(value) else self.clean / value if value > 0 else math.inf

    def normalised(self, hardware: Any) -> float:
        """What is measured, as a share of that in float32."""
        return self.share(self.value(hardware))

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
