"""Where the time of a grid goes, and how far that is from what the arithmetic asks for.

`python bench/profile_study.py` walks the additive grid of LeNet-5-BN (49 levels, 5 draws) at sites of each kind and
sorts the time of torch's profiler into: convolutions, dense layers, expansion of the levels (with rectifier and
pooling), drawing, and everything else. The floor of each is measured in the same run: the multiply-adds of the suffix
at the speed of one large convolution and of one large matrix product, the values written at the speed of a copy, and
the normals at the speed of a large fill.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_study import calibrated
from torch.profiler import profile

import noisykernels as nk
from noisykernels.zoo import LeNet5

ROWS, LEVELS, DRAWS = 1000, 49, 5
# For each site walked: multiply-adds of convolutions and of dense layers, values written in parting and pooling, of the
# suffix for each row, level and draw (directions are carried once per draw: left out); normals for each row and draw.
SITES = {
    "conv1": (153_600, 42_000, 864 + 256, 3456), "pool1": (0, 42_000, 256, 864), "conv2": (0, 42_000, 256, 1024),
    "pool2": (0, 11_000, 120, 256), "fc2": (0, 840, 84, 84),
}  # fmt: skip
KINDS = {
    "convolution": ("mkldnn_convolution", "convolution"), "dense": ("addmm", "mm", "linear"),
    "expansion": ("expand_levels", "expand_levels_max_pool2d"), "drawing": ("eps",),
}  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """Median of nine calls."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[4]


def speeds() -> tuple[float, float, float, float]:
    """Multiply-adds a second of a convolution and of a matrix product, values a second of a copy, normals a second."""
    x, w = torch.randn(1269, 6, 12, 12), torch.randn(16, 6, 5, 5)
    a, b, big = torch.randn(1269, 256), torch.randn(120, 256), torch.randn(2**20)
    out = torch.empty_like(big)
    return (
        1269 * 153_600 / seconds(lambda: F.conv2d(x, w)),
        1269 * 256 * 120 / seconds(lambda: F.linear(a, b)),
        2**20 / seconds(lambda: out.copy_(big)),
        2**20 / seconds(lambda: nk.eps((1, 2**20), seed=1)),
    )


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(2)
    model, data = calibrated(LeNet5(norm=True), (1, 28, 28), ROWS)
    how = dict(noise=nk.Noise(add=1.0), levels=torch.logspace(-3, 3, LEVELS), draws=DRAWS, seed=0)
    nk.walk(model, data, **how, sites="input")
    with torch.inference_mode():
        conv, dense, copy, normals = speeds()
    print(f"speeds: convolution {2e-9 * conv:.0f} and product {2e-9 * dense:.0f} GFlop/s, copy {4e-9 * copy:.1f} GB/s, "
          f"{1e-9 * normals:.2f} G normals/s; {ROWS} rows x {LEVELS} levels x {DRAWS} draws")  # fmt: skip
    print(f"{'site':8s} {'total ms':>9s} {'floor ms':>9s} {'ratio':>6s}   "
          + "  ".join(f"{k:>12s}" for k in (*KINDS, "other")) + "   (ms)")  # fmt: skip
    for site, (conv_work, dense_work, written, drawn) in SITES.items():
        (index,) = [s.index for s in nk.sites(model, data[0][:2]) if s.name.startswith(f"{site}:")]
        with profile() as found:
            start = time.perf_counter()
            nk.walk(model, data, **how, sites=[index])
            total = time.perf_counter() - start
        own = {e.key.rpartition("::")[2]: e.self_cpu_time_total * 1e-6 for e in found.key_averages()}
        parts = {kind: sum(own.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
        cells = ROWS * LEVELS * DRAWS
        floor = cells * (conv_work / conv + dense_work / dense + written / copy) + ROWS * DRAWS * drawn / normals
        times = "  ".join(f"{1e3 * v:12.1f}" for v in (*parts.values(), total - sum(parts.values())))
        print(f"{site:8s} {1e3 * total:9.1f} {1e3 * floor:9.1f} {total / floor:6.2f}   {times}")


if __name__ == "__main__":
    main()
