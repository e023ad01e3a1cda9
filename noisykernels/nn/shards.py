"""Contractions of DTensors, of which every process holds a part: torch's own, then noise by the ids of the whole."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisykernels.noise.functional import perturb
from noisykernels.noise.shards import PACKAGE, gathered, is_dtensor, on_all

__all__ = ["by_parts"]


def by_parts(clean: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """An operator that takes DTensors, too; `clean` is what torch does without noise.

    With hardware or an arithmetic inside every process makes the whole result from the whole operands: what happens in
    a sum is not the sum of what happens in its parts.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        op = function.__name__

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if PACKAGE not in sys.modules:  # at once, as small calls are counted in microseconds
                return function(*args, **kwargs)
            operands = [(str(i), a) for i, a in enumerate(args)] + list(kwargs.items())
            if not any(is_dtensor(a) for _, a in operands):
                return function(*args, **kwargs)
            _refuse_mixed(op, dict(operands))
            if kwargs.get("hardware") is not None or kwargs.get("arithmetic") is not None:
                mesh = next(a for _, a in operands if is_dtensor(a)).device_mesh
                whole = function(*map(gathered, args), **{name: gathered(a) for name, a in kwargs.items()})
                made: Tensor = on_all(whole, mesh)
                return made
            return _cleanly(clean, args, kwargs)

        return run

    return decorate


_KEY = ("seed", "site", "draws", "shared", "rows", "first_row")


def _cleanly(clean: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A contraction of torch's, then noise and perhaps a rectifier."""
    own = ("noise", "relu", "hardware", "arithmetic", "array", "array_seed", *_KEY)
    names = {"x": "input", "a": "input", "b": "other"}
    y = clean(*args, **{names.get(name, name): a for name, a in kwargs.items() if name not in own})
    if (noise := kwargs.get("noise")) is not None:
        y = perturb(y, noise, **{name: kwargs[name] for name in _KEY if name in kwargs})
    return torch.relu(y) if kwargs.get("relu") else y


def _refuse_mixed(op: str, operands: dict[str, Any]) -> None:
    """Refuses operands of which some are DTensors and others are not, which would be parts of one cannot know what."""
    names = ("x", "weight", "bias") if op != "matmul" else ("a", "b")
    for number, name in enumerate(names):
        given = operands.get(name, operands.get(str(number)))
        if isinstance(given, Tensor) and not is_dtensor(given):
            raise ValueError(
                f"{op}: {name} must be a DTensor where another operand is one, got {type(given).__name__}: say where "
                "its parts lie with distribute_tensor() or DTensor.from_local()"
            )
