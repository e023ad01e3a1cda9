"""Operations that put the rows in another order or count them, and that only together keep rows apart: tokens sorted by
their experts, multiplied group by group, and brought back to where they were.

Such operations become one step, whose results are tried as those of a single operation are: on rows in another order
and number, among them one that comes again and again, so that whatever has room for some of a kind only is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from noisykernels._graph.operations import SPLITS, is_trusted, name_of
from noisykernels._graph.tape import Rows, Step, Tape, Value

__all__ = ["Block", "block_from"]

MOST = 64  # operations of a block
TRIES = 12
_BEGIN = frozenset("sort argsort msort".split())
WITHIN = "it lies between operations that put rows in another order"

Table = dict[int, Any]
Place = tuple[int, int]


class Block:
    """Steps as a function of a number of rows and of the values that they take from before.

    Args:
        steps: in order.
        takes: numbers of the values.
        gives: numbers of those that later steps take.
    """

    def __init__(self, steps: Sequence[Step], takes: Sequence[int], gives: Sequence[int]) -> None:
        self.steps, self.takes, self.gives = steps, takes, gives
        self.__name__ = f"{steps[0].name} .. {steps[-1].name}"

    def __call__(self, rows: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        values: Table = dict(zip(self.takes, tensors, strict=True))
        for step in self.steps:
            step.run(values, rows)
        return tuple(values[n] for n in self.gives)

    @property
    def step(self) -> Step:
        """It, as a step."""
        return Step(self, (Rows(1), *map(Value, self.takes)), {}, tuple(self.gives))


def block_from(
    tape: Tape, i: int, rows: Iterable[int], given: Callable[[int], Mapping[int, Any]],
    place: Callable[[Mapping[int, Any]], Place | None],
) -> dict[int, Place] | None:  # fmt: skip
    """Makes the shortest block of the i-th step of a tape and some after it whose results keep rows apart, and tells
    where these hold them; None: there is none.

    Args:
        tape: in which it takes the place of these steps.
        i: index of a step that does not keep rows apart by itself.
        rows: numbers of them that are tried.
        given: the value of a number, from before, for these numbers of rows.
        place: where a value holds its rows, from what it is for these.
    """
    if name_of(tape.steps[i].function) not in _BEGIN:
        return None
    tables: dict[int, Table] = {count: {} for count in rows}
    takes, made, counted = list[int](), list[int](), set(tape.counted)
    for j, step in enumerate(tape.steps[i : i + MOST], i):
        if not _fits(tape, step, counted):
            return None
        for n in (n for n in step.inputs if n not in made and n not in takes):
            takes.append(n)
            for count, value in given(n).items():
                tables[count][n] = value
        if not _runs(step, tables):
            return None
        made += step.outputs
        gives = [n for n in made if tape.last.get(n, -1) > j or n == tape.result]
        places = {n: found for n in gives if (found := place({k: table[n] for k, table in tables.items()})) is not None}
        if j > i and len(places) == len(gives):
            block = Block(tape.steps[i : j + 1], takes, gives)
            if not all(_holds(block, tables, given, place, places) for _ in range(TRIES)):
                return None
            tape.refused |= {name: WITHIN for inner in block.steps for name in inner.names}
            tape.replace(i, j + 1, block.step)
            return places
    return None


def _fits(tape: Tape, step: Step, counted: set[int]) -> bool:
    """Whether a step can be one of a block, where these values are made of the number of rows alone; its own, if they
    are, become some of them."""
    if not is_trusted(step.calls) or step.outputs[0] in tape.opened or not tape.chosen.isdisjoint(step.inputs):
        return False
    if counted.issuperset(step.inputs):
        counted |= set(step.outputs)
        return True
    return tape.strides.keys().isdisjoint(step.inputs) and _numbers_alone(step, counted)


def _runs(step: Step, tables: Mapping[int, Table]) -> bool:
    """Runs a step for all numbers of rows, if it does not cut them into pieces."""
    if _cuts_rows(step, tables.values()):
        return False
    try:
        for rows, table in tables.items():
            step.run(table, rows)
    except Exception:
        return False
    return True


def _holds(
    block: Block, rows: Iterable[int], given: Callable[[int], Mapping[int, Any]],
    place: Callable[[Mapping[int, Any]], Place | None], places: Mapping[int, Place],
) -> bool:  # fmt: skip
    """Whether a block gives rows at the same places for other values: bits and indices are alike now and then."""
    more = {n: given(n) for n in block.takes}
    found = {count: block(count, *(more[n][count] for n in block.takes)) for count in rows}
    return all(place({count: some[k] for count, some in found.items()}) == places[n] for k, n in enumerate(block.gives))


def _cuts_rows(step: Step, tables: Iterable[Table]) -> bool:
    """Whether a step cuts into pieces what there is more of where there are more rows."""
    if SPLITS.isdisjoint(step.calls):
        return False
    first = step.args[0] if len(step.calls) == 1 and step.args else None
    if not isinstance(first, Value) or not isinstance(dim := step.kwargs.get("dim", 0), int):
        return True
    return len({table[first.number].shape[dim] for table in tables}) > 1


def _numbers_alone(step: Step, counted: set[int]) -> bool:
    """Whether positions of rows, if a step reads any, are only numbered anew by it, as those of a permutation are: what
    is added to an index may lead to other rows, which random ones need not show."""
    if counted.isdisjoint(step.inputs):
        return True
    index = step.args[1] if name_of(step.function) == "__setitem__" and len(step.args) > 1 else None
    return isinstance(index, Value) and index.number not in counted
