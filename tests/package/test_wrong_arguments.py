"""Wrong values for every argument of public functions: an error that names the argument, and no work."""

from __future__ import annotations

import re
import warnings

import pytest
from wrong_arguments import GOOD, cases

from noisykernels._util.checks import shown

NAMES = {function.__qualname__ for function in GOOD} | {"noise_state"}
ALIASES = {
    "arithmetic": "format",
    "fmt": "format",
    "given": "format",
    "start": "format",
    "model_name": "name",
    "data_name": "name",
    "values": "levels",
}
# Arguments that torch, numpy or Python check in words of their own. This list may only get shorter.
LEFT = {
    ("train", "device"), ("m_sharpness", "ascent"), ("noisy_steps", "level"), ("crop_flip", "generator"),
    ("crop_flip", "fill"),
    *((name, argument) for name in ("SAM", "ASAM", "SAMSON") for argument in ("params", "lr")),
}  # fmt: skip


@pytest.mark.parametrize("function", GOOD, ids=lambda function: function.__qualname__)
def test_a_good_call_is_taken(function) -> None:
    function(**GOOD[function]())


def fault(argument: str, call) -> str:
    """What is wrong with the error that a call with a wrong argument ends with; empty: nothing."""
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        said = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", str(error)).removeprefix("noisykernels::")  # where in the C++ source
        op, _, rest = said.partition(": ")
        named = any(re.search(rf"\b{re.escape(name)}\b", rest) for name in (argument, ALIASES.get(argument, argument)))
        good = op in NAMES and named and "\n" not in said and len(said) < 800
        return "" if good else f"{type(error).__name__}: {said[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return "accepted"


def test_wrong_arguments_are_named() -> None:
    warnings.simplefilter("ignore")
    found, count = {}, 0
    for function, argument, value, call in cases():
        count += 1
        if told := fault(argument, call):
            found.setdefault((function, argument), []).append(f"{shown(value)} -> {told}")
    new = {k: v for k, v in found.items() if k not in LEFT}
    assert count > 2000
    assert not new, f"{sum(map(len, new.values()))} of {count}:\n" + "\n".join(f"{k}: {v[:3]}" for k, v in new.items())
    assert not LEFT - set(found), f"mended, so take out: {LEFT - set(found)}"
