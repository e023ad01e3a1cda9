"""Which number format a network needs: a search that evaluates two of hundreds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Problem
from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels.arithmetic.cost import CostModel
from noisykernels.arithmetic.formats import FloatFormat, Format, as_format
from noisykernels.arithmetic.serial import Serial
from noisykernels.experiments.format_runs import FormatRuns
from noisykernels.experiments.format_sweep import INPUTS, TARGET, Sweep, design_space
from noisykernels.hardware.device import Device
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.names import MetricLike

__all__ = ["FormatChoice", "LinearPredictor", "changed", "exhaustive_search", "refined", "search_format"]


@dataclass(frozen=True)
class LinearPredictor:
    r"""Normalised accuracy from the agreement of the last layer: :math:`a R^2 + b`, fitted on other networks.

    Args:
        slope, intercept: *a* and *b*.
        correlation: of the points that it was fitted to.
        residual: their standard deviation around the line.
        points: their number.

    Source: Hill et al. 2018 (arXiv 1808.02513), section 3.3.

    Example:
        >>> from noisykernels.experiments import FormatResult
        >>> made = [FormatResult(FloatFormat(m, 6), r, r, 1.0, 1.0) for m, r in ((2, 0.5), (3, 0.9), (4, 1.0))]
        >>> LinearPredictor.fit([Sweep(made, 0.9, 500)]).predict(0.7)
        0.7
    """

    slope: float
    intercept: float
    correlation: float
    residual: float
    points: int

    @classmethod
    def fit(cls, sweeps: Iterable[Sweep], anchored: bool = True) -> LinearPredictor:
        """Least squares over all formats of some networks.

        Args:
            sweeps: of these networks.
            anchored: through (1, 1), since equal last layers make equal predictions. The free line may pass so far
                below that no format is ever expected to keep the accuracy.

        Raises:
            ValueError: less than three formats, or all of the same agreement.
        """
        check_arguments(LinearPredictor.fit, locals())
        every = [(r.r2, r.normalised) for sweep in sweeps for r in sweep.results]
        x, y = (np.array([pair[i] for pair in every], dtype=np.float64) for i in (0, 1))
        if len(every) < 3 or float(np.ptp(x)) == 0:
            raise ValueError(f"LinearPredictor.fit: sweeps must hold three formats that differ, got {len(every)}")
        if anchored:
            slope = ((1 - x) @ (1 - y)) / ((1 - x) @ (1 - x))
            intercept = 1 - slope
        else:
            slope, intercept = np.polyfit(x, y, 1)
        residual = y - slope * x - intercept
        correlation = float(np.corrcoef(x, y)[0, 1]) if float(np.ptp(y)) > 0 else math.nan
        return cls(float(slope), float(intercept), correlation, math.sqrt(residual @ residual / (len(x) - 1)), len(x))

    def predict(self, r2: float) -> float:
        """The normalised accuracy to expect."""
        check_arguments(LinearPredictor.predict, locals())
        return round(self.slope * r2 + self.intercept, 12)


@dataclass(frozen=True)
class FormatChoice:
    """The format that a search has chosen.

    Args:
        format: it.
        normalised: its accuracy as a share of that in float32; None: it was not evaluated.
        predicted: what was predicted of it; None: nothing was.
        speedup, saving: by the cost model.
        tried: every format that was evaluated, with its normalised accuracy, in order.
        forwards: rows that the network was run on, over all formats.
    """

    format: Format
    normalised: float | None
    predicted: float | None
    speedup: float
    saving: float
    tried: tuple[tuple[Format, float], ...]
    forwards: int

    @property
    def evaluations(self) -> int:
        """Formats that were evaluated on all of the data."""
        return len(self.tried)


def exhaustive_search(sweep: Sweep, target: float = TARGET) -> FormatChoice | None:
    """The fastest format of a sweep that keeps this share of the accuracy; None: there is none.

    Example:
        >>> from noisykernels.experiments import FormatResult
        >>> made = [FormatResult(FloatFormat(m, 6), 1.0, n, 30.0 / m, 1.0) for m, n in ((2, 0.5), (3, 0.999), (4, 1.0))]
        >>> found = exhaustive_search(Sweep(made, 0.9, 500))
        >>> str(found.format), found.evaluations, found.forwards
        ('M3E6', 3, 1500)
    """
    check_arguments(exhaustive_search, locals())
    if (best := sweep.fastest(target)) is None:
        return None
    tried = tuple((r.format, r.normalised) for r in sweep.results)
    forwards = sweep.rows * len(tried)
    return FormatChoice(best.format, best.normalised, None, best.speedup, best.saving, tried, forwards)


def search_format(
    model: nn.Module,
    data: Data,
    predictor: LinearPredictor,
    *,
    formats: Iterable[str | Format | torch.dtype] | None = None,
    target: float = TARGET,
    evaluations: int = 2,
    cost: CostModel | None = None,
    inputs: int | Tensor = INPUTS,
    seed: int,
    arithmetic: Callable[[Format], Device] = Serial,
    rows: Tensor | Sequence[int] | None = None,
    metric: MetricLike = ACCURACY,
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    compute: Compute | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> FormatChoice:
    """The fastest format that keeps the accuracy, found with a few inputs in every format and few evaluations.

    The fastest format is taken that the predictor expects to reach the target, from the agreement of the last layer on
    ten inputs. It is evaluated: while it is too low, a bit is added, where that raises the agreement most; when it
    reaches the target, a bit is taken away, where that brings most speed, and so on from there as long as it is
    enough. Of formats of which none is expected to reach the target, that of the highest expectation is taken.

    Args:
        model, data, inputs, seed, arithmetic, rows, metric, arrays, root, forward, output, compute, progress: as
            for `sweep_formats`.
        predictor: fitted on other networks.
        formats: to choose from; None: `design_space()`.
        target: share of the accuracy in float32 to keep.
        evaluations: how many formats may be evaluated on all of the data; 0: the prediction alone decides. What is
            returned last after a bit was added may not have been evaluated (``normalised`` is None).
        cost: what units cost; None: the stand-in of `CostModel`.

    Returns:
        `FormatChoice`; its `normalised` is None where the format was not evaluated.

    Raises:
        ValueError, TypeError: as `sweep_formats`; a target outside of (0, 1], evaluations that are not a whole number.

    Source: Hill et al. 2018 (arXiv 1808.02513), sections 3.3 and 4.4.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.randn(20, 1, 2, 2)
        >>> predictor = LinearPredictor(1.0, 0.0, 1.0, 0.0, 100)
        >>> found = search_format(model, (x, model(x).argmax(1)), predictor, seed=1)
        >>> found.evaluations, found.forwards == 343 * 10 + 2 * 20
        (2, True)
    """
    check_arguments(search_format, locals(), evaluations=whole(0, 2**63 - 1))
    if not 0 < target <= 1:
        raise ValueError(f"search_format: target must lie in (0, 1], got {target}")
    made = list(dict.fromkeys(design_space() if formats is None else map(as_format, formats)))
    if not made:
        raise ValueError("search_format: formats must hold at least one format, got none")
    cost = CostModel() if cost is None else cost
    for fmt in made:
        cost.cost(fmt)  # before any work: a table may lack a format
    problem = Problem.of(
        Call("search_format", forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays,
        root=root, compute=compute,
    )  # fmt: skip
    with (
        FormatRuns("search_format", problem, inputs, compute) as runs,
        progress_of("search_format", progress, len(made)) as advance,
    ):
        agreement = {}
        for fmt in made:
            agreement[fmt] = runs.agreement([arithmetic(fmt)])
            advance(1)
        evaluate = lambda fmt: runs.normalised([arithmetic(fmt)])  # noqa: E731
        found = refined(agreement, predictor, evaluate, cost, target, evaluations)
        forwards = len(made) * len(runs.few) + found.evaluations * runs.rows
        return replace(found, forwards=forwards)


def refined(
    agreement: dict[Format, float],
    predictor: LinearPredictor,
    evaluate: Callable[[Format], float],
    cost: CostModel,
    target: float,
    evaluations: int,
) -> FormatChoice:
    """The search itself, whatever evaluates a format.

    Example:
        >>> space = {f: 1 - 0.5**f.mantissa for f in design_space(range(1, 9), [5], [], [])}
        >>> same = LinearPredictor(1.0, 0.0, 1.0, 0.0, 100)
        >>> found = refined(space, same, lambda f: 1 - 0.6**f.mantissa, CostModel(), target=0.95, evaluations=2)
        >>> str(found.format), [str(f) for f, _ in found.tried], round(found.normalised, 4)
        ('M6E5', ['M5E5', 'M6E5'], 0.9533)
    """
    predicted = {fmt: predictor.predict(r2) for fmt, r2 in agreement.items()}
    enough = [fmt for fmt in agreement if predicted[fmt] >= target]
    speed = {fmt: cost.speedup(fmt) for fmt in agreement}
    if enough:
        chosen = max(enough, key=lambda f: (speed[f], agreement[f]))
    else:
        chosen = max(agreement, key=lambda f: (agreement[f], speed[f]))
    tried: dict[Format, float] = {}
    if evaluations > 0:
        tried[chosen] = evaluate(chosen)
        if tried[chosen] < target:
            while options := [f for f in changed(chosen, 1) if f in agreement and f not in tried]:
                chosen = max(options, key=lambda f: (agreement[f], speed[f]))
                if len(tried) == evaluations:
                    break
                tried[chosen] = evaluate(chosen)
                if tried[chosen] >= target:
                    break
        else:
            while len(tried) < evaluations:
                options = [f for f in changed(chosen, -1) if f in agreement and f not in tried]
                if not options:
                    break
                less = max(options, key=lambda f: (speed[f], agreement[f]))
                tried[less] = evaluate(less)
                if tried[less] >= target:
                    chosen = less
    return FormatChoice(
        chosen, tried.get(chosen), predicted[chosen], speed[chosen], cost.saving(chosen), tuple(tried.items()), 0
    )


def changed(fmt: Format, bits: int) -> list[Format]:
    """The formats with so many bits more in one of the two places, where there are such formats.

    Example:
        >>> [str(f) for f in changed(as_format("M7E8"), 1)], [str(f) for f in changed(as_format("L4R3"), -1)]
        (['M8E8'], ['L3R3', 'L4R2'])
    """
    names = ("mantissa", "exponent") if isinstance(fmt, FloatFormat) else ("left", "right")
    found = []
    for name in names:
        with contextlib.suppress(ValueError):
            found.append(replace(fmt, **{name: getattr(fmt, name) + bits}))  # type: ignore[type-var]
    return found
