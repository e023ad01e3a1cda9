"""Maps: accuracy over sites and levels, and over levels and ratios of mixed noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels.plotting.style import (
    FAMILIES,
    axes_or_new,
    chosen_places,
    colour_of,
    family_of,
    level_axis,
    level_label,
    literal,
    metric_label,
    near,
    reach,
    short_names,
    site_legend,
    value_limits,
)
from noisykernels.stats.intervals import Floats
from noisykernels.stats.midpoint import Axis, Midpoint
from noisykernels.stats.records import Curve
from noisykernels.stats.views import StudyLike

MARKS = {"proved": "o", "settled": "X"}
NOTHING = {"facecolor": "0.92", "hatch": "////", "edgecolor": "0.75", "linewidth": 0}  # where no cell is


def plot_heat_map(
    study: StudyLike, ax: Any = None, *, curves: Sequence[Curve] | None = None, points: Sequence[Midpoint] | None = None
) -> Any:
    """Accuracy as colour over sites (downwards, in execution order) and levels, with the midpoint of each site.

    A cell is the mean over draws, and reaches half-way to the next level. An adaptive study has levels of its own at
    each site, dense around the midpoint; its cells are drawn where they are, up to a hundredfold from the midpoints.
    What has no result is hatched, what was not run in full bears a small mark (`Record.status`). Level 0 has no place
    on a log axis.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure, as high as the sites need.
        curves, points: those of the study, where the caller has them already.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a study without records, or without midpoints (see `Study.midpoints`).
    """
    check_arguments(plot_heat_map, locals())
    curves = study.curves() if curves is None else curves
    points = study.midpoints() if points is None else points
    if not curves:
        raise ValueError("plot_heat_map: expected a study with records, got none")
    ax = axes_or_new("plot_heat_map", ax, (7.5, 1.9 + 0.27 * len(curves)))
    m, axis = study.meta, level_axis(study)
    common = None if m.midpoints else np.array(sorted({*m.levels, *(r.level for r in study.records)}))
    _map(ax, [study] * len(curves), curves, [(i - 0.5, i + 0.5) for i in range(len(curves))], axis, common)
    if m.midpoints:
        _narrow(ax, points)
    for y in range(1, len(curves)):
        ax.axhline(y - 0.5, color="white", lw=1)
    place = {c.site_index: i for i, c in enumerate(curves)}
    for status, marker in MARKS.items():
        cells = {(r.level, place[r.site_index]) for r in study.records if r.status == status}
        if shown := [cell for cell in sorted(cells) if cell[0] > 0 or axis == "linear"]:
            ax.plot(*zip(*shown, strict=True), ls="", marker=marker, ms=3.4, color="white", mec="0.3", mew=0.4,
                    label=status)  # fmt: skip
    _midpoint_marks(ax, points, range(len(curves)))
    ax.set_yticks(range(len(curves)), [*map(literal, short_names([c.site for c in curves]))], fontsize=8)
    ax.set_ylim(len(curves) - 0.5, -0.5)
    ax.set_xlabel(level_label(study))
    return ax


def plot_mixed_map(
    studies: Sequence[StudyLike], ratios: Sequence[float], ax: Any = None, site: str | int | None = None
) -> Any:
    """Mixed noise: how midpoints move with the additive share of the noise, `Noise.amplitude`'s ratio.

    Args:
        studies: one for each ratio, of the same sites.
        ratios: from 0 (purely multiplicative) to 1 (purely additive).
        ax: matplotlib axes; None makes a new figure.
        site: name, short name or index: accuracy of this site as colour over level and ratio, its midpoint drawn over.
            None: the midpoint of every site against the ratio; an open triangle is a bound (see `plot_profile`).

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: not one ratio for each study, ratios that are equal or outside [0, 1], studies of different sites, a
            site that they do not have.
    """
    check_arguments(plot_mixed_map, locals())
    if not len(studies) == len(ratios) == len(set(ratios)) > 0:
        raise ValueError(f"plot_mixed_map: expected one ratio for each of {len(studies)} studies, got {list(ratios)}")
    if not all(0 <= r <= 1 for r in ratios):
        raise ValueError(f"plot_mixed_map: ratios must lie in [0, 1], got {list(ratios)}")
    order = np.argsort(ratios)
    shares, studies = [float(ratios[i]) for i in order], [studies[i] for i in order]
    curves, points = [s.curves() for s in studies], [s.midpoints() for s in studies]
    sites = [[c.site for c in some] for some in curves]
    if not sites[0] or any(names != sites[0] for names in sites):
        raise ValueError(f"plot_mixed_map: studies must have the same sites, got {sites}")
    names = short_names(sites[0])
    axis: Axis = "linear" if all(level_axis(s) == "linear" for s in studies) else "log"
    share, level = "additive share of the noise (ratio)", "noise level (std. dev.)"
    if site is None:
        ax = axes_or_new("plot_mixed_map", ax, (7.0, 4.4))
        ends = reach([p for some in points for p in some])
        for k, name in enumerate(names):
            label = literal(f"{k}  {name}")
            _midpoint_line(ax, shares, [some[k] for some in points], colour_of(k, len(names)), label, ends)
        ax.set_yscale(axis)
        ax.set_xlabel(share)
        ax.set_ylabel(f"{points[0][0].word} {level}")
        site_legend(ax)
        return ax
    (k,) = chosen_places([site], [(c.site_index, c.site, n) for c, n in zip(curves[0], names, strict=True)])
    ax = axes_or_new("plot_mixed_map", ax, (7.0, 4.4))
    edges = _edges(np.array(shares), "linear")
    _map(ax, studies, [some[k] for some in curves], list(pairwise(edges)), axis, None)
    if any(s.meta.midpoints for s in studies):
        _narrow(ax, [some[k] for some in points])
    _midpoint_marks(ax, [some[k] for some in points], shares, joined=True)
    ax.set_ylim(edges[0], edges[-1])
    ax.set_xlabel(literal(f"{level} at {names[k]}"))
    ax.set_ylabel(share)
    return ax


def _narrow(ax: Any, points: Sequence[Midpoint]) -> None:
    """Less of the level axis: what lies near the midpoints."""
    (left, right), (low, high) = ax.get_xlim(), near(points)
    ax.set_xlim(max(left, low), min(right, high))


def _edges(centres: Floats, axis: Axis | None) -> Floats:
    """Half-way between neighbours, on the axis; the outer cells as far outward as inward."""
    t = np.log10(centres) if axis == "log" else centres
    steps = np.diff(t) / 2 if len(t) > 1 else np.array([0.1])
    edges = np.concatenate([[t[0] - steps[0]], t[:-1] + steps[: len(t) - 1], [t[-1] + steps[-1]]])
    return 10**edges if axis == "log" else edges


def _map(
    ax: Any, studies: Sequence[StudyLike], curves: Sequence[Curve], spans: Sequence[tuple[float, float]],
    axis: Axis | None,
    common: Floats | None,
) -> None:  # fmt: skip
    """Curves as rows of coloured cells, each over its span of y, and the colour bar; hatched where nothing is.

    common: levels of all rows; None: each has its own.
    """
    limits = _colours(studies, curves)
    ax.patch.set(**NOTHING)
    ends, whole = [], True
    for c, span in zip(curves, spans, strict=True):
        levels = c.levels if common is None else common
        mean = np.full(len(levels), np.nan)
        mean[np.searchsorted(levels, c.levels)] = c.mean
        use = levels > 0 if axis == "log" else np.full(len(levels), True)
        edges = _edges(levels[use], axis)
        ends.append((edges[0], edges[-1]))
        whole &= not np.isnan(mean[use]).any()
        mesh = ax.pcolormesh(edges, span, np.ma.masked_invalid(mean[use])[None], cmap="viridis", rasterized=True,
                             **limits)  # fmt: skip
    ax.set_xscale(axis)
    ax.set_xlim(min(e[0] for e in ends), max(e[1] for e in ends))
    if not whole or len(set(ends)) > 1:
        ax.fill_between([], [], **NOTHING, label="not evaluated")
    ax.figure.colorbar(mesh, ax=ax, label=metric_label(studies[0]), pad=0.02)


def _colours(studies: Sequence[StudyLike], curves: Sequence[Curve]) -> dict[str, float]:
    """The values of the darkest and the lightest colour."""
    if studies[0].meta.law != "binary":
        low, high = zip(*(value_limits(s, curves) for s in studies), strict=True)
        return {"vmin": min(low), "vmax": max(high)}
    least = min(float(s.meta.floor or 0.0) for s in studies)
    return {"vmin": min(least, *(c.mean.min() for c in curves)), "vmax": max(s.meta.clean for s in studies)}


def _midpoint_marks(ax: Any, points: Sequence[Midpoint], places: Sequence[float], *, joined: bool = False) -> None:
    """Midpoints and their intervals over a map, light on dark so that they show on every colour; a legend above."""
    left, right = ax.get_xlim()
    word = points[0].word
    if joined:
        levels = [p.level for p in points]
        ax.plot(levels, places, color="black", lw=2.6)
        ax.plot(levels, places, color="white", lw=1.2)
    for p, y in zip(points, places, strict=True):
        ends = np.clip([p.low, p.high], left, right)
        if p.status in ("ok", "open"):
            ax.plot(ends, [y, y], color="black", lw=3, solid_capstyle="butt")
            ax.plot(ends, [y, y], color="white", lw=1.4, solid_capstyle="butt")
    for status, marker, label in (
        ("ok", "o", f"{word}, interval 95 %"), ("none", ">", f"{word} above all levels"),
        ("below", "<", f"{word} below all levels"),
    ):  # fmt: skip
        mine = [(p, y) for p, y in zip(points, places, strict=True) if p.status == status]
        if mine:
            at = np.clip([{"ok": p.level, "none": p.low, "below": p.high}[status] for p, _ in mine], left, right)
            ax.plot(at, [y for _, y in mine], ls="", marker=marker, ms=6, color="white", mec="black", mew=1,
                    label=label, clip_on=False, zorder=4)  # fmt: skip
    ax.set_xlim(left, right)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, fontsize=8, frameon=False, borderaxespad=0.3,
              columnspacing=1.2, handlelength=1.5)  # fmt: skip


def _midpoint_line(
    ax: Any, x: list[float], points: list[Midpoint], colour: Any, label: str, ends: tuple[float, float]
) -> None:
    """Midpoints of one site with their intervals as a band; open triangles for bounds, no further than the ends."""
    marker = FAMILIES[family_of(points[0].site)][1]
    bounded = [p.status == "ok" and p.low > 0 and math.isfinite(p.high) for p in points]
    low, high = ([p.low for p in points], [p.high for p in points])
    ax.fill_between(x, low, high, where=bounded, color=colour, alpha=0.15, lw=0)
    ax.plot(x, [p.level for p in points], color=colour, lw=1.4, marker=marker, ms=4, mew=0, label=label)
    for status, shape in (("none", "^"), ("below", "v")):
        mine = [(r, p) for r, p in zip(x, points, strict=True) if p.status == status]
        bounds = np.clip([p.low if status == "none" else p.high for _, p in mine], *ends)
        ax.plot([r for r, _ in mine], bounds, ls="", marker=shape, ms=6, color=colour, mfc="none")
