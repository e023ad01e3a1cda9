"""A number format for each layer: the network's, with bits taken away layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Problem
from noisykernels._engine.targets import has_weight
from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels._util.text import aligned, covers, printable
from noisykernels.arithmetic.cost import CostModel
from noisykernels.arithmetic.formats import Format, as_format
from noisykernels.arithmetic.serial import Serial
from noisykernels.experiments.format_runs import FormatRuns
from noisykernels.experiments.format_search import changed
from noisykernels.experiments.format_sweep import CODECS, TARGET
from noisykernels.hardware.device import Device, Draw
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.names import MetricLike
from noisykernels.plotting.formats import plot_layer_formats
from noisykernels.study.result import Result

__all__ = ["LayerFormats", "layer_formats"]


@dataclass(frozen=True, eq=False, repr=False)
class LayerFormats(Result, kind="choice of formats"):
    """A format for each contraction of a network; what `layer_formats` returns.

    Columns of `to_pandas`, a row for each site: site, format, point, bits, macs, speedup, saving.

    Args:
        formats: of each site, in the order of the forward.
        macs: multiply-accumulate operations of each for one row.
        normalised: accuracy as a share of that in float32.
        evaluations: settings that were evaluated.
        cost: what units cost.
        metric: name of what was measured.
        arrays: which calls shared one.
        covered: share of the multiply-adds that the formats are about.

    Example:
        >>> made = {"a:linear#0": as_format("M7E6"), "b:linear#0": as_format("M4E6")}
        >>> found = LayerFormats(made, {"a:linear#0": 100, "b:linear#0": 100}, 0.995, 7, CostModel())
        >>> round(found.speedup, 2), round(found.saving, 2), found.hardware()["b:linear#0"]
        (9.86, 4.15, [Serial(FloatFormat(mantissa=4, exponent=6))])
    """

    formats: dict[str, Format]
    macs: dict[str, int]
    normalised: float
    evaluations: int
    cost: CostModel
    metric: str = "accuracy"
    arrays: str = "module"
    covered: dict[str, float] = field(default_factory=dict)
    _codecs = CODECS

    @property
    def speedup(self) -> float:
        """Of the network, whose layers run one after the other, each on a chip's area of units of its format."""
        return sum(self.macs.values()) / sum(n / self.cost.speedup(self.formats[s]) for s, n in self.macs.items())

    @property
    def saving(self) -> float:
        """How many times less energy all operations take."""
        return sum(self.macs.values()) / sum(n / self.cost.saving(self.formats[s]) for s, n in self.macs.items())

    def hardware(self, arithmetic: Callable[[Format], Device] = Serial) -> dict[str, list[Device]]:
        """``hardware=`` for `inject`."""
        check_arguments(LayerFormats.hardware, locals())
        return {site: [arithmetic(fmt)] for site, fmt in self.formats.items()}

    def table(self) -> str:
        """Format, operations and speed-up of each layer as aligned text."""
        whole = sum(self.macs.values())
        lines = [
            [site, str(fmt), f"{self.macs[site]:,}", f"{self.macs[site] / whole:.1%}", f"{self.cost.speedup(fmt):.2f}"]
            for site, fmt in self.formats.items()
        ]
        title = (
            f"normalised {self.metric} {self.normalised:.4f}, speed-up {self.speedup:.2f}, energy {self.saving:.2f} "
            f"times less, {self.evaluations} evaluations"
        )
        return "\n".join(
            [
                printable(title),
                *covers(self.covered),
                *aligned([["site", "format", "operations", "share", "speed-up"], *lines], left=(0, 1)),
            ]
        )

    def plot(self, ax: Any = None) -> Any:
        """The bits of each layer on the caller's axes or a new figure (see `plot_layer_formats`); the Figure."""
        return plot_layer_formats(self, ax).figure

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        rows = [
            (site, str(fmt), fmt.point, fmt.bits, self.macs[site], self.cost.speedup(fmt), self.cost.saving(fmt))
            for site, fmt in self.formats.items()
        ]
        return ["site", "format", "point", "bits", "macs", "speedup", "saving"], rows

    def _brief(self) -> str:
        return (
            f"{len(self.formats)} layers, normalised {self.metric} {self.normalised:.4f}, speed-up {self.speedup:.2f}"
        )

    def _about(self) -> dict[str, Any]:
        about = {
            name: getattr(self, name)
            for name in ("metric", "normalised", "speedup", "saving", "evaluations", "arrays", "covered")
        }
        return {**about, "cost": repr(self.cost)}

    def _size(self) -> tuple[float, float]:
        return 1.8 + max(4.5, 0.55 * len(self.formats)), 4.6


def layer_formats(
    model: nn.Module,
    data: Data,
    start: str | Format | torch.dtype,
    *,
    target: float = TARGET,
    evaluations: int | None = None,
    cost: CostModel | None = None,
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
) -> LayerFormats:
    """A format for each layer, greedily: bits are taken away layer by layer as long as the accuracy stays.

    All layers begin with the network's format. From the layer with the most operations to that with the fewest, a bit
    is taken away where it brings most speed, or else in the other place, until neither keeps the target. Accuracy is
    only measured, never predicted, and always of the whole network; the formats fit the data that they were chosen on.

    Args:
        model, data, seed, arithmetic, rows, metric, arrays, root, forward, output, compute: as for `sweep_formats`.
        progress: show a progress bar, if tqdm is installed; or a function (done, total), which counts layers.
        start: the format of all layers, such as `search_format` finds.
        target: share of the accuracy in float32 to keep.
        evaluations: at most so many; None: as many as it takes.
        cost: what units cost; None: the stand-in of `CostModel`. Formats that its table lacks are not tried.

    Returns:
        `LayerFormats`; with ``start`` in all layers where that misses the target already.

    Raises:
        ValueError: as `sweep_formats`; a target outside of (0, 1], fewer than one evaluation.

    Source: an extension of Hill et al. 2018 (arXiv 1808.02513), who argue for one format in the whole network.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.randn(20, 1, 2, 2)
        >>> found = layer_formats(model, (x, model(x).argmax(1)), "M20E6", target=0.9, seed=1)
        >>> found.formats["1:linear#0"].bits < 27, found.normalised >= 0.9
        (True, True)
    """
    check_arguments(layer_formats, locals())
    if not 0 < target <= 1:
        raise ValueError(f"layer_formats: target must lie in (0, 1], got {target}")
    most = math.inf if evaluations is None else in_range("layer_formats", "evaluations", evaluations)
    cost = CostModel() if cost is None else cost
    begin = as_format(start)
    cost.cost(begin)  # before any work: a table may lack a format
    problem = Problem.of(
        Call("layer_formats", forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays,
        root=root, compute=compute,
    )  # fmt: skip
    with FormatRuns("layer_formats", problem, 1, compute) as runs:
        macs = operations(runs)
        found: dict[str, Format] = dict.fromkeys(macs, begin)

        def share(formats: dict[str, Format]) -> float:
            return runs.normalised({site: [arithmetic(fmt)] for site, fmt in formats.items()})

        reached = share(found)
        with progress_of("layer_formats", progress, len(macs)) as advance:
            for site in sorted(macs, key=lambda s: -macs[s]):
                lower = reached >= target
                while lower and runs.evaluations < most:
                    lower = False
                    options = [f for f in changed(found[site], -1) if cost.knows(f)]
                    for less in sorted(options, key=cost.speedup, reverse=True):
                        if runs.evaluations < most and (n := share(found | {site: less})) >= target:
                            found[site], reached, lower = less, n, True
                            break
                advance(1)
        return LayerFormats(found, macs, reached, runs.evaluations, cost, runs.metric.name, arrays, runs.covered)


class _Counter(Device):
    """Counts the operations of the contraction that it is put into."""

    def __init__(self) -> None:
        self.steps, self.count = 0, 0

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        self.steps = draw.contraction.steps(weight)
        return weight

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        self.count = self.steps * y.numel()
        return y


def operations(runs: FormatRuns) -> dict[str, int]:
    """Multiply-accumulate operations of each contraction for one row; those with padding count."""
    names = [site.name for site in runs.session.sites if has_weight(site)]
    counters: dict[str, Any] = {name: [_Counter()] for name in names}
    runs.scores(counters, runs.few[:1], runs.few_rows[:1])
    return {name: counters[name][0].count for name in names}
