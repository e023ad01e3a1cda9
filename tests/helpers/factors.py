"""What the operators are tried with on any device: noises and ids of a call, memory formats, names of combinations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from operators import CASES, DRAWS, MODES, Case, level
from torch import Tensor

import noisykernels as nk
from noisykernels.noise.contract import KINDS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LEVELS = ["number", "draw", "row", "channel", "full"]
ROWS: dict[str, dict[str, Any]] = {
    "batch": dict(),
    "first": dict(first_row=2**32 - 100),
    "listed": dict(rows=[9, 2**32 - 1, 0, 77, 78, 9]),
}


def _reversed(x: Tensor) -> Tensor:
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.to(memory_format=formats[x.dim()]) if x.dim() in formats else _reversed(x)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": _channels_last,
    "reversed": _reversed,
    "every other": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "negated": lambda x: torch._neg_view(-x),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def make(
    case: Case, mode: str, draws: str, rows: str, levels: str, kind: str = "gaussian"
) -> tuple[nk.Noise, dict[str, Any], int]:
    """A noise, the ids of a call, and how many rows its operands have."""
    ids = {**DRAWS[draws], **ROWS[rows], "seed": torch.tensor(2**40 + 3), "site": 5}
    if not case.batched:
        ids = {k: v[:1] if k in ("draws", "rows") else v for k, v in ids.items()}
        ids.pop("shared", None)
    D = len(ids.get("draws", [0]))
    rows_in = 6
    B = (rows_in if ids.get("shared") else rows_in // D) if case.batched else 1
    if "rows" in ids:
        ids["rows"] = torch.tensor(ids["rows"][:B])
    spec = dict(MODES[mode])
    if levels != "number":
        item = case.value(case.operands(rows_in, torch.float64)).shape[1:]
        spec |= {k: level(levels, spec[k], D, B, item) for k in ("add", "mul") if k in spec}
    return nk.Noise(**spec, kind="gaussian" if mode == "fold" else kind), ids, rows_in


FACTORS = dict(
    op=list(CASES), mode=list(MODES), draws=list(DRAWS), rows=list(ROWS), levels=LEVELS, kind=list(KINDS),
    dtype=DTYPES, format=list(FORMATS), numbers=["integer", "normal"],
)  # fmt: skip


def name_of(combination: dict[str, Any]) -> str:
    return "-".join(str(v).removeprefix("torch.") for v in combination.values())


# -------------------------------------------------------------------------------------- gradients

SMOOTH = [mode for mode in MODES if mode != "fold"]
DIFFERENTIABLE = [name for name, case in CASES.items() if case.gradient]
