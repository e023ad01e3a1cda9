"""`noise_state`: seed, draws, rows and level of what was injected in a model, for the length of a block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.checks import shown
from noisykernels._util.runtime import place_of, unwrap
from noisykernels.injection.api import inject, remove
from noisykernels.injection.block import Block
from noisykernels.injection.doors import door_of
from noisykernels.injection.running import hold
from noisykernels.injection.state import NoiseState, injected_in, is_injected, state_of
from noisykernels.injection.token_places import find_places
from noisykernels.injection.whole import find_whole
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.arguments import factor_tensor, ids_tensor, seed_of, seed_tensor
from noisykernels.noise.contract import hashed_number
from noisykernels.noise.tokens import TokenRows

__all__ = ["noise_state"]

_CHANGING = threading.Lock()  # held while a block begins or ends


@contextlib.contextmanager
def noise_state(
    model: nn.Module,
    *,
    seed: int | Tensor | None = None,
    draws: Tensor | Sequence[int] | None = None,
    rows: Tensor | Sequence[int] | TokenRows | str | None = None,
    level: float | Tensor | Sequence[float] | None = None,
    advance: bool = False,
) -> Iterator[NoiseState]:
    """Sets seed, draws, rows and level of a model for the length of a block.

    **A row's noise belongs to its id, and without** ``rows`` **ids are places in the batch**: under one ``seed`` all
    calls of a block have the same noise, in a loop over batches for other data each time, of which a warning tells once
    in a block. Give ``rows``, or ``rows="advance"``.

    Under `torch.func.vmap` over samples, as for gradients of each sample, each has ids of its own, as if all were one
    batch, or those of ``rows``, one for each sample; with ``chunk_size`` take ``rows="advance"``.

    Works for injected models and for models that contain noisy layers. With D draws the model's
    input is repeated D times, and its output holds D * B rows, draw by draw; an input of D times as many rows as there
    are ids in ``rows`` holds those of all draws already, draw by draw, as in a loop that goes on from what came out.

    In a loop that somebody else holds (``generate``, a sampler, a control loop), give ``advance=True``: one chip, and
    fresh noise at each call. Several draws there: repeat the prompts, draw by draw, and give the ``rows`` of one draw.

    Args:
        model: a model that `inject` was called on, or one that contains noisy layers; whatever holds one or a copy of
            one, such as a wrapper, or a part of one. Of several models that were injected into parts of this one, each
            has a seed of its own, made of ``seed`` and its name.
        seed: 64-bit seed; None draws a fresh one from torch's default generator for every forward.
        draws: int64 vector (D) of draw ids; None is the one draw 0.
        rows: int64 vector (B), the data-set index of each row; ``"advance"``: the first call of the block has the rows
            from 0 on, each later one those that follow, as if all were one batch; None numbers them by their place in
            the batch; `TokenRows`: rows are tokens.
        level: factor by which all noise of the model is multiplied, at every site: a number, or a vector (B) with one
            for each row (image), whatever the draw; None is 1. A compiled model sees its value change without a
            recompilation.
        advance: whether each call of the model (or of a part by itself) has fresh noise of its own under the one seed:
            the n-th of the block, from 0 on, has the noise of the seed ``seed XOR mix(n)`` (`noise.arguments.seed_of`),
            call 0 that of the seed itself. What belongs to the chip (`hardware=`: weights, conductances, columns) keeps
            the seed. Without a seed, one is drawn for the block.

    Raises:
        ValueError: an id or seed out of range, a negative or NaN level, no draw, or a model in which nothing draws
            noise.
        TypeError: a level that is neither a number nor a floating-point tensor.
        RuntimeError: another thread is within such a block of the same model, or a thread calls it that is not within
            the block; give each its own copy. (A compiled call does not see whose thread it is.)

    Note:
        ``rows="advance"`` and ``advance=True`` count calls of the model; one that as a whole is checkpointed is
        computed twice, which is refused (compiled, it is not seen). Parts that are called by themselves count rows each
        for itself, calls all together.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> with inject(model, nk.Noise(add=1.0)), noise_state(model, seed=1, draws=[0, 1, 2]):
        ...     model(torch.ones(5, 4)).shape
        torch.Size([15, 2])
        >>> x = torch.ones(6, 4)
        >>> with inject(model, nk.Noise(add=1.0)):
        ...     with noise_state(model, seed=1, rows="advance"):
        ...         parts = [model(part) for part in x.split(2)]
        ...     with noise_state(model, seed=1):
        ...         torch.equal(torch.cat(parts), model(x))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"noise_state: model must be a torch.nn.Module, got {shown(model)}")
    if not isinstance(advance, bool):
        raise TypeError(f"noise_state: advance must be True or False, got {shown(advance)}")
    told = _told(place_of(unwrap(model)), seed, draws, rows, level, advance)
    me = threading.get_ident()
    with contextlib.ExitStack() as stack:
        with _CHANGING:
            states = _states(model, stack)
            for path, state in states.items():
                own = dict(told)
                if len(states) > 1 and told["seed"] is not None:
                    own["seed"] = seed_of(told["seed"], torch.tensor(hashed_number(path)).to(told["seed"]))
                _begin_block(state, own | {"block": Block(me), "parts": {}}, stack)
        for _, module in injected_in(model):
            if is_injected(module):
                hold(module, state_of(module))
        yield next(iter(states.values()))


def _told(place: torch.device, seed: Any, draws: Any, rows: Any, level: Any, advance: bool) -> dict[str, Any]:
    """What a block says, as tensors where the model is."""
    new_seed = None if seed is None and not advance else seed_tensor("noise_state", seed, place).to(place)
    new_draws = ids_tensor("noise_state", "draws", draws, place)
    if new_draws is not None and len(new_draws) == 0:
        raise ValueError("noise_state: draws must hold at least one id")
    if isinstance(rows, str) and rows != "advance":
        raise ValueError(f"noise_state: rows must be a vector of ids or 'advance', got {rows!r}")
    counted = isinstance(rows, str)
    with torch.inference_mode(False):  # counted on inside and outside of inference mode
        next_row, calls = (torch.zeros((), dtype=torch.int64, device=place) for _ in range(2))
    of_tokens = isinstance(rows, TokenRows)
    return {
        "tokens": rows if of_tokens else None,
        "find_places": find_places if of_tokens else None,
        "find_whole": find_whole,
        "seed": new_seed,  # a tensor, which a graph reads anew
        "draws": new_draws,
        "rows": None if counted or of_tokens else ids_tensor("noise_state", "rows", rows, place),
        "next_row": next_row if counted else None,
        "level": factor_tensor("noise_state", level, place),
        "calls": calls if advance else None,
    }


def _states(model: nn.Module, stack: contextlib.ExitStack) -> dict[str, NoiseState]:
    """The states of all that was injected in a model, by name; one that has noisy layers is injected for the block."""
    found = injected_in(model)
    inside = [(p or "the model", m) for p, m in model.named_modules() if door_of(m) is None]
    loose = [p for p, m in inside if isinstance(m, NoisyLayer)]
    if not found:
        if not loose:
            raise ValueError("noise_state: the model is not injected and contains no noisy layer")
        target = unwrap(model)
        inject(target, None)
        stack.callback(_locked, remove, target)
        return {"": state_of(target)}
    if loose:
        raise ValueError(
            f"noise_state: noisy layers are outside of what was injected: {', '.join(loose)}; inject() the whole model"
        )
    return {path: state_of(module) for path, module in found}


def _begin_block(state: NoiseState, told: dict[str, Any], stack: contextlib.ExitStack) -> None:
    if state.block is not None and state.block.thread not in (None, told["block"].thread):
        raise RuntimeError(
            "noise_state: another thread is within a noise_state block of this model; give each thread a copy of it"
        )
    stack.callback(_locked, state.set_block, state.set_block(told))


def _locked(change: Callable[..., Any], *args: Any) -> None:
    with _CHANGING:
        change(*args)
