"""Indices that go by the positions of rows, and take of each row what is its own.

Where tokens, nodes or points are folded into the rows, models make their indices of the number of rows: those of row r
are the ones of the first row, moved by r times a stride (``edges + arange(graphs) * nodes``). They are the row's own if
the stride is what a row takes in the dimension that is indexed. Indices that values say (the nearest points) are known
to stay within a row only where they are places along a dimension (`topk`, `argmax`), which are smaller than its size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._graph.operations import name_of
from noisykernels._graph.tape import Step, Tape, Value, is_symbol
from noisykernels.injection.rows import Rows as Place
from noisykernels.injection.rows import apart

__all__ = ["follow_positions", "indexed", "largest_place"]

COUNTS = (3, 11, 300, 1031)  # numbers of rows at which positions are looked at
_PLACES = {"argmax": 0, "argmin": 0, "argsort": 0} | dict.fromkeys(  # which of its results are places along a dimension
    "topk sort max min kthvalue median mode cummax cummin".split(), 1
)
_BY_DIM = frozenset(  # (value, dim, index, ...)
    "index_select index_add index_copy index_fill gather scatter scatter_add scatter_reduce".split()
)
_BY_PLACE = frozenset("__getitem__ __setitem__ index_put".split())  # (value, indices, ...)
_MOVES = frozenset(  # which neither read nor change an index
    "view reshape flatten unflatten permute transpose t unsqueeze squeeze expand contiguous clone movedim select "
    "narrow".split()
)
_SUMS = frozenset("add __add__ __radd__".split())


class _Positions(NamedTuple):
    """Whole numbers that are ``first + row * stride``, with 0 <= first <= most."""

    stride: int
    most: int


def follow_positions(tape: Tape, step: Step, counted: list[int]) -> tuple[int | None, str | None]:
    """What becomes of a step that takes values made of the number of rows (`counted`), or indices moved by them: the
    stride of its results, which are such indices again, or None; and why it is not known to keep rows apart.
    """
    moved = {n: tape.strides[n] for n in step.inputs if n in tape.strides}
    if moved and not counted and name_of(step.function) in _MOVES and _first(step) in moved:
        return moved[step.inputs[0]], None if len(step.inputs) == 1 else _said(step)
    if name_of(step.function) in _SUMS and not step.kwargs and len(step.inputs) == 2 and len(counted) == 1:
        (other,) = (n for n in step.inputs if n not in counted)
        found, bound = _positions(tape, counted[0]), tape.bounds.get(other)
        if found is not None and bound is not None and found.most + bound <= found.stride:
            return found.stride, None
    own = all(_takes_own_rows(tape, step, n, moved.get(n)) for n in (*counted, *moved))
    return None, None if own else _said(step)


def _said(step: Step) -> str:
    return f"{step.name} goes by the positions of rows"


def _first(step: Step) -> int | None:
    first = step.args[0] if step.args else None
    return first.number if isinstance(first, Value) else None


def _takes_own_rows(tape: Tape, step: Step, n: int, stride: int | None) -> bool:
    """Whether an argument of a step, an index of this stride if that is known, takes of each row what is its own."""
    if len(step.calls) > 1:  # written through a view: 0, 1, 2, ... along dimension 0
        return _counts_rows(tape, n)
    target = _first(step)
    if target is None or target == n or tape.row_dims.get(target) is None:
        return False
    dim = indexed(step, n, len(tape.shapes[target]))
    if dim is None or dim != tape.row_dims[target] or tape.outer.get(target, 1) != 1:
        return False
    if stride is None:
        found = _positions(tape, n)
        stride = None if found is None or found.most >= found.stride else found.stride
    return stride == tape.shapes[target][dim] // tape.rows


def _counts_rows(tape: Tape, n: int) -> bool:
    for count in COUNTS:
        made = tape.made(n, count)
        own = torch.arange(count, device=made.device).view(-1, *[1] * (made.dim() - 1))
        if made.dim() == 0 or made.shape[0] != count or not bool((made == own).all()):
            return False
    return True


def indexed(step: Step, n: int, rank: int) -> int | None:
    """The dimension of the first argument that an index means."""
    name, index = name_of(step.function), Value(n)
    if name in _BY_DIM:
        given = dict(zip(("dim", "index"), step.args[1:3], strict=False)) | step.kwargs
        dim = given.get("dim")
        others = (a for key, a in given.items() if key != "index")
        if given.get("index") != index or not isinstance(dim, int) or index in others or index in step.args[3:]:
            return None
        return dim % rank
    if name not in _BY_PLACE or len(step.args) < 2 or step.kwargs or index in _leaves(step.args[2:]):
        return None
    given = step.args[1]
    places = list(given) if isinstance(given, tuple | list) else [given]
    dim = 0
    for place in places:
        if isinstance(place, Value) and place == index:
            return dim
        if place is Ellipsis or (isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8)):
            return None
        dim += place is not None or name == "index_put"
    return None


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree, is_leaf=is_symbol)


def _positions(tape: Tape, n: int) -> _Positions | None:
    """What is known of whole numbers that are made of the number of rows, looked at for some of these."""
    made = [tape.made(n, count) for count in COUNTS]
    if not all(isinstance(t, Tensor) and t.dtype in (torch.int64, torch.int32) and t.numel() for t in made):
        return None
    if len({t.dim() for t in made}) > 1:
        return None
    moving = [d for d in range(made[0].dim()) if made[0].shape[d] != made[1].shape[d]]
    if len(moving) != 1 or made[0].shape[moving[0]] % COUNTS[0]:
        return None
    times = made[0].shape[moving[0]] // COUNTS[0]
    for outer in (k for k in range(1, times + 1) if times % k == 0):
        found = {_moved_by(t, Place(moving[0], outer, True), count) for t, count in zip(made, COUNTS, strict=True)}
        if len(found) == 1 and None not in found:
            return found.pop()
    return None


def _moved_by(made: Tensor, place: Place, count: int) -> _Positions | None:
    rows = apart(made, place, count)
    if rows is None:
        return None
    stride, first = int((rows[1] - rows[0]).reshape(-1)[0]), rows[0]
    moved = torch.arange(count, device=made.device).view(-1, *[1] * first.dim()) * stride
    if stride < 1 or int(first.min()) < 0 or not torch.equal(rows, first + moved.to(rows.dtype)):
        return None
    return _Positions(stride, int(first.max()))


def largest_place(tape: Tape, step: Step, n: int) -> int | None:
    """A number above all whole numbers of a result of a step, if they are places along a dimension other than that of
    the rows, or come from such."""
    first = _first(step)
    if first is None or first in tape.counted:
        return None
    if name_of(step.function) in _MOVES:
        return tape.bounds.get(first)
    place = _PLACES.get(name_of(step.function))
    if place is None or len(step.inputs) > 1 or place >= len(step.outputs) or step.outputs[place] != n:
        return None
    return max((size for d, size in enumerate(tape.shapes[first]) if d != tape.row_dims[first]), default=None)
