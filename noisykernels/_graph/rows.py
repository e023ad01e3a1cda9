"""Where the values of a tape hold rows, found by running it: each step on its own, on rows in another order and number.

An operation that is trusted (`operations`) keeps rows apart if it gives for a row what it gave before, wherever that
row lies and however many there are. Step by step, so that the whole tape does if each of its steps does. Values are
random around those of the model: rows that happen to be equal, or all zero, would show nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._graph.blocks import block_from
from noisykernels._graph.chosen import Choices, Pair
from noisykernels._graph.operations import INDEXING, POSITIONS, SPLITS, UNIFORM, is_trusted
from noisykernels._graph.positions import follow_positions, largest_place
from noisykernels._graph.tape import NotTraceable, Step, Tape, Value, is_symbol, positions
from noisykernels._util.inputs import Inputs
from noisykernels.injection.rows import Rows as Place

__all__ = ["are_close", "find_rows"]

ORDER = (1, 0, 1)  # of two rows
AGAIN = (1, 0, 1, 1, 1, 1, 1)  # of which one comes again and again
BLOCK = 1 << 16  # entries that are compared at once: large values are not copied


def find_rows(tape: Tape, inputs: Inputs, scores: Tensor) -> str | None:
    """Fills in where values hold rows; the reason if that cannot be known for all of them.

    Args:
        tape: its rows are as many as `inputs`: two.
        inputs: of the model.
        scores: of the model for them.

    Raises:
        NotTraceable: running its operations again gives other scores.
    """
    generator = torch.Generator().manual_seed(0)
    values: dict[int, Any] = dict(enumerate(inputs.tensors))
    for number, value in values.items():
        _take(tape, number, value, (0, 1))

    def random(n: int, bits: bool = False) -> Pair:
        like = (torch.rand(values[n].shape, generator=generator) < 0.5).to(values[n]) if bits else values[n]
        return _two_and_three(tape, n, like, generator)

    choices = Choices(tape, random, is_close)
    i = 0
    while i < len(tape.steps):
        step = tape.steps[i]
        if not is_trusted(step.calls):
            return f"{step.name} is not known to keep rows apart"
        step.run(values, tape.rows)
        for n in step.outputs:
            tape.shapes[n] = tuple(values[n].shape)
        if step.names and not all(bool(values[n].isfinite().all()) for n in step.outputs):
            tape.infinite |= set(step.names)
        why = _find_rows_after(tape, step, values, generator, choices)
        if why is not None and (why != _mixes(step) or not _sort_out(tape, i, values, generator)):
            return why
        tape.forget(values, i, set())
        i += 1
    again = values[tape.result]
    if not are_close(again, scores):
        raise NotTraceable("running its operations again gives other scores")
    if tape.row_dims.get(tape.result) != 0 or tape.outer.get(tape.result, 1) != 1:
        raise NotTraceable("the model's result has no rows along dimension 0")
    return None


def _take(tape: Tape, number: int, value: Tensor, place: tuple[int, int] | None) -> None:
    tape.shapes[number] = tuple(value.shape)
    if value.dtype in (torch.bool, torch.uint8):
        tape.masks.add(number)
    if place is None:
        tape.counted.add(number)
        return
    tape.row_dims[number] = place[0]
    if place[1] != 1:
        tape.outer[number] = place[1]


def _find_rows_after(
    tape: Tape, step: Step, values: dict[int, Any], generator: torch.Generator, choices: Choices
) -> str | None:  # fmt: skip
    """Where the results of a step hold rows; a reason if it is not known."""
    if choices.meets(step):
        pairs = choices.after(step)
        return pairs if isinstance(pairs, str) else _take_places(tape, step, values, pairs)
    counted = [n for n in step.inputs if n in tape.counted]
    if len(counted) == len(step.inputs):  # made of the number of rows alone
        return _find_made(tape, step, values)
    stride, why = follow_positions(tape, step, counted)
    if why is not None:
        return why
    if _follows_values(step, values):
        return f"{step.name} takes as many entries as values say"
    of_rows = (n for n in step.inputs if n not in tape.counted)
    random = {n: _two_and_three(tape, n, values[n], generator) for n in of_rows}
    table, other = ({n: pair[i] for n, pair in random.items()} for i in (0, 1))
    table |= {n: tape.made(n, tape.rows) for n in counted}
    other |= {n: tape.made(n, len(ORDER)) for n in counted}
    try:
        step.run(table, tape.rows)
        step.run(other, len(ORDER))
    except Exception:
        return f"{step.name} cannot run on another number of rows"
    return _take_places(tape, step, values, {n: (table[n], other[n]) for n in step.outputs}, stride)


def _mixes(step: Step) -> str:
    return f"{step.name} mixes rows"


def _sort_out(tape: Tape, i: int, values: dict[int, Any], generator: torch.Generator) -> bool:
    """Makes a block of a step that mixes rows and of those after it that bring them back (`blocks`); whether there is
    one."""
    orders = {2: (0, 1), len(ORDER): ORDER, len(AGAIN): AGAIN}

    def given(n: int) -> dict[int, Any]:
        if n in tape.counted:
            return {rows: tape.made(n, rows) for rows in orders}
        two, three = _two_and_three(tape, n, values[n], generator)
        return {2: two, len(ORDER): three, len(AGAIN): _moved(tape, n, two, AGAIN)}

    def place(found: Mapping[int, Any]) -> tuple[int, int] | None:
        places = {_place(found[2], found[rows], order=orders[rows]) for rows in (len(ORDER), len(AGAIN))}
        return places.pop() if len(places) == 1 else None

    places = block_from(tape, i, orders, given, place)
    if places is None:
        return False
    for n in tape.steps[i].outputs:  # a part of it may have been taken for something of its own
        for known in (tape.row_dims, tape.outer, tape.strides, tape.bounds):
            known.pop(n, None)
    tape.steps[i].run(values, tape.rows)
    for n, found in places.items():
        _take(tape, n, values[n], found)
    return True


def _take_places(
    tape: Tape, step: Step, values: dict[int, Any], pairs: dict[int, Pair], stride: int | None = None
) -> str | None:  # fmt: skip
    """Where values hold rows, from what they are for two and for three; a reason if they do not."""
    for n, (two, three) in pairs.items():
        place = _place(two, three, stride)
        if place is None or _splits_rows(step, tape):
            tape.row_dims[n] = None
            return _mixes(step)
        _take(tape, n, values[n], place)
        if stride is not None:
            tape.strides[n] = stride
        elif not values[n].is_floating_point() and (largest := largest_place(tape, step, n)) is not None:
            tape.bounds[n] = largest
    return None


def _two_and_three(tape: Tape, n: int, value: Tensor, generator: torch.Generator) -> Pair:
    """Random values like one for two rows, and the same with the rows in another order and number."""
    stride = tape.strides.get(n)
    if stride is None:
        two = _shaken(value, generator)
    else:
        place = tape.place(n)
        two = _shaken(value - positions(place, value, tape.rows, stride), generator)
        two += positions(place, two, tape.rows, stride)
    return two, _moved(tape, n, two)


def _moved(tape: Tape, n: int, two: Tensor, order: tuple[int, ...] = ORDER) -> Tensor:
    """A value of two rows with the rows in another order and number."""
    dim, outer, stride = tape.row_dims[n], tape.outer.get(n, 1), tape.strides.get(n)
    if stride is None:
        return _arranged(two, dim, outer, order)
    place = tape.place(n)
    moved = _arranged(two - positions(place, two, tape.rows, stride), dim, outer, order)
    return moved + positions(place, moved, len(order), stride)


def _find_made(tape: Tape, step: Step, values: dict[int, Any]) -> str | None:
    """The same for what follows the number of rows alone: the same for every row, or made of their positions."""
    other: dict[int, Any] = {n: tape.made(n, len(ORDER)) for n in step.inputs}
    try:
        step.run(other, len(ORDER))
    except Exception:
        return f"{step.name} cannot run on another number of rows"
    for n in step.outputs:
        uniform = not step.inputs and step.function in UNIFORM and step.function not in POSITIONS
        _take(tape, n, values[n], _place(values[n], other[n]) if uniform else None)
    return None


def _follows_values(step: Step, values: dict[int, Any]) -> bool:
    """Whether the shape of a result follows values, or which entries are meant: other rows need not show it."""
    if step.name == "where":
        return len(step.args) + len(step.kwargs) < 2
    if step.name == "repeat_interleave":
        return len(step.inputs) > 1
    if INDEXING.isdisjoint(step.calls) or all(values[n].dtype not in (torch.bool, torch.uint8) for n in _indices(step)):
        return False
    writes = len(step.calls) > 1 or "get" not in step.name
    return not writes or not _writes_one_number(step, values)


def _indices(step: Step) -> Iterator[int]:
    """The values among the arguments of a step that are not the first one: indices and what is written."""
    first = step.args[0] if step.args else None
    for leaf in pytree.tree_leaves((step.args[1:], step.kwargs), is_leaf=is_symbol):
        if isinstance(leaf, Value) and leaf != first:
            yield leaf.number


def _writes_one_number(step: Step, values: dict[int, Any]) -> bool:
    last: Any = step.args[-1]
    if isinstance(last, dict) and len(step.args) > 2:  # written through views: (.., args, kwargs)
        last = step.args[-2][-1]
    if isinstance(last, Value):
        return bool(values[last.number].dim() == 0)
    return not isinstance(last, Tensor) or last.numel() == 1


def _splits_rows(step: Step, tape: Tape) -> bool:
    """Whether a step cuts the rows themselves into pieces, of which there are more where there are more rows."""
    if len(step.calls) > 1 or step.calls[0] not in SPLITS:  # several: views, which were steps of their own before
        return False
    first = step.args[0] if step.args else None
    if not isinstance(first, Value) or first.number not in tape.row_dims:
        return True
    if step.name == "unbind":
        return False  # it takes the dimension away: of rows, there would be as many pieces as rows
    number, args = first.number, [a for a in step.args[1:] if isinstance(a, int)]
    if step.name in ("chunk", "tensor_split") and args and tape.outer.get(number, 1) % args[0] == 0:
        return False  # of several that lie outside of the rows, into as many or fewer
    given = step.kwargs.get("dim", args[1] if len(args) > 1 else args[0] if len(step.args) > 2 and args else 0)
    return bool(given % len(tape.shapes[first.number]) == tape.row_dims[first.number])


def _shaken(value: Tensor, generator: torch.Generator) -> Tensor:
    """A value of its kind with generic rows; whole numbers, which may be indices, are some of those that there are."""
    if value.dtype == torch.bool:
        return torch.rand(value.shape, generator=generator).to(value.device) < 0.5
    if not (value.is_floating_point() or value.is_complex()):
        places = torch.randint(max(1, value.numel()), value.shape, generator=generator)
        return value.reshape(-1)[places.to(value.device)] if value.numel() else value
    random = torch.rand(value.shape, generator=generator).sub_(0.5).mul_(_size(value) or 1.0)
    return random.to(value.device, value.dtype).add_(value)


def _size(value: Tensor) -> float:
    """Of the largest finite entry."""
    largest = float(torch.linalg.vector_norm(value, torch.inf, dtype=_wide(value))) if value.numel() else 0.0
    if math.isfinite(largest):
        return largest
    finite = value[value.isfinite()]
    return _size(finite)


def _wide(value: Tensor) -> torch.dtype | None:
    return torch.float32 if value.dtype.itemsize < 4 else None


def _arranged(value: Tensor, dim: int | None, outer: int, order: tuple[int, ...] = ORDER) -> Tensor:
    """The value with its rows in another order and number."""
    assert dim is not None
    rows = torch.tensor(order, device=value.device)
    if outer == 1 and value.shape[dim] == 2:
        return value.index_select(dim, rows)
    apart: Tensor = value.unflatten(dim, (outer, 2, -1))
    return apart.index_select(dim + 1, rows).flatten(dim, dim + 2)


def _place(
    two: Any, three: Any, stride: int | None = None, order: tuple[int, ...] = ORDER
) -> tuple[int, int] | None:  # fmt: skip
    """Where a value of two rows must hold them to give that of three, or of as many as an order has: dimension, and
    what lies outside of it; but for the number of each row times a stride, if there is one."""
    if two.dim() != three.dim() or two.dtype != three.dtype:
        return None
    moving = [d for d in range(two.dim()) if two.shape[d] != three.shape[d]]
    if len(moving) != 1 or two.shape[moving[0]] * len(order) != three.shape[moving[0]] * 2:
        return None
    dim, times = moving[0], two.shape[moving[0]] // 2
    for outer in (k for k in range(1, times + 1) if times % k == 0):
        a, b = two, three
        if stride is not None:
            place = Place(dim, outer, folded=True)
            a, b = two - positions(place, two, 2, stride), three - positions(place, three, len(order), stride)
        if is_close(_arranged(a, dim, outer, order), b):
            return dim, outer
    return None


def are_close(a: Tensor, b: Tensor) -> bool:
    """The same of scores, where a class that is masked by a large constant says nothing of the size of the others."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    apart = (a != b) & ~(a.isnan() & b.isnan())
    size = _size(b[apart]) if bool(apart.any()) else 0.0
    counts = b.abs() <= 1e4 * size
    return is_close(torch.where(counts, a, 0.0), torch.where(counts, b, 0.0)) and not bool((apart & ~counts).any())


def is_close(a: Tensor, b: Tensor) -> bool:
    """Equal but for what another size of the batch may change in a contraction: some roundings of sums whose terms are
    of the size of the largest value. What mixes rows moves values by their own size.
    """
    if a.shape != b.shape or a.dtype != b.dtype or not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    rounding = 8 * torch.finfo(b.dtype).eps
    bound = {"rtol": max(1e-3, rounding), "atol": max(1e-4, rounding) * _size(b)}
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return all(torch.allclose(x, y, equal_nan=True, **bound) for x, y in blocks)
