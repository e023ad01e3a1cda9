"""The state that torch and models are in meanwhile: evaluation mode, threads, autocast, device, wrappers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from noisykernels._util.checks import shown

__all__ = [
    "as_autocast",
    "as_given",
    "device_of",
    "evaluating",
    "evaluation_mode",
    "gpu_precision",
    "keeping_modes",
    "place_of",
    "torch_threads",
    "unwrap",
    "wrapped",
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


_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # names that torch's wrappers alone give
_HOLDERS = (nn.parallel.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_LIBRARIES = ("apex", "deepspeed", "fairscale", "megatron")  # whose wrappers call it `module` too


def wrapped(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper of torch's or a library's; None: it is no wrapper, whatever its parts are called."""
    children = module._modules
    for name in _INSIDE:
        if (inner := children.get(name)) is not None:
            return inner
    inner = children.get("module")
    library = type(module).__module__.partition(".")[0]
    return inner if isinstance(module, _HOLDERS) or library in _LIBRARIES else None


def unwrap(model: Any) -> nn.Module:
    """The model inside all wrappers around it, of which names do not depend."""
    while isinstance(model, nn.Module) and (inner := wrapped(model)) is not None:
        model = inner
    unwrapped: nn.Module = model
    return unwrapped


def place_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model that has none."""
    return next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def device_of(op: str, device: Any) -> torch.device:
    """A device of this machine.

    Raises:
        ValueError: there is no such one.
    """
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{op}: device must be one that is here, such as 'cpu', got {shown(device)}") from error


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
