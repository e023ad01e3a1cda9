"""Pictures of formats: speed-up against accuracy, how the last layer tells the accuracy, bits of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels.plotting.style import axes_or_new, literal, short_names
from noisykernels.stats.views import LayerFormatsLike, PredictorLike, SweepLike

__all__ = ["plot_agreement", "plot_front", "plot_layer_formats"]


KINDS = {"float": ("floating point", "#0072B2", "o"), "fixed": ("fixed point", "#D55E00", "s")}


def plot_front(sweep: SweepLike, ax: Any = None, *, target: float | None = None, marked: Sequence[str] = ()) -> Any:
    """Accuracy against speed-up of every format, with the front of those that none beats in both.

    Args:
        sweep: what `sweep_formats` returned.
        ax: matplotlib axes; None makes a new figure.
        target: a share of the accuracy to draw a line at; None: the sweep's own.
        marked: names of formats to write beside their points; the fastest one above the target always is.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_front, locals())
    target = sweep.target if target is None else target
    ax = axes_or_new("plot_front", ax, (6.0, 4.4))
    for point, (name, colour, marker) in KINDS.items():
        mine = [r for r in sweep.results if r.format.point == point]
        ax.plot([r.speedup for r in mine], [r.normalised for r in mine], ls="", marker=marker, color=colour, ms=4,
                mew=0, alpha=0.6, label=name)  # fmt: skip
    front = sweep.front()
    ax.step([r.speedup for r in front], [r.normalised for r in front], where="post", color="0.2", lw=1, label="front")
    ax.axhline(target, color="0.35", lw=1, ls=":", zorder=1)
    best = sweep.fastest(target)
    for r in sweep.results:
        if str(r.format) in marked or r is best:
            ax.annotate(f"{r.format}", (r.speedup, r.normalised), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ax.set_xscale("log")
    ax.set_xlabel("speed-up over float32 (cost model)")
    ax.set_ylabel(literal(f"{sweep.metric} / {sweep.metric} in float32"))
    title = f"{sweep.name}: {len(sweep.results)} formats, {sweep.rows} rows".removeprefix(": ")
    ax.set_title(literal(title), fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left", fontsize=8, framealpha=0.85, edgecolor="none")
    return ax


def plot_agreement(sweeps: Sequence[SweepLike], predictor: PredictorLike | None = None, ax: Any = None) -> Any:
    """Accuracy against the agreement of the last layer, a colour for each network, and the line of a predictor.

    Args:
        sweeps: of some networks.
        predictor: its line is drawn; None: none.
        ax: matplotlib axes; None makes a new figure.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_agreement, locals())
    ax = axes_or_new("plot_agreement", ax, (6.0, 4.4))
    for k, sweep in enumerate(sweeps):
        x, y = [r.r2 for r in sweep.results], [r.normalised for r in sweep.results]
        ax.plot(x, y, ls="", marker="osD^v"[k % 5], ms=4, mew=0, alpha=0.55,
                label=literal(sweep.name) or f"network {k + 1}")  # fmt: skip
    if predictor is not None:
        ends = np.array([0.0, 1.0])
        label = f"fit, correlation {predictor.correlation:.2f}"
        ax.plot(ends, predictor.slope * ends + predictor.intercept, color="0.2", lw=1.2, label=label)
    ax.set_xlabel("$R^2$ of the last layer on a few inputs")
    metric = " and ".join(dict.fromkeys(sweep.metric for sweep in sweeps)) or "accuracy"
    ax.set_ylabel(literal(f"{metric} / {metric} in float32"))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize=8, framealpha=0.85, edgecolor="none")
    return ax


def plot_layer_formats(found: LayerFormatsLike, ax: Any = None) -> Any:
    """The bits of each layer's format, layers in the order in which they run, and its share of all operations.

    Args:
        found: what `layer_formats` returned.
        ax: matplotlib axes; None makes a new figure, as wide as the layers need.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_layer_formats, locals())
    formats = list(found.formats.values())
    ax = axes_or_new("plot_layer_formats", ax, (1.8 + max(4.5, 0.55 * len(formats)), 4.6))
    whole = sum(found.macs.values())
    for point, (name, colour, _) in KINDS.items():
        mine = [(x, fmt.bits) for x, fmt in enumerate(formats) if fmt.point == point]
        if mine:
            ax.bar(*zip(*mine, strict=True), width=0.72, color=colour, alpha=0.75, label=name)
    for x, (site, fmt) in enumerate(found.formats.items()):
        ax.annotate(f"{fmt.layout}", (x, fmt.bits), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
        ax.annotate(f"{found.macs[site] / whole:.1%}", (x, 0), xytext=(0, 3), textcoords="offset points", ha="center",
                    fontsize=8, color="white")  # fmt: skip
    ax.set_xticks(range(len(formats)), [*map(literal, short_names(list(found.formats)))], rotation=55, ha="right",
                  rotation_mode="anchor", fontsize=8)  # fmt: skip
    ax.set_xlim(-0.6, len(formats) - 0.4)
    ax.set_ylim(0, 1.15 * max(fmt.bits for fmt in formats))
    ax.set_ylabel("bits of a value, with its sign")
    title = (
        f"normalised {found.metric} {found.normalised:.3f}, speed-up {found.speedup:.2f}; "
        "at the foot: share of operations"
    )
    ax.set_title(literal(title), fontsize=10)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.legend(loc="best", fontsize=8, framealpha=0.85, edgecolor="none")
    return ax
