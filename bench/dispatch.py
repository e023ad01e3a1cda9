"""What the way to an operator costs, one row of eight features, one thread: `python bench/dispatch.py`."""

import timeit

import torch
import torch.nn.functional as F

import noisykernels as nk
from noisykernels.noise.arguments import Key, noise_args

torch.set_num_threads(1)
x, w, b, noise, seed = torch.randn(1, 8), torch.randn(8, 8), torch.randn(8), nk.Noise(add=0.1), torch.tensor(1)
add, mul, mode, kind = noise_args("linear", x, noise)
args = add, mul, *Key(seed, None, None, 0, 0), mode, kind, False
WAYS = {
    "F.linear": lambda: F.linear(x, w, b),
    "torch.ops.aten.linear.default": lambda: torch.ops.aten.linear.default(x, w, b),
    "torch.ops.noisykernels.linear.default": lambda: torch.ops.noisykernels.linear.default(x, w, b, False, *args),
    "noisykernels.linear": lambda: nk.linear(x, w, b, noise=noise, seed=seed),
}
with torch.inference_mode():
    for name, call in WAYS.items():
        timeit.timeit(call, number=2000)
        print(f"{name:40s} {min(timeit.repeat(call, number=20_000, repeat=7)) / 20_000 * 1e6:6.2f} us")
