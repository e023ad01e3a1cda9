"""What pictures share: colours, markers and names of sites, axes, arrows. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from noisykernels._util.checks import shown
from noisykernels._util.optional import optional
from noisykernels._util.text import printable
from noisykernels.stats.midpoint import Axis, Midpoint
from noisykernels.stats.questions import HALF
from noisykernels.stats.records import Curve
from noisykernels.stats.views import StudyLike

__all__ = [
    "FAMILIES",
    "NAMES",
    "arrow",
    "axes_or_new",
    "chosen_places",
    "colour_of",
    "error_bars",
    "family_of",
    "level_axis",
    "level_label",
    "literal",
    "metric_label",
    "named",
    "near",
    "question_label",
    "reach",
    "short_names",
    "site_legend",
    "two_axes",
    "value_limits",
]


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


def literal(name: str) -> str:
    r"""Text for a picture that shows a name as it is: on one line, no part of it a formula, in any legend.

    Example:
        >>> literal("$x$"), literal("a\nb"), literal("_x")
        ('\\$x\\$', 'a\\nb', ' _x')
    """
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # which legends would leave out


def axes_or_new(op: str, ax: Any, size: tuple[float, float]) -> Any:
    """The caller's axes, or those of a new figure.

    Raises:
        TypeError: what is no axes.
    """
    if ax is not None:
        if isinstance(ax, type) or not hasattr(ax, "errorbar"):
            raise TypeError(f"{op}: ax must be matplotlib axes or None, got {shown(ax)}")
        return ax
    return optional("matplotlib.pyplot", "plot").subplots(figsize=size, layout="constrained")[1]


def two_axes(op: str, axes: Any) -> tuple[Any, Any]:
    """Two of the caller's axes.

    Raises:
        TypeError: no list.
        ValueError: no two axes.
    """
    two = list(axes) if isinstance(axes, Iterable) and not isinstance(axes, str | bytes) else []
    if len(two) != 2 or not all(hasattr(ax, "errorbar") for ax in two):
        raise (ValueError if two else TypeError)(f"{op}: axes must be two matplotlib axes or None, got {shown(axes)}")
    return two[0], two[1]


def colour_of(i: int, count: int) -> Any:
    """Colour of the i-th of so many sites, dark to light."""
    return optional("matplotlib", "plot").colormaps["viridis"](0.92 * i / max(count - 1, 1))  # the rest is too pale


LEGEND = 24  # sites that have a line each beside a picture of usual height
NAMES = 60  # sites that have their names below one


def named(count: int, most: int) -> range:
    """Which of so many sites bear their names, where there is room for some: evenly spaced, the first among them."""
    return range(0, count, max(1, -(-count // most)))


def site_legend(ax: Any) -> None:
    """The sites beside the axes, on the right; of many the colours of all, and some of the names."""
    lines, labels = ax.get_legend_handles_labels()
    if len(lines) > LEGEND:
        colours, maps = (optional(f"matplotlib.{name}", "plot") for name in ("colors", "cm"))
        order = colours.ListedColormap([(of[0] if isinstance(of, tuple) else of).get_color() for of in lines])
        scale = maps.ScalarMappable(colours.Normalize(-0.5, len(lines) - 0.5), order)
        bar = ax.figure.colorbar(scale, ax=ax, pad=0.02, aspect=40)
        some = named(len(lines), LEGEND)
        bar.set_ticks(list(some), labels=[labels[i] for i in some], fontsize=7)
        bar.ax.invert_yaxis()
        bar.ax.set_title("site, in order", fontsize=8, loc="left")
        return
    ax.legend(
        title="site, in order", loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8,
        title_fontsize=8, frameon=False, borderaxespad=0, labelspacing=0.35, handlelength=1.8,
    )  # fmt: skip


def level_axis(study: StudyLike) -> Axis:
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


def level_label(study: StudyLike) -> str:
    """What the level is, with its unit."""
    if study.meta.parameter:
        return literal(study.meta.parameter)
    unit = "units of the value" if study.meta.axis == "log" else "fraction of the value"
    if study.meta.unit_of_levels:
        unit = literal(f"x {study.meta.unit_of_levels}")
    return f"noise level (std. dev., {unit})"


def metric_label(study: StudyLike) -> str:
    """What is measured, with its unit."""
    m = study.meta
    return literal(f"{m.metric}{f' ({m.unit})' * bool(m.unit)}")


def question_label(study: StudyLike) -> str:
    """The question, to stand behind what answers it; nothing for the usual one."""
    return "" if study.meta.at == HALF else f", at={study.meta.at}"


def value_limits(study: StudyLike, curves: Iterable[Curve]) -> tuple[float, float]:
    """What to show of values: all of a share; else what the question is about, and little of what has no bounds."""
    m = study.meta
    if m.law == "binary":
        return 0.0, 1.0
    lines = [m.clean, *([] if m.floor is None else [m.floor])]
    if m.floor is not None or not m.at.needs_floor:
        lines.append(m.asked_value)
    found = [float(v) for c in curves for v in c.mean if math.isfinite(v)]
    low, high = min(lines), max(lines)
    room = 1.5 * (high - low) or max((abs(v - m.clean) for v in found), default=0.0) or abs(m.clean) or 1.0
    ends = [low, high, *(min(max(v, low - room), high + room) for v in found)]
    edge = 0.05 * (max(ends) - min(ends)) or room
    return min(ends) - edge, max(ends) + edge


def chosen_places(sites: Iterable[str | int] | None, known: list[tuple[int, str, str]]) -> set[int]:
    """Positions of the sites asked for."""
    wanted = [k[1] for k in known] if sites is None else list(sites)
    out = set()
    for site in wanted:
        exact = [i for i, keys in enumerate(known) if site in keys[:2]]
        found = exact or [i for i, keys in enumerate(known) if site in keys]
        if not found:
            raise ValueError(f"sites: {site!r} is not one of {[k[1] for k in known]}")
        out.update(found)
    return out


def error_bars(points: list[Midpoint], bottom: float, top: float) -> list[list[float]]:
    """Lengths of the bars below and above, cut at the tested levels where there is no bound."""
    low = [p.level - (p.low if p.low > 0 else min(bottom, p.level)) for p in points]
    high = [(p.high if math.isfinite(p.high) else max(top, p.level)) - p.level for p in points]
    return [low, high]


def arrow(ax: Any, x: float, p: Midpoint, colour: str, bottom: float, top: float) -> None:
    """An arrow from the bound of a site without a midpoint; of one whose midpoint was not found, the range left."""
    if p.status == "open":
        ax.plot([x, x], [max(p.low, bottom), min(p.high, top)], color=colour, lw=1.6, ls=":", zorder=3)
        return
    up = p.above
    start = min(max(p.low if up else p.high, bottom), top)
    ax.annotate(
        "", (x, start), xytext=(0, 22 if up else -22), textcoords="offset points", zorder=3,
        arrowprops={"arrowstyle": "<|-", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    ax.plot([x], [start], marker="_", ms=9, mew=1.8, color=colour, zorder=3)
