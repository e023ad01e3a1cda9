"""A model's forward as a list of operations, of which any part can be run alone; `recorder` makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["NotTraceable", "Rows", "Step", "Tape", "Value", "is_symbol", "repeated"]


class NotTraceable(Exception):
    """Why a model's forward cannot be kept as a list of operations."""


@dataclass(frozen=True)
class Value:
    """A tensor that an earlier step gives (or the input: number 0)."""

    number: int


@dataclass(frozen=True)
class Rows:
    """A whole number that is `factor` times the number of rows."""

    factor: int


class Step:
    """One operation: `function(*args, **kwargs)`, whose tensors become the values `outputs`."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[int, ...]
    ) -> None:
        self.function, self.args, self.kwargs, self.outputs = function, args, kwargs, outputs
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

        def resolve(a: Any) -> Any:
            if isinstance(a, Value):
                return values[a.number]
            return a.factor * rows if isinstance(a, Rows) else a

        if self._flat:
            return tuple(resolve(a) for a in self.args), {k: resolve(a) for k, a in self.kwargs.items()}
        args, kwargs = pytree.tree_map(resolve, (self.args, self.kwargs), is_leaf=is_symbol)
        return args, kwargs

    def run(self, values: dict[int, Any], rows: int) -> None:
        """Takes its values from a table and puts its results there."""
        args, kwargs = self.arguments(values, rows)
        out = self.function(*args, **kwargs)
        if isinstance(out, Tensor):
            values[self.outputs[0]] = out
            return
        leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        for number, leaf in zip(self.outputs, leaves, strict=True):
            values[number] = leaf


def is_symbol(a: Any) -> bool:
    return isinstance(a, Value | Rows)


@dataclass
class Tape:
    """The steps of a forward from its input (value 0) to its scores (`result`)."""

    steps: list[Step]
    result: int
    row_dims: dict[int, int | None]  # of every value that depends on the input
    shapes: dict[int, tuple[int, ...]]  # with `rows` rows
    rows: int
    sites: dict[str, int] = field(default_factory=dict)  # the value at each site
    refused: dict[str, str] = field(default_factory=dict)  # sites that cannot be reached alone, and why
    idle: set[str] = field(default_factory=set)  # sites from which no operation leads to the scores

    def position(self, number: int) -> int:
        """Index of the first step after the one that gives a value."""
        return next((i + 1 for i, s in enumerate(self.steps) if number in s.outputs), 0)

    def needed(self, steps: Sequence[Step]) -> set[int]:
        """Values that these steps take and do not make."""
        made: set[int] = set()
        taken: set[int] = set()
        for step in steps:
            taken |= {n for n in step.inputs if n not in made}
            made |= set(step.outputs)
        return taken if self.result in made else taken | {self.result}

    def suffix(self, number: int) -> list[Step]:
        """The steps that depend on a value, in order."""
        reached, found = {number}, []
        for step in self.steps[self.position(number) :]:
            if any(n in reached for n in step.inputs):
                found.append(step)
                reached |= set(step.outputs)
        return found

    def run(self, inputs: Tensor, keep: set[int] | None = None) -> dict[int, Any]:
        """All values (those in `keep` and the result, if given) for a batch of inputs."""
        values: dict[int, Any] = {0: inputs}
        last = {n: i for i, step in enumerate(self.steps) for n in step.inputs}
        for i, step in enumerate(self.steps):
            step.run(values, len(inputs))
            if keep is not None:
                for n in (*step.inputs, *step.outputs):
                    if last.get(n, -1) <= i and n not in keep and n != self.result:
                        values.pop(n, None)
        return values


def repeated(tape: Tape, number: int, value: Tensor, copies: int) -> Tensor:
    """A value for `copies` times the rows, copy by copy."""
    dim = tape.row_dims[number]
    assert dim is not None
    return value if copies == 1 else torch.cat([value] * copies, dim)
