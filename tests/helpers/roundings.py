"""What the tests of number formats share: the compiled rounding against the oracle, values that are hard to round."""

from __future__ import annotations

from typing import Any

import torch
from operators import assert_same_bits
from torch import Tensor

from noisykernels.arithmetic import Format, as_format, quantize
from noisykernels.reference.serial import quantized

ROUNDINGS = ("truncate", "nearest", "stochastic")
KEY: dict[str, Any] = dict(seed=2**63 + 5, site=9)


def rounded(x: Tensor, fmt: str | Format, **ids: Any) -> Tensor:
    """The compiled rounding, which is the oracle's to the bit."""
    ids = {**KEY, **ids}
    y = quantize(x, fmt, **ids)
    assert_same_bits(y, quantized(x, as_format(fmt), **ids), fmt)
    return y


def float32_values() -> Tensor:
    """Every upper half of a float32 with those lower halves at which formats of up to 16 bits round differently."""
    upper = torch.arange(2**16, dtype=torch.int64)[:, None] << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    return (upper + lower).to(torch.int32).view(torch.float32).flatten()


VALUES = float32_values()
FEW = VALUES[::61].contiguous()  # 61 is prime to 9: all lower halves occur
