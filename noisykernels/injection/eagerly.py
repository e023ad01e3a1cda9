"""What is compiled within an injected model runs as it is while the model's own forward does: names and noise would be
lost in a graph that knows nothing of them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch

__all__ = ["eagerly", "whole"]


class _Held:
    """What all threads share: torch's compiler, held back from the first block entered to the last one left."""

    lock = threading.Lock()
    blocks = 0
    stance: Any = None


class _Eagerly:
    """A block of one thread. Within a region that is being compiled, frames are looked at no longer either."""

    def __enter__(self) -> None:
        self.callback = _set_callback(None)
        with _Held.lock:
            if _Held.blocks == 0:
                _Held.stance = torch.compiler.set_stance("force_eager")
            _Held.blocks += 1

    def __exit__(self, *exception: object) -> None:
        with _Held.lock:
            _Held.blocks -= 1
            if _Held.blocks == 0:
                _Held.stance.__exit__(None, None, None)
        _set_callback(self.callback)


_set_callback = torch._C._dynamo.eval_frame.set_eval_frame
_AS_IT_IS = contextlib.nullcontext()


def eagerly() -> contextlib.AbstractContextManager[None]:
    """A block in which what others have compiled runs as it is, whole graphs included."""
    return _Eagerly() if "torch._dynamo" in sys.modules else _AS_IT_IS


def whole(frame: CodeType) -> Callable[[Any], None]:
    """What a frame has torch call first (``torch._dynamo.comptime``) that is compiled within others or not at all:
    where the graph of these breaks, it runs as it is.
    """

    def check(context: Any) -> None:
        frames = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
        if frames.output.root_tx.f_code is frame:
            raise torch._dynamo.exc.SkipFrame("the graph of an injected model breaks within its forward")

    return check
