"""What recording a model takes as it grows deeper, what a walk's memory comes to, and where recording pays.

`python bench/bench_recording.py [PICTURE]` prints five tables and draws the first: seconds of one core, and memory
beyond the model, against the number of blocks of a transformer (128 wide, 16 tokens); the peak of a process that walks
a transformer of 256 tokens in 64 MiB, by both engines; the seconds of a walk on six rows of DenseNet-121 (its own
layout, random weights, 64 x 64 pixels) and of one on 100 rows of 60 small layers (122 sites), by each engine, and of
that what the check takes; and what the break-even of the two engines goes by (`_engine/plan.py`), in passes of one
row. Memory is the own peak of a fresh process (Linux).
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.plan import choose_plan
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.shared import SharedEngine
from noisykernels._engine.targets import Activation
from noisykernels._engine.verification import Check
from noisykernels._graph.recorder import record_tape
from noisykernels._util.inputs import Call

DEPTHS = (2, 4, 8, 16, 32, 48)
MIB = 2**20


class Block(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sums of both."""
        h = self.before(x)
        q, k, v = (f(h).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Sequential):
    """Blocks, and a head on the last token."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__(*(Block(width) for _ in range(blocks)), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the last token."""
        scores: Tensor = super().forward(x)[:, -1]
        return scores


class Dense(nn.Module):
    """A layer of DenseNet: its result beside what it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.wide = nn.BatchNorm2d(channels), nn.Conv2d(channels, 128, 1, bias=False)
        self.b, self.narrow = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """32 channels more."""
        h = self.narrow(F.relu(self.b(self.wide(F.relu(self.a(x), inplace=True))), inplace=True))
        return torch.cat([x, h], 1)


def densenet121() -> nn.Module:
    """The layout of DenseNet-121 (arXiv 1608.06993)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for i, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(Dense(channels))
            channels += 32
        if i < 3:
            layers += [
                nn.BatchNorm2d(channels),
                nn.ReLU(True),
                nn.Conv2d(channels, channels // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, 10))  # fmt: skip


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a call takes at most beyond what the process has."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def recording(blocks: int) -> dict[str, float]:
    """Seconds of one core, and memory in rows' worth of the values of one block."""
    torch.manual_seed(0)
    model, x = Transformer(blocks, 128).eval(), torch.randn(4, 16, 128)
    with nk.inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        record_tape(injected, x)  # what is loaded the first time
        start = time.process_time()
        record_tape(injected, x)
        seconds = time.process_time() - start
        return {"seconds": seconds, "mib": peak(lambda: record_tape(injected, x)) / MIB}


def walking(engine: str, memory: int) -> dict[str, float]:
    """The peak of a walk at the first and at the last block."""
    torch.manual_seed(0)
    model, x, y = Transformer(4, 256).eval(), torch.randn(64, 256, 256), torch.zeros(64, dtype=torch.long)
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1)
    small = Transformer(1, 16).eval()
    nk.walk(small, (x[:, :4, :16], y), **how, compute=nk.Compute(engine=engine))  # what is loaded the first time
    compute = nk.Compute(engine=engine, memory=memory)
    return {"mib": peak(lambda: nk.walk(model, (x, y), **how, sites=["0.o", "3.down"], compute=compute)) / MIB}


def few_rows() -> dict[str, float]:
    """CPU seconds of a walk on six rows at every fortieth site."""
    torch.manual_seed(0)
    model, x, y = densenet121().eval(), torch.randn(6, 3, 64, 64), torch.zeros(6, dtype=torch.long)
    chosen = [s.name for s in nk.sites(model, x[:2])][::40]
    found = {}
    for engine in ("plain", "plain", "auto", "shared"):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nk.walk(model, (x, y), noise=nk.Noise(add=1.0), levels=[0.1, 1.0, 10.0], draws=3, seed=1, sites=chosen,
                    compute=nk.Compute(engine=engine))  # fmt: skip
        found[engine] = time.process_time() - start  # of the first, the second time: things are loaded
    return found


class Rectified(nn.Linear):
    """A layer and its rectifier."""

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return F.relu(super().forward(x))


def small_layers() -> nn.Module:
    """60 of them, 16 wide."""
    return nn.Sequential(*(Rectified(16, 16) for _ in range(60)), nn.Linear(16, 10)).eval()


def many_sites(levels: int) -> dict[str, float]:
    """CPU seconds of a walk at 122 sites on 100 rows by each engine, the least of three times, and of its check."""
    torch.manual_seed(0)
    model, x = small_layers(), torch.randn(100, 16)
    data, through = (x, model(x).argmax(1)), Check.through
    found: dict[str, float] = {}

    def least(name: str, seconds: float) -> None:
        found[name] = min(seconds, found.get(name, seconds))

    def timed(*args: Any) -> Any:
        start = time.process_time()
        result = through(*args)
        least("check", time.process_time() - start)
        return result

    Check.through = timed  # type: ignore[method-assign]
    for _ in range(3):
        for engine in ("plain", "auto", "shared"):
            start = time.process_time()
            nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[10 ** (k / 4 - 2) for k in range(levels)], draws=5,
                    seed=1, compute=nk.Compute(engine=engine))  # fmt: skip
            least(engine, time.process_time() - start)
    return found


def in_passes(name: str) -> dict[str, float]:
    """What sharing work takes before it gains anything, in passes of one row: medians of three."""
    torch.manual_seed(0)
    model, x = {
        "layers": lambda: (small_layers(), torch.randn(12, 16)),
        "transformer": lambda: (Transformer(12, 128).eval(), torch.randn(12, 16, 128)),
        "densenet, 64 pixels": lambda: (densenet121().eval(), torch.randn(12, 3, 64, 64)),
        "densenet, 128 pixels": lambda: (densenet121().eval(), torch.randn(12, 3, 128, 128)),
    }[name]()
    problem = Problem.of(Call("walk"), model, (x, torch.zeros(12, dtype=torch.long)), seed=1)
    problem = replace(problem, targets=(Activation(nk.Noise(add=1.0)),))
    found: dict[str, list[float]] = {}
    with warnings.catch_warnings(), Session("walk", problem) as session, torch.inference_mode():
        warnings.simplefilter("ignore")  # of scores that are tied
        chosen = session.sites[:: len(session.sites) // 8]

        def seconds(call: Callable[[], Any]) -> float:
            start = time.process_time()
            call()
            return time.process_time() - start

        def whole(rows: int) -> None:
            with session.placing(problem.targets[0].placement(chosen[4], 1.0)):
                session.scores(session.inputs[:rows], session.rows[:rows], (0,))

        tape = record_tape(session.model, session.inputs[:4])  # what is loaded the first time
        engine = SharedEngine(session, tape, choose_plan(tape, 2**30, session.passes.rows, problem.device))
        for _ in range(3):
            one, eight = (min(seconds(lambda n=n: whole(n)) for _ in range(5)) for n in (1, 8))
            values = sum(math.prod(s.shape) for s in session.sites) / 2
            row = max(0.0, eight - one) / 7
            check = Check(session, engine, (0.1, 1.0))
            for what, value in (
                ("ms", 1e3 * one),
                ("us a call", 1e6 * (one - row) / len(session.sites)),
                ("ns a value", 1e9 * row / values),
                ("recording", seconds(lambda: record_tape(session.model, session.inputs[:4])) / one),
                ("check of a site", seconds(lambda check=check: check.through(chosen, 0)) / one / len(chosen)),
            ):
                found.setdefault(what, []).append(value)
    return {what: statistics.median(values) for what, values in found.items()}


def apart(call: str) -> dict[str, float]:
    """A measurement in a process of its own."""
    told = subprocess.run([sys.executable, __file__, "--only", call], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the tables; the picture goes to the path given."""
    table = {n: apart(f"recording({n})") for n in DEPTHS}
    print("blocks  seconds  per block  MiB")
    for n, row in table.items():
        print(f"{n:6d} {row['seconds']:8.3f} {row['seconds'] / n:10.4f} {row['mib']:5.1f}")
    for engine in ("shared", "plain"):
        print(f"{engine:7s} walk, 64 MiB asked for: {apart(f'walking({engine!r}, 64 * MIB)')['mib']:.0f} MiB taken")
    print("six rows of DenseNet-121, CPU s:", ", ".join(f"{k} {v:.1f}" for k, v in apart("few_rows()").items()))
    print("100 rows of 60 small layers, CPU s of one core:")
    for levels in (5, 20, 49):
        print(f"  {levels} levels:", ", ".join(f"{k} {v:.2f}" for k, v in apart(f"many_sites({levels})").items()))
    print("what sharing takes before it gains, in passes of one row:")
    for name in ("layers", "transformer", "densenet, 64 pixels", "densenet, 128 pixels"):
        print(f"  {name}:", ", ".join(f"{k} {v:.1f}" for k, v in apart(f"in_passes({name!r})").items()))
    if len(sys.argv) > 1:
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        left.plot(list(table), [row["seconds"] for row in table.values()], "o-")
        left.set(
            xlabel="blocks", ylabel="seconds of one core", title="time of recording", ylim=(0, None), xlim=(0, None)
        )
        right.plot(list(table), [row["mib"] for row in table.values()], "o-")
        right.set(
            xlabel="blocks", ylabel="MiB beyond the model", title="memory of recording", ylim=(0, None), xlim=(0, None)
        )
        figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(eval(sys.argv[2])))  # one of the calls above
    else:
        main()
