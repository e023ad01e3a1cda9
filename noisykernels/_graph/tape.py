"""A model's forward as a list of operations, of which any part can be run alone; `recorder` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._util.inputs import Inputs
from noisykernels.injection.rows import Rows as Place

__all__ = [
    "Asked",
    "Cut",
    "NotTraceable",
    "Rows",
    "Step",
    "Tape",
    "Value",
    "is_symbol",
    "joined",
    "part_of",
    "positions",
    "repeated",
]


class NotTraceable(Exception):
    """Why a model's forward cannot be kept as a list of operations."""


@dataclass(frozen=True)
class Value:
    """A tensor that an earlier step gives (or an input: the first numbers)."""

    number: int


@dataclass(frozen=True)
class Rows:
    """A whole number that is `factor` times the number of rows."""

    factor: int


@dataclass(frozen=True)
class Cut:
    """A slice of which an end follows the number of rows."""

    ends: tuple[Any, Any, Any]  # start, stop and step


class Step:
    """One operation: `function(*args, **kwargs)`, whose tensors become the values `outputs`.

    `calls` are the functions that it stands for, where these are several.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[int, ...],
        calls: tuple[Any, ...] = (),
    ) -> None:
        self.function, self.args, self.kwargs, self.outputs = function, args, kwargs, outputs
        self.calls = calls or (function,)
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=is_symbol)
        self.inputs = tuple(dict.fromkeys(a.number for a in leaves if isinstance(a, Value)))
        self.names: tuple[str, ...] = ()  # sites whose value this is
        self._flat = not any(  # no symbol within a list
            is_symbol(leaf)
            for a in (*args, *kwargs.values())
            if not is_symbol(a)
            for leaf in pytree.tree_leaves(a, is_leaf=is_symbol)
        )

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", str(self.function))

    def arguments(self, values: dict[int, Any], rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with values from a table."""

        def resolve(a: Any) -> Any:  # not within itself, which would keep the table alive
            if isinstance(a, Value):
                return values[a.number]
            if isinstance(a, Cut):
                return slice(*(end.factor * rows if isinstance(end, Rows) else end for end in a.ends))
            return a.factor * rows if isinstance(a, Rows) else a

        if self._flat:
            return tuple(resolve(a) for a in self.args), {k: resolve(a) for k, a in self.kwargs.items()}
        args, kwargs = pytree.tree_map(resolve, (self.args, self.kwargs), is_leaf=is_symbol)
        return args, kwargs

    def run(self, values: dict[int, Any], rows: int) -> None:
        """Takes its values from a table and puts its results there."""
        args, kwargs = self.arguments(values, rows)
        self.put(values, self.function(*args, **kwargs))

    def put(self, values: dict[int, Any], out: Any) -> None:
        """Puts what it gives into a table."""
        if isinstance(out, Tensor):
            values[self.outputs[0]] = out
            return
        leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        for number, leaf in zip(self.outputs, leaves, strict=True):
            values[number] = leaf


class Asked(NamedTuple):
    """What code has asked of values (`step` gives no tensor), and what it was told."""

    step: Step
    answer: Any


def is_symbol(a: Any) -> bool:
    return isinstance(a, Value | Rows | Cut)


@dataclass
class Tape:
    """The steps of a forward from its inputs (values 0, 1, ...) to its scores (`result`).

    A value holds rows along `row_dims`: that dimension is `outer` times the rows times anything, in this order. One in
    `counted` holds none: it follows the number of rows, such as their positions do, and is made anew for every number.
    One in `fixed` is the same for all rows, and noise may enter at it or before it: elsewhere it is a constant of the
    steps, and `before` and `opened` tell of the steps that make it and of those that read it.
    """

    steps: list[Step]
    result: int
    rows: int
    row_dims: dict[int, int | None] = field(default_factory=dict)  # None: rows are mixed there
    outer: dict[int, int] = field(default_factory=dict)  # where it is not 1
    counted: set[int] = field(default_factory=set)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # with `rows` rows
    strides: dict[int, int] = field(default_factory=dict)  # of indices that are moved by so much for every row
    bounds: dict[int, int] = field(default_factory=dict)  # whole numbers are from 0 to below
    masks: set[int] = field(default_factory=set)  # values of bits
    chosen: set[int] = field(default_factory=set)  # values of entries that masks choose: made anew where they are read
    fixed: dict[int, Any] = field(default_factory=dict)  # values that are the same for all rows
    before: list[Step] = field(default_factory=list)  # that make these
    asked: list[Asked] = field(default_factory=list)  # of values that noise does not reach: rows may answer otherwise
    asking: list[Step] = field(default_factory=list)  # that make the values asked of
    opened: dict[int, Step] = field(default_factory=dict)  # by first result, steps that read these
    sites: dict[str, int] = field(default_factory=dict)  # the value at each site
    infinite: set[str] = field(default_factory=set)  # sites whose values are not all finite: no direction is added
    refused: dict[str, str] = field(default_factory=dict)  # sites that cannot be reached alone, and why
    idle: set[str] = field(default_factory=set)  # sites from which no operation leads to the scores
    prepared: dict[tuple[Step, ...], Any] = field(default_factory=dict)  # steps that run as one (`fusions`)
    _made: dict[tuple[int, int], Any] = field(default_factory=dict)  # counted values, for the last numbers of rows

    @cached_property
    def producers(self) -> dict[int, int]:
        """Index of the step that gives a value."""
        return {n: i for i, step in enumerate(self.steps) for n in step.outputs}

    @cached_property
    def makers(self) -> dict[int, Step]:
        """The step that gives a value, be it one that is the same for all rows; inputs have none."""
        return {n: step for step in (*self.before, *self.steps) for n in step.outputs}

    @cached_property
    def last(self) -> dict[int, int]:
        """Index of the step that reads a value last."""
        return {n: i for i, step in enumerate(self.steps) for n in step.inputs}

    def replace(self, first: int, end: int, step: Step) -> None:
        """Puts a step where those from `first` to `end` - 1 were."""
        self.steps[first:end] = [step]
        self.__dict__.pop("producers", None)
        self.__dict__.pop("last", None)

    def place(self, number: int) -> Place:
        """Where a value holds its rows."""
        dim = self.row_dims[number]
        assert dim is not None
        return Place(dim, self.outer.get(number, 1), folded=True)

    def holds_rows_alone(self, number: int) -> bool:
        """Whether a value has a dimension of rows and of nothing else."""
        dim = self.row_dims.get(number)
        return dim is not None and self.outer.get(number, 1) == 1 and self.shapes[number][dim] == self.rows

    def needed(self, steps: Sequence[Step]) -> set[int]:
        """Values that these steps take and do not make."""
        made: set[int] = set()
        taken: set[int] = set()
        for step in steps:
            taken |= {n for n in step.inputs if n not in made}
            made |= set(step.outputs)
        return taken if self.result in made else taken | {self.result}

    def suffix(self, *numbers: int, redone: bool = False) -> list[Step]:
        """The steps that depend on some values, in order.

        Args:
            redone: those that make these values are among them.
        """
        reached, found = set() if redone else set(numbers), []
        steps: Iterable[Step] = self.steps[min(self.producers.get(n, -1) for n in numbers) + (not redone) :]
        if any(n in self.fixed for n in numbers):
            steps = [*self.before, *(self.opened.get(step.outputs[0], step) for step in self.steps)]
        for step in steps:
            if any(n in reached for n in step.inputs) or (redone and not set(numbers).isdisjoint(step.outputs)):
                found.append(step)
                reached |= set(step.outputs)
        return self._with_choices(found, reached)

    def _with_choices(self, found: list[Step], made: set[int]) -> list[Step]:
        """These steps, and those that make the chosen entries that they read."""
        lacking = {n for step in found for n in step.inputs if n in self.chosen and n not in made}
        if not lacking:
            return found
        more = [step for step in self.steps if not lacking.isdisjoint(step.outputs)]
        every = {step.outputs[0]: step for step in (*more, *found)}
        order = [every[step.outputs[0]] for step in (*self.before, *self.steps) if step.outputs[0] in every]
        return self._with_choices(order, made | {n for step in more for n in step.outputs})

    def answers(self, inputs: Inputs) -> list[Any]:
        """What code is told that asks for these rows what it asked while it was recorded."""
        values: dict[int, Any] = dict(enumerate(inputs.tensors))
        for step in self.asking:
            step.run(values, len(inputs))
        found = []
        for step, _ in self.asked:
            args, kwargs = step.arguments(values, len(inputs))
            found.append(step.function(*args, **kwargs))
        return found

    def holds_for(self, inputs: Inputs) -> bool:
        """Whether code takes the way that was recorded for these rows, as far as it has asked."""
        return not self.asked or self.answers(inputs) == [answer for _, answer in self.asked]

    def run(self, inputs: Inputs | Tensor, keep: set[int] | None = None) -> dict[int, Any]:
        """All values (those in `keep` and the result, if given) for a batch of inputs."""
        values: dict[int, Any] = dict(enumerate(Inputs.of(inputs).tensors))
        for i, step in enumerate(self.steps):
            step.run(values, len(inputs))
            if keep is not None:
                self.forget(values, i, keep)
        return values

    def forget(self, values: dict[int, Any], i: int, keep: set[int]) -> None:
        """Takes out of a table what no step after the i-th reads, but for what is to be kept and the result."""
        for n in (*self.steps[i].inputs, *self.steps[i].outputs):
            if self.last.get(n, -1) <= i and n not in keep and n != self.result:
                values.pop(n, None)

    def made(self, number: int, rows: int) -> Any:
        """A counted value for a number of rows."""
        if (number, rows) not in self._made:
            if len(self._made) > 64:
                self._made.clear()
            step = self.steps[self.producers[number]]
            table = {n: self.made(n, rows) for n in step.inputs}
            step.run(table, rows)
            self._made |= {(n, rows): table[n] for n in step.outputs}
        return self._made[number, rows]


def repeated(tape: Tape, number: int, value: Tensor, copies: int, rows: int) -> Tensor:
    """A value of so many rows for `copies` times the rows, copy by copy."""
    if number in tape.counted:
        made: Tensor = tape.made(number, copies * rows)
        return made
    if copies == 1:
        return value
    if (stride := tape.strides.get(number)) is None:
        return joined(tape, number, [value] * copies)
    place = tape.place(number)
    found = joined(tape, number, [value - positions(place, value, rows, stride)] * copies)
    return found + positions(place, found, copies * rows, stride)


def positions(place: Place, like: Tensor, rows: int, stride: int) -> Tensor:
    """The number of each row times a stride, where a value of this shape holds its rows."""
    inner = like.shape[place.dim] // max(1, place.outer * rows)
    found = torch.arange(rows, device=like.device).mul(stride).repeat_interleave(inner).repeat(place.outer)
    return found.view(-1, *[1] * (like.dim() - 1 - place.dim))


def joined(tape: Tape, number: int, parts: Sequence[Tensor]) -> Tensor:
    """Copies of a value, the rows of each after those of the one before."""
    dim, outer = tape.row_dims[number], tape.outer.get(number, 1)
    assert dim is not None
    if outer == 1:
        return torch.cat(list(parts), dim)
    return torch.cat([p.unflatten(dim, (outer, -1)) for p in parts], dim + 1).flatten(dim, dim + 1)


def part_of(tape: Tape, number: int, value: Tensor, low: int, high: int, rows: int) -> Tensor:
    """Rows low .. high - 1 of a value of so many."""
    if high - low == rows:
        return value
    if number in tape.counted:
        made: Tensor = tape.made(number, high - low)
        return made
    if (stride := tape.strides.get(number)) is not None:  # its rows are others there
        value = value - low * stride
    dim, outer = tape.row_dims[number], tape.outer.get(number, 1)
    assert dim is not None
    if outer == 1:
        each = value.shape[dim] // rows
        return value.narrow(dim, low * each, (high - low) * each)
    apart: Tensor = value.unflatten(dim, (outer, rows, -1))
    return apart.narrow(dim + 1, low, high - low).flatten(dim, dim + 2)
