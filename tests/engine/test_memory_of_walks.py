"""A walk stays within the memory that it is given: the peak of a fresh process, with what the C library keeps of what
was freed and the buffers of torch's own libraries."""

from __future__ import annotations

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

def transformer(width, tokens):
    return Model(*(Block(width) for _ in range(3)), nn.Linear(width, 4)), (tokens, width), ["0.mix", "2.up"]

def convolutions(width, size):
    layers = (nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(3))
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * size * size // 4, 4))
    return model, (width, size, size), ["0.0", "2.2"]

def vocabulary(width, words):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, words)), (width,), ["0", "1"]

def walked(model, shape, sites, rows, **compute):
    torch.manual_seed(0)
    model = model.eval()
    data = torch.randn(rows, *shape), torch.zeros(rows, dtype=torch.long)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status("VmRSS")
    nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1, sites=sites,
            compute=nk.Compute(**compute))
    return status("VmHWM") - before
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is Linux's")
@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize(("model", "small", "large"), [
    ("transformer", "16, 4", "256, 256"), ("convolutions", "4, 8", "32, 64"), ("vocabulary", "4, 8", "16, 300_000"),
])  # fmt: skip
def test_a_walk_takes_no_more_memory_than_it_is_given(model: str, small: str, large: str, engine: str) -> None:
    first = f"walked(*{model}({small}), 8, engine={engine!r})"  # what is loaded the first time
    then = f"print(walked(*{model}({large}), 24, engine={engine!r}, memory=64 * 2**20))"
    told = subprocess.run(
        [sys.executable, "-c", f"{MODEL}\n{first}\n{then}"], capture_output=True, text=True, check=True
    )
    print(int(told.stdout.splitlines()[-1]) / MIB)
    assert int(told.stdout.splitlines()[-1]) <= 64 * MIB
