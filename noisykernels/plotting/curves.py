"""Pictures of one study: accuracy against level, and the midpoint of every site.

Functions draw on the caller's axes, or on a new figure; they never show it and never choose a backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels._util.optional import optional
from noisykernels.plotting.style import (
    FAMILIES,
    NAMES,
    arrow,
    axes_or_new,
    chosen_places,
    colour_of,
    error_bars,
    family_of,
    level_axis,
    level_label,
    literal,
    metric_label,
    named,
    near,
    question_label,
    reach,
    short_names,
    site_legend,
    two_axes,
    value_limits,
)
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.questions import HALF
from noisykernels.stats.records import Curve
from noisykernels.stats.views import StudyLike


def plot_curves(
    study: StudyLike, ax: Any = None, sites: Iterable[str | int] | None = None, *, legend: bool = True,
    curves: Sequence[Curve] | None = None, points: Sequence[Midpoint] | None = None,
) -> Any:  # fmt: skip
    """Accuracy against noise level, one line per site with its 95 % band.

    Colour follows execution order (dark to light), the marker the kind of operation.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure.
        sites: names, short names or indices of the sites to draw; None draws all.
        legend: beside the axes, on the right.
        curves, points: those of the study, where the caller has them already.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a site that the study does not have.
    """
    check_arguments(plot_curves, locals())
    ax = axes_or_new("plot_curves", ax, (7.0, 4.6))
    m, axis = study.meta, level_axis(study)
    curves = study.curves() if curves is None else curves
    names = short_names([c.site for c in curves])
    chosen = chosen_places(sites, [(c.site_index, c.site, n) for c, n in zip(curves, names, strict=True)])
    lines = [(m.clean, f"clean {m.clean:.3f}", "--")]
    if m.floor is not None:
        lines.append((m.floor, f"floor {m.floor:.3g}", ":"))
    if m.at != HALF:
        lines.append((m.asked_value, str(m.at), "-."))
    for y, _, style in lines:
        ax.axhline(y, color="0.35", lw=1, ls=style, zorder=1)
    for i, (c, name) in enumerate(zip(curves, names, strict=True)):
        if i not in chosen:
            continue
        use = c.levels > 0 if axis == "log" else np.full(len(c.levels), True)
        colour = colour_of(i, len(curves))
        x, mean, low, high = (np.where(np.isinf(v), np.nan, v)[use] for v in (c.levels, c.mean, c.low, c.high))
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        marker = FAMILIES[family_of(c.site)][1]
        ax.plot(x, mean, color=colour, lw=1.4, marker=marker, ms=4, mew=0,
                label=literal(f"{c.site_index}  {name}"))  # fmt: skip
    ax.set_xscale(axis)
    if m.midpoints:
        low, high = near(study.midpoints() if points is None else points)
        ax.set_xlim(max(low, min(m.levels)), min(high, max(m.levels)))
    ax.set_ylim(*value_limits(study, curves))
    better = 1 if m.higher_is_better else -1
    for (y, text, _), side in zip(lines, (better, -better, -better), strict=False):
        ax.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), xytext=(-3, 4 * side), color="0.35",
            textcoords="offset points", ha="right", va="bottom" if side > 0 else "top", fontsize=8,
        )  # fmt: skip
    ax.set_xlabel(level_label(study))
    ax.set_ylabel(metric_label(study))
    draws, most = len(m.draws), "up to " if m.midpoints else ""
    ax.set_title(f"{most}{m.rows} rows, {most}{draws} draw{'s' * (draws != 1)}, band 95 %", fontsize=10)
    if legend:
        site_legend(ax)
    return ax


def plot_profile(
    study: StudyLike, ax: Any = None, *, floor: float | Literal["free"] | None = None,
    points: Sequence[Midpoint] | None = None,
) -> Any:  # fmt: skip
    """Midpoint or tolerance of every site in execution order, with its 95 % interval.

    A site that never falls half-way is an arrow up from the largest level it surely stands; one
    already fallen at the smallest level an arrow down. An interval without a bound runs to the
    edge of the tested levels. A search looks very far around: its bounds are drawn at most a
    hundredfold from the other sites' midpoints.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure.
        floor: as in `Study.midpoints`.
        points: the midpoints of this floor, where the caller has them already.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_profile, locals())
    ax = axes_or_new("plot_profile", ax, (6.0, 4.6))
    m = study.meta
    points, axis = study.midpoints(floor) if points is None else points, level_axis(study)
    levels = [v for v in m.levels if v > 0 or axis == "linear"]
    bottom, top = reach(points) if m.midpoints else (min(levels), max(levels))
    ax.plot(range(len(points)), [p.level for p in points], color="0.8", lw=1, zorder=1)
    for kind, (colour, marker, _, _) in FAMILIES.items():
        mine = [(x, p) for x, p in enumerate(points) if family_of(p.site) == kind]
        if not mine:
            continue
        ok = [(x, p) for x, p in mine if p.status == "ok"]
        ax.errorbar(
            [x for x, _ in ok], [p.level for _, p in ok],
            yerr=error_bars([p for _, p in ok], bottom, top),
            fmt=marker, color=colour, ms=8 if marker == "*" else 5, mew=0, capsize=3,
            elinewidth=1.3, label=kind, zorder=3,
        )  # fmt: skip
        for x, p in mine:
            if p.status != "ok":
                arrow(ax, x, p, colour, bottom, top)
    ax.set_yscale(axis)
    # Room for the arrows beyond the tested levels.
    up = 0.15 if any(p.status != "ok" and p.above for p in points) else 0.04
    down = 0.15 if any(p.status != "ok" and not p.above for p in points) else 0.04
    if top == bottom:
        pass  # one level: let matplotlib choose
    elif axis == "log":
        ax.set_ylim(bottom * (bottom / top) ** down, top * (top / bottom) ** up)
    else:
        ax.set_ylim(bottom - down * (top - bottom), top + up * (top - bottom))
    if any(p.status != "ok" for p in points):
        ax.errorbar([], [], ls="", marker="$\\updownarrow$", color="0.3", ms=8, mew=0,
                    label="beyond tested levels")  # fmt: skip
    names, some = short_names([p.site for p in points]), named(len(points), NAMES)
    ax.set_xticks(list(some), [literal(names[i]) for i in some], rotation=55, ha="right", rotation_mode="anchor",
                  fontsize=8)  # fmt: skip
    ax.set_xlim(-0.6, len(points) - 0.4)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    asked = study.meta.at
    ax.set_ylabel(f"{asked.word}{' of the' * bool(study.meta.parameter)} {level_label(study)}")
    ax.set_title(f"{asked.word} of each site{question_label(study)}, interval 95 %", fontsize=10)
    ax.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return ax


def plot_study(
    study: StudyLike, axes: Any = None, *,
    floor: float | Literal["free"] | None = None, sites: Iterable[str | int] | None = None,
) -> Any:  # fmt: skip
    """Curves and profile side by side.

    Args:
        study: the study.
        axes: a sequence of two matplotlib axes; None makes a figure of 12 x 5 inches, wider where many sites are named.
        floor: of the midpoints, as in `Study.midpoints`.
        sites: curves to draw, as in `plot_curves`.

    Returns:
        The matplotlib Figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_study, locals())
    if axes is None:
        pyplot = optional("matplotlib.pyplot", "plot")
        wide = max(1.0, 0.03 * min(len(study.meta.sites), NAMES))
        size, shape = (12 * (1.25 + wide) / 2.25, 5), {"width_ratios": (1.25, wide)}
        _, axes = pyplot.subplots(1, 2, figsize=size, layout="constrained", gridspec_kw=shape)
    left, right = two_axes("plot_study", axes)
    plot_curves(study, left, sites)
    return plot_profile(study, right, floor=floor).figure
