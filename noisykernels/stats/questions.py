"""What is asked of a curve: at which level it crosses which value; knows of no curve.

"Half-way" is between the clean value and the floor, and its level is a midpoint. Every other crossing is a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from noisykernels._util.checks import Range, in_range, shown

__all__ = [
    "HALF",
    "At",
    "Drop",
    "Half",
    "Keep",
    "Question",
    "Ratio",
    "Value",
    "of_part",
    "offered",
    "question",
    "targeted",
    "typed",
]


@dataclass(frozen=True)
class Question:
    """A value that a curve is to cross, told from its clean value and its floor: one of the classes below."""

    needs_floor: ClassVar[bool] = False
    word: ClassVar[str] = "tolerance"  # what the level of the crossing is called

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        raise NotImplementedError

    @property
    def said(self) -> str:
        """Where a curve is at the crossing, after "has fallen"."""
        raise NotImplementedError


@dataclass(frozen=True)
class Half(Question):
    """Half-way between clean and floor, `(clean + floor) / 2`: written ``at="half"``."""

    needs_floor = True
    word = "midpoint"

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        assert floor is not None
        return (clean + floor) / 2

    @property
    def said(self) -> str:
        """Where a curve is at the crossing."""
        return "half-way from its clean value to the floor"

    def __str__(self) -> str:
        return "half"


HALF = Half()


@dataclass(frozen=True)
class Keep(Question):
    """Where a share of what lies between floor and clean is left: `floor + share (clean - floor)`.

    Args:
        share: in (0, 1); 0.5 is half-way, but a tolerance: of the curve as it is, without a fit.

    Raises:
        TypeError, ValueError: no such number.

    Example:
        >>> Keep(0.9), str(Keep(0.9))
        (Keep(share=0.9), 'keep:0.9')
    """

    share: float
    needs_floor = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", in_range("Keep", "share", self.share, Range(0, 1, ends=False)))

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        assert floor is not None
        return floor + self.share * (clean - floor)

    @property
    def said(self) -> str:
        """Where a curve is at the crossing."""
        return f"to where {100 * self.share:.6g} % of the way from the floor to the clean value is left"

    def __str__(self) -> str:
        return f"keep:{self.share!r}"


@dataclass(frozen=True)
class Drop(Question):
    """Where so much of the clean value is lost, in its own unit: `clean - by`; `clean + by` where lower is better.

    Args:
        by: above 0.

    Raises:
        TypeError, ValueError: no such number.

    Example:
        >>> str(Drop(0.01))
        'drop:0.01'
    """

    by: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", in_range("Drop", "by", self.by, Range(0, ends=False)))

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        return clean - self.by if higher_is_better else clean + self.by

    @property
    def said(self) -> str:
        """Where a curve is at the crossing."""
        return f"by {self.by:.6g} from its clean value"

    def __str__(self) -> str:
        return f"drop:{self.by!r}"


@dataclass(frozen=True)
class Ratio(Question):
    """Where the value is so many times the clean one: `clean * of_clean`.

    Args:
        of_clean: below 1 where higher is better (0.95 of an accuracy), above it where lower is (1.05: a perplexity and
            5 %).

    Raises:
        TypeError, ValueError: no such number.

    Example:
        >>> str(Ratio(1.05))
        'ratio:1.05'
    """

    of_clean: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_clean", in_range("Ratio", "of_clean", self.of_clean, Range(0, ends=False)))
        if self.of_clean == 1:
            raise ValueError("Ratio: of_clean must differ from 1, which is the clean value itself, got 1.0")

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        return clean * self.of_clean

    @property
    def said(self) -> str:
        """Where a curve is at the crossing."""
        return f"to {self.of_clean:.6g} times its clean value"

    def __str__(self) -> str:
        return f"ratio:{self.of_clean!r}"


@dataclass(frozen=True)
class Value(Question):
    """Where a given value is crossed.

    Args:
        value: the value, in the unit of what is measured.

    Raises:
        TypeError, ValueError: no such number.

    Example:
        >>> str(Value(0.9))
        'value:0.9'
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", in_range("Value", "value", self.value, Range()))

    def _target(self, clean: float, floor: float | None, higher_is_better: bool = True) -> float:
        """The value that is crossed."""
        return self.value

    @property
    def said(self) -> str:
        """Where a curve is at the crossing."""
        return f"to {self.value:.6g}"

    def __str__(self) -> str:
        return f"value:{self.value!r}"


At = Question | str  # how a question is given
KINDS = {"keep": Keep, "drop": Drop, "ratio": Ratio, "value": Value}
WORDS = "'half', nk.Keep(0.99), nk.Drop(0.01), nk.Ratio(0.95) or nk.Value(0.9), or its text, such as 'keep:0.99'"


def question(op: str, at: Any) -> Question:
    """A question from what a caller or a file gives: the object, or its text.

    Raises:
        TypeError: neither.
        ValueError: a text that is no question's, or with a number that it cannot have.

    Example:
        >>> question("walk", "half"), question("walk", "keep:0.99")
        (Half(), Keep(share=0.99))
    """
    if isinstance(at, Question) and type(at) is not Question:
        return at
    if not isinstance(at, str):
        raise TypeError(f"{op}: at must be {WORDS}, got {shown(at)}")
    word = at.strip().lower()
    if word == str(HALF):
        return HALF
    kind, _, number = word.partition(":")
    try:
        return KINDS[kind](float(number))
    except KeyError:
        raise ValueError(f"{op}: at must be {WORDS}, got {at!r}") from None
    except ValueError as error:
        raise ValueError(f"{op}: at must be {WORDS}, got {at!r}: {error}") from None


def typed(asked: Question) -> str:
    """A question as one types it in Python.

    Example:
        >>> typed(HALF), typed(Keep(0.9))
        ("'half'", 'nk.Keep(0.9)')
    """
    kind, _, number = str(asked).partition(":")
    return f"nk.{kind.capitalize()}({number})" if number else repr(kind)


def targeted(
    op: str, asked: Question, clean: float, floor: float | None, *, metric: str = "accuracy",
    higher_is_better: bool = True, worst: float | None = None,
) -> float:  # fmt: skip
    """The value that a question's crossing is at, if the clean value leaves it an answer.

    Args:
        op: what errors begin with.
        asked: the question.
        clean: without noise.
        floor: under unbounded noise; None: not known.
        metric: what is measured.
        higher_is_better: its direction.
        worst: the worst value that there is; None: there is none.

    Raises:
        ValueError: a question that is answered by the clean value already, or that has no answer without a floor; the
            message has one that has an answer.

    Example:
        >>> targeted("walk", Keep(0.9), 0.05, 0.1)
        Traceback (most recent call last):
        ValueError: walk: the clean accuracy 0.05 is not above the floor 0.1, so at=nk.Keep(0.9) has no answer; \
nk.Drop(0.0005) has one
    """
    sign = 1 if higher_is_better else -1
    better = "above" if higher_is_better else "below"
    name = f"at={typed(asked)}"
    other = f"{_example(clean, higher_is_better)} has one"
    if not math.isfinite(clean):
        raise ValueError(f"{op}: the clean {metric} is {clean}: {name} has no answer, and no other question has")
    if asked.needs_floor:
        if floor is None:
            raise ValueError(
                f"{op}: {metric} has no floor of its own, so {name} has no answer: give floor=, or ask a question "
                f"without one; {other}"
            )
        if not (math.isfinite(floor) and sign * clean > sign * floor):
            raise ValueError(
                f"{op}: the clean {metric} {clean:.4g} is not {better} the floor {floor:.4g}, so {name} has no answer; "
                f"{other}"
            )
    if isinstance(asked, Ratio) and not clean > 0:
        raise ValueError(f"{op}: the clean {metric} {clean:.4g} is not above 0, so {name} has no answer; {other}")
    target = asked._target(clean, floor, higher_is_better)
    if not sign * target < sign * clean:
        raise ValueError(
            f"{op}: the clean {metric} {clean:.4g} must be {better} the {target:.4g} that {name} asks for, which has "
            f"no answer; {other}"
        )
    if worst is not None and sign * target < sign * worst:
        far = "low" if higher_is_better else "high"
        raise ValueError(f"{op}: {metric} is never as {far} as the {target:.4g} that {name} asks for; {other}")
    return target


def of_part(
    asked: Question, part: float, clean: float, floor: float | None, *, higher_is_better: bool = True
) -> float:  # fmt: skip
    """The value that the curve of some rows crosses, whose clean value is `part`: easy rows are not robust ones."""
    if isinstance(asked, Value):  # as far from the part's clean value as from that of all rows
        return asked.value + (part - clean)
    return asked._target(part, floor, higher_is_better)


def _example(clean: float, higher_is_better: bool) -> str:
    """A question that any clean value leaves an answer."""
    if clean > 0:
        by = float(f"{clean / 100:.1g}")
        return f"nk.Drop({by:g})" if higher_is_better else "nk.Ratio(1.05)"
    return f"nk.Drop({float(f'{abs(clean) / 100:.1g}') or 0.01:g})"


# What a table offers in place of a question that has no answer, the hardest first.
WITH_FLOOR: tuple[Question, ...] = tuple(Keep(share) for share in (0.5, 0.75, 0.9, 0.95, 0.98, 0.99))
LOWER: tuple[Question, ...] = tuple(Ratio(ratio) for ratio in (2, 1.5, 1.2, 1.1, 1.05, 1.02, 1.01))
HIGHER: tuple[Question, ...] = tuple(Ratio(ratio) for ratio in (0.5, 0.75, 0.9, 0.95, 0.98, 0.99))


def offered(
    fallen: Iterable[float], clean: float, floor: float | None, higher_is_better: bool
) -> tuple[Question, int] | None:
    """The hardest of some questions that most curves answer, and how many do; None: no curve answers one.

    Args:
        fallen: of each curve, the worst value that it surely reaches.
    """
    sign = 1 if higher_is_better else -1
    if floor is not None and not sign * clean > sign * floor:  # of which no share is left
        floor = None
    known = WITH_FLOOR if floor is not None else HIGHER if higher_is_better else LOWER
    if not (clean > 0 or floor is not None):
        return None
    worst, best, most = [sign * value for value in fallen], None, 0
    for one in known:
        count = sum(value <= sign * one._target(clean, floor, higher_is_better) for value in worst)
        if count > most:
            best, most = one, count
    return None if best is None else (best, most)
