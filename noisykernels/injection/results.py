"""What a module gives, as a place: the first floating-point tensor in it, wherever it lies, and another in its stead.

Looked into are tuples, lists, dicts and dataclasses, named or not, and whatever of these lies in them; so also the
outputs of models of Hugging Face's. Numbers, such as a loss, are no places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["First", "first_of"]


class First(NamedTuple):
    """The first tensor of a result, and what makes the same result of another tensor there."""

    value: Tensor
    put: Callable[[Tensor], Any]


def first_of(result: Any) -> First | None:
    """The first floating-point tensor of a result that may have rows; None: none is found.

    Example:
        >>> import torch
        >>> found = first_of({"loss": torch.tensor(1.0), "states": (torch.arange(2), torch.zeros(2))})
        >>> found.put(found.value + 1)
        {'loss': tensor(1.), 'states': (tensor([0, 1]), tensor([1., 1.]))}
    """
    if isinstance(result, Tensor):
        return First(result, lambda value: value) if result.is_floating_point() and result.dim() else None
    for key, part in _parts(result):
        found = first_of(part)
        if found is not None:
            return First(found.value, _within(result, key, found.put))
    return None


def _within(result: Any, key: Any, put: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """What makes a result of another tensor in one of its parts."""
    return lambda value: _with(result, key, put(value))


def _parts(result: Any) -> Iterator[tuple[Any, Any]]:
    """What lies in a result, and where."""
    if isinstance(result, tuple | list):
        yield from enumerate(result)
    elif isinstance(result, MutableMapping):
        yield from result.items()
    elif is_dataclass(result) and not isinstance(result, type):
        yield from ((f.name, getattr(result, f.name, None)) for f in fields(result))


def _with(result: Any, key: Any, part: Any) -> Any:
    """The same with another part in one place; the result itself stays as it is."""
    if isinstance(result, tuple):
        parts = [*result[:key], part, *result[key + 1 :]]
        if type(result) is tuple:
            return tuple(parts)
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    if type(result) is list:
        return [*result[:key], part, *result[key + 1 :]]
    if type(result) is dict:
        return {**result, key: part}
    made = copy.copy(result)
    if isinstance(result, list | MutableMapping):
        old = result[key]
        made[key] = part
        held = getattr(made, "__dict__", {})  # where entries are attributes, too
        if isinstance(key, str) and held.get(key) is old:
            held[key] = part
    else:
        object.__setattr__(made, key, part)  # which may be frozen
    return made
