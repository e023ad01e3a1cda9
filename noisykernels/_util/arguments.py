"""Arguments of public functions, checked by what their signatures say they are and by the table of ranges.

Must not know torch: its classes, and ours, are met by their names.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from noisykernels._util.checks import ITEMS, RANGES, Range, shown

__all__ = ["check_arguments"]

# Classes that signatures name, and how a message calls one.
CLASSES = {
    "BytePairs": "BytePairs", "Llama": "a Llama", "LlamaSizes": "LlamaSizes",
    "Compute": "a Compute", "CostModel": "a CostModel", "Curve": "a Curve", "Format": "a Format",
    "Generator": "a torch.Generator", "LinearPredictor": "a LinearPredictor", "Midpoint": "a Midpoint",
    "Noise": "a Noise", "Recordings": "Recordings", "Search": "a Search", "Serial": "a Serial",
    "SiteGradient": "a SiteGradient", "Study": "a Study", "Sweep": "a Sweep", "Tensor": "a tensor",
    "TokenRows": "TokenRows",
    "VoteCurve": "a VoteCurve", "nn.Module": "a torch.nn.Module", "torch.Tensor": "a tensor",
    "torch.device": "a torch.device", "torch.dtype": "a torch.dtype",
}  # fmt: skip
# Results that pictures are made of (stats/views.py), met by what they have.
LIKE = {
    "ChipsLike": ("Chips", "yield_at"), "ComparisonLike": ("a Comparison", "pairs"),
    "LayerFormatsLike": ("LayerFormats", "macs"), "OrderStudyLike": ("an OrderStudy", "layers"),
    "PredictorLike": ("a LinearPredictor", "correlation"), "StudyLike": ("a Study", "midpoints"),
    "SweepLike": ("a Sweep", "fastest"), "VotesLike": ("Votes", "curves"),
}  # fmt: skip
ALIASES = {
    "LawName": "Literal['binary', 'bounded', 'real', 'sums']",
    "Rows": "Tensor | Sequence[int] | TokenRows | None",
    "Pair": "tuple[int, int]", "str | os.PathLike[str]": "path", "Path": "path", "Axis": "Literal['log', 'linear']",
    "Progress": "bool | Callable[..., object]", "Settings": "Mapping[str, Any]", "Size": "int | Sequence[int]",
    "Augment": "Callable[..., Tensor]", "Seed": "int | Tensor | None", "Step": "Callable[..., object]",
    "NDArray[np.float64]": "ArrayLike",
    "Sequence[str | int | type] | str | type": "Sequence[str | int | type] | str | int | type",
}  # fmt: skip
NUMBERS = {"float": Range(), "int": Range(-(2**63), 2**63 - 1, whole=True)}
NUMBERS["SupportsIndex"] = NUMBERS["int"]
LISTS, DICTS = ("Collection[", "Iterable[", "Sequence[", "list[", "tuple["), ("Mapping[", "dict[")
GENERIC = ("Callable[", "Literal[", *LISTS, *DICTS)


def _is_numeric(value: Any) -> bool:
    """Whether numpy makes numbers of it."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (RuntimeError, TypeError, ValueError):  # of lists of different lengths, of a tensor on a device, ...
        return False


class _Kind(NamedTuple):
    """What an argument may be: in words, whether a value is of the kind, whether it is then a good one, and the kinds
    that its items may be of, where it has items and their kind is known.
    """

    told: str
    is_one: Callable[[Any], bool]
    is_good: Callable[[Any], bool] = lambda _: True
    items: tuple[_Kind, ...] = ()


PLAIN = {
    "ArrayLike": _Kind("numbers", _is_numeric),
    "None": _Kind("None", lambda v: v is None),
    "bool": _Kind("True or False", lambda v: isinstance(v, bool | np.bool_)),
    "str": _Kind("a text", lambda v: isinstance(v, str)),
    "type": _Kind("a module type", lambda v: isinstance(v, type) and any(c.__name__ == "Module" for c in v.__mro__)),
    "path": _Kind("a path", lambda v: isinstance(v, str | os.PathLike), lambda v: str(v) != "" and "\0" not in str(v)),
}


def check_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], op: str | None = None, /, **ranges: Range
) -> None:
    """Refuses what an argument cannot be; the first line of a public function: ``check_arguments(walk, locals())``.

    Args:
        function: whose signature says what its arguments are.
        given: the arguments by name; of a method, also `self`, after whose class an error is called.
        op: the function that was called, where it gives its arguments on to this one.
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
        allowed = ranges.get(name, RANGES.get(name))
        kinds = [_kind(part, allowed, ITEMS.get(name, allowed)) for part in parts]
        if wrong := _what_is_wrong(given[name], kinds):
            where, expected, got, error = wrong
            raise error(f"{op or _called(function, given)}: {where.format(name)} must be {expected}, got {shown(got)}")


def _called(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """What errors call a function; a method after the class of its object, an object's making as its class."""
    owner = type(given["self"]) if "self" in given else given.get("cls")
    if not isinstance(owner, type):
        return function.__name__
    return owner.__name__ if function.__name__.startswith("__") else f"{owner.__name__}.{function.__name__}"


def _what_is_wrong(value: Any, kinds: Sequence[_Kind]) -> tuple[str, str, Any, type[Exception]] | None:
    """Where the fault is ("{}": in the value), what was expected there, what came, and the class of the error."""
    same = [kind for kind in kinds if kind.is_one(value)]
    good = [kind for kind in same if kind.is_good(value)]
    if not good:
        *first, last = dict.fromkeys(kind.told for kind in kinds)
        return "{}", f"{', '.join(first)} or {last}" if first else last, value, ValueError if same else TypeError
    if not all(kind.items for kind in good) or not isinstance(value, list | tuple | Mapping):
        return None  # what is used up by a look is checked where it is used
    for item in value.values() if isinstance(value, Mapping) else value:
        if wrong := _what_is_wrong(item, [kind for one in good for kind in one.items]):
            return "each item of {}", *wrong[1:]
    return None


@cache
def _told(function: Callable[..., Any]) -> list[tuple[str, list[str]]]:
    """The arguments of which a signature tells the kind, and the kinds; others (Any, aliases) are checked where
    they are used.
    """
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        parts = list(_parts(str(parameter.annotation)))
        if all(map(_known, parts)):
            found.append((name, parts))
    return found


def _known(part: str) -> bool:
    return any(part in known for known in (CLASSES, LIKE, NUMBERS, PLAIN)) or part.startswith(GENERIC)


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


@cache
def _kind(part: str, allowed: Range | None, of_items: Range | None) -> _Kind:
    """The kind that a member of a signature's union says; the range of a number, and that of numbers in a list."""
    if part in NUMBERS:
        usual = NUMBERS[part]
        limits = allowed if allowed is not None and allowed.whole == usual.whole else usual
        return _Kind(str(limits), lambda v: limits.of(v) is not None, lambda v: limits.of(v) in limits)  # type: ignore[operator]
    if part.startswith("Literal["):
        words = re.findall(r"['\"]([^'\"]*)['\"]", part)
        return _Kind(" or ".join(map(repr, words)), lambda v: isinstance(v, str), words.__contains__)
    if part.startswith("Callable["):
        return _Kind("a function", callable)
    if part.startswith(DICTS):
        return _Kind("a dict", lambda v: isinstance(v, Mapping), items=_items(part, of_items))
    if part.startswith(LISTS):
        return _Kind(
            "a list",
            lambda v: isinstance(v, Iterable) and not isinstance(v, str | bytes | Mapping),
            items=_items(part, of_items),
        )
    if part in CLASSES:
        name = part.rpartition(".")[2]
        return _Kind(CLASSES[part], lambda v: any(c.__name__ == name for c in type(v).__mro__))
    if part in LIKE:
        told, member = LIKE[part]
        return _Kind(told, lambda v: hasattr(v, member) and not isinstance(v, type))
    return PLAIN[part]


def _items(part: str, allowed: Range | None) -> tuple[_Kind, ...]:
    """The kinds of the items of a list, or of the values of a dict; none where it is not said, or said one by one."""
    inner = part.partition("[")[2].removesuffix("]").removesuffix(", ...")
    if part.startswith(DICTS):
        inner = inner.partition(", ")[2]
    kinds = list(_parts(inner))
    return tuple(_kind(one, allowed, allowed) for one in kinds) if all(map(_known, kinds)) else ()
