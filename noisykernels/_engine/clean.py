"""What a model gives without noise for all rows: numbers, and what else is known of a study from that run alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._engine.judging import Shares, Tally
from noisykernels._util.inputs import Inputs
from noisykernels._util.tensors import Growing
from noisykernels.injection.placement import SILENT, Placement
from noisykernels.metrics.base import Metric
from noisykernels.metrics.chance import Seen
from noisykernels.metrics.functions import check_function
from noisykernels.metrics.of_text import TextChecks
from noisykernels.metrics.weighted import weighed

__all__ = ["Clean", "clean_run"]

FEW = 64  # rows on which a function of the user's is tried


class Running(Protocol):
    """What is needed of a session."""

    op: str
    problem: Any

    def tally(self, copies: int = 1) -> Tally: ...

    def placing(self, placement: Placement) -> AbstractContextManager[None]: ...

    def batches(self, rows: int | None = None) -> Iterator[tuple[Inputs, Tensor, Tensor]]: ...

    def scores(self, inputs: Inputs) -> Tensor: ...


class Clean(NamedTuple):
    """Of all rows without noise.

    Fields: numbers, of each row or block of rows; shape, of a row's scores; leads, by how much the largest score of
    each row leads, where that decides; shares, of each row in all weights, None: all count alike; metric, that measures
    from now on.
    """

    numbers: NDArray[Any]
    shape: tuple[int, ...]
    leads: NDArray[Any]
    shares: NDArray[np.float64] | None
    metric: Metric


@torch.inference_mode()
def clean_run(session: Running) -> Clean:
    """Runs the model of a session without noise on all rows.

    Raises:
        ValueError: outputs that the metric cannot measure, or cannot tell from those of a model that knows nothing.
    """
    op, metric = session.op, session.problem.metric
    tally, leads, seen, shares, row = session.tally(), Growing(), Seen(), Shares(metric), 0
    shape: tuple[int, ...] = ()
    text = TextChecks(op, metric)
    with session.placing(SILENT):
        for x, y, _ in session.batches():
            scores = session.scores(x)
            targets = weighed(scores if metric.against_clean else y, x.weights)
            metric.check_clean(op, scores, targets)
            if session.problem.chance is not None:
                raise session.problem.chance
            if row == 0:
                check_function(op, metric, scores[:FEW], targets[:FEW])
            text.see(x, scores, y)
            tally.add(row, scores.unsqueeze(0), targets)
            shares.add(targets)
            if metric.against_clean:
                seen.add(scores)
            row, shape = row + len(x), tuple(scores.shape[1:])
            if metric.by_argmax and shape[-1] > 1:
                leads.add(scores.topk(2).values.double().diff().neg().squeeze(-1))
    text.close()
    if metric.against_clean:
        metric = metric.after(op, seen)
    (answer,) = tally.answer()[0]
    if metric.law.name != "binary" and (none := int(metric.law.missing(answer).sum())):
        raise ValueError(f"{op}: without noise the {metric.name} of {none} of {row} rows is infinite or NaN")
    return Clean(metric.law.numbers(answer), shape, leads.all().cpu().numpy(), shares.all(), metric)
