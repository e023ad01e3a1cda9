"""What a block of `noise_state` knows besides its tensors: whose it is, and the data that its rows came with."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.tensors import can_look
from noisykernels._util.warning import warn_user

__all__ = ["Block"]

_SAMPLE = 4096  # values by which larger data on the CPU are told apart


class Block:
    """One block, in the thread that has entered it. A copy of the model belongs to no thread and starts anew."""

    def __init__(self, thread: int | None = None) -> None:
        self.thread = thread
        # Of the last call of the model (None) or of each part: the tensor, its version, a sample of its values.
        self.last: dict[str | None, Any] = {}
        self.rows: int | None = None  # of the first call of a part with several draws
        self.warned = False

    def __reduce__(self) -> Any:
        return Block, ()

    def check_thread(self) -> None:
        """Refuses a forward in a thread that has not entered the block; a backward pass has threads of its own."""
        if self.thread not in (None, threading.get_ident()) and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                "noise_state: another thread is within a noise_state block of this model, whose seed and draws are not "
                "this thread's; give each thread a copy of the model"
            )

    def holds(self, rows: int, count: int) -> bool:
        """Whether so many rows of a part's input may be those of the first call of a part, once for every draw."""
        if self.rows is None:
            self.rows = rows
        return rows == self.rows * count

    def see(self, data: Tensor, path: str | None = None) -> None:
        """Warns, once, if the data differ from those of the last call, whose noise they get, of the model or of a part.
        On a device, where looking would wait for it, another tensor is other data.
        """
        if self.warned or not (can_look(data) or (type(data) is Tensor and data.is_cuda)):
            return
        before = self.last.get(path)
        version = None if data.is_inference() else data._version  # without one, what is refilled passes for the same
        if before is not None and before[0]() is data and before[1] == version:
            return
        sample = _sample(data.detach()) if data.is_cpu else None
        self.last[path] = weakref.ref(data), version, (data.shape, sample)
        if before is None:
            return
        shape, old = before[2]
        if shape != data.shape or sample is None or old is None or not torch.equal(old, sample):
            self.warned = True
            warn_user(
                "noise_state: other data get the noise of the call before: rows are numbered by their place in the "
                "batch; give their ids (rows=...), or count on from call to call (rows='advance')"
            )


def _sample(data: Tensor) -> Tensor:
    """A copy of the data, or of large ones of values at places that are the same for a size and fall into no pattern:
    with even steps, only some columns of images or tokens would be looked at.
    """
    size = data.numel()
    if size <= _SAMPLE:
        return data.clone()
    places = torch.randint(size, (_SAMPLE,), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return data.flatten()[places]
