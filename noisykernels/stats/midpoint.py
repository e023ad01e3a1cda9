"""What is found of one curve: at which level it crosses what is asked for, and how surely.

Numbers in, numbers out: this file must not know torch, studies or plots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from noisykernels._util.checks import Range, in_range, one_of, shown
from noisykernels.stats.questions import HALF, Question, question

__all__ = ["Axis", "Midpoint", "Status", "described", "midpoint_cells", "restored"]


Axis = Literal["log", "linear"]
Status = Literal["ok", "none", "below", "open"]
Method = Literal["rows", "draws", "adaptive", "stopped"]
SAID = {"none": "never"}  # of a status, in tables


def midpoint_cells(p: Midpoint) -> list[str]:
    """level, interval, crossing and status of a line of the table."""
    more = f" ({len(p.crossings)} crossings)" if len(p.crossings) > 1 else ""
    if p.status == "open":
        return ["?", f"{p.low:.4g} .. {p.high:.4g}", "", p.status]
    if p.status != "ok" and p.above:
        return [f"> {p.low:.4g}", "", "", f"{SAID.get(p.status, p.status)}{more}"]
    if p.status != "ok":
        return [f"< {p.high:.4g}" if math.isfinite(p.high) else "?", "", "", f"{SAID.get(p.status, p.status)}{more}"]
    return [f"{p.level:.4g}", f"{p.low:.4g} .. {p.high:.4g}", f"{p.crossing:.4g}", f"ok{more}"]


@dataclass(frozen=True)
class Midpoint:
    """Where one curve crosses what is asked of it: half-way from its clean value to its floor, or another question.

    `at` is the question, as text, and `target` the value that it asks for. Half-way gives a midpoint, any other
    question a tolerance (`word`).

    `level` is where the curve has fallen to the target, and `low..high` its interval: the centre of a fitted logistic
    for the midpoint of an accuracy, else of a smooth curve through the means. `crossing` is where the mean curve first
    falls through the target, interpolated; `crossing_low` is the last tested level surely above it and `crossing_high`
    the first one surely not: no model, no interpolation. 0 and inf stand for "no bound from the tested levels".
    `crossings` lists every crossing of the mean curve, upward ones too; a search's, beside `level`, those between
    levels that it saw to be surely above the target and surely below it. `slope` is k of the logistic, per decade on a
    log axis, or of one as steep; of a tolerance the power p at the crossing, `(clean - value) ~ level^p`. Where lower
    is better, read "risen" for "fallen" and "below" for "above".

    status: "ok"; "none": never as far as asked on the tested levels (level and crossing are nan, `low` is
    a lower bound); "below": as far or farther already at the smallest level (nan, `high` is an
    upper bound); "open": a search has not found it with the evaluations that it may spend (nan;
    `low` is the highest level looked at that is surely above the target, before any that may not be,
    0: none, `high` the first after it that surely is not, inf: none). rising: accuracy rises with
    the level, so "none" has an upper bound, and "below", as far or farther even at the largest
    level, a lower one. method: what the intervals rest on, "rows" (the rows' own variance; of accuracies the
    binomial), "draws" (bootstrap), "adaptive" (a search's own measurement), or "stopped" (a search's that ended before
    its interval was as short as asked for). floor: nan where it is not known.
    """

    level: float
    low: float
    high: float
    crossing: float
    crossing_low: float
    crossing_high: float
    crossings: tuple[float, ...]
    slope: float
    clean: float
    floor: float
    status: Status
    method: Method
    confidence: float = 0.95
    site: str = ""
    site_index: int = -1
    rising: bool = False
    at: str = str(HALF)
    target: float = math.nan

    def __post_init__(self) -> None:
        """Half-way needs no target said."""
        if math.isnan(self.target) and self.at == str(HALF):
            object.__setattr__(self, "target", (self.clean + self.floor) / 2)

    @property
    def question(self) -> Question:
        """What was asked."""
        return question("Midpoint", self.at)

    @property
    def word(self) -> str:
        """What a reader calls the level: midpoint or tolerance."""
        return self.question.word

    @property
    def above(self) -> bool:
        """Of a site without a midpoint: whether it lies above the tested levels, not below them."""
        return (self.status == "none") != self.rising


NUMBERS = ("level", "low", "high", "crossing", "crossing_low", "crossing_high", "slope", "clean", "floor", "confidence")
TEXTS = {"site": str, "site_index": int, "rising": bool}


def described(midpoint: Midpoint) -> dict[str, Any]:
    """A midpoint as JSON can hold it: null for what is not a number or unbounded."""
    values = asdict(midpoint)
    if midpoint.at == str(HALF):  # which is told by the rest
        del values["at"], values["target"]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def restored(values: Mapping[str, Any]) -> Midpoint:
    """The counterpart of `described`.

    Raises:
        TypeError, ValueError, KeyError: what `described` has not written.
    """
    one_of("midpoints", "status", values["status"], get_args(Status))
    one_of("midpoints", "method", values["method"], get_args(Method))
    for name in NUMBERS:
        if values[name] is not None:
            in_range("midpoints", name, values[name], Range())
    asked = {"at": str(HALF), "target": None} | {name: values[name] for name in ("at", "target") if name in values}
    question("midpoints", asked["at"])
    if asked["target"] is not None:
        in_range("midpoints", "target", asked["target"], Range())
    for name, kind in TEXTS.items():
        if type(values[name]) is not kind:
            raise TypeError(f"midpoints: {name} must be of type {kind.__name__}, got {shown(values[name])}")
    for crossing in values["crossings"]:
        in_range("midpoints", "crossings", crossing, Range())
    given: dict[str, Any] = {k: math.nan if v is None else v for k, v in {**values, **asked}.items()}
    for name in ("high", "crossing_high"):
        given[name] = math.inf if values[name] is None else values[name]
    given["crossings"] = tuple(values["crossings"])
    return Midpoint(**given)
