"""How the work is cut: rows and draws of a pass of the whole model, rows and bytes of a shared one.

Part of what fixes the rounding of contractions, so a study chooses it once and stores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from noisykernels._graph.suffix import row_bytes
from noisykernels._graph.tape import Tape
from noisykernels.injection.site import Site

__all__ = ["ROWS", "Passes", "Plan", "choose_passes", "choose_plan", "why_whole"]


@dataclass(frozen=True)
class Passes:
    """Rows of a pass of the whole model, and how many draws of them at once."""

    rows: int
    draws: int


def choose_passes(sites: Sequence[Site], memory: int, rows: int, draws: int) -> Passes:
    """At most so many rows and draws, and no more than fit into `memory` bytes: a pass holds about seven values of the
    size of the largest at once (what an operation takes and gives, its noise, the library's own copies, what is still
    to be read), and the C library keeps as much again of what was freed: measured on a transformer."""
    row = 4 * max(14 * math.prod(s.shape) // max(1, s.shape[s.row_dim or 0]) for s in sites)
    rows = max(1, min(rows, memory // row))
    return Passes(rows, max(1, min(draws, memory // (row * rows))))


# Bytes of a site's value and direction that are read again for every level: they should stay in the cache of one core.
NEAR = 1 << 20
# Bytes of the largest pair of arguments and results after the levels part: beyond the last cache, memory is the limit.
FAR = 24 << 20
ROWS = 250  # of a chunk at most: sites with small values take all of them at once, workers get no less


@dataclass(frozen=True)
class Plan:
    """How the work is cut: part of what fixes the rounding of contractions, so it is stored with a study."""

    rows: int  # of a chunk of data
    bytes: int  # that a pass after the levels have parted may take in one operation
    near: int  # that a site's value and direction may take


def choose_plan(tape: Tape, memory: int, most_rows: int, device: torch.device) -> Plan:
    """Rows of a chunk and bytes of a pass, within `memory` bytes: passes that fit the last cache of a CPU, and on a GPU
    the largest, which keep all of it busy.
    """
    sizes = [row_bytes(tape, n) for n in tape.row_dims]
    rows = max(1, min(most_rows, memory // (4 * sum(sizes))))
    if device.type != "cpu":
        return Plan(rows, max(max(sizes), memory // 4), memory // 4)
    return Plan(min(ROWS, rows), max(max(sizes), min(FAR, memory // 8)), NEAR)


# What a call of an operation costs beside its work, in values that a row has at a site: measured with layers of 16
# neurons, transformers and densely connected convolutions, 14 to 40 us against 2 to 4 ns for a value.
CALL = 10_000
# What sharing work costs before it gains anything, in passes of the whole model and rows that go through it, measured
# with the same: recording it takes as long as so many passes of a row; the check of each site under a target so many
# passes, through which so many rows go; and all rows go through it without noise, some of them by both engines.
RECORDING, CHECK, CHECKED, CLEAN = 40, 10, 30, 3
# Values from which on a pass of one row is dear enough to be counted, its calls included. Smaller models always share:
# their check takes some tenths of a second.
LARGE = 500_000


def why_whole(sites: Sequence[Site], grids: int, levels: int, draws: int, rows: int, passes: Passes) -> str:
    """Why grids cost less where every pass runs the whole model; empty: they do not.

    Sharing saves half of the rows' way, as a site has half of the model behind it (which half does not matter here),
    and nearly all calls, as many levels and draws run at once. Only numbers that are the same everywhere decide, never
    a clock: on every machine a walk has the same plan.

    Args:
        sites: all of the model.
        grids: how many are walked: sites x targets.
        levels, draws: of each.
        rows: of the data, which also run without noise.
        passes: in which whole passes are cut.
    """
    values = sum(math.prod(s.shape) // max(1, s.shape[s.row_dim or 0]) for s in sites)

    def cost(calls: int, through: int) -> int:
        return CALL * len(sites) * calls + values * through

    if cost(1, 1) < LARGE:
        return ""
    evaluations = levels * draws * rows
    chunks = -(-rows // passes.rows)
    whole = grids * cost(levels * -(-draws // passes.draws) * chunks, evaluations)
    shared = (
        cost(RECORDING, RECORDING)
        + cost(CLEAN * chunks, CLEAN * rows)
        + grids * (cost(CHECK, CHECKED) + cost(0, evaluations) // 2)
    )
    return (
        "" if whole >= shared else f"recording costs more than it saves for {grids} sites x {evaluations} evaluations"
    )
