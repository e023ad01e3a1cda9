"""Data that do not fit in memory: a loader that can be iterated again is read chunk by chunk, as often as it takes.

The first time its rows are counted and a digest of each is kept, while whoever asked looks at them too; whenever they
are read again they must be the same, in the same order. `StreamedInputs` and `StreamedLabels` are cut as `Inputs` and
tensors in memory are; both look at the chunk that was read last. In an order of their own (`permuted`) a chunk takes a
pass over all of the data, and the first one stays: a search begins there again and again.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from noisykernels._util.data import Data, alike, cut, joined
from noisykernels._util.forms import Batch, batch_of, lengthened, mask_of, opened
from noisykernels._util.inputs import ANY, Inputs, Takes
from noisykernels._util.tensors import Growing

__all__ = ["StreamedInputs", "StreamedLabels", "loaded"]

HELD = 4  # data are held that take this part of the memory, twice for a moment, while batches are joined
ROWS = 64  # read at once of data that come row by row
CHUNK = 8  # and else a chunk takes this part of it
LAST = 4  # rows from the end that are kept, as the check of engines looks at some


def loaded(
    name: str, data: Data, memory: int, takes: Takes = ANY, count: bool = True
) -> tuple[Inputs | StreamedInputs, Tensor | StreamedLabels | None]:
    """Inputs and labels, in memory where they fit.

    Args:
        name: of the function that asks, for errors.
        data: in any form. What can be iterated only once is held, and what lies in memory already.
        memory: in bytes.
        takes: what is looked for, see `opened`.
        count: the rows of a stream; else it has been begun alone, and whoever asked reads on with `Stream.counting`.

    Raises:
        TypeError: what makes no tensors.
        ValueError: as `in_memory`; data that give other rows when they are read again.
    """
    found = opened(name, data, ROWS, takes)
    if isinstance(found, Batch):
        return found
    again = not isinstance(found, list | tuple | set | dict) and not hasattr(found, "__next__")
    parts: list[Batch] = []
    size, reading = 0, _told(name, iter(found))
    for raw in reading:
        parts.append(batch_of(name, raw, 0, takes))
        size += _bytes(parts[-1])
        if again and size > memory // HELD:
            stream = Stream(name, found, memory // CHUNK, parts, reading, takes)
            if count:
                for _ in stream.counting():
                    pass
            return StreamedInputs(stream), stream.labels
    if again and parts:
        _refuse_changes(name, found, parts[0], takes)
    every = joined(name, parts)
    if _workers(found) > 1:
        _refuse_copies(name, found, _digests(every))
    return every


class Stream:
    """Rows of a loader, read again where they are asked for. It begins with some, and knows how many there are once
    all have been read.

    Args:
        name: of the function that asks, for errors.
        batches: that can be iterated again.
        room: bytes of a chunk.
        begun: the first batches, as whose rows all must be.
        rest: those that follow.
        takes: see `opened`.
    """

    def __init__(
        self, name: str, batches: Iterable[Any], room: int, begun: list[Batch], rest: Iterator[Any], takes: Takes
    ) -> None:  # fmt: skip
        self.name, self.batches, self.takes = name, batches, takes
        self.first = _copied(cut(next(part for part in begun if len(part.inputs)), slice(1)))
        self.rows = sum(len(part.inputs) for part in begun)
        self._digests = Growing()  # of each row
        self.digests: NDArray[np.int64] = np.empty(0, np.int64)
        masks = [mask.shape[1] for part in begun if (mask := mask_of(part.inputs)) is not None]
        self.length = max(masks, default=0)  # of the longest row with a mask
        self.room = room
        self.last: Batch | None = None  # some rows, and at the end the last ones
        self._labels = None if self.first.labels is None else Growing()  # all, where they are small
        self._weights = None if self.first.inputs.weights is None else Growing()  # likewise
        self._reader: _Reader | None = None
        self._chunk: tuple[int, Batch] | None = None  # its first row, and it
        self._begun: tuple[list[Batch], Iterator[Any]] | None = begun, rest  # until the first reading goes on

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict.fromkeys(("_reader", "_chunk", "_labels", "_weights", "_begun"))

    def counting(self) -> Iterator[Batch]:
        """All batches, read for the first time: note is taken of each before it is given on."""
        assert self._begun is not None
        (parts, rest), self._begun, self.rows = self._begun, None, 0
        while parts:
            yield self._noted(parts.pop(0))
        for raw in rest:
            yield self._noted(batch_of(self.name, raw, 0, self.takes))
        self.digests = self._digests.all().numpy()
        _refuse_copies(self.name, self.batches, self.digests)

    def _noted(self, batch: Batch) -> Batch:
        """Takes note of the rows of the next batch."""
        batch = _ordered(batch, self.first)
        mask = mask_of(batch.inputs)
        if mask is not None:
            self.length = max(self.length, mask.shape[1])
            self.first = lengthened(self.first, self.length)
        self._digests.add(torch.from_numpy(_digests(batch)))
        batch = lengthened(batch, self.length)
        alike(self.name, batch, self.first)
        self.rows += len(batch.inputs)
        self._labels = self._held(self._labels, batch.labels)
        self._weights = self._held(self._weights, batch.inputs.weights)
        ends = [cut(batch, slice(max(0, len(batch.inputs) - LAST), None))]
        last = self._joined(ends if self.last is None else [self.last, *ends])
        self.last = _copied(cut(last, slice(max(0, len(last.inputs) - LAST), None)))
        return batch

    def _held(self, held: Growing | None, part: Tensor | None) -> Growing | None:
        """With some more, while that is small beside a chunk or no larger than what is kept of each row anyway."""
        if held is None or part is None:
            return None
        held.add(part)
        small = held.all().nbytes <= self.room // 2 or part[:1].nbytes <= self.digests.itemsize
        return held if small and (self.length == 0 or part.dim() == 1) else None

    @property
    def weights(self) -> Tensor | None:
        """All of them in memory, where they are small; None: there are none, or they are not."""
        return None if self._weights is None or self._begun is not None else self._weights.all()

    @property
    def labels(self) -> Tensor | StreamedLabels | None:
        """All of them, in memory where they are small."""
        if self.first.labels is None:
            return None
        return StreamedLabels(self) if self._labels is None or self._begun is not None else self._labels.all()

    @property
    def at_once(self) -> int:
        """Rows of a chunk."""
        return max(1, self.room // max(1, _bytes(lengthened(self.first, self.length))))

    def part(self, first: int, end: int) -> Batch:
        """Rows first .. end - 1."""
        start, chunk = self._chunk or (0, None)
        if self._begun is not None:  # of the first rows
            parts, wanted = [], end
            for part in self._begun[0]:
                parts.append(cut(part, slice(min(wanted, len(part.inputs)))))
                wanted -= len(parts[-1].inputs)
            return cut(self._joined([part for part in parts if len(part.inputs)] or parts[:1]), slice(first, end))
        assert self.last is not None
        goes_on = chunk is not None and start <= first <= start + len(chunk.inputs)
        if not goes_on and first >= (low := self.rows - len(self.last.inputs)):
            return cut(self._joined([self.last]), slice(first - low, end - low))
        if chunk is None or not start <= first <= end <= start + len(chunk.inputs):
            start, chunk = first, self._read(first, max(end, min(self.rows, first + self.at_once)))
            self._chunk = start, chunk
        return cut(chunk, slice(first - start, end - start))

    def picked(self, rows: Tensor) -> Batch:
        """The rows with these numbers, which takes a pass over all of them."""
        wanted, back = rows.cpu().unique(return_inverse=True)
        found = []
        for first, batch in self.everything():
            low, high = (int(n) for n in torch.searchsorted(wanted, torch.tensor([first, first + len(batch.inputs)])))
            if low < high:
                some = wanted[low:high] - first
                found.append(Batch(batch.inputs[some], None if batch.labels is None else batch.labels[some]))
        every = self._joined(found)
        return Batch(every.inputs[back], None if every.labels is None else every.labels[back])

    def everything(self) -> Iterator[tuple[int, Batch]]:
        """All batches as they come, each with the number of its first row."""
        self._reader = None  # a loader may have one iteration only
        reader = _Reader(self)
        while reader.row < self.rows:
            first = reader.row
            yield first, reader.next()
        reader.end()

    def _read(self, first: int, end: int) -> Batch:
        """Rows that go on where others were read, or from the beginning on."""
        kept: list[Batch] = []
        if self._chunk is not None and self._chunk[0] <= first < self._chunk[0] + len(self._chunk[1].inputs):
            start, chunk = self._chunk
            rest = cut(chunk, slice(first - start, None))
            kept, first = [rest], start + len(chunk.inputs)
        self._chunk = None
        if self._reader is None or self._reader.row > first:
            self._reader = _Reader(self)
        reader = self._reader
        while reader.row < end:
            if reader.left is None or reader.row + len(reader.left.inputs) <= first:
                reader.skip()
                continue
            kept.append(reader.take(first, end))
        if end == self.rows:
            reader.end()
            self._reader = None
        return self._joined(kept)

    def _joined(self, parts: Sequence[Batch]) -> Batch:
        return joined(self.name, [lengthened(part, self.length) for part in parts])


class _Reader:
    """One iteration of a stream: where it stands, and what is left of the batch there."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        with torch.random.fork_rng(devices=[]):  # of which loaders take a number for their workers
            self.iterator = _told(stream.name, iter(stream.batches))
        self.row = 0  # the first that is left
        self.left: Batch | None = None

    def next(self) -> Batch:
        """The next batch, checked."""
        stream, first = self.stream, self.row
        raw = next(self.iterator, None)
        if raw is None:
            raise ValueError(_changed(stream.name, f"{first} rows", f"{stream.rows}"))
        batch = _ordered(batch_of(stream.name, raw, 0, stream.takes), stream.first)
        digests, known = _digests(batch), stream.digests[first : first + len(batch.inputs)]
        if len(digests) > len(known):
            raise ValueError(_changed(stream.name, f"more than {stream.rows} rows", f"{stream.rows}"))
        if not np.array_equal(digests, known):
            moved = bool(np.isin(digests, stream.digests).all())
            got = "its rows in another order" if moved else "other rows"
            raise ValueError(_changed(stream.name, f"{got} (from row {first} on)", "these"))
        self.row = first + len(batch.inputs)
        return lengthened(batch, stream.length)

    def skip(self) -> None:
        """Goes on to the next batch, whose rows are left."""
        if self.left is not None:
            self.row += len(self.left.inputs)
        first = self.row
        self.left = self.next()
        self.row = first

    def take(self, first: int, end: int) -> Batch:
        """The rows first .. end - 1 of what is left, as far as it goes; those before are passed over."""
        assert self.left is not None
        low, high = max(0, first - self.row), min(end - self.row, len(self.left.inputs))
        found = cut(self.left, slice(low, high))
        rest = cut(self.left, slice(high, None))
        self.row += high
        self.left = rest if len(rest.inputs) else None
        return found

    def end(self) -> None:
        """There must be no more."""
        if next(self.iterator, None) is not None:
            raise ValueError(_changed(self.stream.name, f"more than {self.stream.rows} rows", f"{self.stream.rows}"))


class _Streamed:
    """Rows of a stream in an order: as they come, or in one of their own.

    Args:
        stream: of the data.
        device: where what is cut out of it goes.
        order: numbers of rows; None: as they come.
    """

    def __init__(self, stream: Stream, device: torch.device | str = "cpu", order: Tensor | None = None) -> None:
        self.stream, self.device, self.order = stream, torch.device(device), order
        self.chunks: dict[int, Batch] = {}  # of an order: the first one, and another

    def __len__(self) -> int:
        return self.stream.rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"chunks": {}}

    def batch(self, rows: slice | Tensor) -> Batch:
        """Some rows."""
        if isinstance(rows, Tensor):
            return self.stream.picked(rows if self.order is None else self.order[rows.cpu()])
        first, end, _ = rows.indices(len(self))
        if self.order is None:
            return self.stream.part(first, max(first, end))
        size, parts = max(1, self.stream.at_once // 2), []
        for number in range(first // size, -(-max(first + 1, end) // size)):
            low = number * size
            parts.append(cut(self._chunk(number, size), slice(max(first, low) - low, max(first, end) - low)))
        return joined(self.stream.name, parts)

    def _chunk(self, number: int, size: int) -> Batch:
        if number not in self.chunks:
            for other in [n for n in self.chunks if n > 0]:
                del self.chunks[other]
            assert self.order is not None
            self.chunks[number] = self.stream.picked(self.order[number * size : (number + 1) * size])
        return self.chunks[number]


class StreamedInputs(_Streamed):
    """Inputs of a stream, cut as `Inputs` are."""

    positional = False

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        found = self.batch(rows).inputs.to(self.device)
        return found.by_position() if self.positional else found

    def split(self, rows: int) -> Iterator[Inputs]:
        """So many rows at once."""
        for first in range(0, len(self), rows):
            yield self[first : first + rows]

    def to(self, device: torch.device) -> StreamedInputs:
        """The same on a device."""
        found = copy.copy(self)
        found.device = device
        return found

    def permuted(self, order: Tensor) -> StreamedInputs:
        """The same in another order."""
        found, order = copy.copy(self), order.cpu()
        found.order, found.chunks = order if self.order is None else self.order[order], {}
        return found

    def by_position(self) -> StreamedInputs:
        """See `Inputs`."""
        found = copy.copy(self)
        found.positional = True
        return found


class StreamedLabels(_Streamed):
    """Labels of a stream, cut as a tensor is."""

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        labels = self.batch(rows).labels
        assert labels is not None
        return labels.to(self.device)

    def split(self, rows: int) -> Iterator[Tensor]:
        """So many rows at once."""
        for first in range(0, len(self), rows):
            yield self[first : first + rows]

    def cpu(self) -> Tensor:
        """All of them."""
        return torch.cat([part.cpu() for part in self.split(self.stream.at_once)])

    def beside(self, inputs: Any) -> StreamedLabels:
        """The same in the order of the stream's inputs, and where they are; both look at the same chunks."""
        found = StreamedLabels(self.stream, inputs.device, inputs.order)
        found.chunks = inputs.chunks
        return found


def _bytes(batch: Batch) -> int:
    return sum(t.nbytes for t in (*batch.inputs.every, *(() if batch.labels is None else (batch.labels,))))


def _copied(batch: Batch) -> Batch:
    return Batch(batch.inputs.clone(), None if batch.labels is None else batch.labels.clone())


def _ordered(batch: Batch, first: Batch) -> Batch:
    """A batch with its names in the order of the first one's."""
    return Batch(batch.inputs.ordered(first.inputs.names), batch.labels)


def _digests(batch: Batch) -> NDArray[np.int64]:
    """Of each row, 64 bits."""
    tensors = (*batch.inputs.every, *(() if batch.labels is None else (batch.labels,)))
    rows = len(batch.inputs)
    flat = [t.detach().cpu().contiguous().view(rows, t.numel() // max(1, rows)) for t in tensors]
    bits = [t.view(torch.uint8).numpy() for t in flat if t.numel()]
    found = np.empty(rows, np.int64)
    for i in range(rows):
        digest = hashlib.blake2b(digest_size=8)
        for part in bits:
            digest.update(part[i])
        found[i] = int.from_bytes(digest.digest(), "little", signed=True)
    return found


def _told(name: str, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches as they come; where one cannot be had, the error of whoever makes it says whose data it is of."""
    number = 0
    while True:
        try:
            raw = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if hasattr(error, "add_note"):  # of Python 3.11
                error.add_note(f"{name}: data failed so in their batch {number}")
            raise
        yield raw
        number += 1


def _workers(batches: Any) -> int:
    """Processes of a loader that each read its data set as they like."""
    of_its_own = isinstance(batches, DataLoader) and isinstance(batches.dataset, IterableDataset)
    return int(batches.num_workers) if of_its_own else 0


def _refuse_copies(name: str, batches: Any, digests: NDArray[np.int64]) -> None:
    """Refuses rows that each worker of a loader gives, all of them."""
    if (workers := _workers(batches)) < 2 or not len(digests):
        return
    counts = np.unique(digests, return_counts=True)[1]
    if bool((counts % workers == 0).all()):
        raise ValueError(
            f"{name}: data must give each row once, got every row {workers} times, of each of {workers} workers: "
            "num_workers=1, or give out rows by torch.utils.data.get_worker_info()"
        )


def _changed(name: str, got: str, before: str) -> str:
    return (
        f"{name}: data must give the same rows in the same order whenever they are read, got {got} after {before}: "
        "shuffle=False, no random augmentation, an iterable that begins anew"
    )


def _refuse_changes(name: str, batches: Iterable[Any], first: Batch, takes: Takes) -> None:
    """Refuses data in memory whose first batch is another one when it is read again: no study could be repeated."""
    with torch.random.fork_rng(devices=[]):
        raw = next(iter(batches), None)
    if raw is None:
        return  # it is used up, and held
    if not np.array_equal(_digests(_ordered(batch_of(name, raw, 0, takes), first)), _digests(first)):
        raise ValueError(_changed(name, "other rows, or their order", "these"))
