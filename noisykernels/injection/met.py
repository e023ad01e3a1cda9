"""What `inject` was asked for, held against the sites that a forward has come upon: what met none is a mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from noisykernels._util.warning import warn_user
from noisykernels.injection.placement import Asked, Placement
from noisykernels.injection.site import Choice, closest, meets, near

__all__ = [
    "check_met",
    "no_site",
    "warn_of_idle",
    "warn_of_parameters",
    "warn_of_results",
    "warn_of_unmet",
    "warn_of_values",
]


def check_met(placement: Placement, names: Sequence[str], arrays: Collection[str], own: Callable[[str], bool]) -> None:
    """Refuses words and functions that met nothing.

    Args:
        placement: understood.
        names: of all sites of a forward.
        arrays: those at which hardware can be.
        own: whether the layer at a site keeps its own noise and hardware.
    """
    for argument, choice in placement.choices():
        if argument == "row_dims" and choice.word == "input":  # also that of arguments that are no sites
            continue
        known = list(dict.fromkeys([*names, *arrays])) if argument == "hardware" else names  # look-ups are no sites
        met = [name for name in known if meets(name, choice)]
        if not met:
            raise ValueError(no_site("inject", choice, names))
        if argument in ("where", "noise", "hardware") and all(map(own, met)):
            raise ValueError(
                f"inject: {choice.text!r} of {argument} matches noisy layers only, which keep their own noise and "
                f"hardware: {', '.join(met)}"
            )
        if argument == "hardware" and not any(name in arrays for name in met):
            raise ValueError(_no_array(f" that {choice.text!r} matches", arrays))
    hardware = placement.hardware
    if hardware is not None and not isinstance(hardware, dict) and not arrays:
        raise ValueError(_no_array("", arrays))
    _check_functions(placement, arrays)
    _warn_of_overridden(placement, names, arrays)


def _check_functions(placement: Placement, arrays: Iterable[str]) -> None:
    for argument, function in (("where", placement.where), ("hardware", placement.hardware)):
        if isinstance(function, Asked) and function.answers and all(a is None for a in function.answers.values()):
            asked = list(function.answers) if argument == "where" else list(arrays)
            raise ValueError(f"inject: the function {argument}= gave None for every site: {', '.join(asked)}")


def _warn_of_overridden(placement: Placement, names: Sequence[str], arrays: Collection[str]) -> None:
    """Tells of keys of tables that count nowhere."""
    for argument in ("noise", "hardware", "repeats", "row_dims"):
        table = getattr(placement, argument)
        if not isinstance(table, dict):
            continue
        counting = {closest(table, name) for name in (*names, *(arrays if argument == "hardware" else ()))}
        idle = [choice.text for choice in table if choice not in counting and choice.word != "input"]
        if idle:
            warn_user(
                f"inject: of {argument} {', '.join(map(repr, idle))} counts nowhere: other keys mean the same sites "
                "more exactly, or come before"
            )


def no_site(op: str, choice: Choice, known: Sequence[str]) -> str:
    """That a word means no site, and which are near it."""
    close = f"near it are {', '.join(found)}; " if (found := near(choice.text, known)) else ""
    return f"{op}: {choice.text!r} matches no site; {close}the model has {', '.join(known) or 'none'}"


def _no_array(which: str, arrays: Collection[str]) -> str:
    known = ", ".join(dict.fromkeys(arrays)) or "none"
    return f"inject: hardware needs a linear layer, convolution or other contraction{which}; the model has {known}"


def warn_of_unmet(placement: Placement, names: Sequence[str], arrays: Sequence[str]) -> None:
    """Tells of words that mean sites of the trace, and none of a forward with these sites and arrays."""
    lost = []
    for argument, choice in placement.choices():
        known = (*names, *arrays) if argument == "hardware" else names
        if argument in ("where", "noise", "hardware") and not any(meets(name, choice) for name in known):
            lost.append(choice.text)
    if lost:
        warn_user(
            f"inject: {', '.join(map(repr, lost))} met a site with example_input, but none in the first forward: the "
            "model runs otherwise there, or was changed since"
        )


def warn_of_idle(placement: Placement, placed: Sequence[str], idle: Collection[str]) -> None:
    """Tells of hardware that does nothing at all the contractions, among those it is `placed` at, that a key means."""
    hardware, found = placement.hardware, list[str]()
    for choice in hardware if isinstance(hardware, dict) else (None,):
        mine = [name for name in placed if choice is None or closest(hardware, name) == choice]
        found += mine if all(name in idle for name in mine) else []
    if found:
        warn_user(
            f"inject: hardware does nothing at {', '.join(map(repr, found))}: products of two values have no array, "
            "look-ups no inputs to convert and no sums of products"
        )


def warn_of_parameters(
    placement: Placement, parameters: Iterable[str], read: Mapping[str, Collection[str]], placed: Collection[str]
) -> None:
    """Tells of parameters that hardware was asked for and did not meet.

    Args:
        parameters: of two or more dimensions.
        read: of which parameters the weight of each contraction is made.
        placed: contractions that run on devices; at the others none were asked for.
    """
    hardware = placement.hardware
    if isinstance(hardware, dict):
        parameters = [p for p in parameters if closest(hardware, f"{p.rpartition('.')[0]}:parameter#0") is not None]
    known = {p for names in read.values() for p in names}
    if lost := [p for p in parameters if placed and p not in known]:
        warn_user(
            f"inject: hardware does not reach {', '.join(lost)}: of no contraction the weight; nk.coverage(model, "
            "example_input) says why"
        )


def warn_of_results(results: Mapping[str, str]) -> None:
    """Tells of modules that were asked for, by path, in whose results, of these types, there is no place for noise."""
    for path, kind in results.items():
        warn_user(
            f"inject: noise does not enter at the result of {path!r}, a {kind}, in which no floating-point tensor is "
            "found"
        )


def warn_of_values(names: Iterable[str]) -> None:
    """Tells of sites whose values take no noise."""
    if found := list(dict.fromkeys(names)):
        warn_user(f"inject: noise does not enter at {', '.join(found)}: the values there are integers or complex")
