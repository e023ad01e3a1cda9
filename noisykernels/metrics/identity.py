"""What tells measures of a user's own code from each other: parameters of objects, and what functions do."""

from __future__ import annotations

import hashlib
import types
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["digest", "of_function", "of_parameters"]

PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)


def digest(text: str) -> str:
    """Of a text, short."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def of_parameters(owner: Any, without: tuple[str, ...] = ()) -> str:
    """The public attributes of an object, by name: plain ones as they are, arrays and functions as digests.

    Example:
        >>> class Mine:
        ...     def __init__(self, p):
        ...         self.p = p
        >>> of_parameters(Mine(0.5)), of_parameters(Mine(0.6)) == of_parameters(Mine(0.5))
        ('p=0.5', False)
    """
    held = getattr(owner, "__dict__", {})
    held = {**held, **held.get("_buffers", {})}
    return ", ".join(f"{k}={_told(v)}" for k, v in sorted(held.items()) if k[:1] != "_" and k not in without)


def of_function(function: Any) -> str:
    """A digest of what a function computes: its code, defaults and what it holds; of another callable its class and
    parameters."""
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{type(function).__qualname__}({of_parameters(function)})"
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    parts = [_of_code(code), *map(_told, function.__defaults__ or ()), *map(_told, held)]
    return digest("|".join(parts))


def _of_code(code: types.CodeType) -> str:
    consts = [_of_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return "|".join([code.co_code.hex(), *code.co_names, *consts])


def _constant(value: Any) -> str:
    """A constant of code; the order of a set's members differs from process to process."""
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _told(value: Any) -> str:
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return f"{array.dtype}{list(array.shape)}:{digest(np.ascontiguousarray(array).tobytes().hex())}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, types.FunctionType):
        return of_function(value)
    return type(value).__qualname__
