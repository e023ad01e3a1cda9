"""Our noise in CuPy kernels: the bits of `noisykernels.eps`, and the same noise inside a kernel of one's own.

Without a GPU or without CuPy the kernels are compiled at least, where NVRTC is to be had.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import noisykernels as nk

SOURCE = """
#include <noisykernels/noise.h>

namespace nk = noisykernels;

// The noise of elements 4 * block .. 4 * block + 3 of a row: they come from one block of the generator.
template <class Kind>
__device__ void four_values(unsigned long long seed, unsigned site, unsigned draw, unsigned row, unsigned block,
                            float z[4]) {
  const nk::RoundKeys<unsigned> keys(seed);
  const nk::RowConstants<unsigned> constants(seed, row, draw, nk::counter_word3(site, nk::Operand::kAdd));
  unsigned words[4];
  nk::philox_in_row(keys, constants, block, words);
  Kind::sample(words[0], words[1], z[0], z[1]);
  Kind::sample(words[2], words[3], z[2], z[3]);
}

// out = eps. A thread takes one block of each of its rows.
template <class Kind>
__global__ void draw_noise(float* out, unsigned rows, unsigned columns, unsigned long long seed, unsigned site,
                           unsigned draw, unsigned first_row) {
  const unsigned block = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
    float z[4];
    four_values<Kind>(seed, site, draw, first_row + row, block, z);
    for (size_t i = 0, column = 4 * size_t(block); i < 4 && column < columns; ++i, ++column) {
      out[size_t(row) * columns + column] = z[i];
    }
  }
}

// A kernel of one's own: y = relu(x) + level * eps. fma_rn rounds once, as noisykernels.perturb does.
template <class Kind>
__global__ void noisy_relu(float* y, const float* x, float level, unsigned rows, unsigned columns,
                           unsigned long long seed, unsigned site, unsigned draw, unsigned first_row) {
  const unsigned block = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
    float z[4];
    four_values<Kind>(seed, site, draw, first_row + row, block, z);
    for (size_t i = 0, column = 4 * size_t(block); i < 4 && column < columns; ++i, ++column) {
      const size_t at = size_t(row) * columns + column;
      y[at] = nk::fma_rn(level, z[i], fmaxf(x[at], 0.0f));
    }
  }
}
"""
KINDS = {"gaussian": "nk::Gaussian", "uniform": "nk::Uniform", "laplace": "nk::Laplace"}
KERNELS = [f"{name}<{kind}>" for name in ("draw_noise", "noisy_relu") for kind in KINDS.values()]
# CuPy keeps compiled kernels and does not look into what they include: with the version of the noise as an option it
# compiles them again when the noise changes.
OPTIONS = ("-std=c++17", f"-I{nk.get_include()}", f"-DNOISE_STREAM={nk.STREAM_VERSION}")


def launch(
    name: str, out: Any, *inputs: Any, kind: str, seed: int, site: int = 0, draw: int = 0, first_row: int = 0
) -> None:
    """Runs a kernel over the matrix `out`, a CuPy array, on CuPy's current stream."""
    import cupy

    module = cupy.RawModule(code=SOURCE, options=OPTIONS, name_expressions=KERNELS)
    rows, columns = out.shape
    key = (np.uint64(seed), np.uint32(site), np.uint32(draw), np.uint32(first_row))  # of the types of the parameters
    threads = 256
    grid = (-(-columns // (4 * threads)), min(rows, 65535))
    module.get_function(f"{name}<{KINDS[kind]}>")(
        grid, (threads,), (out, *inputs, np.uint32(rows), np.uint32(columns), *key)
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices are equal to the bit."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def run_kernels() -> bool:
    """Whether CuPy's kernels give the bits of ours. Nothing is copied between the two libraries."""
    import cupy

    shape, key = (1000, 1001), {"seed": 7, "site": 3, "first_row": 60_000}
    drawn = cupy.empty(shape, dtype=cupy.float32)
    launch("draw_noise", drawn, kind="gaussian", draw=5, **key)
    eps = nk.eps(shape, draw=5, device="cuda", **key)
    found = {"CuPy draws what noisykernels.eps draws": same_bits(torch.from_dlpack(drawn), eps)}

    x = torch.randn(shape, device="cuda")
    y = cupy.empty(shape, dtype=cupy.float32)
    launch("noisy_relu", y, cupy.from_dlpack(x), np.float32(0.1), kind="gaussian", draw=5, **key)
    expected = nk.perturb(torch.relu(x), nk.Noise(add=0.1), draws=[5], **key)
    found["a kernel of one's own adds what noisykernels.perturb adds"] = same_bits(torch.from_dlpack(y), expected)
    found["both work on the same memory"] = cupy.from_dlpack(eps).data.ptr == eps.data_ptr()
    for claim, holds in found.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return all(found.values())


# ------------------------------------------------------------------------------------------------ without a GPU


def libnvrtc() -> ctypes.CDLL | None:
    """NVRTC of CUDA 13, from the package nvidia-cuda-nvrtc (torch for CUDA brings it along) or from a CUDA toolkit."""
    found = [path for folder in sys.path for path in Path(folder).glob("nvidia/cu13/lib/libnvrtc.so.13")]
    for name in [*found, "libnvrtc.so.13"]:
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            pass
    return None


def compiled(nvrtc: ctypes.CDLL, source: str, kernels: Sequence[str], options: Sequence[str]) -> str:
    """The PTX of these kernels.

    Raises:
        RuntimeError: with what the compiler says.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"noise.cu", 0, None, None)
    for name in kernels:
        nvrtc.nvrtcAddNameExpression(program, name.encode())
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    what = "ProgramLog" if failed else "PTX"
    nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc[f"nvrtcGet{what}"](program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(text.value.decode())
    return text.value.decode()


def run() -> int:
    """What can be done here; the exit status."""
    missing = []
    try:
        import cupy  # noqa: F401
    except ImportError:
        missing.append("CuPy is not installed (pip install noisykernels[cupy])")
    if not torch.cuda.is_available():
        missing.append("torch sees no GPU")
    if not nk.build_info()["cuda_archs"]:
        missing.append("noisykernels was built without CUDA")
    if not missing:
        return 0 if run_kernels() else 1
    print(f"nothing is run: {', '.join(missing)}")
    nvrtc = libnvrtc()
    if nvrtc is None:
        print("nothing is compiled: NVRTC is not there (pip install nvidia-cuda-nvrtc)")
    else:
        ptx = compiled(nvrtc, SOURCE, KERNELS, [*OPTIONS, "-arch=sm_90"])
        print(f"compiled for sm_90: {ptx.count('.entry ')} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(run())
