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


# What sharing work costs before it gains anything, in passes of one row through the whole model: recording it, and at
# each site walked holding the engines against each other. Measured with densely connected convolutions at 28 sites.
RECORDING, AT_EACH = 60, 50
# Values at the sites of a row from which on passes are dear enough to be counted. Smaller models always share: where
# they have very many sites, the check of each costs some seconds more than a small grid that is run whole.
LARGE = 1_000_000


def why_whole(sites: Sequence[Site], walked: int, evaluations: int, rows: int) -> str:
    """Why a grid costs less where every pass runs the whole model; empty: it does not.

    Sharing saves half of the passes, as a site has half of the model behind it; which half does not matter here. Only
    numbers that are the same everywhere decide, never a clock: on every machine a walk has the same plan.

    Args:
        sites: all of the model.
        walked: how many of them are.
        evaluations: at each of these: levels x draws x rows x targets.
        rows: of the data, which also run without noise.
    """
    if sum(math.prod(s.shape) // max(1, s.shape[s.row_dim or 0]) for s in sites) < LARGE:
        return ""
    whole, shared = 2 * walked * evaluations, 2 * (RECORDING + AT_EACH * walked + rows) + walked * evaluations
    if whole >= shared:
        return ""
    return f"recording costs more than it saves for {walked} sites x {evaluations} evaluations"
