"""What a grid costs against the number of sites, levels, draws, rows and workers, and what memory it takes.

`python bench/scaling.py`: LeNet-5-BN, additive noise; each line varies one number and keeps the others (16 sites, 20
levels, 5 draws, 1,000 rows, this process with two threads). Workers run with one thread each; their start (a second of
importing torch in each) is told apart by a second walk on the same pool. Memory: how far the peak of the process rises
during a walk of 2,000 rows, against what was allowed, each in a process of its own (Linux), also for the small VGG.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_study import SmallVGG, calibrated
from torch import nn

import noisykernels as nk
from noisykernels.zoo import LeNet5

Problem = tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]
HOW: dict[str, Any] = dict(levels=20, draws=5, rows=1000, sites=16)
VARIED = {"sites": (1, 4, 8, 16), "levels": (5, 10, 20, 40, 80), "draws": (1, 2, 5, 10, 20), "rows": (250, 1000, 4000)}


def walk(problem: Problem, levels: int, draws: int, rows: int, sites: int, **more: Any) -> float:
    """Seconds of a grid; the last so many sites."""
    model, (x, y) = problem
    how = dict(levels=torch.logspace(-3, 3, levels), draws=draws, sites=list(range(16 - sites, 16)), seed=0)
    start = time.perf_counter()
    nk.walk(model, (x[:rows], y[:rows]), noise=nk.Noise(add=1.0), **how, **more)
    return time.perf_counter() - start


def peak(name: str, memory: int, answer: Any) -> None:
    """Sends the bytes by which a walk raises the peak of this process."""
    torch.set_num_threads(2)
    build, shape = {"LeNet-5-BN": (lambda: LeNet5(norm=True), (1, 28, 28)), "small VGG": (SmallVGG, (3, 32, 32))}[name]
    model, data = calibrated(build(), shape, 2000)
    how: dict[str, Any] = dict(noise=nk.Noise(add=1.0), seed=0, draws=1, sites="input")
    nk.walk(model, (data[0][:8], data[1][:8]), levels=[1.0], **how)  # code and libraries are there
    ctypes.CDLL(None).malloc_trim(0)  # what the data took on its way is given back
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    nk.walk(model, data, levels=torch.logspace(-2, 2, 10), **how, compute=nk.Compute(memory=memory))
    answer.put(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(2)
    problem = calibrated(LeNet5(norm=True), (1, 28, 28), 4000)
    walk(problem, **{**HOW, "rows": 100})
    print("seconds, median of three")
    for what, counts in VARIED.items():
        times = [statistics.median(walk(problem, **{**HOW, what: n}) for _ in range(3)) for n in counts]
        print(f"{what:7s}", "  ".join(f"{n}: {t:.2f}" for n, t in zip(counts, times, strict=True)))
    torch.set_num_threads(1)
    big = {**HOW, "rows": 4000}
    alone = walk(problem, **big)
    print(f"workers  this process, one thread: {alone:.2f}", end="")
    for count in (1, 2):
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            first, again = (walk(problem, **big, compute=nk.Compute(executor=pool)) for _ in range(2))
        print(f"  {count}: {again:.2f} ({first:.2f} with their start)", end="")
    print()
    context = multiprocessing.get_context("spawn")
    for name in ("LeNet-5-BN", "small VGG"):
        for memory in (2**25, 2**28, 2**30):
            answer = context.Queue()
            process = context.Process(target=peak, args=(name, memory, answer))
            process.start()
            print(f"memory   {name}: allowed {memory >> 20} MiB, peak rose by {answer.get() / 2**20:.0f} MiB")
            process.join()


if __name__ == "__main__":
    main()
