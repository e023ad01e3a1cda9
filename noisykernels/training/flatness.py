"""How sharp the loss is around a network's weights: what sharpness-aware training makes smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown
from noisykernels._util.data import Data, batches, check_classes, needed
from noisykernels._util.inputs import Call, Inputs, Output
from noisykernels._util.runtime import evaluating, place_of
from noisykernels.metrics.names import MetricLike, named
from noisykernels.metrics.rows import PerRow
from noisykernels.metrics.weighted import Weighted, joined_targets, weighed
from noisykernels.training.sam import ASAM, SAM, SAMSON

__all__ = ["m_sharpness"]


def m_sharpness(
    model: nn.Module,
    data: Data,
    *,
    rho: float = 0.05,
    ascent: type[SAM] | type[ASAM] | type[SAMSON] = SAM,
    batch_size: int = 128,
    metric: MetricLike | None = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    **options: Any,
) -> float:
    r"""By how much the loss rises within a ball around the weights: its mean over batches of *m* rows.

    .. math:: \frac1N \sum_{\text{batches } b} m_b \big[ L_b(w + \epsilon_b) - L_b(w) \big]

    with :math:`\epsilon_b` the ascent of `SAM`, `ASAM` or `SAMSON` on the batch: to first order where the loss in the
    ball is largest. Cross-entropy, or another measure of rows, in evaluation mode; the weights are put back to the bit.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); with another metric, what that takes.
        data: (inputs, labels), in any of the forms of ``docs/guides/data.md``.
        rho: size of the ball, as the optimizer has it.
        ascent: `SAM`, `ASAM` or `SAMSON`.
        batch_size: *m*: rows of a batch, where `data` are no batches.
        metric: a measure of rows with a gradient, as for `walk`; it is the loss, its negative where higher is better.
            None: cross-entropy, also of shares of classes.
        forward, output: how the model is called, and what of its result are the scores, as for `walk`.
        options: of the ascent: eta, p.

    Returns:
        The mean rise of the loss, per row.

    Raises:
        ValueError: no data, no labels, a metric without a gradient, or an option out of range.

    Source: m-sharpness: Foret et al. 2021 (SAM, arXiv 2010.01412); against noise on weights: SAMSON (2211.11561).

    Example:
        >>> model = nn.Linear(4, 3)
        >>> m_sharpness(model, (torch.randn(8, 4), torch.arange(8) % 3), rho=0.1) > 0
        True
    """
    check_arguments(m_sharpness, locals())
    if ascent not in (SAM, ASAM, SAMSON):
        raise TypeError(f"m_sharpness: ascent must be SAM, ASAM or SAMSON, got {shown(ascent)}")
    weights = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = ascent(weights, torch.optim.SGD, rho=rho, lr=0.0, **options)
    before, place = [p.grad for _, p in weights], place_of(model)
    total, rows, call = 0.0, 0, Call("m_sharpness", forward, output)
    loss_of = _CrossEntropy() if metric is None else _Measured(metric)
    try:
        with evaluating(model):
            for inputs, given in batches("m_sharpness", data, batch_size, takes=call.takes(model, loss_of.key)):
                if rows == 0:
                    call.check(model, inputs)
                inputs = inputs.to(place)
                labels = loss_of.taken(inputs, needed("m_sharpness", data, given).to(place))
                optimizer.zero_grad()
                with torch.enable_grad():
                    here = loss_of(call(model, inputs), labels)
                    torch.autograd.backward(here)
                optimizer.ascend()
                try:
                    there = loss_of(call(model, inputs), labels)
                finally:
                    optimizer.restore()
                total += float(there - here.detach()) * len(labels)
                rows += len(labels)
    finally:
        for (_, p), grad in zip(weights, before, strict=True):
            p.grad = grad
    if rows == 0:
        raise ValueError("m_sharpness: data must hold at least one row, got none")
    return total / rows / loss_of.whole()


class _CrossEntropy:
    """The usual loss, of classes or shares of them."""

    key = None  # of weights

    def taken(self, inputs: Inputs, labels: Tensor) -> Any:
        """The targets of the next batch."""
        return labels

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        check_classes("m_sharpness", outputs, targets)
        return F.cross_entropy(outputs, targets)

    def whole(self) -> float:
        """By which the mean loss is to be divided, once all batches are known."""
        return 1.0


class _Measured:
    """The mean of a measure's numbers of rows as a loss, in parts of 1 as long as not all targets are known: what an
    ascent finds does not depend on it."""

    def __init__(self, given: MetricLike) -> None:
        op, metric = "m_sharpness", named("m_sharpness", given)
        if not hasattr(metric, "check_data"):
            raise ValueError(
                f"{op}: metric must say its direction, write nk.metrics.ByRow(function, higher_is_better=...)"
            )
        if metric.against_clean or metric.law.block > 1:
            raise ValueError(f"{op}: metric must be of rows against labels, got {metric.name}")
        if not metric.dtype.is_floating_point or not isinstance(metric, PerRow):
            raise ValueError(f"{op}: metric must have a gradient, which {metric.name} has not: write 'nll'")
        self.metric = metric.in_parts_of(op, torch.ones(1))
        self.key = metric.key if isinstance(metric, Weighted) else None
        self.parts: list[Any] = []

    def taken(self, inputs: Inputs, labels: Tensor) -> Any:
        """The targets of the next batch."""
        targets = weighed(labels, inputs.weights)
        self.metric.check_data("m_sharpness", inputs.tensors[0], targets)
        self.parts.append(targets)
        return targets

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        op, metric = "m_sharpness", self.metric
        metric.check_clean(op, metric.check_scores(op, outputs, len(targets)).detach(), targets)
        found: Tensor = (-1 if metric.higher_is_better else 1) * metric.of_rows(outputs.unsqueeze(0), targets).mean()
        if torch.is_grad_enabled() and not found.requires_grad:
            raise ValueError(f"{op}: metric must have a gradient, which {metric.name} has not: write 'nll'")
        return found

    def whole(self) -> float:
        """See `_CrossEntropy`: the mean weight of rows, and the variance of their targets."""
        metric: Any = self.metric.prepared("m_sharpness", joined_targets(self.parts))
        return float(metric.divisor)
