"""Where outputs become numbers: those of rows, of blocks of rows, or of a whole pass, by a metric and its law."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisykernels._util.warning import warn_user
from noisykernels.metrics.base import Metric, is_share
from noisykernels.metrics.law import ALL, Answer, Law
from noisykernels.metrics.rows import PerRow

__all__ = ["Shares", "Tally", "entries", "judged", "put"]


def entries(law: Law, start: int, end: int) -> int:
    """Of an answer on rows start..end - 1 of the data: rows, or blocks of them."""
    return end - start if law.block == 1 else -(-end // law.block) - start // law.block


def put(law: Law, found: Answer, start: int, first: int, answer: Answer) -> None:
    """Puts the answer to rows from `first` on where it belongs in that to rows from `start` on; where both have rows of
    a block, sums add up."""
    low = first // law.block - start // law.block
    place = found[:, :, low : low + answer.shape[2]]
    if law.block == 1:
        place[...] = answer
    else:
        place += answer


def judged(metric: Metric, scores: Tensor, labels: Any, start: int, leading: int) -> Tensor:
    """What is measured, [..., entries] or [..., entries, width].

    Args:
        metric: that measures.
        scores: [..., rows, *shape of a row], of which so many leading dimensions are levels and draws.
        labels: targets of the rows, with their weights where there are some.
        start: number of the first row in the data.
        leading: dimensions before that of rows.
    """
    copies = scores.shape[:leading]
    flat, law = scores.flatten(0, leading - 1), metric.law
    if law.block == 1:
        found = metric.of_rows(flat, labels)
    else:
        parts = _blocks(law.block, start, len(labels))
        found = torch.stack([metric.of_rows(flat[:, part], labels[part]) for part in parts], 1)
    of_copies: Tensor = found.unflatten(0, copies)
    return of_copies


def _blocks(block: int, start: int, rows: int) -> Iterator[slice]:
    """The rows of each entry, counted from `start`."""
    low = 0
    while low < rows:
        high = min(rows, (start + low) // block * block + block - start)
        yield slice(low, high)
        low = high


class Shares:
    """Of rows in all weights, batch after batch, by a metric whose rows need not count alike."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.found: list[NDArray[np.float64]] = []

    def add(self, targets: Any) -> None:
        """Takes the targets of the next rows."""
        share = self.metric.shares(targets) if isinstance(self.metric, PerRow) else None
        if share is not None:
            self.found.append(share.cpu().numpy())

    def all(self) -> NDArray[np.float64] | None:
        """Of all rows, in parts of their mean; None: they count alike."""
        return np.concatenate(self.found) if self.found else None


class Tally:
    """What is measured of all rows for some copies (draws, chips), batch after batch.

    Numbers stay on a device until all are there: it is waited for once. What is of a whole pass keeps the
    outputs of all rows until then.

    Args:
        metric: that measures.
        rows: how many there are; more are found room for.
        copies: how many.
    """

    def __init__(self, metric: Metric, rows: int, copies: int = 1) -> None:
        self.metric, self.rows, self.copies = metric, rows, copies
        self.found = metric.law.empty(1, copies, entries(metric.law, 0, rows))
        self.numbers: list[tuple[int, int, Tensor]] = []
        self.outputs: list[tuple[int, Tensor, Tensor]] = []
        self.shares = Shares(metric)

    def add(self, row: int, scores: Tensor, labels: Any, copy: int = 0) -> None:
        """Takes outputs [copies, rows, ...], of copies from `copy` and rows from `row` on, and their targets."""
        if copy == 0:
            self.shares.add(labels)
        self._room_for(row + scores.shape[1])
        if self.metric.law.block == ALL:
            self.outputs.append((copy, scores, labels))
            return
        numbers = judged(self.metric, scores, labels, row, leading=1)
        if numbers.is_cpu:
            self._put(row, copy, numbers)
        else:
            self.numbers.append((row, copy, numbers))

    def _room_for(self, rows: int) -> None:
        """More room where there are more rows than was said: of data that are counted meanwhile."""
        law, had = self.metric.law, self.found
        if (needed := entries(law, 0, rows)) > had.shape[2]:
            self.found = law.empty(1, self.copies, 2 * needed)
            self.found[:, :, : had.shape[2]] = had

    def _put(self, row: int, copy: int, numbers: Tensor) -> None:
        put(self.metric.law, self.found[:, copy : copy + len(numbers)], 0, row, numbers.unsqueeze(0).cpu().numpy())

    def answer(self) -> Answer:
        """Of all rows: [1, copies, entries], of a law of sums [..., width]."""
        for copy in sorted({copy for copy, *_ in self.outputs}):
            mine = [(scores, labels) for where, scores, labels in self.outputs if where == copy]
            scores, labels = torch.cat([s for s, _ in mine], 1), torch.cat([t for _, t in mine])
            self._put(0, copy, judged(self.metric, scores, labels, 0, leading=1))
        for row, copy, numbers in self.numbers:
            self._put(row, copy, numbers)
        self.outputs, self.numbers = [], []
        return self.found

    def values(self, op: str) -> NDArray[np.float64]:
        """What is told of each copy; with a warning, by the study `op`, of rows without a number, but for shares of
        rows, where they count as wrong. Where they count with no worst number there is none to average: the copy's
        value is infinite, on the worse side."""
        law, answer = self.metric.law, self.answer()
        missing = law.missing(answer)[0]
        if missing.any() and not is_share(self.metric):
            become = "count with the worst" if law.worst is not None else f"make the {self.metric.name} infinite"
            what = "rows" if law.block == 1 else "blocks of rows"
            warn_user(f"{op}: {int(missing.sum())} {what} have an infinite or no {self.metric.name} and {become}")
        pooled = law.pooled(law.numbers(answer), self.shares.all() if law.block == 1 else None)
        values = np.asarray(self.metric.value(pooled[0]), np.float64)
        if law.worst is not None:
            return values
        return np.where(missing.any(-1), -np.inf if self.metric.higher_is_better else np.inf, values)
