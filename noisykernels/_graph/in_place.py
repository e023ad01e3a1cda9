"""What writes in place as functions that give a new value, and views that look at the memory of another.

Knows nothing of recordings: it is given functions, arguments with tensors, and views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._graph.operations import name_of
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection.kinds import INPLACE_AT

__all__ = ["HERE", "Output", "View", "memory_of", "out_of_place", "seen", "write_through"]

_COMPARES = ("eq_", "ne_", "lt_", "le_", "gt_", "ge_", "less", "greater", "not_equal", "logical_")


class View(NamedTuple):
    """An operation whose result shares the memory of its argument."""

    function: Any
    args: Any
    kwargs: Any
    output: int  # which of its tensors


class _Here:
    """Stands for the value that is looked through, in the arguments of a view or of what writes."""

    def __repr__(self) -> str:
        return "HERE"


HERE = _Here()


def memory_of(t: Tensor) -> int:
    """Which memory a tensor lies in."""
    found: int = t.untyped_storage()._cdata
    return found


class Output:
    """One of the tensors that a function gives."""

    def __init__(self, function: Any, output: int) -> None:
        self.function, self.output, self.__name__ = function, output, name_of(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The function's."""
        found = [t for t in pytree.tree_leaves(self.function(*args, **kwargs)) if isinstance(t, Tensor)]
        tensor: Tensor = found[self.output]
        return tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Output) and (self.function, self.output) == (other.function, other.output)

    def __hash__(self) -> int:
        return hash((self.function, self.output))


def seen(value: Any, view: Sequence[Any]) -> tuple[Any, Any]:
    """Arguments of a view with the value that is looked at."""
    found: tuple[Any, Any] = pytree.tree_map(lambda a: value if a is HERE else a, (view[1], view[2]))
    return found


def write_through(base: Tensor, views: Sequence[Sequence[Any]], func: Any, args: Any, kwargs: Any) -> Tensor:
    """A tensor after a function has written into a view of it: `views` are lists of what a `View` holds."""
    base = base.clone()
    looked = base
    for view in views:
        more, named = seen(looked, view)
        looked = Output(view[0], view[3])(*more, **named)
    if memory_of(looked) != memory_of(base):
        raise RuntimeError("a view that is written into is a copy for other sizes")
    args, kwargs = pytree.tree_map(lambda a: looked if a is HERE else a, (args, kwargs))
    func(*args, **kwargs)
    return base


def out_of_place(func: Any, args: Any, kwargs: Any, main: Tensor) -> tuple[Any, Any, Any]:
    """A function that writes into a tensor, as one that gives a new value; its arguments with tensors."""
    if "out" in kwargs:
        rest = {k: a for k, a in kwargs.items() if k != "out"}
        return _Cast(func, main.dtype), args, rest
    if (position := INPLACE_AT.get(func)) is not None:
        if len(args) > position:
            return func, (*args[:position], False, *args[position + 1 :]), kwargs
        return func, args, {**kwargs, "inplace": False}
    name = name_of(func)
    plain = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")  # __iadd__, add_
    first = bool(args) and args[0] is main
    if first and name not in ("fill_", "zero_", "copy_") and plain != name:
        other = getattr(Tensor, plain, getattr(torch, plain, None))
        if other is not None:
            types = {t.dtype for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()}
            same = types == {main.dtype} and not name.startswith(_COMPARES)
            return other if same else _Cast(other, main.dtype), args, kwargs
    if not first:
        raise NotTraceable(f"{name} writes into another than its first argument")
    return _OnACopy(func), args, kwargs


class _Cast:
    """A function whose result is made of a given type, as what is written in place is."""

    def __init__(self, function: Any, dtype: torch.dtype) -> None:
        self.function, self.dtype, self.__name__ = function, dtype, name_of(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The function's, of that type."""
        out: Tensor = self.function(*args, **kwargs).to(self.dtype)
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Cast) and (self.function, self.dtype) == (other.function, other.dtype)

    def __hash__(self) -> int:
        return hash((self.function, self.dtype))


class _OnACopy:
    """A function that writes into its first argument, on a copy of it."""

    def __init__(self, function: Any) -> None:
        self.function, self.__name__ = function, name_of(function)

    def __call__(self, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        """The copy after."""
        x = x.clone()
        self.function(x, *rest, **more)
        return x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OnACopy) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)
