"""Picture of two studies side by side."""

from __future__ import annotations

from typing import Any

from noisykernels._util.arguments import check_arguments
from noisykernels.plotting.style import arrow, axes_or_new, error_bars, literal, reach, short_names
from noisykernels.stats.views import ComparisonLike

__all__ = ["plot_compare"]


# status of a cell that was not run in full: its mark in a map
SIDES = (("#0072B2", "s"), ("#D55E00", "o"))


def plot_compare(comparison: ComparisonLike, ax: Any = None) -> Any:
    """Midpoints of two studies side by side at every site, with 95 % intervals; filled where they differ for sure.

    Arrows are bounds, at most a hundredfold from the midpoints. The axis is a log one: equal ratios look equal.

    Args:
        comparison: what `compare` returned.
        ax: matplotlib axes; None makes a new figure.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_compare, locals())
    ax = axes_or_new("plot_compare", ax, (1.8 + max(4.5, 0.36 * len(comparison.pairs)), 4.6))
    every = [m for pair in comparison.pairs for m in (pair.a, pair.b) if m is not None]
    bottom, top = reach(every)
    for side, (colour, marker) in enumerate(SIDES):
        for x, pair in enumerate(comparison.pairs):
            m = (pair.a, pair.b)[side]
            at = x + 0.3 * (side - 0.5)
            if m is not None and m.status == "ok":
                sure = pair.verdict in ("higher", "lower")
                ax.errorbar([at], [m.level], yerr=error_bars([m], bottom, top), fmt=marker, color=colour, ms=5,
                            mfc=colour if sure else "white", mew=1.1, capsize=2.5, elinewidth=1.3)  # fmt: skip
            elif m is not None:
                arrow(ax, at, m, colour, bottom, top)
        ax.plot([], [], ls="", marker=marker, color=colour, ms=5, label=literal(comparison.names[side]))
    ax.plot([], [], ls="", marker="o", color="0.4", mfc="white", ms=5, label="not told apart")
    ax.set_yscale("log")
    room = (top / bottom) ** 0.15 if any(m.status != "ok" for m in every) else (top / bottom) ** 0.04
    ax.set_ylim(bottom / room / 1.02, top * room * 1.02)
    names = [literal(name) for name in short_names([p.site for p in comparison.pairs])]
    ax.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel(f"{comparison.word} noise level (std. dev.)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, fontsize=8, frameon=False)
    return ax
