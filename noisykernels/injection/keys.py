"""The key of one forward: what a block of `noise_state` says of it, and what number of a call it is."""

from __future__ import annotations

import torch
from torch import Tensor

from noisykernels.injection.drawing import ForwardKey
from noisykernels.injection.samples import Mapped, mapped_over, without_maps
from noisykernels.injection.state import NoiseState
from noisykernels.noise.arguments import seed_of, seed_tensor

__all__ = ["key_of"]


def key_of(state: NoiseState, data: Tensor, first: Tensor, dim: int, path: str | None) -> ForwardKey:
    """The key of a forward.

    Args:
        state: of the model.
        data, first: rows along a dimension, as they were given and with those of every draw.
        path: of a part that is called by itself.
    """
    seed, level, array_seed, device = state.seed, state.level, None, first.device
    if seed is None and (state.draws_noise or not state.placement.silent):
        seed = seed_tensor("noise_state", None, device)
    count = 1 if state.draws is None else state.draws.shape[0]
    if level is not None and level.dim() == 1 and level.shape[0] * count != first.shape[dim]:
        raise RuntimeError(
            f"noise_state: level must be 0-d or one for each of the {first.shape[dim] // count} rows, "
            f"got {level.shape[0]}"
        )
    rows = _rows(state, data, dim, path)
    if state.calls is not None and seed is not None:
        _refuse_again("advance=True")
        seed, array_seed = seed_of(seed, state.calls), seed
        state.calls.add_(1)
    # What the block holds stays where the model was when it began; the model may have been moved, or be a replica.
    return ForwardKey(
        _on(seed, device), _on(state.draws, device), _on(rows, device), first.shape[dim], _on(level, device),
        _on(array_seed, device),
    )  # fmt: skip


def holds_draws(state: NoiseState, rows: int, count: int, part: bool) -> bool:
    """Whether a value of so many rows holds those of every draw already.

    The ids of rows say how many there are. Without them a model's input is what it always is; but parts may be given
    what others of them have made.
    """
    if state.rows is not None:
        return rows == len(state.rows) * count
    if state.tokens is not None and state.tokens.sequence is not None:
        each = len(state.tokens.sequence)  # each of which may have several beams
        return rows != each and each > 0 and rows % (each * count) == 0
    if part and state.block is not None and state.block.holds(rows, count):
        raise RuntimeError(
            f"noise_state: parts of the model are called by themselves with several draws, and whether {rows} rows are "
            f"those of {count} draws already is not known: give rows=..., one id for each row of a draw"
        )
    return False


def _on(t: Tensor | None, device: torch.device) -> Tensor | None:
    return t if t is None or t.device == device else t.to(device)


def _refuse_again(option: str) -> None:
    """Refuses to count a call that a checkpoint of the whole model makes again."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(f"noise_state: {option} would count a forward twice that a checkpoint computes again")


def _rows(state: NoiseState, data: Tensor, dim: int, path: str | None) -> Tensor | None:
    """The ids of the rows of a call, which are along a dimension of the data; None: their places in the batch."""
    block = None if torch.compiler.is_compiling() else state.block
    if block is not None:
        block.check_thread()
    if state.tokens is not None:
        if not torch.compiler.is_compiling() and mapped_over(data) is not None:
            raise RuntimeError("noise_state: TokenRows under vmap are not known for each sample: give ids of rows")
        return None
    compiled = torch.compiler.is_compiling()
    if state.next_row is not None:
        _refuse_again("rows='advance'")
        next_row = state.next_row if path is None else state.parts.setdefault(path, torch.zeros_like(state.next_row))
        maps = None if compiled else mapped_over(data)
        count = data.shape[dim]
        if maps is not None:
            rows = maps.apart(maps.numbered(count, next_row.device)) + next_row.clone()
            next_row.add_(count * maps.samples)
            return rows
        rows = next_row + torch.arange(count, device=next_row.device)
        next_row.add_(count)
        return rows
    repeating = state.rows is None and state.seed is not None and state.calls is None and state.for_rows
    if repeating and block is not None:
        block.see(without_maps(data), path)
    maps = None if compiled or (state.rows is None and state.seed is None) else mapped_over(data)
    return state.rows if maps is None else _rows_of_sample(state, maps, data.shape[dim])


def _rows_of_sample(state: NoiseState, maps: Mapped, count: int) -> Tensor:
    """The ids of the so many rows of a sample, which without ids are numbered through all samples."""
    every, rows = count * maps.samples, state.rows
    if rows is None:
        assert state.seed is not None
        rows = maps.numbered(count, state.seed.device)
    elif rows.shape[0] != every:
        raise RuntimeError(
            f"noise_state: rows must hold one id for each of the {every} rows of the {maps.samples} samples that vmap "
            f"maps over, got {rows.shape[0]}: samples of one id would have the same noise"
        )
    return maps.apart(rows)
