"""How much the order of operands matters where sums saturate: to each layer's outputs, and to a network's answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisykernels._engine.arguments import chosen_sites
from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Problem, Session
from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range
from noisykernels._util.data import Data, check_labels
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels._util.text import aligned, covers, printable
from noisykernels.arithmetic.order import ORDERS as NAMES
from noisykernels.arithmetic.order import random_order
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.execute import with_arithmetic
from noisykernels.injection.placement import SILENT
from noisykernels.injection.site import whole_of
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import Metric
from noisykernels.metrics.names import MetricLike
from noisykernels.nn.modules import NoisyLayer
from noisykernels.plotting.ordering import plot_orders
from noisykernels.study.result import Result

__all__ = ["LayerOrder", "OrderStudy", "order_sensitivity"]


KEPT = 4096  # outputs of each batch that the quantiles are of
ORDERS = ("natural", "positive_first", "negative_first")


class Ordered(Protocol):
    """An arithmetic that adds up in an order, such as `Serial` or `BrainScaleS2`."""

    ordered: bool
    order: str | Tensor
    low: float
    high: float
    synapse_limit: float | None

    def unordered(self) -> Arithmetic:
        """The twin without an order."""


@dataclass(frozen=True, eq=False)
class LayerOrder:
    """What the order does to the outputs of one layer; all deviations relative to that of its outputs.

    Fields: name of the site; steps, the number K of operands; outputs of all rows; std of the outputs (of the twin
    without an order), in their unit; spread, the root mean square of the deviation of an output over permutations;
    saturated, the share of outputs (of all permutations) that a limit has changed; shift, for each named order the
    root mean square of the difference from the twin; quantiles, 101 of the deviation over permutations.
    """

    name: str
    steps: int
    outputs: int
    std: float
    spread: float
    saturated: float
    shift: dict[str, float]
    quantiles: NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class OrderStudy(Result, kind="order study"):
    """What `order_sensitivity` returns.

    Fields: layers in the order in which they run; values (P), what is measured of the network under each permutation of
    all its layers; orders, the same under each named order, of the twin as ``"none"``; disagreement, the share of rows
    for which two permutations give different predictions, over all pairs; changed, the share of rows whose prediction
    is not the twin's, over permutations; rows, permutations, seed; metric, what was measured; arrays, which calls
    shared one. Without labels, where the metric needs some, the figures of the network are empty or NaN.

    Columns of `to_pandas`, a row for each layer: site, steps, outputs, std, spread, saturated, shift_*.
    """

    layers: tuple[LayerOrder, ...]
    values: NDArray[np.float64]
    orders: dict[str, float]
    disagreement: float
    changed: float
    rows: int
    permutations: int
    seed: int
    metric: str = "accuracy"
    arrays: str = "module"
    covered: dict[str, float] = field(default_factory=dict)  # shares of multiply-adds

    def table(self) -> str:
        """Layers, and the network, as aligned text."""
        names = list(self.layers[0].shift)
        lines = [["layer", "operands", "saturated", "spread", *names]]
        for layer in self.layers:
            values = (layer.saturated, layer.spread, *layer.shift.values())
            lines.append([layer.name, str(layer.steps), *(f"{v:.4f}" for v in values)])
        text = [
            f"{self.permutations} permutations, {self.rows} rows, seed {self.seed}; deviations relative to that of the "
            "outputs" + "".join(f"; {line}" for line in covers(self.covered)),
            *aligned(lines, [0]),
        ]
        if len(self.values):
            with np.errstate(invalid="ignore"):  # of infinite ones there is none
                spread = f" +- {self.values.std(ddof=1):.4f}" if len(self.values) > 1 else ""
            text += [
                f"{self.metric}: " + ", ".join(f"{name} {value:.4f}" for name, value in self.orders.items()),
                f"{self.metric} of permutations: {self.values.mean():.4f}{spread}, {self.values.min():.4f} to "
                f"{self.values.max():.4f}",
            ]
            if not math.isnan(self.changed):
                differ = f"{self.disagreement:.4f} differ between two"
                text.append(f"predictions: {self.changed:.4f} changed by a permutation, {differ}")
        return "\n".join(map(printable, text))

    def __repr__(self) -> str:
        return self.table()

    def plot(self, ax: Any = None) -> Any:
        """The deviation of each layer's outputs, sorted, and the accuracy of each permutation; the Figure.

        Args:
            ax: two matplotlib axes; None makes a new figure.
        """
        return plot_orders(self, ax)

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        names = ["site", "steps", "outputs", "std", "spread", "saturated"]
        shifts = [f"shift_{name}" for name in self.layers[0].shift]
        return [*names, *shifts], [
            (a.name, a.steps, a.outputs, a.std, a.spread, a.saturated, *a.shift.values()) for a in self.layers
        ]

    def _brief(self) -> str:
        return f"{len(self.layers)} layers, {self.permutations} permutations, {self.rows} rows"

    def _draw(self, figure: Any) -> None:
        self.plot(figure.subplots(1, 2))

    def _size(self) -> tuple[float, float]:
        return 11.0, 4.2


@dataclass
class _Moments:
    """Sums over the outputs of one layer."""

    steps: int = 0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    variance: float = 0.0
    saturated: int = 0
    shift: dict[str, float] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def result(self, name: str, permutations: int) -> LayerOrder:
        count = max(1, self.count)
        std = math.sqrt(max(0.0, self.squares / count - (self.total / count) ** 2))
        unit = std or 1.0
        kept = torch.cat(self.kept).double().cpu().numpy() if self.count else np.zeros(1)
        return LayerOrder(
            name,
            self.steps,
            self.count,
            std,
            math.sqrt(self.variance / count) / unit,
            self.saturated / (count * permutations),
            {order: math.sqrt(value / count) / unit for order, value in self.shift.items()},
            np.quantile(kept / unit, np.linspace(0, 1, 101)),
        )


class _Study:
    """What the contractions of the model do at present: measure, or add up in one of the orders."""

    def __init__(self, seed: int, permutations: int, orders: Sequence[str]) -> None:
        self.seed, self.permutations, self.orders = seed, permutations, orders
        self.present: str | int | None = None  # an order, the number of a permutation; None: measure
        self.moments: dict[str, _Moments] = {}
        self.drawn: dict[tuple[int, str, int], Tensor] = {}

    def contract(self, arithmetic: Ordered, name: str, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        if self.present == "none":
            return arithmetic.unordered().contract(x, weight, draw)
        if self.present is not None:
            return self.ordered(arithmetic, name, self.present, weight, draw).contract(x, weight, draw)
        twin = arithmetic.unordered().contract(x, weight, draw)
        exact, m = twin.double(), self.moments.setdefault(name, _Moments())
        m.steps = draw.contraction.steps(weight)
        m.count += exact.numel()
        m.total, m.squares = m.total + float(exact.sum()), m.squares + float(exact.square().sum())
        first, sums, squares = None, torch.zeros_like(exact), torch.zeros_like(exact)
        for number in range(self.permutations):
            ordered = self.ordered(arithmetic, name, number, weight, draw)
            y = ordered.contract(x, weight, draw)
            m.saturated += int((y != _unlimited(ordered).contract(x, weight, draw)).sum())
            first = y.double() if first is None else first
            difference = y.double() - first  # exactly 0 where no order matters
            sums, squares = sums + difference, squares + difference.square()
        variance = (squares - sums.square() / self.permutations).clamp(min=0) / (self.permutations - 1)  # NaN for one
        m.variance += float(variance.sum())
        m.kept.append(_spread_out(variance.flatten()).sqrt())
        for order in self.orders:
            y = self.ordered(arithmetic, name, order, weight, draw).contract(x, weight, draw)
            m.shift[order] = m.shift.get(order, 0.0) + float((y.double() - exact).square().sum())
        return twin

    def ordered(self, arithmetic: Ordered, name: str, order: str | int, weight: Tensor, draw: Draw) -> Arithmetic:
        made = copy.copy(arithmetic)
        if isinstance(order, str):
            made.order = order
        else:
            key = (draw.contraction.steps(weight), name, order)
            if key not in self.drawn:
                self.drawn[key] = random_order(key[0], self.seed, name, order)
            made.order = self.drawn[key]
        return cast(Arithmetic, made)


def _spread_out(values: Tensor) -> Tensor:
    """At most KEPT of many values, from everywhere: equal steps could meet the same few outputs of every row."""
    if len(values) <= KEPT:
        return values
    golden = (torch.arange(KEPT, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)) % 1
    return values[(golden * len(values)).long().to(values.device)]


def _unlimited(arithmetic: Any) -> Arithmetic:
    """The same sums in the same order, with nothing that saturates."""
    if hasattr(arithmetic, "unlimited"):
        return cast(Arithmetic, arithmetic.unlimited())
    made = copy.copy(arithmetic)
    made.low, made.high = -math.inf, math.inf
    made.synapse_limit = None if arithmetic.synapse_limit is None else math.inf
    return cast(Arithmetic, made)


class _Watched(Arithmetic):
    """An arithmetic in the order that the study is about at present."""

    def __init__(self, inner: Any, name: str, study: _Study) -> None:
        self.inner, self.name, self.study = inner, name, study
        self.operands, self.level_names = inner.operands, inner.level_names

    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        return self.study.contract(self.inner, self.name, x, weight, draw)

    def add_bias(self, y: Tensor, bias: Tensor, draw: Draw) -> Tensor:
        return cast(Tensor, self.inner.add_bias(y, bias, draw))


def _unordered(hardware: Sequence[Any] | None) -> list[Device] | None:
    """The devices of a layer that is not looked at."""
    return None if hardware is None else [d.unordered() if hasattr(d, "unordered") else d for d in hardware]


def order_sensitivity(
    model: nn.Module,
    data: Data,
    arithmetic: Arithmetic | None = None,
    *,
    permutations: int = 20,
    orders: Sequence[str] = ORDERS,
    seed: int,
    sites: Sequence[str | int | type] | str | type | None = None,
    rows: Tensor | Sequence[int] | None = None,
    metric: MetricLike = ACCURACY,
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    compute: Compute | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> OrderStudy:
    r"""Adds up the same operands in many random orders, and tells what changes.

    For each layer, the operands are those that reach it where all layers before it add up without an order. With
    :math:`y_p` an output under permutation *p* and *y* the twin's, and all averages over rows and outputs,

    .. math:: spread^2 = \langle \mathrm{var}_p\, y_p \rangle / \mathrm{var}\, y \qquad
        shift^2 = \langle (y_{order} - y)^2 \rangle / \mathrm{var}\, y

    For the network, all layers are permuted at once, each in its own way.

    Args:
        model: any model with linear layers or convolutions, or one layer; not injected. It is left as it was.
        data: in any of the forms of ``docs/guides/data.md``; inputs alone tell about layers only.
        arithmetic: how all layers add up, a `Serial` or `BrainScaleS2` with ``ordered=True``. None: as the noisy layers
            of the model say. Noise inside it is the same under all orders; noise of sites is left out.
        permutations: number P of random orders, 0, 1, ...: see `random_order`. One has no spread: NaN.
        orders: further orders to look at, as `Serial` names them; sorted ones are slow.
        seed: 64-bit seed of permutations and noise.
        sites: names, name patterns, module types or indices of the contractions that are permuted; the others add up
            without an order, or, where `arithmetic` is given, exactly. None: all.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        metric: what is measured of the network, as for `walk`.
        arrays: which calls share what the devices beside the arithmetic draw for a chip, as for `inject`.
        root: the part at which names of sites begin, as for `inject`.
        forward, output: how the model is called, and what of its result is measured, as for `walk`.
        compute: `batch_rows`, `memory` and `threads` of `Compute`; other settings are refused.
        progress: show a progress bar, if tqdm is installed; or a function (done, total), which counts runs of the data.

    Returns:
        `OrderStudy`. Rows whose scores hold NaN count as wrong, and as predictions that agree with each other only.

    Raises:
        ValueError: no ordered arithmetic, an unknown order, bad data or sizes; a model that is injected already.
        TypeError: a seed, metric or compute of another type.

    Example:
        >>> from noisykernels.arithmetic import Serial
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = torch.randn(20, 64), torch.randint(3, (20,))
        >>> study = order_sensitivity(model, data, Serial(low=-0.2, high=0.2), permutations=5, seed=1)
        >>> [layer.name for layer in study.layers], study.values.shape
        (['0:linear#0', '2:linear#0'], (5,))
        >>> study.layers[0].spread > 0
        True
    """
    check_arguments(order_sensitivity, locals())
    op = "order_sensitivity"
    permutations = in_range(op, "permutations", permutations)
    _check_orders(op, orders)
    if arithmetic is not None:
        _check(arithmetic)
    compute = Compute.of(op, compute, "batch_rows", "memory", "threads")
    problem = Problem.of(
        Call(op, forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays, root=root,
        alone=True, compute=compute, sites=sites,
    )  # fmt: skip
    measured = problem.labelled or problem.metric.against_clean
    study, chosen = _Study(seed, permutations, tuple(orders)), set[str]()

    def hardware(name: str, module: nn.Module) -> list[Device] | None:
        own = module.hardware if isinstance(module, NoisyLayer) else None
        if sites is not None and chosen.isdisjoint((name, whole_of(name))):
            return _unordered(own)
        if arithmetic is not None:
            others = [d for d in own or () if not isinstance(d, Arithmetic)]
            return list(with_arithmetic(op, others, _Watched(arithmetic, name, study)))
        return None if own is None else [
            _Watched(_check(d), name, study) if isinstance(d, Arithmetic) else d for d in own
        ]  # fmt: skip

    with Session(op, problem, compute) as session:
        chosen |= {site.name for site in chosen_sites(op, session.model, session.sites, sites, root=root)}

        def measure() -> None:
            study.present = None
            with torch.inference_mode():
                for x, _, ids in session.batches():
                    with session.drawing(ids):
                        problem.call(session.model, x)

        def predictions(order: str | int) -> tuple[Tensor, float]:
            study.present = order
            found, tally, row = [], session.tally(), 0
            for x, y, ids in session.batches():
                scores = session.scores(x, ids)
                targets = session.targets(x, y)
                _check_labels(op, problem.metric, scores, y)
                found.append(_predictions(scores, y))
                tally.add(row, scores.unsqueeze(0), targets)
                row += len(ids)
            advance(1)
            return torch.cat(found), float(tally.values(op)[0])

        runs = 1 + (1 + len(study.orders) + permutations) * measured
        with (
            session.placing(replace(SILENT, hardware=hardware)),
            progress_of(op, progress, runs) as advance,
        ):
            if measured and not problem.metric.by_argmax:  # whose NaN are wrong predictions, be it without an order
                session.clean  # noqa: B018  # what cannot be measured is refused before the work
            measure()
            advance(1)
            if not study.moments and arithmetic is not None:
                raise ValueError(
                    f"{op}: hardware needs a linear layer, convolution or other contraction; the model has none"
                )
            if not study.moments:
                raise ValueError(f"{op}: no layer of the model has an ordered arithmetic; give one")
            covered = session.covered(session.state.placement, tell=arithmetic is not None and sites is None)
            named = {order: predictions(order) for order in ("none", *study.orders)} if measured else {}
            permuted = [predictions(number) for number in range(permutations)] if measured else []
    every = torch.stack([p for p, _ in permuted]) if permuted and permuted[0][0].numel() else None
    return OrderStudy(
        tuple(m.result(name, permutations) for name, m in study.moments.items()),
        np.array([mean for _, mean in permuted]),
        {order: mean for order, (_, mean) in named.items()},
        math.nan if every is None else _disagreement(every),
        math.nan if every is None else float((every != named["none"][0]).double().mean()),
        len(session.labels),
        permutations,
        seed,
        problem.metric.name,
        arrays,
        covered,
    )


def _check_labels(op: str, metric: Metric, scores: Tensor, labels: Tensor) -> None:
    """Refuses labels that are no classes, where a metric is of classes."""
    if metric.by_argmax:
        check_labels(op, scores, labels)


def _predictions(scores: Tensor, labels: Tensor) -> Tensor:
    """The class of each row, -1: none; nothing of outputs that are no scores of classes."""
    if scores.dim() != 2 or scores.shape[1] < 2 or labels.is_floating_point():
        return scores.new_empty(0, dtype=torch.int64)
    return scores.argmax(1).masked_fill(scores.isnan().any(1), -1)


def _check_orders(op: str, orders: Sequence[str]) -> None:
    """Refuses what is no named order."""
    for order in orders:
        if order not in NAMES:
            raise ValueError(f"{op}: orders must be some of {', '.join(NAMES)}, got {order!r}")


def _check(arithmetic: Any) -> Any:
    """An arithmetic with an order, and a twin without."""
    if not (isinstance(arithmetic, Arithmetic) and getattr(arithmetic, "ordered", False)):
        raise ValueError(
            f"order_sensitivity: arithmetic must be a Serial or BrainScaleS2 with ordered=True, got {arithmetic!r}"
        )
    return arithmetic


def _disagreement(predictions: Tensor) -> float:
    """Share of pairs of permutations (P, rows) that differ."""
    count = len(predictions)
    if count < 2:
        return math.nan
    ones = nn.functional.one_hot(predictions + 1).sum(0).double()  # a prediction may be -1: none
    return float(1 - ((ones * (ones - 1)).sum(1) / (count * (count - 1))).mean())
