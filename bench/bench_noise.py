"""Random numbers alone: filling a tensor with normals, against torch and NumPy; and one noise + ReLU + max-pool draw.

The floor of a normal on AVX2 (vector operations, four a cycle): ten rounds of Philox from a row's constants are 147
operations for 32 words, 1.15 cycles a word; the conversion to normals is 35 operations for 16 normals, 0.55 cycles,
and a square root unit in parallel; putting the four values of a block in order is 8 shuffles for 32 normals on two
ports, 0.13 cycles. Together 1.8 cycles.

On AVX-512 (two operations of twice the width a cycle, so the same width) a round is six operations instead of eight,
since one takes three operands: 108 + 10 for 32 words, 0.92 cycles a word; together 1.6 cycles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import noisykernels as nk

N = 2**20


@pytest.mark.parametrize("threads", [1, 2])
def test_fill(contest: Any, threads: int) -> None:
    """One million normals, against `torch.Tensor.normal_` in place, `torch.randn`, NumPy's Philox and SFC64."""
    torch.set_num_threads(threads)
    seed, buffer = torch.tensor(1), torch.empty(N)
    philox = np.random.Generator(np.random.Philox(1))
    sfc = np.random.Generator(np.random.SFC64(1))
    out = np.empty(N, dtype=np.float32)
    contest(
        "fill 2^20 normals, 2 threads, x faster" if threads == 2 else "fill 2^20 normals, 1 thread",
        ours=lambda: nk.eps((64, N // 64), seed=seed),
        baseline=lambda: buffer.normal_(),
        at_least=6.5 if threads == 2 else None,
        randn=lambda: torch.randn(N),
        numpy_philox=lambda: philox.standard_normal(dtype=np.float32, out=out),
        numpy_sfc64=lambda: sfc.standard_normal(dtype=np.float32, out=out),
    )


def test_relu_max_pool_draw(contest: Any) -> None:
    """One noisy draw of LeNet's first convolution from its clean value, against torch's chain of operations."""
    torch.set_num_threads(2)
    x, seed, noise = torch.randn(256, 6, 24, 24), torch.tensor(1), nk.Noise(add=0.1)
    contest(
        "noise + ReLU + max-pool draw 256x6x24x24, x faster",
        ours=lambda: nk.perturb_relu_max_pool2d(x, noise, 2, seed=seed),
        baseline=lambda: F.max_pool2d(F.relu(x + torch.normal(0.0, 0.1, x.shape)), 2),
        at_least=10.0,
        noise_only=lambda: nk.perturb(x, noise, seed=seed),
    )
