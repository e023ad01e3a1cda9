"""Blocks: the midpoint of each site of a deep network, by block and by what lies within it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels._util.optional import optional
from noisykernels.plotting.style import (
    axes_or_new,
    level_axis,
    level_label,
    literal,
    question_label,
    short_names,
)
from noisykernels.stats.midpoint import Midpoint
from noisykernels.stats.views import StudyLike


def plot_blocks(study: StudyLike, ax: Any = None, *, points: Sequence[Midpoint] | None = None) -> Any:
    """Midpoints (or tolerances) as colour and number over blocks (downwards) and the sites within each (to the right).

    A site belongs to the block of the first number in its path: ``layers.3.attn.q:linear#0`` is ``attn.q:linear#0`` of
    ``layers.3``. Sites without one are left out. ``>`` and ``<``: a bound, where there is no midpoint; hatched: a block
    without this site. Colours span the midpoints found; a bound has the colour of the end that it lies beyond.

    Args:
        study: the study.
        ax: matplotlib axes; None makes a new figure, as large as the blocks need.
        points: what to show of each site; None: the study's midpoints.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no site lies in a block.
    """
    check_arguments(plot_blocks, locals())
    placed = [(place, p) for p in (study.midpoints() if points is None else points) if (place := in_block(p.site))]
    if not placed:
        raise ValueError("plot_blocks: expected sites of blocks, such as 'layers.3.fc:linear#0', got none")
    blocks = list(dict.fromkeys(block for (block, _), _ in placed))
    within = list(dict.fromkeys(rest for (_, rest), _ in placed))
    ax = axes_or_new("plot_blocks", ax, (2.6 + 0.75 * len(within), 1.9 + 0.34 * len(blocks)))
    shown = [p for _, p in placed]
    levels = [p.level for p in shown if p.status == "ok"] or [1.0]
    low, high = min(levels), max(levels)
    norm = _scale(level_axis(study), low, high)
    ax.patch.set(facecolor="0.92", hatch="////", edgecolor="0.75", linewidth=0)
    values = np.full((len(blocks), len(within)), np.nan)
    texts = {}
    for (block, rest), p in placed:
        at = blocks.index(block), within.index(rest)
        values[at], texts[at] = _shown(p, low, high)
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", norm=norm, edgecolor="white", linewidth=1)
    for (i, j), text in texts.items():
        dark = norm(values[i, j]) < 0.6
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ax.set_xticks(
        np.arange(len(within)) + 0.5, [*map(literal, short_names(within))], rotation=40, ha="right", fontsize=8
    )
    ax.set_yticks(np.arange(len(blocks)) + 0.5, [*map(literal, blocks)], fontsize=8)
    ax.set_ylim(len(blocks), 0)
    asked = f"{shown[0].word} by {literal(study.meta.metric)}{question_label(study)}"
    ax.set_title(f"{asked}\n{level_label(study)}", loc="left", fontsize=9)  # a bar may be too short for the level
    ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    return ax


def in_block(site: str) -> tuple[str, str] | None:
    """The block of a site, and the rest of its name; None: it lies in none.

    Example:
        >>> in_block("encoder.layers.3.attn.q:linear#0"), in_block("head:linear#0"), in_block("layers.0:relu#0")
        (('encoder.layers.3', 'attn.q:linear#0'), None, ('layers.0', ':relu#0'))
    """
    path, colon, call = site.rpartition(":")
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return None
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :]) + colon + call


def _scale(axis: str | None, low: float, high: float) -> Any:
    colours = optional("matplotlib.colors", "plot")
    if low == high:
        low, high = 0.5 * low, 2 * high
    return (colours.LogNorm if axis == "log" else colours.Normalize)(low, high)


def _shown(p: Midpoint, low: float, high: float) -> tuple[float, str]:
    """Colour and text of a cell."""
    if p.status == "ok":
        return float(np.clip(p.level, low, high)), _brief(p.level)
    if p.status == "open":
        return float(np.clip(p.high if math.isfinite(p.high) else p.low, low, high)), "?"
    return (high, f"> {_brief(p.low)}") if p.above else (low, f"< {_brief(p.high)}" if math.isfinite(p.high) else "?")


def _brief(value: float) -> str:
    """Two digits; no exponent up to 10,000."""
    text = f"{value:.2g}"
    return f"{float(text):.0f}" if 100 <= value < 1e4 else text
