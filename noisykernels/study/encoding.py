"""Values as JSON can hold them and back, by their type: every number exact, NaN and the infinities among them.

A number that JSON lacks is the text "nan", "inf" or "-inf" where a float is expected. A dictionary is a list of pairs:
its order is content (layers in order, say), that of a JSON object is none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = ["Codec", "Codecs", "codec_of"]


class Codec(NamedTuple):
    """How values of one type are written and read; reading raises TypeError, ValueError or KeyError for other ones."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


Codecs = Mapping[Any, Codec]


def codec_of(kind: Any, known: Codecs) -> Codec:
    """The codec of a type: a number, text, list, tuple, dict with text as keys, array, named tuple or dataclass.

    Args:
        kind: the type, as annotations name it.
        known: codecs of the types that are none of these.

    Raises:
        TypeError: a type that is none of these, and not known.

    Example:
        >>> codec = codec_of(tuple[float, ...], {})
        >>> codec.write((0.1, math.inf)), codec.read([0.1, "inf"])
        ([0.1, 'inf'], (0.1, inf))
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind in known:
        return known[kind]
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if origin is Literal:
        return Codec(lambda v: v, lambda v: args[args.index(v)])
    if origin in (Union, UnionType) and len(args) == 2 and NoneType in args:
        return _or_none(codec_of(next(a for a in args if a is not NoneType), known))
    if origin is list or (origin is tuple and args[1:] == (Ellipsis,)):
        return _many(origin, codec_of(args[0], known))
    if origin is tuple:
        return _each(tuple, [codec_of(a, known) for a in args])
    if origin is dict and args[0] is str:
        pairs = _many(dict, _each(tuple, [_SIMPLE[str], codec_of(args[1], known)]))
        return Codec(lambda v: pairs.write(v.items()), pairs.read)
    if origin is np.ndarray:
        return _analog(np.dtype(get_args(args[1])[0]))
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        named: Any = kind
        hints = get_type_hints(kind)
        return _each(named._make, [codec_of(hints[name], known) for name in named._fields])
    if isinstance(kind, type) and is_dataclass(kind):
        return _named(kind, known)
    raise TypeError(f"no way to write a {kind} in a file")


def _float(value: Any) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else repr(number)


def _number(value: Any) -> float:
    number = float(value)
    return math.nan if math.isnan(number) else number  # the one that lists of equal records share


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


_SIMPLE: Codecs = {
    float: Codec(_float, _number),
    int: Codec(operator.index, operator.index),
    str: Codec(_text, _text),
    bool: Codec(bool, _bool),
}


def _or_none(inner: Codec) -> Codec:
    write, read = inner
    return Codec(lambda v: None if v is None else write(v), lambda v: None if v is None else read(v))


def _many(make: Callable[[Any], Any], inner: Codec) -> Codec:
    """Any number of one type."""
    return Codec(lambda v: [inner.write(x) for x in v], lambda v: make([inner.read(x) for x in _list(v)]))


def _each(make: Callable[[Any], Any], inner: list[Codec]) -> Codec:
    """One of each of some types."""
    return Codec(
        lambda v: [c.write(x) for c, x in zip(inner, v, strict=True)],
        lambda v: make([c.read(x) for c, x in zip(inner, _list(v), strict=True)]),
    )


def _analog(dtype: np.dtype[Any]) -> Codec:
    """An array of one dimension."""
    numbers = _many(list, _SIMPLE[float if dtype.kind == "f" else int])
    return Codec(lambda v: numbers.write(np.asarray(v, dtype).tolist()), lambda v: np.array(numbers.read(v), dtype))


def _named(kind: type[Any], known: Codecs) -> Codec:
    """A dataclass by the names of its fields."""
    hints = get_type_hints(kind)
    inner = {f.name: codec_of(hints[f.name], known) for f in fields(kind)}

    def read(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != inner.keys():
            raise ValueError(f"expected {', '.join(inner)}, got {value if not isinstance(value, dict) else [*value]}")
        return kind(**{name: codec.read(value[name]) for name, codec in inner.items()})

    return Codec(lambda v: {name: codec.write(getattr(v, name)) for name, codec in inner.items()}, read)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return value
