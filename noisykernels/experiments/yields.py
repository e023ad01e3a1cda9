"""Many chips of one design: a draw is a chip, whose accuracy on the whole data set is one number that varies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from noisykernels._engine.arguments import draw_list
from noisykernels._engine.compute import SIZES, Compute
from noisykernels._engine.session import Problem, Session, places_of
from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels._util.text import covers, printable
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import is_share
from noisykernels.metrics.law import ALL
from noisykernels.metrics.names import MetricLike
from noisykernels.noise.description import Noise
from noisykernels.plotting.yields import plot_yields, usual_limits
from noisykernels.stats.intervals import wilson
from noisykernels.study.result import Result

__all__ = ["Chips", "chips", "worst_of"]


def worst_of(values: Sequence[float] | NDArray[np.float64], count: int) -> float:
    r"""Expected value, such as the accuracy, of the worst of so many chips, over all subsets of those that are known.

    .. math:: \sum_i x_{(i)} \binom{D-i}{n-1} \Big/ \binom{D}{n}

    Args:
        values: of D chips, of which higher ones are better.
        count: n, from 1 (the mean) to D (the worst of all).

    Raises:
        ValueError: a count outside of 1..D.

    Example:
        >>> worst_of([0.5, 0.8, 0.9], 2)
        0.6
    """
    check_arguments(worst_of, locals())
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or np.isnan(x).any():
        raise ValueError(f"worst_of: values must be a list of numbers, not empty, got {shown(values)}")
    x = np.sort(x)
    if not 1 <= count <= len(x):
        raise ValueError(f"worst_of: count must lie in 1..{len(x)}, got {count}")
    some = x[: len(x) - count + 1]  # the others are never the worst
    weights = [math.comb(len(x) - 1 - i, count - 1) / math.comb(len(x), count) for i in range(len(some))]
    return round(float(some @ weights), 12)


@dataclass(frozen=True, eq=False, repr=False)
class Chips(Result, kind="chip study"):
    """What is measured of each of D chips on one data set, the accuracy or another metric; what `chips` returns.

    Columns of `to_pandas`: draw, rows, correct, accuracy; of what is no share of rows, draw, rows, value.

    Args:
        values: what is measured of each chip.

    Example:
        >>> found = Chips(np.array([0.9, 0.8, 0.85, 0.6]), clean=0.92, rows=500, draws=(0, 1, 2, 3), seed=1)
        >>> round(found.mean, 4), round(found.std, 4), found.worst, found.yield_at(0.8)[0]
        (0.7875, 0.1315, 0.6, 0.75)
    """

    values: NDArray[np.float64]
    clean: float
    rows: int
    draws: tuple[int, ...]
    seed: int
    metric: str = "accuracy"
    arrays: str = "module"
    covered: dict[str, float] = field(default_factory=dict)  # shares of multiply-adds
    unit: str = "fraction of rows"
    higher_is_better: bool = True
    share: bool = True  # of rows that are right

    @property
    def mean(self) -> float:
        """Mean over the chips."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation from chip to chip (D - 1 in the denominator)."""
        with np.errstate(invalid="ignore"):  # of infinite ones there is none
            return float(self.values.std(ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def worst(self) -> float:
        """The worst chip's."""
        return float(self.values.min() if self.higher_is_better else self.values.max())

    def worst_of(self, count: int) -> float:
        """Expected value of the worst of `count` chips; see `worst_of`."""
        check_arguments(Chips.worst_of, locals())
        return worst_of(self.values, count) if self.higher_is_better else -worst_of(-self.values, count)

    def yield_at(self, limit: float, confidence: float = 0.95) -> tuple[float, float, float]:
        """Share of chips that reach `limit` (at most that where lower is better), and Wilson's interval of it."""
        check_arguments(Chips.yield_at, locals())
        good = int((self.values >= limit if self.higher_is_better else self.values <= limit).sum())
        low, high = wilson(good, len(self.values), confidence)
        return good / len(self.values), float(low), float(high)

    def table(self, limits: Sequence[float] = ()) -> str:
        """Mean, spread, quantiles and yields as aligned text.

        Args:
            limits: values at which the yield is told; none: 1, 5 and 10 % worse than the clean one.
        """
        check_arguments(Chips.table, locals())
        count = len(self.values)
        error, none = self.std / math.sqrt(count), int(np.isinf(self.values).sum())
        lines = [
            f"clean {self.metric} {self.clean:.4f}, {self.rows} rows, {count} chips, seed {self.seed}",
            *covers(self.covered),
            *([f"{none} of the chips have rows without a finite {self.metric}: theirs is infinite"] if none else []),
            f"mean       {self.mean:.4f} +- {error:.4f}",
            f"deviation  {self.std:.4f}",
            f"median     {float(np.median(self.values)):.4f}",
            f"worst      {self.worst:.4f}   (of 10: {self.worst_of(min(10, count)):.4f})",
        ]
        for limit in limits or usual_limits(self):
            share, low, high = self.yield_at(limit)
            lines.append(f"yield at {limit:.4f}: {share:.3f}   (95 %: {low:.3f} .. {high:.3f})")
        return "\n".join(map(printable, lines))

    def plot(self, ax: Any = None, *, limits: Sequence[float] = ()) -> Any:
        """The share of chips that reach an accuracy on the caller's axes or a new figure; the Figure.

        Args:
            ax: matplotlib axes, or None.
            limits: as for `table`.
        """
        check_arguments(Chips.plot, locals())
        return plot_yields(self, ax, limits=limits).figure

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        if not self.share:
            return ["draw", "rows", "value"], [(d, self.rows, v) for d, v in zip(self.draws, self.values, strict=True)]
        correct = np.rint(self.values * self.rows).astype(np.int64).tolist()
        rows = zip(self.draws, correct, self.values.tolist(), strict=True)
        return ["draw", "rows", "correct", "accuracy"], [(d, self.rows, c, a) for d, c, a in rows]

    def _brief(self) -> str:
        return f"{len(self.values)} chips, {self.rows} rows, clean {self.clean:.4f}, mean {self.mean:.4f}, worst " \
               f"{self.worst:.4f}"  # fmt: skip


def chips(
    model: nn.Module,
    data: Data,
    *,
    hardware: Any = None,
    noise: Noise | Callable[..., Tensor] | dict[str, Noise | Callable[..., Tensor]] | None = None,
    draws: int | Sequence[int] = 100,
    seed: int,
    sites: Sequence[str | int | type] | str | type | None = None,
    rows: Sequence[int] | Tensor | None = None,
    metric: MetricLike = ACCURACY,
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    detail: Literal["attention"] | None = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    compute: Compute | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> Chips:
    """Runs a model on D chips and tells the accuracy of each on all of the data.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes), not injected; it is left as it was.
        data: (inputs, labels), or an iterable of such batches, in any of the forms of ``docs/guides/data.md``.
        hardware: what is inside contractions, as for `inject`: what is fixed on a chip, such as `WeightNoise`, is drawn
            once for each and stays over the whole data.
        noise: of the sites, or a function of the value, as for `inject`; new for each row and chip.
        draws: number D of chips (ids 0, 1, ...), or the ids.
        seed: 64-bit seed.
        sites: names, name patterns, module types or indices of the sites where `noise` enters, as ``where`` of
            `inject`; None: all. Not with a dict.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        metric: what is measured of each row.
        arrays: which calls share an array of the chip, as for `inject`.
        root: the part at which names of sites begin, as for `inject`.
        detail: ``"attention"``: noise and hardware meet what is inside of attention by its names, as for `inject`.
        forward, output: how the model is called, and what of its result is measured, as for `walk`.
        compute: sizes of passes (a draw is a chip), memory and threads of `Compute`; other settings are refused.
        progress: show a progress bar, if tqdm is installed; or a function (done, total) called after each pass.

    Returns:
        `Chips`. Rows whose scores hold NaN count as wrong; of other measures than shares of rows those without a
        finite number count with the worst there is, or make the chip's value infinite, with a warning.

    Raises:
        ValueError: neither hardware nor noise, bad data, draws or sizes; a model that is injected already, or without
            one score per class and row; a setting of `compute` that it does not take.
        TypeError: a noise, seed, metric or compute of another type.

    Example:
        >>> from noisykernels.hardware import WeightNoise
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> chips(model, data, hardware=[WeightNoise(add=0.1, relative="layer")], draws=5, seed=1).values.shape
        (5,)
    """
    check_arguments(chips, locals())
    if hardware is None and noise is None:
        raise ValueError("chips: give hardware, or noise, or both: without them all chips are the same")
    compute = Compute.of("chips", compute, *SIZES)
    ids = draw_list("chips", draws)
    problem = Problem.of(
        Call("chips", forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays, root=root,
        detail=detail, sites=sites, compute=compute,
    )  # fmt: skip
    labels = problem.data[1]
    where = places_of("chips", problem, noise, sites)
    with Session("chips", problem, compute, noise=noise, where=where, hardware=hardware) as session:
        clean, covered = session.clean_value, session.covered(session.noisy)
        measure, values = session.problem.metric, []
        with progress_of("chips", progress, session.noisy_passes(ids)) as advance:
            for together in [ids] if measure.law.block < ALL else [[one] for one in ids]:  # whose outputs are held
                tally = session.tally(len(together))
                for some, places, scores in session.noisy_scores(together):
                    if places.start == 0:
                        targets = session.targets(session.inputs[some], labels[some])
                    tally.add(some.start, scores, targets, places.start)
                    advance(1)
                values.append(tally.values("chips"))
    return Chips(
        np.concatenate(values), clean, len(labels), tuple(ids), seed, measure.name, arrays, covered, measure.unit,
        measure.higher_is_better, is_share(measure),
    )  # fmt: skip
