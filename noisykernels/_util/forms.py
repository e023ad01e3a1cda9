"""The forms that data come in, made into inputs and labels: what is which is decided here alone.

- A tensor or array: inputs without labels. A pair ``(x, y)``, as tuple or list: inputs and labels, also plain numbers;
  ``(x, None)``: no labels.
- ``((x, z), y)`` and ``({"a": x, "b": z}, y)``: several inputs, by position or by name.
- A dict, any mapping or a dataclass: inputs by name; labels are what the first of `LABELS` that is there names. An
  input that is alone beside labels may have any name. A named tuple: likewise, inputs by position; without such a
  name, a pair.
- Weights of rows or positions, where a measure wants some: a third member of a pair, or what their key names.
- A ``Dataset``, and a table with columns as Hugging Face's: batches of its rows. Anything else: an iterable of batches,
  each in one of the forms above.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from noisykernels._util.checks import shown
from noisykernels._util.inputs import ANY, Inputs, Takes

__all__ = ["LABELS", "Batch", "batch_of", "check_dense", "lengthened", "mask_of", "opened"]

LABELS = ("labels", "label", "targets", "target")
BESIDE = "put its items beside the others"
NO_LABEL = -100  # of a position that is padding, as torch's cross-entropy leaves it out


class Batch(NamedTuple):
    """Some rows: what the model is given, and what is known of it, if anything is."""

    inputs: Inputs
    labels: Tensor | None


def opened(name: str, data: Any, size: int, takes: Takes = ANY, dim: int = 0) -> Batch | Iterable[Any]:
    """Data as one batch where they are that, else as an iterable of batches.

    Args:
        name: of the function that asks, for errors.
        data: in any form.
        size: rows of a batch, where data are rows.
        takes: what is looked for: columns of a table that are no arguments of the model are left out.
        dim: dimension of the inputs that counts rows.

    Raises:
        TypeError: what is no data.
    """
    data = _by_field(data)
    if _is_leaf(data) or _is_whole(data, takes):
        return batch_of(name, data, dim, takes)
    if isinstance(data, tuple) and len(data) > 2 and all(map(_is_leaf, data)):
        raise TypeError(
            f"{name}: data must be (inputs, labels), got {shown(data[0])} and {len(data) - 1} more: several inputs are "
            "((a, b), labels)"
        )
    if isinstance(data, TensorDataset) and len(data.tensors) <= (2 if takes.weights is None else 3):
        return batch_of(name, data.tensors, dim, takes)
    if _is_table(data):
        return _Table(name, data, size, takes)
    if _is_table_of_several(data):
        raise TypeError(f"{name}: data must be one of the data sets {', '.join(map(repr, data))}, got all of them")
    if isinstance(data, Mapping) and any(_is_leaf(v) or _is_numbers(v) or hasattr(v, "iloc") for v in data.values()):
        return batch_of(name, data, dim, takes)  # which says what is wrong with the others
    _check_length(name, data)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=size, collate_fn=_collated)
    if hasattr(data, "iloc"):  # met by what it has: iterating it gives the names of columns
        raise TypeError(
            f"{name}: data must be tensors or arrays, got a {type(data).__name__}: write "
            "(frame[columns].values, frame[label].values)"
        )
    if isinstance(data, str | bytes | Mapping | type) or not isinstance(data, Iterable):
        hint = "; call it" if inspect.isgeneratorfunction(data) else ""
        raise TypeError(
            f"{name}: data must be (inputs, labels), or an iterable of such batches, got {shown(data)}{hint}"
        )
    return data


def batch_of(name: str, batch: Any, dim: int = 0, takes: Takes = ANY) -> Batch:
    """A batch in any form as inputs and labels.

    Args:
        name: of the function that asks, for errors.
        batch: in any form.
        dim: dimension of the inputs that counts rows.
        takes: what is looked for: an input that is alone beside labels, under another name than the model's, is given
            by position.

    Raises:
        TypeError: what makes no tensors.
        ValueError: inputs and labels of different numbers of rows.
    """
    labels: Any = None
    weights: Any = None
    batch = _by_field(batch)
    named = isinstance(batch, tuple) and any(k in getattr(batch, "_fields", ()) for k in (*LABELS, takes.weights))
    if isinstance(batch, Mapping):
        given, labels = _by_name(name, batch)
    elif named:
        given, labels = _by_name(name, batch._asdict())
        _check_no_gap(name, batch, given.names)
    elif isinstance(batch, tuple | list) and batch:
        first, *rest = [part for i, part in enumerate(batch) if i < 2 or not _is_words(part)]
        if len(rest) > (1 if takes.weights is None else 2):
            hint = ", a list of rows is torch.stack(rows)" if len(rest) > 2 else ""
            raise TypeError(
                f"{name}: a batch of data must be a pair (inputs, labels), got {len(batch)} parts: several inputs are "
                f"((a, b), labels), weights go with metric=nk.metrics.Weighted(...){hint}"
            )
        given, labels, weights = _inputs(name, first), *(*rest, None, None)[:2]
    elif isinstance(batch, tuple | list):
        raise TypeError(f"{name}: a batch of data must hold inputs, got {shown(batch)}")
    else:
        given = _inputs(name, batch)
    if labels is not None:
        labels = _labels(name, labels)
    if takes.weights is not None:
        given = _weighed(name, given, weights, takes)
    if named:
        given = replace(given, names=(), grouped=len(given.tensors) > 1)
    beside = labels is not None or given.weights is not None
    if takes.names is not None and beside and len(given.names) == 1 and given.names[0] not in takes.names:
        given = replace(given, names=())
    if takes.decoder is not None and labels is not None and not any("decoder_input" in n for n in given.names):
        given = _decoded(given, labels, takes.decoder)
    found = Batch(replace(given, dim=dim), labels)
    _check_rows(name, found)
    return found


def _weighed(name: str, given: Inputs, third: Any, takes: Takes) -> Inputs:
    """Inputs with the weights that go with them: a third member, or the input of that name."""
    key = str(takes.weights)
    if third is None and key not in given.names:
        raise ValueError(
            f"{name}: data must hold weights, under {key!r} or third in (inputs, labels, weights), got "
            f"{', '.join(given.told())} without"
        )
    if third is not None:
        return replace(given, weights=_tensor(name, third, number=True))
    by_name = dict(zip(given.names, given.tensors, strict=True))
    weights = by_name[key] if takes.both else by_name.pop(key)
    if not by_name:
        raise TypeError(f"{name}: data must hold inputs beside weights, got {key!r} alone")
    return replace(given, tensors=tuple(by_name.values()), names=tuple(by_name), weights=weights)


def _decoded(given: Inputs, labels: Tensor, decoder: Callable[..., Tensor]) -> Inputs:
    """Inputs by name with what a decoder is given beside them, of labels that are tokens."""
    if not given.names or labels.dim() != 2 or labels.is_floating_point():
        return given
    return replace(given, tensors=(*given.tensors, decoder(labels=labels)), names=(*given.names, "decoder_input_ids"))


def check_dense(name: str, *tensors: Tensor) -> None:
    """Refuses tensors that hold no values, or hold them sparsely: rows cannot be cut out of them."""
    for t in tensors:
        if t.layout is not torch.strided or t.is_meta or t.is_nested or t.is_quantized:
            kind = "nested" if t.is_nested else "quantized" if t.is_quantized else t.layout
            raise ValueError(f"{name}: data must be dense tensors that hold values, got {kind} on {t.device}")


def lengthened(batch: Batch, length: int) -> Batch:
    """A batch with a mask, with padding up to a length: 0 for inputs and the mask, `NO_LABEL` for labels."""
    mask = mask_of(batch.inputs)
    if mask is None or mask.shape[1] >= length:
        return batch
    own = mask.shape[1]

    def padded(t: Tensor, value: float) -> Tensor:
        if t.dim() < 2 or t.shape[1] != own:
            return t
        return torch.cat([t, t.new_full((len(t), length - own, *t.shape[2:]), value)], 1)

    labels = None if batch.labels is None else padded(batch.labels, NO_LABEL)
    return Batch(batch.inputs.each(lambda t: padded(t, 0)), labels)


def mask_of(inputs: Inputs) -> Tensor | None:
    """That which tells padding from tokens: an input by a name with "mask", of rows and positions."""
    found = (t for n, t in zip(inputs.names, inputs.tensors, strict=False) if "mask" in n and t.dim() == 2)
    return next(found, None)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _is_group(value: Any) -> bool:
    """Whether these are inputs: one tensor, several, or some by name."""
    several = isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_leaf, value))
    return _is_leaf(value) or several or _is_names(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(v is None or _is_leaf(v) for v in value.values())


def _is_whole(data: Any, takes: Takes) -> bool:
    """Whether data are one batch: names, or a pair whose second part is a tensor; with weights a third one."""
    if _is_names(data):
        return True
    if hasattr(data, "_fields"):
        there = [part for part in data if part is not None]
        return isinstance(data, tuple) and len(there) > 0 and all(map(_is_leaf, there))
    if takes.weights is not None and isinstance(data, tuple | list) and len(data) == 3:
        return _is_whole(data[:2], takes) and (_is_leaf(data[2]) or _is_numbers(data[2]))
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    first, second = data
    if second is None:  # no labels
        return _is_leaf(first) or _is_group(first) or _is_numbers(first)
    if _is_leaf(first) and _is_group(second):  # of which several are refused as labels
        return True
    if _is_group(first):  # two dicts are batches
        return _is_leaf(second) or _is_numbers(second)
    return _is_numbers(first) and (_is_leaf(second) or _is_numbers(second))


def _by_field(value: Any) -> Any:
    """A dataclass as the dict of its fields, where it is nothing else that data may be."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type | Iterable) or hasattr(value, "__getitem__"):
        return value
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _is_numbers(part: Any) -> bool:
    """Whether a list is of plain numbers, or of such lists."""
    if isinstance(part, range):
        return True
    if not isinstance(part, list | tuple) or not part:
        return False
    return isinstance(part[0], int | float | np.number) or _is_numbers(part[0])


def _is_table(data: Any) -> bool:
    """Whether data are a table of columns, as Hugging Face's data sets are; met by what they have."""
    has = all(hasattr(data, name) for name in ("column_names", "with_format"))
    return has and isinstance(data, Iterable) and not isinstance(data, Mapping)


def _is_table_of_several(data: Any) -> bool:
    """Whether data are several tables by name."""
    return isinstance(data, Mapping) and len(data) > 0 and all(map(_is_table, data.values()))


def _is_words(part: Any) -> bool:
    """Names of files and the like, which go along with a batch."""
    return isinstance(part, str) or (isinstance(part, tuple | list) and all(isinstance(p, str) for p in part))


def _inputs(name: str, given: Any) -> Inputs:
    """The first part of a batch."""
    if isinstance(given, Mapping):
        return Inputs.of({key: _tensor(name, v, key) for key, v in given.items() if v is not None})
    if isinstance(given, tuple | list) and given and all(map(_is_leaf, given)):
        return Inputs(tuple(_tensor(name, v) for v in given), grouped=True)
    return Inputs((_tensor(name, given),))


def _by_name(name: str, batch: Mapping[str, Any]) -> tuple[Inputs, Tensor | None]:
    """Inputs by name, and labels under one of theirs; columns of rows of several lengths are padded."""
    there = {key: value for key, value in batch.items() if value is not None}
    ragged = {key: rows for key, value in there.items() if (rows := _ragged(value)) is not None}
    if ragged and not any("mask" in key for key in ragged):
        first = next(iter(ragged))
        lengths = f"{min(map(len, ragged[first]))} to {max(map(len, ragged[first]))}"
        raise ValueError(
            f"{name}: rows of data must be of one length, or have an 'attention_mask' of their lengths beside them, "
            f"got {first!r} of lengths {lengths}"
        )
    label = next((key for key in LABELS if key in there), None)
    made = {
        key: pad_sequence(ragged[key], batch_first=True, padding_value=NO_LABEL if key == label else 0)
        if key in ragged else _labels(name, value, key) if key == label else _tensor(name, value, key)
        for key, value in there.items()
    }  # fmt: skip
    labels = None if label is None else made.pop(label)
    if not made:
        raise TypeError(f"{name}: data must hold inputs beside labels, got {shown(dict(batch))}")
    return Inputs.of(made), labels


def _ragged(value: Any) -> list[Tensor] | None:
    """Rows of more than one length, each a vector or a list of vectors; None: it is no such list."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    if not all(isinstance(row, Tensor | np.ndarray | list | tuple) for row in value):
        return None
    try:
        rows = [torch.as_tensor(row) for row in value]
    except (RuntimeError, TypeError, ValueError):
        return None
    if any(r.dim() == 0 for r in rows):
        return None
    same = {r.shape[1:] for r in rows}
    return rows if len(same) == 1 and len({len(r) for r in rows}) > 1 else None


def _labels(name: str, given: Any, key: str = "") -> Tensor:
    """Labels as one tensor, of a type that torch compares."""
    several = isinstance(given, tuple | list) and any(isinstance(part, Tensor) and part.dim() > 0 for part in given)
    if isinstance(given, Mapping) or several:
        told = ", ".join(map(repr, given)) if isinstance(given, Mapping) else f"{len(given)} parts"
        raise TypeError(
            f"{name}: labels of data must be one tensor, got several, {told}: give one of them, or all in its columns"
        )
    labels = given if isinstance(given, Tensor) else _tensor(name, given, key, number=True)
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def _tensor(name: str, value: Any, key: str = "", number: bool = False) -> Tensor:
    """A tensor of what holds numbers, or is one, where that may be."""
    if isinstance(value, Tensor):
        return value
    if np.ma.is_masked(value) or hasattr(value, "iloc"):
        more = "fill what is masked" if np.ma.is_masked(value) else "write .values"
        raise TypeError(f"{name}: data must be tensors or arrays, got a {type(value).__name__}: {more}")
    if number and isinstance(value, int | float | np.generic):
        return torch.as_tensor(value)
    try:
        if isinstance(value, np.ndarray):
            return _of_array(value)
        if isinstance(value, list | tuple | range):
            rows = [v for v in value if isinstance(v, Tensor)]
            return torch.stack(rows) if rows and len(rows) == len(value) else torch.as_tensor(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):  # of words, uneven lists
        pass
    if isinstance(value, Mapping):
        raise TypeError(
            f"{name}: {key!r} of data must be a tensor, got a dict of {', '.join(map(repr, value))}: {BESIDE}"
        )
    what = f"{key!r}: {shown(value)}; leave it out" if key else shown(value)
    raise TypeError(f"{name}: a batch of data must be of tensors or numbers, got {what}")


def _of_array(array: NDArray[Any]) -> Tensor:
    """The tensor of an array, in its memory where torch can look at that; nothing writes there, so it may be a file."""
    native = array.dtype.isnative and not any(stride < 0 for stride in array.strides)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        return torch.as_tensor(array if native else array.astype(array.dtype.newbyteorder("="), order="C"))


def _check_length(name: str, data: Any) -> None:
    """Refuses rows of which it is not known how many there are."""
    rows = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(rows, Dataset) and not isinstance(rows, IterableDataset) and not hasattr(rows, "__len__"):
        raise TypeError(f"{name}: a Dataset must say how many rows it has, got {type(rows).__name__} without __len__")


def _check_no_gap(name: str, batch: Any, names: Sequence[str]) -> None:
    """Refuses a named tuple with nothing before an input, which by position would stand in the wrong place."""
    before = [field for field in batch._fields[: batch._fields.index(names[-1])] if field not in (*names, *LABELS)]
    if before:
        raise TypeError(
            f"{name}: inputs of a named tuple are given by position, got None for {before[0]!r} before {names[-1]!r}: "
            "give a dict"
        )


def _check_rows(name: str, batch: Batch) -> None:
    inputs, labels = batch
    check_dense(name, *inputs.every, *(() if labels is None else (labels,)))
    if short := [t for t in inputs.tensors if t.dim() <= inputs.dim]:
        raise ValueError(f"{name}: data must have rows, got {shown(short[0]) if short[0].dim() else _scalar(short[0])}")
    counts = [t.shape[inputs.dim] for t in inputs.tensors]
    if len(set(counts)) > 1:
        each = [f"{told} of {n}" for told, n in zip(inputs.told(), counts, strict=True)]
        got = ", ".join(each[:4]) + (f", and {len(each) - 4} more" if len(each) > 4 else "")
        hint = "; a list of rows is torch.stack(rows)" if labels is not None and len(labels) == len(counts) else ""
        raise ValueError(f"{name}: inputs of data must have as many rows as each other, got {got}{hint}")
    if labels is not None and (labels.dim() == 0 or counts[0] != len(labels)):
        got = f"{counts[0]} and {len(labels) if labels.dim() else _scalar(labels)}"
        hint = "two batches of inputs are [(a,), (b,)]" if labels.dim() else "rows one by one go into a DataLoader"
        raise ValueError(f"{name}: data must have as many inputs as labels, got {got} ({hint})")
    weights = inputs.weights
    if weights is not None and (weights.dim() == 0 or counts[0] != len(weights)):
        got = f"{counts[0]} and {len(weights) if weights.dim() else _scalar(weights)}"
        raise ValueError(f"{name}: data must have as many inputs as weights, got {got}")


def _scalar(t: Tensor) -> str:
    return f"{t.dtype} of shape []"


def _collated(rows: list[Any]) -> Any:
    """Rows of a data set as a batch; those of several lengths as lists."""
    try:
        return default_collate(rows)
    except (RuntimeError, TypeError):
        if all(isinstance(row, Mapping) for row in rows):
            return {key: [row[key] for row in rows] for key in rows[0]}
        raise


class _Table:
    """Batches of the rows of a table: its columns by name.

    Args:
        name: of the function that asks.
        table: with columns.
        size: rows of a batch.
        takes: columns of other names than the model's are left out, but for labels and weights; where the model's are
            not known, those of words are.
    """

    def __init__(self, name: str, table: Any, size: int, takes: Takes) -> None:
        self.name, self.table, self.size = name, table.with_format("torch"), size
        columns = list(table.column_names or next(iter(table), {}))  # one that is read on and on may not know them
        label = next((key for key in LABELS if key in columns), None)
        beside = {label, takes.weights}
        self.columns = [c for c in columns if c in beside or takes.names is None or c in takes.names]
        self.all = takes.names is None
        if not beside.issuperset(self.columns):
            return
        if len([c for c in columns if c not in beside]) == 1 and label is not None:
            self.columns = columns  # one beside labels, whatever it is called
        else:
            taken = ", ".join(takes.names or ())
            raise ValueError(
                f"{name}: data must have a column for an argument of the model's forward, {taken}, "
                f"got {', '.join(columns)}; rename_column() or forward="
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in self._cut() if hasattr(self.table, "__len__") else self._read():
            yield {c: rows[c] for c in self.columns if not (self.all and _is_words(rows[c]))}

    def _cut(self) -> Iterator[Mapping[str, Any]]:
        for first in range(0, len(self.table), self.size):
            yield self.table[first : first + self.size]

    def _read(self) -> Iterator[Mapping[str, Any]]:
        """Of a table that is read row by row."""
        every = iter(self.table)
        while rows := list(itertools.islice(every, self.size)):
            yield _collated([{c: row[c] for c in self.columns} for row in rows])
