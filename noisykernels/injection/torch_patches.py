"""Two places where torch would lose noise: recomputation, and in-place functions in compiled code.

Patched once, when a model is first injected; other models do not notice.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, get_overridable_functions
from torch.utils import checkpoint

from noisykernels.injection.kinds import KINDS
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.state import Injected, announce, mark, silence, state_of, unmark

__all__ = ["keep_noise"]


def _again(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a recomputation must call it; itself where no injected model runs."""
    modes = [m for m in _get_current_function_mode_stack() if isinstance(m, SiteMode)]
    if not modes:
        return function
    start = modes[-1].resumed()
    root = start.modules[0][1]

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        gone = not isinstance(root, Injected)  # the noise was removed since
        silent = gone or not state_of(root).announced
        if gone:
            mark(root)
        if silent:
            announce(root)
        try:
            with start.resumed():
                return function(*args, **kwargs)
        finally:
            if silent:
                silence(root)
            if gone:
                unmark(root)

    return run


def keep_noise() -> None:
    """Makes checkpoints and compiled code keep the noise of injected models."""
    if hasattr(checkpoint, "_noisykernels"):
        return
    checkpoint._noisykernels = True  # type: ignore[attr-defined]
    _patch_checkpoint()
    _patch_compiler()


def _patch_checkpoint() -> None:
    """torch re-runs a checkpointed function in the backward pass, outside of the model's forward.

    Both of its implementations are told to re-run it under the mode of that forward, from where it
    stood.
    """
    generator = checkpoint._checkpoint_without_reentrant_generator
    reentrant: Callable[..., Any] = checkpoint.CheckpointFunction.apply

    @functools.wraps(generator)
    def keeping_generator(function: Any, *args: Any, **kwargs: Any) -> Any:
        return generator(_again(function), *args, **kwargs)  # used for the recomputation only

    def keeping_apply(function: Any, *args: Any) -> Any:
        again = _again(function)
        first = True

        def run(*inputs: Any) -> Any:  # first in the forward itself, then in the backward pass
            nonlocal first
            chosen, first = function if first else again, False
            return chosen(*inputs)

        return reentrant(run if again is not function else function, *args)

    checkpoint._checkpoint_without_reentrant_generator = keeping_generator  # type: ignore[assignment]
    checkpoint.CheckpointFunction.apply = staticmethod(keeping_apply)  # type: ignore[method-assign]


def _patch_compiler() -> None:
    """torch.compile shows a mode only those functions that torch lists as overridable.

    The list (of torch 2.13) lacks torch.relu_ and its like, which eager mode shows.
    """
    listed = get_overridable_functions()
    known = {function for functions in listed.values() for function in functions}
    listed[torch] = [*listed[torch], *(f for f in KINDS if f not in known)]
    compiler = sys.modules.get("torch._dynamo.variables.torch")
    if compiler is not None:  # which may have read the list already
        compiler.get_overridable_functions.cache_clear()
