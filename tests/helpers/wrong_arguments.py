"""Wrong values for each argument of the good calls, chosen by what the signature says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import good_calls
import good_metrics
import good_results

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
GOOD: good_calls.Good = {
    **good_calls.OPERATORS, **good_calls.HARDWARE, **good_calls.STUDIES, **good_results.RESULTS,
    **good_metrics.METRICS, **good_results.INTEGRATIONS,
    **good_results.PICTURES, **good_results.STATISTICS, **good_results.TRAINING, **good_results.FILES,
}  # fmt: skip
# What an annotation does not say: arguments that noisy layers pass on to torch's.
LAYER = dict.fromkeys(("in_features", "out_features", "in_channels", "out_channels", "groups"), "int") | dict.fromkeys(
    ("kernel_size", "stride", "padding", "output_padding", "dilation"), "int"
) | dict(bias="bool", padding_mode="Literal['zeros']", dtype="torch.dtype | None")  # fmt: skip


class Odd:
    """An object of no use."""

    def __repr__(self) -> str:
        return "<an odd object>"


def name_of(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """What errors call a function: a method is named after the class of its object."""
    name = function.__qualname__
    return f"{type(given['self']).__name__}.{function.__name__}" if "self" in given else name


def done(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Calls a function; what it gives for a block of `with` is entered and left."""
    made = function(**given)
    if isinstance(made, AbstractContextManager) and not isinstance(made, Path):
        with made:
            pass


def wrong(annotation: str, good: Any) -> Iterator[Any]:
    """Values that no argument of a kind can be."""
    parts = set(re.split(r"\s*\|\s*", annotation))
    anything, function = (
        "Any" in parts,
        "Callable" in annotation or bool(parts & {"Progress", "Augment", "Step", "Level"}),
    )
    number, whole = parts & {"float", "int", "SupportsIndex", "Seed"}, parts & {"int", "SupportsIndex", "Seed"}
    array, text = "Array" in annotation, "str" in annotation or "Literal" in annotation
    one = {
        "nn.Module",
        "Noise",
        "Data",
        "Metric",
        "Study",
        "Sweep",
        *(p for p in parts if p.endswith("Like") and not array),
    }
    several = not array and re.match(r"(Sequence|Iterable|Mapping|tuple|list|dict)\[", annotation) is not None
    yield Odd()
    for holds, values in (
        (not anything and not function, [type]),
        (not parts & {"None", "Any", "Seed", "Ids", "Level"} and not array and good is not None, [None]),
        (parts == {"bool"}, [2, "yes", NAN]),
        (number, [NAN, [], HUGE, -HUGE]),
        (whole and "float" not in parts, [1.5, INF, True]),
        ("float" in parts, [1j]),
        (not anything and not text, ["", "nonsense"]),
        ("Literal" in annotation, ["", "nonsense", 3]),
        ("Tensor" in parts and not number, [3, HUGE]),
        (several, [[Odd()], [None]]),
        (several and "| str" not in annotation, [3]),
        (re.match(r"(Mapping|dict)\[(?!.*Any)", annotation), [{"a": Odd()}]),
        (parts & one, [3, "nonsense"]),
        ("PathLike" in annotation, ["", "\0", 3, b"x"]),
    ):
        yield from values if holds else ()


def cases() -> Iterator[tuple[str, str, Any, Callable[[], object]]]:
    """Name of the function and of the argument, a wrong value, and the call with it."""
    for function, good in GOOD.items():
        signature, given = inspect.signature(function), good()
        for name, value in given.items():
            if name == "self":
                continue
            known = signature.parameters
            annotation = str(known[name].annotation) if name in known else LAYER.get(name, "Any")
            for bad in wrong(annotation, value):

                def call(function: Any = function, good: Any = good, name: str = name, bad: Any = bad) -> None:
                    done(function, good() | {name: bad})

                yield name_of(function, given), name, bad, call
