"""A walk stays within the memory that it is given: the peak of a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
MODEL = """
import ctypes, gc, torch, noisykernels as nk
from pathlib import Path
from torch import nn

torch.set_num_threads(1)

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        h = self.norm(x)
        h = x + nn.functional.scaled_dot_product_attention(h, h, self.mix(h))
        return h + self.down(nn.functional.gelu(self.up(h)))

class Model(nn.Sequential):
    def forward(self, x):
        return super().forward(x).mean(1)

def walked(width, tokens, rows, **compute):
    torch.manual_seed(0)
    model = Model(*(Block(width) for _ in range(3)), nn.Linear(width, 4)).eval()
    data = torch.randn(rows, tokens, width), torch.zeros(rows, dtype=torch.long)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status("VmRSS")
    nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1, sites=["0.mix", "2.up"],
            compute=nk.Compute(**compute))
    return status("VmHWM") - before
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is Linux's")
@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_a_walk_takes_no_more_memory_than_it_is_given(engine: str) -> None:
    """What is alive at once; the C library gives back at once what was freed, which it else keeps for later."""
    how = f"engine={engine!r}"
    program = f"{MODEL}\nwalked(16, 4, 8, {how})\nprint(walked(256, 256, 48, {how}, memory=64 * 2**20))"
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert int(told.stdout.splitlines()[-1]) <= 64 * MIB
