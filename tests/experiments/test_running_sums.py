"""Running sums: their last one is the sum, and where they stop growing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import noisykernels as nk
from noisykernels.arithmetic import Serial, as_format
from noisykernels.experiments import running_sums


@pytest.mark.parametrize(
    "arithmetic",
    ["M3E5", "L4R6", Serial(low=-1.0, high=2.0), Serial("M8E6", leak=0.9), Serial("M4E5", order="descending"),
     Serial("M4E5", order="negative_first"), Serial("M4E5", order="reversed"), Serial("M4E5", order=[2, 0, 1, 4, 3]),
     None],
    ids=str,
)  # fmt: skip
def test_the_last_running_sum_is_the_sum(arithmetic: Any) -> None:
    x, w = torch.tensor([0.7, -1.3, 2.1, 0.4, 5.2]), torch.tensor([1.1, 0.3, -0.9, 2.2, 0.6])
    sums = running_sums(x, w, arithmetic)
    made = arithmetic if isinstance(arithmetic, Serial) else Serial(arithmetic)
    assert sums[-1] == nk.linear(x[None], w[None], hardware=[made])[0, 0] and len(sums) == 5
    with pytest.raises(ValueError, match=r"vectors of one length, got \[5\] and \[4\]"):
        running_sums(x, w[:4], arithmetic)


def test_sums_saturate_and_stop_growing_as_published() -> None:
    """L8R8 stops at 255.996; two mantissa bits stop at 8 additions of one, M8E6 does not; E4 ends at 511.75."""
    ones = torch.ones(600)
    fixed, coarse, fine, short = (running_sums(ones, ones, name) for name in ("L8R8", "M2E8", "M10E6", "M10E4"))
    assert fixed[254] == 255 and bool((fixed[255:] == 256 - 2**-8).all())
    assert coarse[7] == 8 and bool((coarse[7:] == 8).all())
    assert torch.equal(fine, torch.arange(1.0, 601)) and float(short[-1]) == as_format("M10E4").largest_value < 512
    assert len(running_sums(ones[:0], ones[:0], "M7E6")) == 0
