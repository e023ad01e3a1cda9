"""Arguments of torch's linear layers and convolutions, checked before torch meets them, which has words of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from noisykernels._util.checks import Range, flag, in_range, one_of, shown, whole
from noisykernels._util.runtime import device_of

__all__ = ["check_layer"]

SIZE, FROM_0 = whole(1, 2**31), whole(0, 2**31)
COUNTS = {"in_features": FROM_0, "out_features": FROM_0, "in_channels": SIZE, "out_channels": SIZE, "groups": SIZE}
EACH = {"kernel_size": SIZE, "stride": SIZE, "padding": FROM_0, "output_padding": FROM_0, "dilation": SIZE}
MODES = ("zeros", "reflect", "replicate", "circular")


def check_layer(op: str, made: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments with which torch's layer could not be made, or made and not called.

    Args:
        op: name of the layer, for errors.
        made: its class, below which torch's own stands.
        args, kwargs: what torch's class is to be given.

    Raises:
        TypeError: an argument that is missing, unknown or of another kind.
        ValueError: a number out of range, or another word.
    """
    base = next(cls for cls in made.__mro__ if cls.__module__.startswith("torch.nn."))
    if base is nn.Module:
        return
    try:
        given = inspect.signature(base).bind(*args, **kwargs).arguments
    except TypeError as error:  # "missing a required argument: 'in_features'"
        raise TypeError(f"{op}: {error}") from error
    dims = 0 if base is nn.Linear else int(base.__name__[-2])
    transposed = "Transpose" in base.__name__
    for name, value in given.items():
        if name in COUNTS:
            in_range(op, name, value, COUNTS[name])
        elif name == "padding" and isinstance(value, str) and not transposed:
            one_of(op, name, value, ("valid", "same"))
        elif name in EACH:
            _check_each(op, name, value, dims, EACH[name])
    if dims:
        one_of(
            op, "padding_mode", given.get("padding_mode", "zeros"), MODES[:1] if "Transpose" in base.__name__ else MODES
        )
        groups, channels = given.get("groups", 1), (given["in_channels"], given["out_channels"])
        if any(count % groups for count in channels):
            raise ValueError(f"{op}: groups must divide in_channels and out_channels, got {groups} and {channels}")
    flag(op, "bias", given.get("bias", True))
    if given.get("device") is not None:
        device_of(op, given["device"])
    dtype = given.get("dtype")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{op}: dtype must be a floating-point torch.dtype or None, got {shown(dtype)}")


def _check_each(op: str, name: str, value: Any, dims: int, allowed: Range) -> None:
    """One number for all dimensions, or one for each."""
    numbers = value if isinstance(value, tuple | list) and len(value) == dims else [value]
    if any((n := allowed.of(number)) is None or n not in allowed for number in numbers):
        raise ValueError(f"{op}: {name} must be {allowed}, or {dims} of them, got {shown(value)}")
