"""Picture of votes: accuracy against the number of executions."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels.plotting.style import axes_or_new, literal
from noisykernels.stats.views import VotesLike

__all__ = ["plot_votes"]


# kind of vote: (colour, marker)
VOTES = {
    "mean": ("#D55E00", "o"),
    "majority": ("#0072B2", "s"),
    "logit": ("#D55E00", "o"),
    "probability": ("#009E73", "v"),
}


def plot_votes(votes: VotesLike, ax: Any = None, *, legend: bool = True) -> Any:
    """What is measured against the number of executions, one line per kind of vote with its 95 % band.

    Args:
        votes: what `vote` returned.
        ax: matplotlib axes; None makes a new figure.
        legend: inside the axes.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_votes, locals())
    ax = axes_or_new("plot_votes", ax, (6.0, 4.2))
    ax.axhline(votes.clean, color="0.35", lw=1, ls="--", zorder=1)
    for kind, c in votes.curves.items():
        colour, marker = VOTES[kind]
        half = 1.96 * c.error
        values = np.where(np.isfinite(c.values), c.values, np.nan)  # what is infinite has no place
        low, high = values - half, values + half
        if votes.share:
            low, high = np.maximum(low, 0), np.minimum(high, 1)
        ax.fill_between(c.executions, low, high, color=colour, alpha=0.18, lw=0)  # fmt: skip
        ax.plot(c.executions, values, color=colour, lw=1.4, marker=marker, ms=4, mew=0, label=kind)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.annotate(
        f"clean {votes.clean:.3f}", (1, votes.clean), xycoords=("axes fraction", "data"), xytext=(-3, 4),
        textcoords="offset points", color="0.35", ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    ax.margins(y=0.12)
    ax.set_xlabel("executions that vote")
    ax.set_ylabel(literal(f"{votes.metric}{f' ({votes.unit})' * bool(votes.unit)}"))
    draws = len(votes.draws)
    ax.set_title(f"{votes.rows} rows, {draws} draw{'s' * (draws != 1)}, band 95 %", fontsize=10)
    if legend:
        ax.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return ax
