"""What a model gives without noise for all rows: numbers, and what else is known of a study from that run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._engine.judging import Shares, Tally, entries
from noisykernels._engine.plan import Passes
from noisykernels._util.data import Batch, cut, joined
from noisykernels._util.inputs import Inputs
from noisykernels._util.streams import Stream
from noisykernels._util.tensors import Growing
from noisykernels.injection.placement import SILENT, Placement
from noisykernels.metrics.base import Metric
from noisykernels.metrics.chance import Seen
from noisykernels.metrics.functions import check_function
from noisykernels.metrics.of_text import TextChecks
from noisykernels.metrics.weighted import weighed

__all__ = ["Clean", "Remembered", "clean_run", "first_reading"]

FEW = 64  # rows on which a function of the user's is tried


class Running(Protocol):
    """What is needed of a session."""

    op: str
    problem: Any
    passes: Passes

    def tally(self, copies: int = 1) -> Tally: ...

    def placing(self, placement: Placement) -> AbstractContextManager[None]: ...

    def clean_batches(self) -> Iterator[tuple[Inputs, Tensor]]: ...

    def scores(self, inputs: Inputs) -> Tensor: ...


class Clean(NamedTuple):
    """Of all rows without noise.

    Fields: numbers, of each row or block of rows; shape, of a row's scores; leads, by how much the largest score of
    each row leads, where that decides; shares, of each row in all weights, None: all count alike; metric, that measures
    from now on; missing, rows or blocks of them without a number.
    """

    numbers: NDArray[Any]
    shape: tuple[int, ...]
    leads: NDArray[Any]
    shares: NDArray[np.float64] | None
    metric: Metric
    missing: int

    def permuted(self, order: NDArray[np.int64]) -> Clean:
        """Of the rows in another order."""
        leads = self.leads[order] if len(self.leads) else self.leads
        shares = None if self.shares is None else self.shares[order]
        return self._replace(numbers=self.numbers[order], leads=leads, shares=shares)

    def checked(self, op: str, rows: int) -> Clean:
        """The same, if all of so many rows have a number.

        Raises:
            ValueError: some have none.
        """
        if self.missing:
            name = self.metric.name
            raise ValueError(f"{op}: without noise the {name} of {self.missing} of {rows} rows is infinite or NaN")
        return self


class Remembered(NamedTuple):
    """Of the first reading of data that are read again.

    Fields: rows, of a pass; clean, what was found in these.
    """

    rows: int
    clean: Clean


@torch.inference_mode()
def clean_run(session: Running) -> Clean:
    """Runs the model of a session without noise on all rows.

    Raises:
        ValueError: outputs that the metric cannot measure, or cannot tell from those of a model that knows nothing.
    """
    run = _Run(session)
    with session.placing(SILENT):
        for x, y in session.clean_batches():
            run.add(x, y)
            if session.problem.chance is not None:
                raise session.problem.chance
    return run.done().checked(session.op, run.row)


@torch.inference_mode()
def first_reading(
    session: Running, stream: Stream, made: Callable[[Batch], tuple[Inputs, Tensor]]
) -> Remembered | None:  # fmt: skip
    """Counts the rows of a stream, and runs the model of a session without noise on them as they come, cut as they are
    when they are read again.

    Args:
        session: of some first rows.
        stream: that has been begun.
        made: of some rows, inputs and labels as a session has them.

    Returns:
        What was found; None: later rows were longer than the first ones, and all are padded to the longest.

    Raises:
        ValueError: as `clean_run`.
    """
    run, length, size = _Run(session), stream.length, session.passes.rows
    with session.placing(SILENT):
        for part in _recut(session.op, stream.counting(), size):
            if stream.length == length:
                run.add(*made(part))
    return Remembered(size, run.done()) if stream.length == length else None


def _recut(op: str, batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The rows of batches, so many at once, and what is left of them at the end."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        while sum(len(part.inputs) for part in held) >= size:
            every = joined(op, held)
            yield cut(every, slice(size))
            held = [cut(every, slice(size, None))]
            del every
        del batch
    if sum(len(part.inputs) for part in held):
        yield joined(op, held)


class _Run:
    """All rows without noise, batch after batch.

    Args:
        session: that runs.
    """

    def __init__(self, session: Running) -> None:
        self.session, self.metric = session, session.problem.metric
        self.tally, self.shares, self.seen, self.leads = session.tally(), Shares(self.metric), Seen(), Growing()
        self.text, self.row = TextChecks(session.op, self.metric), 0
        self.shape: tuple[int, ...] = ()

    def add(self, x: Inputs, y: Tensor) -> None:
        """The next rows and their labels."""
        op, metric = self.session.op, self.metric
        scores = self.session.scores(x)
        targets = weighed(scores if metric.against_clean else y, x.weights)
        if bool(scores.isnan().any()) and not all(bool(t.isfinite().all()) for t in x.tensors):
            raise ValueError(f"{op}: the model gives NaN without noise, where inputs of data hold NaN or infinity")
        metric.check_clean(op, scores, targets)
        if self.row == 0:
            check_function(op, metric, scores[:FEW], targets[:FEW])
        self.text.see(x, scores, y)
        self.tally.add(self.row, scores.unsqueeze(0), targets)
        self.shares.add(targets)
        if metric.against_clean:
            self.seen.add(scores)
        self.row, self.shape = self.row + len(x), tuple(scores.shape[1:])
        if metric.by_argmax and self.shape[-1] > 1:
            self.leads.add(scores.topk(2).values.double().diff().neg().squeeze(-1))

    def done(self) -> Clean:
        """What was found."""
        op, metric = self.session.op, self.metric
        self.text.close()
        if metric.against_clean:
            metric = metric.after(op, self.seen)
        answer = self.tally.answer()[0, 0, : entries(metric.law, 0, self.row)]
        none = 0 if metric.law.name == "binary" else int(metric.law.missing(answer).sum())
        leads = self.leads.all().cpu().numpy()
        return Clean(metric.law.numbers(answer), self.shape, leads, self.shares.all(), metric, none)
