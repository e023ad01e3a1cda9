"""Places where torch would lose noise: recomputation, in-place functions in compiled code, copies, traced models.

Patched once, when a model is first injected; other models do not notice.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.overrides import _get_current_function_mode_stack, get_overridable_functions
from torch.utils import checkpoint

from noisykernels._util.warning import warn_user
from noisykernels.injection.caches import keep_cached
from noisykernels.injection.doors import door_of, keep_copies
from noisykernels.injection.kinds import KINDS
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.running import announce, mark, silence, take_down
from noisykernels.injection.state import is_injected
from noisykernels.nn.signals import running, within_model

__all__ = ["keep_noise"]


def _again(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a recomputation must call it; itself where no injected model runs."""
    modes = [m for m in _get_current_function_mode_stack() if isinstance(m, SiteMode)]
    if not modes:
        return function
    start = modes[-1].resumed()
    path, root = start.modules[0]

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        gone = door_of(root) is None  # the noise was removed since
        silent = gone or not start.owner.announced
        if gone:
            mark(root, start.owner, path)
        if silent:
            announce(root)
        try:
            with start.resumed():
                return function(*args, **kwargs)
        finally:
            if gone:
                take_down(root)
                start.owner.gone = True
            elif silent:
                silence(root)

    return run


def keep_noise() -> None:
    """Makes checkpoints, compiled code and copies keep the noise of injected models."""
    keep_copies()
    keep_cached()
    _show_flex_attention()
    if hasattr(checkpoint, "_noisykernels"):
        return
    checkpoint._noisykernels = True  # type: ignore[attr-defined]
    _patch_checkpoint()
    _patch_compiler()
    _patch_tracer()


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


class _Shown:
    """True while an injected model runs, and where torch's own switch, which it stands in for, is on."""

    def __init__(self, switch: Any) -> None:
        self.switch = switch

    def __bool__(self) -> bool:
        return bool(self.switch) or running() is not None


def _show_flex_attention() -> None:
    """torch.nn.attention.flex_attention compiles itself, in which no mode sees it, unless its switch says otherwise;
    where others compile it, it must refuse."""
    flex: Any = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is None or isinstance(flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG, _Shown):
        return
    flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = _Shown(flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG)
    check = flex._validate_embed_dim

    @functools.wraps(check)
    def refusing(*args: Any) -> Any:
        if within_model() and (torch.compiler.is_compiling() or get_eval_frame_callback() is not None):
            raise RuntimeError(
                "flex_attention cannot be compiled in an injected model, alone or with the model: no noise would enter "
                "there; call torch.nn.attention.flex_attention.flex_attention as it is"
            )
        return check(*args)

    flex._validate_embed_dim = refusing


def _patch_tracer() -> None:
    """torch.fx traces the forward of a model's class."""
    trace = fx.Tracer.trace

    @functools.wraps(trace)
    def telling_trace(self: fx.Tracer, root: Any, *args: Any, **kwargs: Any) -> fx.Graph:
        if is_injected(root):
            warn_user(
                "fx.symbolic_trace writes down the forward of the model's class: noise enters in its modules, but not "
                "at operations that no module runs; inject() the traced module instead"
            )
        return trace(self, root, *args, **kwargs)

    fx.Tracer.trace = telling_trace  # type: ignore[method-assign]


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
