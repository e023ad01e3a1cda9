"""Arguments of public functions, checked by what their signatures say they are and by the table of ranges.

Must not know torch: its classes, and ours, are met by their names.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from noisykernels._util.checks import RANGES, Range, shown

__all__ = ["check_arguments"]

# Classes that signatures name, and how a message calls one.
CLASSES = {
    "Compute": "a Compute", "CostModel": "a CostModel", "LinearPredictor": "a LinearPredictor", "Noise": "a Noise",
    "Search": "a Search", "Study": "a Study", "Tensor": "a tensor", "VoteCurve": "a VoteCurve",
    "nn.Module": "a torch.nn.Module", "torch.Tensor": "a tensor",
}  # fmt: skip
ALIASES = {
    "str | os.PathLike[str]": "path", "Axis": "Literal['log', 'linear']", "Progress": "bool | Callable[..., object]",
    "Augment": "Callable[..., Tensor]", "Seed": "int | Tensor | None", "Step": "Callable[..., object]",
    "NDArray[np.float64]": "ArrayLike", "Sequence[str | int] | str": "Sequence[str | int] | str | int",
}  # fmt: skip
NUMBERS = {"float": Range(), "int": Range(-(2**63), 2**63 - 1, whole=True)}
NUMBERS["SupportsIndex"] = NUMBERS["int"]
GENERIC = ("Callable[", "Iterable[", "Literal[", "Mapping[", "Sequence[", "dict[")


def _is_numeric(value: Any) -> bool:
    """Whether numpy makes numbers of it."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (RuntimeError, TypeError, ValueError):  # of lists of different lengths, of a tensor on a device, ...
        return False


class _Kind(NamedTuple):
    """What an argument may be: in words, whether a value is of the kind, and whether it is then a good one."""

    told: str
    is_one: Callable[[Any], bool]
    is_good: Callable[[Any], bool] = lambda _: True


PLAIN = {
    "ArrayLike": _Kind("numbers", _is_numeric),
    "None": _Kind("None", lambda v: v is None),
    "bool": _Kind("True or False", lambda v: isinstance(v, bool | np.bool_)),
    "str": _Kind("a text", lambda v: isinstance(v, str)),
    "path": _Kind("a path", lambda v: isinstance(v, str | os.PathLike), lambda v: str(v) != "" and "\0" not in str(v)),
}


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], **ranges: Range) -> None:
    """Refuses what an argument cannot be; the first line of a public function: ``check_arguments(walk, locals())``.

    Args:
        function: whose signature says what its arguments are.
        given: the arguments by name; of a method, also `self`, after whose class an error is called.
        ranges: of numbers that the table does not know, or not so.

    Raises:
        TypeError: something of another kind.
        ValueError: a number out of its range, or another word.

    Example:
        >>> def shift(by: int, how: Literal['left', 'right'] | None = None): ...
        >>> check_arguments(shift, {"by": 3, "how": None}, by=Range(0, 7, whole=True))
        >>> check_arguments(shift, {"by": 3, "how": "up"})
        Traceback (most recent call last):
        ValueError: shift: how must be 'left' or 'right' or None, got 'up'
    """
    for name, parts in _told(function):
        value, kinds = given[name], [_kind(part, ranges.get(name, RANGES.get(name))) for part in parts]
        same = [kind for kind in kinds if kind.is_one(value)]
        if not any(kind.is_good(value) for kind in same):
            op = type(given["self"]).__name__ if "self" in given else function.__name__
            *first, last = (kind.told for kind in kinds)
            expected = f"{', '.join(first)} or {last}" if first else last
            raise (ValueError if same else TypeError)(f"{op}: {name} must be {expected}, got {shown(value)}")


@cache
def _told(function: Callable[..., Any]) -> list[tuple[str, list[str]]]:
    """The arguments of which a signature tells the kind, and the kinds; others (Any, aliases) are checked where
    they are used.
    """
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        parts = list(_parts(str(parameter.annotation)))
        if all(p in CLASSES or p in NUMBERS or p in PLAIN or p.startswith(GENERIC) for p in parts):
            found.append((name, parts))
    return found


def _parts(annotation: str) -> Iterator[str]:
    """The members of a union; bars inside brackets belong to a member."""
    for name, meaning in ALIASES.items():
        annotation = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", meaning, annotation)
    depth, start = 0, 0
    for at, letter in enumerate(f"{annotation}|"):
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and depth == 0:
            yield annotation[start:at].strip()
            start = at + 1


def _kind(part: str, allowed: Range | None) -> _Kind:
    """The kind that a member of a signature's union says."""
    if part in NUMBERS:
        usual = NUMBERS[part]
        limits = allowed if allowed is not None and allowed.whole == usual.whole else usual
        return _Kind(str(limits), lambda v: limits.of(v) is not None, lambda v: limits.of(v) in limits)  # type: ignore[operator]
    if part.startswith("Literal["):
        words = re.findall(r"'([^']*)'", part)
        return _Kind(" or ".join(map(repr, words)), lambda v: isinstance(v, str), words.__contains__)
    if part.startswith("Callable["):
        return _Kind("a function", callable)
    if part.startswith(("dict[", "Mapping[")):
        return _Kind("a dict", lambda v: isinstance(v, Mapping))
    if part.startswith(("Iterable[", "Sequence[")):
        return _Kind("a list", lambda v: isinstance(v, Iterable) and not isinstance(v, str | bytes | Mapping))
    if part in CLASSES:
        name = part.rpartition(".")[2]
        return _Kind(CLASSES[part], lambda v: any(c.__name__ == name for c in type(v).__mro__))
    return PLAIN[part]
