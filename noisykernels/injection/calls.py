"""How noise is called from a running forward: past torch's dispatcher, without the detour to a gradient, or in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from noisykernels import _C

__all__ = ["call_leaf", "called", "perturb_plain"]

# From Python to the kernel in one step, past torch's dispatcher (csrc/ops/plain.cpp); NotImplemented or None: not so.
# A compiled module from before has neither.
call_leaf: Callable[..., Any] = getattr(_C, "call_leaf", lambda *_: NotImplemented)
perturb_plain: Callable[..., Tensor | None] = getattr(_C, "perturb_plain", lambda *_: None)


def called(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """An operator's result; without the detour to its gradient where nothing asks for one."""
    if (
        torch.is_inference_mode_enabled()  # there is no detour
        or torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)
