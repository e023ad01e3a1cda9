"""Pictures of studies: accuracy against level, the midpoint of every site, comparisons, votes; `maps` has the maps.

matplotlib is imported when a picture is drawn. Functions draw on the caller's axes, or on a new
figure; they never show it and never choose a backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ._optional import optional
from .fit import Axis, Midpoint
from .study import Study

# family of operations: (colour, marker, words in a site's kind, words in a module's name).
# Colours: Okabe and Ito's palette, told apart with any colour vision; markers say it again.
FAMILIES: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "input": ("#000000", "*", ("input",), ("input",)),
    "conv": ("#0072B2", "s", ("conv",), ("conv",)),
    "linear": ("#56B4E9", "D", ("linear", "matmul"), ("linear", "fc", "dense", "proj", "lin")),
    "norm": ("#D55E00", "o", ("norm",), ("norm", "bn", "ln")),
    "pool": ("#009E73", "v", ("pool",), ("pool",)),
    "activation": (
        "#CC79A7", "^", ("elu", "sigmoid", "tanh", "softmax", "gelu", "silu", "mish", "relu",
                         "softplus", "hardswish", "swish"), ("relu", "gelu", "act", "silu"),
    ),
    "other": ("#999999", "P", (), ()),
}  # fmt: skip


def family_of(site: str) -> str:
    """Family of the operation of a site, a key of `FAMILIES`.

    Example:
        >>> family_of("norm1:batch_norm#0"), family_of("input"), family_of("a:fold#0")
        ('norm', 'input', 'other')
    """
    kind = site.rpartition(":")[2].partition("#")[0]
    return next((k for k, v in FAMILIES.items() if any(w in kind for w in v[2])), "other")


def short_name(site: str) -> str:
    """Name of a site for a label: without `#0`, and without the kind if the module says it.

    Example:
        >>> [short_name(s) for s in ("conv1:conv2d#0", "block.0:conv2d#0", "relu:relu#1", "input")]
        ['conv1', 'block.0 conv2d', 'relu#1', 'input']
    """
    path, _, call = site.rpartition(":")
    kind, _, count = call.partition("#")
    again = f"#{count}" if count not in ("", "0") else ""
    words = FAMILIES[family_of(site)][3]
    if path and any(w in path.rpartition(".")[2].lower() for w in (*words, kind)):
        return path + again
    return f"{path} {kind}".strip() + again


def short_names(sites: Sequence[str]) -> list[str]:
    """Short names, the full name where two would be equal.

    Example:
        >>> short_names(["conv:conv1d#0", "conv:conv2d#0", "fc:linear#0"])
        ['conv:conv1d#0', 'conv:conv2d#0', 'fc']
    """
    short = [short_name(s) for s in sites]
    return [n if short.count(n) == 1 else s for n, s in zip(short, sites, strict=True)]


def plot_curves(study: Study, ax: Any = None, sites: Iterable[str | int] | None = None, *, legend: bool = True) -> Any:
    """Accuracy against noise level, one line per site with its 95 % band.

    Colour follows execution order (dark to light), the marker the kind of operation.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure.
        sites: names, short names or indices of the sites to draw; None draws all.
        legend: beside the axes, on the right.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a site that the study does not have.
    """
    ax = axes_or_new(ax, (7.0, 4.6))
    m, axis = study.meta, level_axis(study)
    curves = study.curves()
    names = short_names([c.site for c in curves])
    chosen = chosen_places(sites, [(c.site_index, c.site, n) for c, n in zip(curves, names, strict=True)])
    ax.axhline(m.clean, color="0.35", lw=1, ls="--", zorder=1)
    ax.axhline(m.floor, color="0.35", lw=1, ls=":", zorder=1)
    for i, (c, name) in enumerate(zip(curves, names, strict=True)):
        if i not in chosen:
            continue
        use = c.levels > 0 if axis == "log" else np.full(len(c.levels), True)
        colour = colour_of(i, len(curves))
        x, mean, low, high = (v[use] for v in (c.levels, c.mean, c.low, c.high))
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        marker = FAMILIES[family_of(c.site)][1]
        ax.plot(x, mean, color=colour, lw=1.4, marker=marker, ms=4, mew=0,
                label=f"{c.site_index}  {name}")  # fmt: skip
    ax.set_xscale(axis)
    if m.midpoints:
        low, high = near(study.midpoints())
        ax.set_xlim(max(low, min(m.levels)), min(high, max(m.levels)))
    ax.set_ylim(0, 1)
    for y, text, side in (
        (m.clean, f"clean {m.clean:.3f}", 1), (m.floor, f"floor {m.floor:.3g}", -1)
    ):  # fmt: skip
        ax.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), xytext=(-3, 4 * side), color="0.35",
            textcoords="offset points", ha="right", va="bottom" if side > 0 else "top", fontsize=8,
        )  # fmt: skip
    ax.set_xlabel(level_label(study))
    ax.set_ylabel("accuracy (fraction of rows)")
    draws, most = len(m.draws), "up to " if m.midpoints else ""
    ax.set_title(f"{most}{m.rows} rows, {most}{draws} draw{'s' * (draws != 1)}, band 95 %", fontsize=10)
    if legend:
        site_legend(ax)
    return ax


def plot_profile(study: Study, ax: Any = None, *, floor: float | Literal["free"] | None = None) -> Any:
    """Midpoint noise level of every site in execution order, with its 95 % interval.

    A site that never falls half-way is an arrow up from the largest level it surely stands; one
    already fallen at the smallest level an arrow down. An interval without a bound runs to the
    edge of the tested levels. A search looks very far around: its bounds are drawn at most a
    hundredfold from the other sites' midpoints.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure.
        floor: as in `Study.midpoints`.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    ax = axes_or_new(ax, (6.0, 4.6))
    m = study.meta
    points, axis = study.midpoints(floor), level_axis(study)
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
            yerr=_error_bars([p for _, p in ok], bottom, top),
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
    names = short_names([p.site for p in points])
    ax.set_xticks(range(len(points)), names, rotation=55, ha="right", rotation_mode="anchor",
                  fontsize=8)  # fmt: skip
    ax.set_xlim(-0.6, len(points) - 0.4)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel(("midpoint of the " if study.meta.parameter else "midpoint ") + level_label(study))
    ax.set_title("midpoint of each site, interval 95 %", fontsize=10)
    ax.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return ax


def plot_study(
    study: Study, axes: Any = None, *,
    floor: float | Literal["free"] | None = None, sites: Iterable[str | int] | None = None,
) -> Any:  # fmt: skip
    """Curves and profile side by side.

    Args:
        study: the study.
        axes: a sequence of two matplotlib axes; None makes a figure of 12 x 5 inches.
        floor: of the midpoints, as in `Study.midpoints`.
        sites: curves to draw, as in `plot_curves`.

    Returns:
        The matplotlib Figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    if axes is None:
        pyplot = optional("matplotlib.pyplot", "plot")
        _, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained", gridspec_kw={"width_ratios": (1.25, 1)})
    if len(axes) != 2:
        raise ValueError(f"axes: expected two, got {len(axes)}")
    plot_curves(study, axes[0], sites)
    return plot_profile(study, axes[1], floor=floor).figure


# status of a cell that was not run in full: its mark in a map
SIDES = (("#0072B2", "s"), ("#D55E00", "o"))


def plot_compare(comparison: Comparison, ax: Any = None) -> Any:
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
    ax = axes_or_new(ax, (1.8 + max(4.5, 0.36 * len(comparison.pairs)), 4.6))
    every = [m for pair in comparison.pairs for m in (pair.a, pair.b) if m is not None]
    bottom, top = reach(every)
    for side, (colour, marker) in enumerate(SIDES):
        for x, pair in enumerate(comparison.pairs):
            m = (pair.a, pair.b)[side]
            at = x + 0.3 * (side - 0.5)
            if m is not None and m.status == "ok":
                sure = pair.verdict in ("higher", "lower")
                ax.errorbar([at], [m.level], yerr=_error_bars([m], bottom, top), fmt=marker, color=colour, ms=5,
                            mfc=colour if sure else "white", mew=1.1, capsize=2.5, elinewidth=1.3)  # fmt: skip
            elif m is not None:
                arrow(ax, at, m, colour, bottom, top)
        ax.plot([], [], ls="", marker=marker, color=colour, ms=5, label=comparison.names[side])
    ax.plot([], [], ls="", marker="o", color="0.4", mfc="white", ms=5, label="not told apart")
    ax.set_yscale("log")
    room = (top / bottom) ** 0.15 if any(m.status != "ok" for m in every) else (top / bottom) ** 0.04
    ax.set_ylim(bottom / room / 1.02, top * room * 1.02)
    names = short_names([p.site for p in comparison.pairs])
    ax.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel("midpoint noise level (std. dev.)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, fontsize=8, frameon=False)
    return ax


# kind of vote: (colour, marker)
VOTES = {"majority": ("#0072B2", "s"), "logit": ("#D55E00", "o"), "probability": ("#009E73", "v")}


def plot_votes(votes: Votes, ax: Any = None, *, legend: bool = True) -> Any:
    """Accuracy against the number of executions, one line per kind of vote with its 95 % band.

    Args:
        votes: what `vote` returned.
        ax: matplotlib axes; None makes a new figure.
        legend: inside the axes.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    ax = axes_or_new(ax, (6.0, 4.2))
    ax.axhline(votes.clean, color="0.35", lw=1, ls="--", zorder=1)
    for kind, c in votes.curves.items():
        colour, marker = VOTES[kind]
        half = 1.96 * c.error
        ax.fill_between(c.executions, np.maximum(c.accuracy - half, 0), np.minimum(c.accuracy + half, 1),
                        color=colour, alpha=0.18, lw=0)  # fmt: skip
        ax.plot(c.executions, c.accuracy, color=colour, lw=1.4, marker=marker, ms=4, mew=0, label=kind)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.annotate(
        f"clean {votes.clean:.3f}", (1, votes.clean), xycoords=("axes fraction", "data"), xytext=(-3, 4),
        textcoords="offset points", color="0.35", ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    ax.margins(y=0.12)
    ax.set_xlabel("executions that vote")
    ax.set_ylabel("accuracy (fraction of rows)")
    draws = len(votes.draws)
    ax.set_title(f"{votes.rows} rows, {draws} draw{'s' * (draws != 1)}, band 95 %", fontsize=10)
    if legend:
        ax.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return ax


def axes_or_new(ax: Any, size: tuple[float, float]) -> Any:
    """The caller's axes, or those of a new figure."""
    if ax is not None:
        return ax
    return optional("matplotlib.pyplot", "plot").subplots(figsize=size, layout="constrained")[1]


def colour_of(i: int, count: int) -> Any:
    """Colour of the i-th of so many sites, dark to light."""
    return optional("matplotlib", "plot").colormaps["viridis"](0.92 * i / max(count - 1, 1))  # the rest is too pale


def site_legend(ax: Any) -> None:
    """The sites beside the axes, on the right."""
    ax.legend(
        title="site, in order", loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8,
        title_fontsize=8, frameon=False, borderaxespad=0, labelspacing=0.35, handlelength=1.8,
    )  # fmt: skip


def level_axis(study: Study) -> Axis:
    """The axis to draw levels on: those of a search are never evenly spaced."""
    return "log" if study.meta.midpoints or study.meta.axis is None else study.meta.axis


def near(points: Iterable[Midpoint]) -> tuple[float, float]:
    """A hundredfold around the midpoints found; everything if there are none."""
    found = [p.level for p in points if p.status == "ok" and p.level > 0]
    return (min(found) / 100, max(found) * 100) if found else (0.0, math.inf)


def reach(points: Sequence[Midpoint]) -> tuple[float, float]:
    """The smallest and the largest end of intervals and bounds, none further than near."""
    low, high = near(points)
    ends = [min(max(v, low), high) for p in points for v in (p.level, p.low, p.high) if 0 < v < math.inf]
    return min(ends), max(ends)


def level_label(study: Study) -> str:
    """What the level is, with its unit."""
    if study.meta.parameter:
        return study.meta.parameter
    unit = "units of the value" if study.meta.axis == "log" else "fraction of the value"
    return f"noise level (std. dev., {unit})"


def chosen_places(sites: Iterable[str | int] | None, known: list[tuple[int, str, str]]) -> set[int]:
    """Positions of the sites asked for."""
    wanted = [k[1] for k in known] if sites is None else list(sites)
    out = set()
    for site in wanted:
        found = [i for i, keys in enumerate(known) if site in keys]
        if not found:
            raise ValueError(f"sites: {site!r} is not one of {[k[1] for k in known]}")
        out.update(found)
    return out


def _error_bars(points: list[Midpoint], bottom: float, top: float) -> list[list[float]]:
    """Lengths of the bars below and above, cut at the tested levels where there is no bound."""
    low = [p.level - (p.low if p.low > 0 else min(bottom, p.level)) for p in points]
    high = [(p.high if math.isfinite(p.high) else max(top, p.level)) - p.level for p in points]
    return [low, high]


def arrow(ax: Any, x: float, p: Midpoint, colour: str, bottom: float, top: float) -> None:
    """An arrow from the bound of a site without a midpoint."""
    up = p.above
    start = min(max(p.low if up else p.high, bottom), top)
    ax.annotate(
        "", (x, start), xytext=(0, 22 if up else -22), textcoords="offset points", zorder=3,
        arrowprops={"arrowstyle": "<|-", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    ax.plot([x], [start], marker="_", ms=9, mew=1.8, color=colour, zorder=3)
