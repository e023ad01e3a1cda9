"""Measures that a user writes as a function of outputs and targets, and what is found out about them beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown
from noisykernels.metrics.base import Metric
from noisykernels.metrics.identity import of_function
from noisykernels.metrics.law import ALL, Law, Sums
from noisykernels.metrics.rows import PerRow

__all__ = ["ByRow", "WholePass", "check_function", "found_out"]

OWN = __name__.rpartition(".")[0]
CLOSE = 1e-4  # relative: a function of a row may round otherwise in other company


@dataclass(frozen=True)
class _Given(PerRow):
    """What both kinds of functions say of themselves.

    Args:
        function: of outputs [rows, ...] and targets [rows, ...].
        higher_is_better: its direction.
        name: what a reader calls it; empty: as the function is called.
        unit: of its value.
        floor_value: its value for a model that knows nothing of the input; None: it has none.
        against: what the targets are: ``"labels"``, or the outputs without noise, ``"clean"``.
    """

    function: Callable[[Tensor, Tensor], Any]
    higher_is_better: bool  # type: ignore[misc]
    name: str = ""  # type: ignore[misc]
    unit: str = ""  # type: ignore[misc]
    floor_value: float | None = None
    against: Literal["labels", "clean"] = "labels"

    def __post_init__(self) -> None:
        """Checks all."""
        given = {"function": self.function, "higher_is_better": self.higher_is_better, "name": self.name,
                 "unit": self.unit, "floor_value": self.floor_value, "against": self.against}  # fmt: skip
        check_arguments(type(self), given)
        if not self.name:
            called = getattr(self.function, "__name__", type(self.function).__name__)
            object.__setattr__(self, "name", "metric" if called == "<lambda>" else called)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, higher_is_better={self.higher_is_better})"

    def identity(self) -> str:
        """By its words, and what the function does: others may have its name."""
        return f"{self!r} against {self.against}: {of_function(self.function)}"

    @property
    def against_clean(self) -> bool:  # type: ignore[override]
        """Whether the targets are the outputs without noise."""
        return self.against == "clean"

    def floor(self, outputs: Any, labels: Tensor, weights: Tensor | None = None) -> float | None:
        """As it was said."""
        return self.floor_value

    def given(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the function gives, as a tensor."""
        try:
            found = self.function(outputs, targets)
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"{self.name} fails for outputs {list(outputs.shape)} and targets {list(targets.shape)}: "
                f"{type(error).__name__}: {said}"
            ) from error
        return _numbers(self.name, found)


@dataclass(frozen=True, repr=False)
class ByRow(_Given):
    """A function that gives one number for each row.

    Args:
        function: of outputs [rows, ...] and targets [rows, ...], to [rows].
        higher_is_better: its direction.
        name: what a reader calls it; empty: as the function is called.
        unit: of its value.
        floor_value: its value for a model that knows nothing of the input; None: it has none.
        against: what the targets are: ``"labels"``, or the outputs without noise, ``"clean"``.

    Example:
        >>> metric = ByRow(lambda y, t: (y - t).abs().mean(-1), higher_is_better=False, name="mae")
        >>> metric.of_rows(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[1.0, 1.0]])).tolist()
        [[1.0]]
    """

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `PerRow`."""
        found = [self.given(one, targets) for one in outputs]
        for one in found:
            if one.shape != (len(targets),):
                raise ValueError(
                    f"{self.name}: the function must give one number for each of {len(targets)} rows, got "
                    f"{list(one.shape)}"
                )
        return torch.stack(found).to(outputs.device)


@dataclass(frozen=True, repr=False)
class WholePass(_Given):
    """A function that gives one number of all rows at once: for grids, votes and chips, by the plain engine.

    Args:
        function: of outputs [rows, ...] and targets [rows, ...] of all rows, to a number.
        higher_is_better: its direction.
        name: what a reader calls it; empty: as the function is called.
        unit: of its value.
        floor_value: its value for a model that knows nothing of the input; None: it has none.
        against: what the targets are: ``"labels"``, or the outputs without noise, ``"clean"``.

    Example:
        >>> metric = WholePass(lambda y, t: torch.corrcoef(torch.stack([y, t]))[0, 1], higher_is_better=True, name="r")
        >>> metric.of_rows(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.0, 4.0, 6.0])).round(decimals=3).tolist()
        [[1.0]]
    """

    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def law(self) -> Law:
        """One number of all rows."""
        return Sums(1, ALL)

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The number of all these rows [copies, 1]."""
        found = [self.given(one, labels) for one in scores]
        for one in found:
            if one.numel() != 1:
                raise ValueError(f"{self.name}: the function must give one number of a pass, got {list(one.shape)}")
        return torch.stack([one.double().reshape(1) for one in found]).to(scores.device)

    def value(self, pooled: Any) -> Any:
        """The number."""
        return pooled[..., 0]

    def number(self, value: float) -> float:
        """Of a whole pass there are no rows."""
        raise ValueError(f"{self.name} is of a whole pass, which has no numbers of rows")


def found_out(op: str, function: Any, outputs: Tensor, targets: Tensor) -> ByRow | WholePass:
    """What a plain function is: one number for each row, or one of all; and which direction is the better one.

    The better direction is that in which outputs lie that are held against their own targets, seen from those that are
    held against other rows'.

    Args:
        op: for errors.
        function: of outputs and targets.
        outputs, targets: of some rows without noise.

    Raises:
        ValueError: neither kind, or no direction can be seen.
    """
    kept = ByRow(function, True)
    name, count = getattr(function, "__name__", type(function).__name__), len(targets)
    object.__setattr__(kept, "name", f"{op}: metric {name}")
    found = kept.given(outputs, targets)
    if found.shape not in ((count,), ()):
        raise ValueError(
            f"{op}: metric {name} must give one number for each of {count} rows, or one of all, got {list(found.shape)}"
        )
    whole = found.shape == ()
    if whole and count == 1:
        raise ValueError(f"{op}: metric {name} cannot be told to be of rows or of a pass from one row of data")
    other = kept.given(outputs, targets.roll(1, 0)).double().mean()
    own = found.double().mean()
    if not bool((own - other).isfinite()) or own == other:
        kind = "WholePass" if whole else "ByRow"
        raise ValueError(
            f"{op}: which values of metric {name} are better cannot be seen: write nk.metrics.{kind}({name}, "
            "higher_is_better=True) or False"
        )
    return (WholePass if whole else ByRow)(function, bool(own > other))


def _numbers(name: str, found: Any) -> Tensor:
    """Real numbers that a function has given, as a tensor."""
    try:
        numbers = found if isinstance(found, Tensor) else torch.as_tensor(found)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: the function must give numbers, got {shown(found)}") from error
    if numbers.is_complex():
        raise ValueError(f"{name}: the function must give real numbers, got {shown(numbers)}")
    return numbers


def is_early(metric: Metric) -> bool:
    """Whether a measure's numbers of some rows are known before the targets of all are; of a user's own class nothing
    says so."""
    return type(metric).__module__.startswith(OWN) and not getattr(metric, "of_all", False)


def check_function(op: str, metric: Metric, outputs: Tensor, targets: Tensor) -> None:
    """Tries a measure that is not this package's own, on some rows without noise.

    Raises:
        ValueError: numbers of rows that depend on others, or on when they are asked for.
    """
    if isinstance(metric, ByRow | WholePass):
        _check_left_alone(op, metric, outputs, targets)
    if isinstance(metric, WholePass):
        _check_repeatable(op, metric, outputs, targets)
    elif metric.law.block == 1 and (isinstance(metric, ByRow) or not type(metric).__module__.startswith(OWN)):
        _check_rows(op, metric, outputs, targets)


def _check_left_alone(op: str, metric: ByRow | WholePass, outputs: Tensor, targets: Tensor) -> None:
    """Refuses a function that writes into what it is given, which others read after it.

    Raises:
        ValueError: it does, or it fails.
    """
    given = outputs.clone(), targets.clone()
    try:
        metric.of_rows(given[0].unsqueeze(0), given[1])
    except ValueError as error:
        raise ValueError(f"{op}: metric {error}") from error
    for before, after, what in ((outputs, given[0], "outputs"), (targets, given[1], "targets")):
        if not torch.equal(before.nan_to_num(), after.nan_to_num()):
            raise ValueError(f"{op}: metric {metric.name} changes the {what} that it is given: let it work on a copy")


def _check_rows(op: str, metric: Metric, outputs: Tensor, targets: Tensor) -> None:
    """Refuses a function whose numbers of rows depend on their order, or on the other rows of a batch.

    Raises:
        ValueError: it mixes rows, or gives another number of them.
    """

    def numbers(some: Any) -> Tensor:
        return metric.of_rows(outputs[some].unsqueeze(0), targets[some])[0].double()

    count = len(targets)
    every, turned = torch.arange(count), torch.arange(count - 1, -1, -1)
    try:
        whole = numbers(every)
        again = numbers(every)
        split = torch.cat([numbers(part) for part in every.split(max(1, count // 2))])
        order = numbers(turned)[turned]
    except ValueError as error:
        raise ValueError(f"{op}: metric {error}") from error
    if not torch.equal(whole.nan_to_num(), again.nan_to_num()):
        raise ValueError(f"{op}: metric {metric.name} gives other numbers for the same outputs each time")
    near = CLOSE * whole.abs().clamp(min=1e-6)
    for found, what in ((order, "in another order"), (split, "in two batches")):
        if bool(((found - whole).abs() > near).any()):
            raise ValueError(
                f"{op}: metric {metric.name} mixes rows: the same rows {what} have other numbers. Write a function "
                f"of each row alone, or nk.metrics.WholePass({metric.name}, ...) for one of all rows"
            )


def _check_repeatable(op: str, metric: WholePass, outputs: Tensor, targets: Tensor) -> None:
    """Refuses a function of a pass that gives no number, or another one each time.

    Raises:
        ValueError: so it is.
    """
    one, again = (metric.of_rows(outputs.unsqueeze(0), targets) for _ in range(2))
    if not torch.equal(one.nan_to_num(), again.nan_to_num()):
        raise ValueError(f"{op}: metric {metric.name} gives another number for the same outputs: {shown(float(again))}")
