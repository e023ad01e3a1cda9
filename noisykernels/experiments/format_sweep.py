"""Accuracy of a network in hundreds of number formats, against what a unit of each costs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.store import Store
from noisykernels._engine.store_keys import identity, study_key
from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels._util.text import aligned, covers, printable
from noisykernels.arithmetic.cost import CostModel
from noisykernels.arithmetic.formats import FixedFormat, FloatFormat, Format, as_format
from noisykernels.arithmetic.serial import Serial
from noisykernels.experiments.format_runs import FormatRuns
from noisykernels.hardware.device import Device
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import is_share
from noisykernels.metrics.names import MetricLike
from noisykernels.plotting.formats import plot_front
from noisykernels.study.encoding import Codec, Codecs, codec_of
from noisykernels.study.result import Result

__all__ = ["INPUTS", "TARGET", "FormatResult", "Sweep", "design_space", "sweep_formats"]


TARGET = 0.99  # of the accuracy in float32
INPUTS = 10  # whose last layer tells how well a format does


def design_space(
    mantissa: Iterable[int] = range(1, 24),
    exponent: Iterable[int] = range(2, 9),
    left: Iterable[int] = range(1, 13),
    right: Iterable[int] = range(1, 17),
    *,
    rounding: str = "truncate",
) -> list[Format]:
    """Formats to choose from: each floating-point format of these bits, and each fixed-point format of up to 24 bits.

    Args:
        mantissa, exponent: bits of floating-point formats; either empty: none of them.
        left, right: bits of fixed-point formats before and behind the point.
        rounding: as for `FloatFormat`.

    Returns:
        161 floating-point and 182 fixed-point formats, unless said otherwise (the published sweep has 340).

    Example:
        >>> len(design_space())
        343
        >>> [str(f) for f in design_space([7, 8], [6], [4], [3])]
        ['M7E6', 'M8E6', 'L4R3']
    """
    check_arguments(design_space, locals())
    right, exponent = list(right), list(exponent)
    floats = [FloatFormat(m, e, rounding=rounding) for m in mantissa for e in exponent]
    return [*floats, *(FixedFormat(n, r, rounding=rounding) for n in left for r in right if n + r <= 24)]


@dataclass(frozen=True)
class FormatResult:
    """What a network does in one format.

    Args:
        format: the format.
        r2: agreement of the last layer with float32.
        normalised: what is measured, the accuracy, as a share of that in float32 (of that which float32 is of it, where
            lower is better).
        speedup, saving: by the cost model.
    """

    format: Format
    r2: float
    normalised: float
    speedup: float
    saving: float


def _format_of(fields: dict[str, Any]) -> Format:
    made: type[Format] = {"float": FloatFormat, "fixed": FixedFormat}[fields["point"]]
    return made(**{name: value for name, value in fields.items() if name != "point"})


# how results write what they hold of `arithmetic`
_FORMAT = Codec(lambda fmt: {"point": fmt.point, **vars(fmt)}, _format_of)
_COSTS = codec_of(dict[str, tuple[float, ...]] | None, {})
CODECS: Codecs = {
    Format: _FORMAT,
    CostModel: Codec(
        lambda cost: {"reference": _FORMAT.write(cost.reference), "table": _COSTS.write(cost.table)},
        lambda told: CostModel(_COSTS.read(told["table"]), reference=_FORMAT.read(told["reference"])),
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result, kind="sweep"):
    """Accuracy of one network in many formats; what `sweep_formats` returns.

    Columns of `to_pandas`, a row for each format: format, point, bits, r2, normalised, speedup, saving.

    Example:
        >>> made = [FormatResult(FloatFormat(m, 6), 1.0, n, 30.0 / m, 1.0) for m, n in ((2, 0.5), (3, 0.999), (4, 1.0))]
        >>> sweep = Sweep(made, clean=0.9, rows=500, name="made up")
        >>> str(sweep.fastest(0.99).format), [str(r.format) for r in sweep.front()]
        ('M3E6', ['M2E6', 'M3E6', 'M4E6'])
    """

    results: list[FormatResult]
    clean: float
    rows: int
    name: str = ""
    metric: str = "accuracy"
    arrays: str = "module"
    covered: dict[str, float] = field(default_factory=dict)  # shares of multiply-adds
    target: ClassVar[float] = TARGET  # where its pictures draw the line
    _codecs = CODECS

    def fastest(self, target: float = TARGET) -> FormatResult | None:
        """The fastest format that keeps this share of the accuracy, of equally fast ones the most accurate; or None."""
        check_arguments(Sweep.fastest, locals())
        good = [r for r in self.results if r.normalised >= target]
        return max(good, key=lambda r: (r.speedup, r.normalised), default=None)

    def front(self) -> list[FormatResult]:
        """The formats that no other one beats in speed without a loss of accuracy, fastest first."""
        found: list[FormatResult] = []
        for r in sorted(self.results, key=lambda r: (-r.speedup, -r.normalised)):
            if not found or r.normalised > found[-1].normalised:
                found.append(r)
        return found

    def table(self, target: float = TARGET) -> str:
        """The formats of the front as aligned text, fastest first, and which of them is the fastest above a target.

        Args:
            target: a share of the accuracy in float32.
        """
        check_arguments(Sweep.table, locals())
        best = self.fastest(target)
        lines = [
            [str(r.format), str(r.format.bits), *(f"{v:.4f}" for v in (r.r2, r.normalised)), f"{r.speedup:.2f}",
             f"{r.saving:.2f}", "<- fastest" if r is best else ""]
            for r in self.front()
        ]  # fmt: skip
        head = ["format", "bits", "R^2", self.metric, "speed-up", "saving", ""]
        said = "none keeps" if best is None else f"{best.format} is the fastest that keeps"
        title = (
            f"{self.name}: ".removeprefix(": ")
            + f"clean {self.metric} {self.clean:.4f}, {self.rows} rows, {len(self.results)} formats, "
            f"{len(lines)} on the front; {said} {target:.4g} of the {self.metric}"
        )
        return "\n".join([printable(title), *covers(self.covered), *aligned([head, *lines], left=(0, 6))])

    def plot(self, ax: Any = None, *, target: float = TARGET) -> Any:
        """Speed-up against accuracy with the front on the caller's axes or a new figure (see `plot_front`); the Figure.

        Args:
            ax: matplotlib axes, or None.
            target: a share of the accuracy to draw a line at.
        """
        check_arguments(Sweep.plot, locals())
        return plot_front(self, ax, target=target).figure

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        rows = [
            (str(r.format), r.format.point, r.format.bits, r.r2, r.normalised, r.speedup, r.saving)
            for r in self.results
        ]
        return ["format", "point", "bits", "r2", "normalised", "speedup", "saving"], rows

    def _brief(self) -> str:
        return f"{len(self.results)} formats, {self.rows} rows, clean {self.clean:.4f}"

    def __repr__(self) -> str:
        return f"<Sweep{f' of {self.name}' if self.name else ''}: {self._brief()}>"


def sweep_formats(
    model: nn.Module,
    data: Data,
    formats: Iterable[str | Format | torch.dtype] | None = None,
    *,
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
    store: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[int, int], object] = False,
    name: str = "",
) -> Sweep:
    """Accuracy and agreement with float32 of a model in each format, all of its contractions in that format.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes), not injected; it is left as it was.
        data: (inputs, labels), or an iterable of such batches, in any of the forms of ``docs/guides/data.md``.
        formats: of operands, products and sums; None: `design_space()`.
        cost: what units cost; None: the stand-in of `CostModel`.
        inputs: number of inputs, picked by the seed, whose last layer is compared with that in float32; or the inputs,
            as the model takes them.
        seed: 64-bit seed, also of stochastic rounding.
        arithmetic: what is in every contraction for a format; another order of the operands, say.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        metric: what is measured of each row.
        arrays: which calls share what an arithmetic draws for a chip, as for `inject`.
        root: the part at which names of sites begin, as for `inject`.
        forward, output: how the model is called, and what of its result is measured, as for `walk`.
        compute: `batch_rows`, `memory` and `threads` of `Compute`; other settings are refused.
        store: a file that keeps what is found: a sweep that was stopped goes on from there, and other formats or costs
            evaluate only what is new. It belongs to this model, data, seed and arithmetic, and refuses others; data in
            another order is other data, so no loader that shuffles.
        progress: show a progress bar, if tqdm is installed; or a function (done, total).
        name: of the network, for tables and pictures.

    Returns:
        A `Sweep`. Rows whose scores hold NaN count as wrong.

    Raises:
        ValueError: unknown formats or none, a format that `cost` does not know, bad data or inputs, a model that is
            injected already, without contractions or without one score per class and row.
        TypeError: a seed, metric or compute of another type.
        StoreError: the file is no store, or another sweep's.

    Source: Hill et al. 2018 (arXiv 1808.02513), section 4.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.randn(20, 1, 2, 2)
        >>> sweep = sweep_formats(model, (x, model(x).argmax(1)), ["M2E4", "fp16", "L4R16"], seed=1)
        >>> [r.normalised for r in sweep.results][2], sweep
        (1.0, <Sweep: 3 formats, 20 rows, clean 1.0000>)
    """
    check_arguments(sweep_formats, locals())
    cost = CostModel() if cost is None else cost
    made = list(dict.fromkeys(design_space() if formats is None else map(as_format, formats)))
    if not made:
        raise ValueError("sweep_formats: formats must hold at least one format, got none")
    costs = [(cost.speedup(fmt), cost.saving(fmt)) for fmt in made]  # before any work: a table may lack a format
    results = []
    problem = Problem.of(
        Call("sweep_formats", forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays,
        root=root, compute=compute,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        runs = FormatRuns("sweep_formats", problem, inputs, compute)
        kept = None
        if store is not None:
            kept = stack.enter_context(Store(store, _store_key(runs.session, inputs, arithmetic)))
        stack.enter_context(runs)
        advance = stack.enter_context(progress_of("sweep_formats", progress, len(made)))
        known = {} if kept is None else _known(kept, runs)
        for fmt, price in zip(made, costs, strict=True):
            if repr(fmt) not in known:
                hardware = [arithmetic(fmt)]
                known[repr(fmt)] = _told(runs, runs.value(hardware)) | {"r2": runs.agreement(hardware)}
                if kept is not None:
                    kept.finish({repr(fmt): known[repr(fmt)]}, "sweep")
            found = known[repr(fmt)]
            share = runs.share(found["correct"] / runs.rows if is_share(runs.metric) else found["value"])
            results.append(FormatResult(fmt, found["r2"], share, *price))
            advance(1)
        return Sweep(results, runs.clean, runs.rows, name, runs.metric.name, arrays, runs.covered)


def _told(runs: FormatRuns, value: float) -> dict[str, Any]:
    """What was measured, as a store keeps it: a count, or a number."""
    return {"correct": round(value * runs.rows)} if is_share(runs.metric) else {"value": value}


def _known(store: Store, runs: FormatRuns) -> dict[str, Any]:
    """What a store holds, which anyone may have put there."""
    found, rows, share = store.done(), runs.rows, is_share(runs.metric)
    for task, result in found.items():
        told = result if isinstance(result, dict) else {}
        number, r2 = told.get("correct" if share else "value"), told.get("r2")
        good = type(number) is int and 0 <= number <= rows if share else type(number) is float
        if not good or type(r2) is not float or not 0 <= r2 < 1.001:
            raise store.damage(task, f"expected a {f'count of {rows} rows' if share else 'number'} and an R^2")
    return found


def _store_key(session: Session, inputs: int | Tensor, arithmetic: Callable[[Format], Device]) -> dict[str, Any]:
    example = as_format("M7E6")
    devices, problem = arithmetic(example), session.problem
    plan = {
        "batch_rows": session.compute.batch_rows,
        "inputs": identity(inputs),
        "arithmetic": re.sub(r" at 0x[0-9a-f]+", "", repr(devices)).replace(repr(example), "format"),
        "digest of the arithmetic": hashlib.sha256(identity(devices).encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "threads": session.compute.threads or torch.get_num_threads(),
    }
    if problem.arrays != "module":
        plan["arrays"] = problem.arrays
    if problem.root:
        plan["root"] = problem.root
    plan |= problem.call.told()
    if session.compute.memory is not None:
        plan["memory"] = session.compute.memory
    if named := problem.metric.identity():
        plan["metric"] = named
    x, y, rows = problem.data
    return study_key(problem.model, x, y, [], problem.seed, plan=plan, rows=rows.cpu(), target="formats")
