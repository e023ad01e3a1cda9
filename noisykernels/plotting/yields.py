"""Picture of many chips of one design: the share of them that reach an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels.plotting.style import axes_or_new, literal
from noisykernels.stats.views import ChipsLike

__all__ = ["plot_yields", "usual_limits"]


SHARES = (0.99, 0.95, 0.9)  # of the clean value, at which the yield is told
ROUNDING = 1e-9  # of the chips' values: what outputs differ by from themselves, computed in another batch
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


def usual_limits(chips: ChipsLike) -> list[float]:
    """1, 5 and 10 % worse than the clean value; none where that is 0 but for rounding, of which no share says much."""
    if abs(chips.clean) <= ROUNDING * np.abs(chips.values[np.isfinite(chips.values)]).max(initial=0.0):
        return []
    if chips.higher_is_better and chips.clean > 0:
        return [share * chips.clean for share in SHARES]
    sign = -1 if chips.higher_is_better else 1
    return [chips.clean + sign * (1 - share) * abs(chips.clean) for share in SHARES]


def plot_yields(chips: ChipsLike, ax: Any = None, *, limits: Sequence[float] = ()) -> Any:
    """The share of chips that reach the accuracy of the axis, or another value, with its 95 % band, and every chip as
    a tick.

    Args:
        chips: what `chips` returned.
        ax: matplotlib axes; None makes a new figure.
        limits: values at which the yield is marked; none: 1, 5 and 10 % worse than the clean one.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_yields, locals())
    ax = axes_or_new("plot_yields", ax, (6.0, 4.2))
    count = f"{len(chips.values)} chip{'s' * (len(chips.values) != 1)}"
    marks = list(limits) or usual_limits(chips)
    ends = [*chips.values, chips.clean, *marks]
    ends = [end for end in ends if math.isfinite(end)]
    room = 0.04 * (max(float(np.ptp(ends)), 0.02) if chips.share else float(np.ptp(ends)) or abs(chips.clean) or 1.0)
    left, right = min(ends) - room, max(ends) + room
    if chips.share:
        left, right = max(0.0, left), min(1.0, right)
    # the share falls right behind each chip: a step at every value that there is
    x = np.array([left, *np.unique(chips.values[np.isfinite(chips.values)]), right])
    share, low, high = np.array([chips.yield_at(v) for v in x]).T
    where: Any = "pre" if chips.higher_is_better else "post"
    ax.fill_between(x, low, high, step=where, color="0.35", alpha=0.18, lw=0)
    ax.step(x, share, where=where, color="0.2", lw=1.4)
    ax.plot(chips.values, np.zeros(len(chips.values)), ls="", marker="|", ms=14, mew=0.8, color="0.45",
            label=count)  # fmt: skip
    ax.axvline(chips.clean, color="0.35", lw=1, ls="--", zorder=1, label=f"clean {chips.clean:.3f}")
    for i, limit in enumerate(marks):
        found, _, _ = chips.yield_at(limit)
        colour = COLOURS[i % len(COLOURS)]
        ax.plot([limit, limit], [0, found], color=colour, lw=1, ls=":", zorder=1)
        ax.plot([limit], [found], ls="", marker="osD^v"[i % 5], ms=6, color=colour, mew=0, zorder=3, clip_on=False,
                label=f"yield {found:.3f} at {limit:.3f}")  # fmt: skip
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel(literal(f"{chips.metric}{f' ({chips.unit})' * bool(chips.unit)}"))
    ax.set_ylabel("share of chips at least as accurate" if chips.share else "share of chips at least as good")
    ax.set_title(f"{count}, {chips.rows} rows, band 95 %", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.06), fontsize=8, framealpha=0.85, edgecolor="none")
    return ax
