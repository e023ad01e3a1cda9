"""Whether a model gives a row the same output in other company: if rows look at each other, numbers are a batch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from noisykernels._engine.compute import Compute
from noisykernels._engine.plan import Passes, choose_passes
from noisykernels._util.inputs import Call, Inputs
from noisykernels._util.keeping import keeping_state
from noisykernels._util.warning import warn_user
from noisykernels.injection.site import Site

__all__ = ["COMPANY", "looks_at_others", "passes_of_all"]

COMPANY = 8  # rows whose outputs are held against each other, and as many beside them


@torch.inference_mode()
def looks_at_others(call: Call, model: torch.nn.Module, inputs: Inputs) -> bool:
    """Whether the first rows have other outputs beside others than beside themselves, or alone.

    Not where they have others every time, or where they are alone others by as much as rounding moves them (chaos).
    """
    count = min(COMPANY, len(inputs) // 2)
    if count == 0:
        return False
    first = torch.arange(count, device=inputs.device)

    def run(rows: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> torch.Tensor:
        given: torch.Tensor = call(model, inputs[rows].each(change))
        return given

    # What the model does in these passes is as if they had not been; what fails here fails in the study, and is told.
    with keeping_state(model, forwards=True), contextlib.suppress(Exception):
        alone, again = run(first), run(first)
        beside, doubled = run(torch.cat([first, first + count])), run(torch.cat([first, first]))
        if not all(y.dim() > 0 and len(y) >= count for y in (alone, beside)) or not torch.equal(alone, again):
            return False
        if not _same(doubled[:count], beside[:count]):
            return True
        return not _same(alone, beside[:count]) and _same(alone, run(first, _next))
    return False


def _next(x: torch.Tensor) -> torch.Tensor:
    """What is one unit of the last place away."""
    return x * (1 + torch.finfo(x.dtype).eps) if x.is_floating_point() else x.clone()


def _same(alone: torch.Tensor, beside: torch.Tensor) -> bool:
    """But for rounding: some thousand units of the last place of the largest value, as contractions of another size
    round otherwise in every layer; what others say moves values by their own size."""
    if alone.shape != beside.shape:
        return False
    if not alone.is_floating_point():
        return torch.equal(alone, beside)
    apart = (alone != beside) & alone.isfinite() & beside.isfinite()
    if not bool(apart.any()):
        return True
    bound = min(0.1, 8192 * torch.finfo(alone.dtype).eps)
    a, b = alone[apart].double(), beside[apart].double()
    return bool((a - b).abs().max() <= bound * b.abs().max())


def passes_of_all(op: str, sites: list[Site], compute: Compute, rows: int, device: torch.device) -> Passes:
    """The passes of a model whose rows look at each other: one draw of all rows, or of as many as the user says.

    Raises:
        ValueError: all rows do not fit into memory, and nobody says how many there are to be.
    """
    if compute.batch_rows is None:
        found = choose_passes(sites, compute.memory_on(device), rows, 1)
        if found.rows < rows:
            raise ValueError(
                f"{op}: rows of this model look at each other, so its outputs depend on how many there are in a pass, "
                f"and all {rows} do not fit into memory={compute.memory_on(device)}: say how many with "
                "Compute(batch_rows=...)"
            )
    else:
        found = Passes(min(int(compute.batch_rows), rows), 1)
    warn_user(
        f"{op}: rows of this model look at each other, so outputs are those of passes of {found.rows} rows, "
        f"{'all that there are' if found.rows == rows else 'as batch_rows says'}, of one draw"
    )
    return found
