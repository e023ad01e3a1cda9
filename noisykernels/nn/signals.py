"""What layers and modules tell the mode of the injected model that runs, without knowing it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from noisykernels._util.checks import in_range, whole
from noisykernels.noise.arguments import flags, tensors
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb

__all__ = [
    "STANDARD",
    "ModelMode",
    "cached",
    "draw_layer",
    "draw_standard",
    "enter_model",
    "enter_module",
    "give_output",
    "is_quiet",
    "leave_module",
    "refuse_another",
    "run_quietly",
    "running",
    "within_model",
]


_LAYERS = whole(0, 2**31 - 1)


class ModelMode(TorchFunctionMode):
    """The mode of the injected model that runs: what it is told. `injection.mode` has the one that there is."""

    def enter(self, path: str, module: nn.Module) -> None:
        """A submodule begins."""
        raise NotImplementedError

    def leave(self, path: str) -> None:
        """A submodule has ended."""
        raise NotImplementedError

    def give(self, path: str, output: Any) -> Any:
        """A submodule whose result is asked for is about to end."""
        raise NotImplementedError


def running() -> ModelMode | None:
    """The mode of the injected model that runs now. Not for compiled code: that sees modes by their effect only."""
    i = torch._C._len_torch_function_stack()
    while i:
        i -= 1
        mode = torch._C._get_function_stack_at(i)
        if isinstance(mode, ModelMode):
            return mode
    return None


class _Quiet(threading.local):
    """Whether this thread runs an injected model in which nothing draws, and so without a mode."""

    running = False


_QUIET = _Quiet()


def run_quietly(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of an injected model in which nothing draws: no mode sees its operations."""
    if torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    if _QUIET.running or running() is not None:
        refuse_another()
    _QUIET.running = True
    try:
        return forward(*args, **kwargs)
    finally:
        _QUIET.running = False


def _refuse_new() -> None:
    """A layer draws by itself, which is right only outside of injected models."""
    if not torch.compiler.is_compiling() and _QUIET.running:
        raise RuntimeError("a layer that draws was put into an injected model: inject() it again")


def _tell(notice: Callable[..., None], *args: Any) -> None:
    """Calls a notice that compiled code sends through the modes, as if it were one of torch's functions."""
    if torch._C._is_torch_function_mode_enabled():
        handle_torch_function(notice, (), *args)


def enter_model() -> None:
    """An injected model begins its forward: not within that of another."""
    if torch.compiler.is_compiling():
        _tell(enter_model)
    elif _QUIET.running or running() is not None:
        refuse_another()


def refuse_another() -> NoReturn:
    """Two injected models cannot run at once."""
    raise RuntimeError("an injected model runs within the forward of another: remove one of the two")


def within_model() -> bool:
    """Whether the forward of an injected model runs; its mode says so."""
    if torch.compiler.is_compiling():
        return torch._C._is_torch_function_mode_enabled() and bool(handle_torch_function(within_model, ()))
    return _QUIET.running or running() is not None


def is_quiet() -> bool:
    """Whether an injected model runs in which nothing draws."""
    return not torch.compiler.is_compiling() and _QUIET.running


def enter_module(path: str, module: nn.Module) -> None:
    """A submodule begins: its path names the sites that follow."""
    if torch.compiler.is_compiling():
        _tell(enter_module, path, module)
    elif (mode := running()) is not None:
        mode.enter(path, module)


def give_output(path: str, output: Any) -> Any:
    """What a submodule that was asked for gives, before it has ended: its result, with noise."""
    if torch.compiler.is_compiling():
        if torch._C._is_torch_function_mode_enabled():
            return handle_torch_function(give_output, (), path, output)
    elif (mode := running()) is not None:
        return mode.give(path, output)
    return output


def leave_module(path: str) -> None:
    """The counterpart of `enter_module`."""
    if torch.compiler.is_compiling():
        _tell(leave_module, path)
    elif (mode := running()) is not None:
        mode.leave(path)


def draw_layer(
    op: Callable[..., Tensor], kind: str, noise: Noise | None, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """A noisy layer's operation: a site of the model that runs, or alone, with a fresh seed."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(draw_layer, (x,), op, kind, noise, x, *args, **kwargs)
    _refuse_new()
    return op(x, *args, noise=noise, **kwargs)


def cached(key: Tensor, value: Tensor, layer: int = 0, cross: bool = False) -> tuple[Tensor, Tensor]:
    """Keys and values of new tokens as a cache is about to keep them, for models with a cache of their own.

    In an injected model they are the sites ``cache:key#layer`` and ``cache:value#layer``, which noise enters only where
    it is asked for (``where="cache:*"``); else they come back as they are.

    Args:
        key, value: (B, heads, tokens, n), after what turns keys by their position.
        layer: number of the attention.
        cross: of an encoder's tokens, ``cache:cross_key#layer`` and ``cache:cross_value#layer``.

    Returns:
        What to keep, and to go on with.

    Example:
        >>> key, value = cached(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), layer=0)
        >>> key.shape, int(value.abs().max())
        (torch.Size([1, 2, 3, 4]), 0)
    """
    tensors("cached", key=key, value=value)
    flags("cached", cross=cross)
    in_range("cached", "layer", layer, _LAYERS)
    if torch._C._is_torch_function_mode_enabled():
        kept: tuple[Tensor, Tensor] = handle_torch_function(cached, (key, value), key, value, layer, cross)
        return kept
    return key, value


STANDARD = Noise(add=1.0)


def draw_standard(x: Tensor, name: str) -> Tensor:
    """Standard Gaussian values of the shape of x for what is no site of a model, such as a denoising block: under the
    running model's seed, draws and rows but not its level; alone, with a fresh seed.
    """
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(draw_standard, (x,), x, name)
    _refuse_new()
    return perturb(torch.zeros_like(x), STANDARD)
