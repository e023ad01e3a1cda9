"""How noise is called from a running forward: past torch's dispatcher, without the detour to a gradient, or in full.

`call_leaf` and `perturb_plain` go from Python to the kernel in one step (csrc/ops/plain.cpp); they return
NotImplemented or None where they cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from noisykernels._C import call_leaf, perturb_plain

__all__ = ["call_leaf", "called", "perturb_plain"]


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
