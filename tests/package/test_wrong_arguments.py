"""Wrong values for every argument of public functions: an error that names the argument, and no work."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from wrong_arguments import GOOD, cases, done, name_of

import noisykernels as nk
from noisykernels._util.checks import shown

OF_OTHERS = {"transformers", "lightning", "lm_eval"}  # what `make test-models` installs
NAMES = {name_of(function, good()) for function, good in GOOD.items()}
# What another function says, to which an argument goes on under another name.
ALIASES = {
    "arithmetic": "format", "fmt": "format", "given": "format", "start": "format", "formats": "format",
    "model_name": "name", "data_name": "name", "values": "levels", "ax": "axes",
    "statistics": "data",
}  # fmt: skip
PUBLIC = Path(__file__).parents[1] / "data" / "public_names.txt"
# Public classes that users do not make: what functions give back, what is only a base or a type.
MADE = {
    "Chips", "Comparison", "Curve", "DataInfo", "FormatChoice", "FormatResult", "LayerFormats", "LayerOrder", "Meta",
    "LinearPredictor", "Midpoint", "Mixed", "NoiseState", "OrderStudy", "Pair", "Record", "Recordings", "Site", "Study",
    "Sweep", "VoteCurve", "Votes", "Draw", "Format", "Device", "Arithmetic", "Result", "Law", "Metric", "Binary",
    "Accuracy", "PerRow", "OfSums", "RayExecutor", "Coverage", "Reach", "SiteDraw", "Tokens", "Language",
}  # fmt: skip
# Methods that the package calls on what it is given: torch's, and those of devices, metrics, searches and executors.
CALLED = set(
    "forward extra_repr reset_parameters drawn add_param_group load_state_dict step passes "
    "input output weight cells measure contract add_bias levels perturbed given_order "
    "check_clean check_data check_scores floor of_rows value empty missing numbers packed pooled unpacked number "
    "check prepared counts_as parts positions weights totals classes frequencies hits together given "
    "tell_of_part set_block after in_parts_of lost of_weighted shares counts each "
    "channels fixed fresh largest look described run evaluations rows_on memory_on of submit".split()
)  # fmt: skip


def public_callables() -> Iterator[tuple[str, Any]]:
    """All that a user can call with arguments: functions, classes that are made, their methods."""
    for line in PUBLIC.read_text().splitlines():
        found: Any = nk
        for part in line.split(".")[1:]:
            module = f"{getattr(found, '__name__', '')}.{part}"
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(module)
        if (
            found is nk.build_info
            or not callable(found)
            or not str(getattr(found, "__module__", "")).startswith("noisykernels")
        ):
            continue
        if not isinstance(found, type):
            yield line, found
        elif not issubclass(found, Exception):
            if found.__name__ not in MADE:
                yield line, found
            for name in (name for name in dir(found) if name[0] != "_" and name not in CALLED):
                method = getattr(found, name)
                if (
                    callable(method)
                    and not getattr(method, "__isabstractmethod__", False)
                    and str(getattr(method, "__module__", "")).startswith("noisykernels")
                ):
                    yield f"{line}.{name}", method


def test_no_public_function_is_forgotten() -> None:
    """Each that takes arguments has a good call, with all arguments that its signature names."""
    same = {getattr(function, "__func__", function): good for function, good in GOOD.items()}
    forgotten = []
    for full, function in public_callables():
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        takes = {name for name, p in inspect.signature(function).parameters.items() if p.kind not in several}
        if takes <= {"self"}:
            continue
        good = same.get(getattr(function, "__func__", function))
        if good is None:
            forgotten.append(full)
        elif missing := takes - good().keys():
            forgotten.append(f"{full}: {missing}")
    assert not forgotten, "\n".join(forgotten)


@pytest.fixture(autouse=True)
def no_pictures() -> Iterator[None]:
    """Pictures that calls have made."""
    yield
    pyplot.close("all")


@pytest.mark.parametrize("function", GOOD, ids=lambda function: function.__qualname__)
def test_a_good_call_is_taken(function) -> None:
    try:
        done(function, GOOD[function]())
    except ModuleNotFoundError as error:
        if error.name not in OF_OTHERS:
            raise
        pytest.skip(str(error))


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
    told = "\n".join(f"{k}: {v[:3]}" for k, v in found.items())
    assert count > 6000
    assert not found, f"{sum(map(len, found.values()))} of {count}:\n{told}"
