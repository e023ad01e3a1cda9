"""What a study is given, checked: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from noisykernels.noise import Noise, ids_tensor
from noisykernels.sites import Site, matches

__all__ = [
    "Data",
    "chosen_sites",
    "draw_list",
    "gpu_precision",
    "in_memory",
    "level_list",
    "pass_memory",
    "pass_rows",
    "refuse_without_rows",
    "scaled_noise",
    "whole_size",
]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def level_list(op: str, levels: Sequence[float] | Tensor) -> list[float]:
    wrong = f"{op}: levels must be a list of numbers, got {levels!r}"
    try:
        values = torch.as_tensor(levels, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(wrong) from error
    if not isinstance(values, list) or not all(isinstance(v, float) for v in values):
        raise ValueError(wrong)
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{op}: levels must be finite, not negative, and at least one, got {values}")
    if len(set(values)) != len(values):
        raise ValueError(f"{op}: levels must differ from each other, got {values}")
    return values


def scaled_noise(op: str, noise: Noise, amplitude: float, computed: torch.dtype) -> Noise:
    scaled = noise.scaled(amplitude)
    for name, level in (("add", scaled.add), ("mul", scaled.mul)):
        if level is not None and not bool(level.to(computed).isfinite().all()):
            kind = str(computed).removeprefix("torch.")
            raise ValueError(f"{op}: `{name}` of the noise times level {amplitude} exceeds {kind}'s range")
    return scaled


def whole_size(op: str, name: str, size: SupportsIndex) -> int:
    try:
        count = operator.index(size)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{op}: {name} must be a whole number of at least 1, got {size!r}")
    return count


def pass_rows(op: str, rows: SupportsIndex | None, device: torch.device) -> int:
    """Rows of a pass; None: what is enough to keep the device busy."""
    return whole_size(op, "batch_rows", (5000 if device.type == "cuda" else 500) if rows is None else rows)


def pass_memory(op: str, size: SupportsIndex | None, device: torch.device) -> int:
    """Bytes of a pass; a part of all of a GPU's memory, not of what is free: a walk that goes on keeps its plan."""
    if size is None:
        size = torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 2**30
    return whole_size(op, "memory", size)


def gpu_precision() -> tuple[str, str]:
    """What torch makes of float32 in products and convolutions on a GPU: "tf32" rounds what goes in."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision


def _is_number(value: Any) -> bool:
    """Whether this may be a whole number; a vector that holds one is none."""
    return isinstance(value, SupportsIndex) and not getattr(value, "shape", ())


def draw_list(op: str, draws: Any) -> list[int]:
    ids: Tensor | None
    try:
        if _is_number(draws):
            ids = torch.arange(max(operator.index(draws), 0))
        else:
            ids = torch.as_tensor(draws, dtype=None if len(draws) else torch.int64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{op}: draws must be a number of draws or a list of ids, got {draws!r}") from error
    ids = ids_tensor(op, "draws", ids, torch.device("cpu"))
    assert ids is not None
    if len(ids) == 0 or len(ids.unique()) != len(ids):
        raise ValueError(f"{op}: draws must be at least one, or ids that differ, got {draws}")
    return ids.tolist()


def in_memory(op: str, data: Data, rows: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and row ids, checked."""
    inputs: Any
    labels: Any
    pair: Any = data if isinstance(data, tuple | list) and len(data) == 2 else ()
    if pair and all(isinstance(t, Tensor) for t in pair):
        inputs, labels = pair
    else:
        try:
            batches = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in data]
            inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{op}: data must be (inputs, labels) or an iterable of such batches: {error}") from error
    if labels.dim() != 1 or labels.is_floating_point() or inputs.dim() == 0 or not len(inputs) == len(labels) > 0:
        raise ValueError(
            f"{op}: data must be inputs (rows, ...) and whole-number labels (rows), not empty, "
            f"got {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    ids = ids_tensor(op, "rows", rows, torch.device("cpu"))
    ids = torch.arange(len(labels)) if ids is None else ids
    if len(ids) != len(labels):
        raise ValueError(f"{op}: rows must hold one id for each of {len(labels)} rows, got {len(ids)}")
    return inputs, labels, ids


def chosen_sites(op: str, every: list[Site], sites: Sequence[str | int] | str | None) -> list[Site]:
    if sites is None:
        return list(every)
    wanted: Any = [sites] if isinstance(sites, str) or _is_number(sites) else list(sites)

    def fits(site: Site, choice: str | int) -> bool:
        return matches(site.name, choice) if isinstance(choice, str) else site.index == choice

    for choice in wanted:
        if not any(fits(site, choice) for site in every):
            names = ", ".join(f"{s.index} {s.name}" for s in every)
            raise ValueError(f"{op}: no site {choice!r}; the model has {names}")
    return [site for site in every if any(fits(site, choice) for choice in wanted)]


def refuse_without_rows(op: str, chosen: list[Site]) -> None:
    """Before anything runs: at such a site the walk would end, and lose what it has counted."""
    if lost := [repr(site.name) for site in chosen if site.row_dim is None]:
        raise RuntimeError(
            f"{op}: rows cannot be told apart at {', '.join(lost)}, so no noise can enter there; "
            "choose other sites with sites="
        )
