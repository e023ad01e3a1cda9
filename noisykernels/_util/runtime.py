"""The state that torch and models are in meanwhile: evaluation mode, threads, autocast, device, wrappers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "as_autocast",
    "as_given",
    "evaluating",
    "evaluation_mode",
    "gpu_precision",
    "keeping_modes",
    "place_of",
    "torch_threads",
    "unwrap",
]


def gpu_precision() -> tuple[str, str]:
    """What torch makes of float32 in products and convolutions on a GPU: "tf32" rounds what goes in."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision


def as_autocast(x: Tensor) -> Tensor:
    """What a contraction takes instead of x where autocast is on: a value of the half type, but for float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def as_given(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A block in which operations compute in the types of their arguments: without autocast, where it is on."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def unwrap(model: Any) -> nn.Module:
    """The model inside DataParallel-style and compiled wrappers, of which names do not depend."""
    while True:
        if isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            inner: nn.Module = model
            return inner


def place_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model that has none."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Whatever is set meanwhile, each module's own mode comes back."""
    before = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module's own mode comes back."""
    with keeping_modes(model):
        for module in model.modules():  # not model.eval(), which exported programs refuse
            module.training = False
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a while; each module's own mode comes back."""
    with evaluation_mode(model), torch.no_grad():
        yield


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch's number of threads for the length of a block; None leaves it as it is."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
