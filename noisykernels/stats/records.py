"""What a study is made of: one record per (site, level, draw), curves, and how it came about.

This file must not know torch or the compiled extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels.stats.intervals import Floats, LawName, wilson
from noisykernels.stats.midpoint import Axis
from noisykernels.stats.questions import Question, question, targeted

INDEPENDENT = ("activation",)  # targets whose noise is new for each row


class Record(NamedTuple):
    """One cell: a site at one level under one draw. low..high: 95 % Wilson over the rows."""

    site: str
    site_index: int
    level: float
    draw: int
    rows: int
    correct: int
    accuracy: float
    status: str
    low: float
    high: float

    @classmethod
    def counted(
        cls, site: str, site_index: int, level: float, draw: int, rows: int, correct: int,
        status: str = "evaluated",
    ) -> Record:  # fmt: skip
        """The record of a count.

        `accuracy = correct / rows`; `low`, `high`: Wilson's 95 % interval of that proportion.

        Args:
            site: name of the site.
            site_index: its place in execution order.
            level: noise level.
            draw: id of the draw.
            rows: rows evaluated, > 0.
            correct: correct predictions among them, 0..rows.
            status: how the count was come by.

        Raises:
            ValueError: not 0 <= correct <= rows, or no rows.

        Example:
            >>> Record.counted("fc1:linear#0", 1, 0.5, 0, rows=100, correct=90).accuracy
            0.9
        """
        check_arguments(Record.counted, locals())
        if not 0 <= correct <= rows or rows == 0:
            raise ValueError(f"Record.counted: correct must be from 0 to rows, got {correct} of {rows}")
        low, high = wilson(correct, rows)
        return cls(str(site), int(site_index), float(level), int(draw), int(rows), int(correct),
                   int(correct) / int(rows), status, float(low), float(high))  # fmt: skip

    @property
    def value(self) -> float:
        """What was measured."""
        return self.accuracy

    @property
    def missing(self) -> int:
        """Rows without a number: none, as those with NaN count as wrong."""
        return 0

    @property
    def spread(self) -> float:
        """NaN: the spread of yes and no follows from their share."""
        return math.nan


class Measured(NamedTuple):
    """One cell of a study of another measure than a share of rows: a site at one level under one draw.

    missing: rows (of sums: blocks of them) without a finite number, which `value` leaves out. spread: standard
    deviation of a row's number that its clean one does not explain, in units of the value; NaN: not known.
    low..high: 95 % Student interval over the rows.
    """

    site: str
    site_index: int
    level: float
    draw: int
    rows: int
    missing: int
    value: float
    spread: float
    status: str
    low: float
    high: float


class Curve(NamedTuple):
    """What is measured at one site against level: the mean over draws and its 95 % band."""

    site: str
    site_index: int
    levels: Floats
    mean: Floats
    low: Floats
    high: Floats
    draws: int


def usual_axis(noise: Mapping[str, Any]) -> Axis:
    """The axis of the levels of a noise: linear for purely multiplicative noise.

    Example:
        >>> usual_axis({"add": 0.0, "mul": 1.0}), usual_axis({"add": 1.0, "mul": 1.0})
        ('linear', 'log')
    """
    return "linear" if np.any(noise.get("mul", 0.0)) and not np.any(noise.get("add", 0.0)) else "log"


@dataclass(frozen=True)
class Meta:
    """How a study came about: all that its records depend on, and what its views need.

    Args:
        seed: seed of the noise.
        noise: the noise at level 1: kind, order, add, mul, fold; of a walk over a parameter of hardware: its name
            (parameter), and whether it is larger that is better or worse.
        levels: levels walked, or values of the parameter.
        draws: ids of the draws.
        rows: rows of the data set.
        clean_correct: correct predictions without noise.
        classes: number of classes.
        sites: names in execution order.
        stream_version: version of the noise stream.
        plan: the contraction plan (batch_rows, draws_per_pass, threads, library versions); metric: the name of what is
            measured, where it is not the accuracy; verification: what came of holding both engines against each other
            (rows and sites looked at, the worst difference in parts of its bound, sites that differ and so run whole);
            covered: shares of the model's multiply-adds that noise or hardware of the walk reaches;
            at: the question, as text, where it is not "half";
            ties: share of rows whose best score without noise leads by no more than rounding moves it;
            measure: of what is no share of rows, its law, unit and direction.
        axis: None infers it: "linear" for purely multiplicative noise, else "log".
        floor: what is measured under unbounded noise; None: 1 / classes of the accuracy, of other measures none.
        target: what is noisy; noise of the targets in `INDEPENDENT` is independent between rows, other noise is
            shared by all rows of a draw, which widens the intervals.
        model, data: descriptions.
        midpoints: what an adaptive walk has found, a dictionary for each site; empty for a grid.
        clean_value: what is measured without noise, of what is no share of rows; None: clean_correct / rows.

    Dictionaries must survive JSON.
    """

    seed: int
    noise: Mapping[str, Any]
    levels: tuple[float, ...]
    draws: tuple[int, ...]
    rows: int
    clean_correct: int
    classes: int
    sites: tuple[str, ...]
    stream_version: int
    plan: Mapping[str, Any] = field(default_factory=dict)
    axis: Axis | None = None
    floor: float | None = None
    target: str = "activation"
    model: str = ""
    data: str = ""
    midpoints: tuple[Mapping[str, Any], ...] = ()
    clean_value: float | None = None

    def __post_init__(self) -> None:
        """Normalise types (so that a file reads back equal), infer, and check."""
        put = object.__setattr__
        put(self, "levels", tuple(float(v) for v in self.levels))
        put(self, "draws", tuple(int(v) for v in self.draws))
        put(self, "sites", tuple(str(v) for v in self.sites))
        put(self, "midpoints", tuple(json.loads(json.dumps(dict(m), allow_nan=False)) for m in self.midpoints))
        for name in ("noise", "plan"):
            try:
                put(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: expected values that JSON can hold: {error}") from error
        if self.axis is None:
            put(self, "axis", usual_axis(self.noise))
        if self.axis not in ("log", "linear"):
            raise ValueError(f'axis: expected "log" or "linear", got {self.axis!r}')
        if self.classes < 1:
            raise ValueError(f"classes: expected at least 1, got {self.classes}")
        if not 0 <= self.clean_correct <= self.rows or self.rows < 1:
            raise ValueError(f"clean_correct: got {self.clean_correct} of {self.rows} rows")
        if self.floor is None and self.clean_value is None:
            put(self, "floor", 1 / self.classes)

    @property
    def clean(self) -> float:
        """What is measured without noise."""
        return self.clean_correct / self.rows if self.clean_value is None else self.clean_value

    @property
    def metric(self) -> str:
        """What is measured, as a reader calls it."""
        return str(self.plan.get("metric", "accuracy"))

    @property
    def _measure(self) -> Mapping[str, Any]:
        measure: Mapping[str, Any] = self.plan.get("measure", {})
        return measure

    @property
    def law(self) -> LawName:
        """Of the numbers of rows, as intervals take it."""
        law: LawName = self._measure.get("law", "binary")
        return law

    @property
    def unit(self) -> str:
        """Of what is measured."""
        return str(self._measure.get("unit", "fraction of rows"))

    @property
    def higher_is_better(self) -> bool:
        """The direction of what is measured."""
        return bool(self._measure.get("higher_is_better", True))

    @property
    def at(self) -> Question:
        """What is asked of the curves."""
        return question("meta", self.plan.get("at", "half"))

    @property
    def asked_value(self) -> float:
        """The value that the question asks for.

        Raises:
            ValueError: the clean value leaves it no answer.
        """
        return targeted(
            "Study.midpoints",
            self.at,
            self.clean,
            self.floor,
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            worst=self._measure.get("worst", 0.0 if self.law == "binary" else None),
        )

    @property
    def parameter(self) -> str:
        """Name of the parameter of hardware that the levels are values of; empty: they are levels of noise."""
        return str(self.noise.get("parameter", ""))

    @property
    def unit_of_levels(self) -> str:
        """What additive levels are shares of, in words; empty: they are in the units of the value."""
        relative = self.noise.get("relative")
        if isinstance(relative, Mapping):
            return f"{relative.get('method') or 'size'} of the site"
        if relative is None:
            return ""
        return f"max|W| of the {relative}" if self.target == "weight" else f"{relative} of the row"

    @property
    def rising(self) -> bool:
        """Whether accuracy rises with the level."""
        return self.noise.get("larger") == "better"

    @property
    def independent_rows(self) -> bool:
        """Whether different rows see independent noise."""
        return self.target in INDEPENDENT
