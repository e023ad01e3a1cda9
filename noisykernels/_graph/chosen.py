"""Entries that values choose, as many as there are where something holds: the tokens that are routed to an expert.

``where(mask)`` and ``x[mask]`` choose them; a mask of rows chooses of each row entries of its own. What runs on entries
must give for each what it gives for it alone, which is tried on some of them in another order; what is added to rows or
written into them goes to those that the entries come from. They are made anew wherever rows are repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._graph.operations import name_of
from noisykernels._graph.positions import indexed
from noisykernels._graph.tape import Cut, Rows, Step, Tape, Value, is_symbol

__all__ = ["Choices"]

DEPTH = 4  # operations that are looked at to tell whether a mask is another one
TRIES = 8  # of masks, until they choose other numbers of entries
_TAKES = frozenset(["__getitem__", "index_select"])
_GIVES = frozenset(["__setitem__", "index_put", "index_add"])

Pair = tuple[Any, Any]  # a value of two rows, and of three: the same rows in another order


class _Entries(NamedTuple):
    """Values with a dimension of entries, for two and for three rows."""

    mask: int  # the value that chooses them
    dim: int
    pair: Pair
    stride: int | None = None  # of an index: what a row takes in the dimension that it counts; None: it is another's


class Choices:
    """What is known of the entries of a tape while its rows are looked for.

    Args:
        tape: that is looked at.
        random: random values like those of the tape, for two and for three rows; random bits if asked for.
        same: whether values are, but for rounding.
    """

    def __init__(self, tape: Tape, random: Callable[..., Pair], same: Callable[[Any, Any], bool]) -> None:
        self.tape, self.random, self.same = tape, random, same
        self.masks: dict[int, Pair] = {}
        self.first: dict[Any, int] = {}  # by what makes it, the mask that is known: one may be made twice
        self.found: dict[int, _Entries] = {}

    def meets(self, step: Step) -> bool:
        """Whether a step chooses entries, or takes some."""
        return any(n in self.found for n in step.inputs) or self._mask_of(step) is not None

    def after(self, step: Step) -> dict[int, Pair] | str:
        """The results of a step that hold rows, for two and for three of these; or why it is not understood."""
        mask, mine = self._mask_of(step), {n: self.found[n] for n in step.inputs if n in self.found}
        masks = {entries.mask for entries in mine.values()} | ({mask} if mask is not None else set())
        why = f"{step.name} takes as many entries as values say"
        leaves = pytree.tree_leaves((step.args, step.kwargs), is_leaf=is_symbol)
        if len(masks) != 1 or any(isinstance(a, Rows | Cut) for a in leaves):
            return why
        (number,) = masks
        if number not in self.masks and not self._choose(number):
            return why
        others = [n for n in step.inputs if n not in mine and self._known(n) != number]
        takes, gives = name_of(step.function) in _TAKES, name_of(step.function) in _GIVES
        if others and not (takes or gives):
            return why
        if (takes or gives) and not self._of_own_rows(step, number, mine, others):
            return why
        tables = self._tables(step, number, mine, others)
        try:
            for table, rows in zip(tables, (2, 3), strict=True):
                step.run(table, rows)
        except Exception:
            return f"{step.name} cannot run on another number of entries"
        pairs = {n: (tables[0][n], tables[1][n]) for n in step.outputs}
        if gives:
            return pairs
        for i, (n, pair) in enumerate(pairs.items()):
            dim = self._dim(number, pair)
            if dim is None or (mine and not takes and not self._one_by_one(step, number, mine, n, dim, pair[0])):
                return why
            of_rows = mask is not None and not takes and i == self.tape.row_dims[number]
            self.found[n] = _Entries(number, dim, pair, self._inner(number) if of_rows else None)
            self.tape.chosen.add(n)
        return {}

    def _mask_of(self, step: Step) -> int | None:
        """The value that chooses entries in a step."""
        name, given = name_of(step.function), step.args[1:2] if step.args else ()
        if name == "where":
            mask = step.args[0] if len(step.args) == 1 and not step.kwargs else None
        elif name in ("__getitem__", "__setitem__") and len(step.calls) == 1 and given:
            mask = given[0] if isinstance(given[0], Value) and given[0].number in self.tape.masks else None
        else:
            return None
        if not isinstance(mask, Value) or self.tape.row_dims.get(mask.number) is None:
            return None
        if name == "__setitem__" and not (isinstance(step.args[2], Value) and step.args[2].number in self.found):
            return None  # a number is written, wherever it is
        return self._known(mask.number) if self.tape.outer.get(mask.number, 1) == 1 else None

    def _known(self, number: int, depth: int = DEPTH) -> int:
        """The first value that is made as this one, by the same operations on the same values."""
        if depth == 0 or (place := self.tape.producers.get(number)) is None:
            return number
        maker = self.tape.steps[place]
        leaves, tree = pytree.tree_flatten((maker.args, maker.kwargs), is_leaf=is_symbol)

        def told(a: Any) -> Any:
            if isinstance(a, Value):
                return self._known(a.number, depth - 1)
            return f"{type(a)} {id(a) if isinstance(a, Tensor) else a!r}"

        key = (maker.function, str(tree), *map(told, leaves), maker.outputs.index(number))
        return self.first.setdefault(key, number)

    def _choose(self, number: int) -> bool:
        """Masks of two and of three rows that choose other numbers of entries."""
        for _ in range(TRIES):
            pair = self.random(number, bits=True)
            counts = {int(mask.sum()) for mask in (m != 0 for m in pair)}
            if len(counts) == 2 and 0 not in counts:
                self.masks[number] = pair
                return True
        return False

    def _inner(self, number: int) -> int:
        """What a row takes in its dimension."""
        dim = self.tape.row_dims[number]
        assert dim is not None
        return self.tape.shapes[number][dim] // (self.tape.outer.get(number, 1) * self.tape.rows)

    def _of_own_rows(self, step: Step, mask: int, mine: dict[int, _Entries], others: list[int]) -> bool:
        """Whether entries are taken from, or given to, the rows that they belong to."""
        first = step.args[0] if step.args else None
        if not isinstance(first, Value) or [n for n in others if n != first.number] or first.number in mine:
            return False
        target, tape = first.number, self.tape
        if tape.row_dims.get(target) is None or tape.outer.get(target, 1) != 1 or target in tape.counted:
            return False
        index = step.args[1] if len(step.args) > 1 else None
        if isinstance(index, Value) and self._known(index.number) == mask:  # both count rows along dimension 0
            return tape.row_dims[mask] == tape.row_dims[target] == 0 and self._inner(mask) == self._inner(target)
        places = {n: indexed(step, n, len(tape.shapes[target])) for n in mine}
        rows = [n for n, dim in places.items() if dim == tape.row_dims[target]]
        return len(rows) == 1 and mine[rows[0]].stride == self._inner(target)

    def _tables(
        self, step: Step, mask: int, mine: dict[int, _Entries], others: list[int]
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        pairs = {n: entries.pair for n, entries in mine.items()} | {n: self.random(n) for n in others}
        pairs |= {n: self.masks[mask] for n in step.inputs if n not in pairs}
        return {n: two for n, (two, _) in pairs.items()}, {n: three for n, (_, three) in pairs.items()}

    def _dim(self, mask: int, pair: Pair) -> int | None:
        """The dimension of entries."""
        counts = [int((m != 0).sum()) for m in self.masks[mask]]
        two, three = pair
        if not isinstance(two, Tensor) or two.dim() != three.dim():
            return None
        moving = [d for d in range(two.dim()) if two.shape[d] != three.shape[d]]
        alike = len(moving) == 1 and [two.shape[moving[0]], three.shape[moving[0]]] == counts
        return moving[0] if alike else None

    def _one_by_one(self, step: Step, mask: int, mine: dict[int, _Entries], n: int, dim: int, two: Tensor) -> bool:
        """Whether a step gives for some entries, in another order, what it gives for them among all."""
        count = int((self.masks[mask][0] != 0).sum())
        generator = torch.Generator().manual_seed(count)
        some = torch.randperm(count, generator=generator)[: max(1, count // 2)]
        some = torch.cat([some, some[:1]]).to(two.device)
        table = {m: entries.pair[0].index_select(entries.dim, some) for m, entries in mine.items()}
        try:
            step.run(table, 2)
        except Exception:
            return False
        return self.same(table[n], two.index_select(dim, some))
