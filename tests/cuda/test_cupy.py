"""The noise in kernels that are not ours: noise.h through NVRTC, and CuPy's kernels against ours on a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import noisykernels as nk

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cupy_noise.py"
PAGE = ROOT / "docs" / "guides" / "cupy.md"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
CUPYS_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")  # CuPy adds them to those that it is given


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()

# What the kernels need to be C++, and each as a function that runs its threads one by one; two of them share the rows.
AS_CXX = """
#include <math.h>
#define __global__
#define __device__
struct { unsigned x, y; } blockIdx, blockDim, threadIdx, gridDim;
"""
KEY = "unsigned rows, unsigned columns, unsigned long long seed, unsigned site, unsigned draw, unsigned first_row"
RUN_ALL = """
template <class F>
void each_thread(unsigned columns, F f) {
  blockDim.x = 32, gridDim.x = (columns + 127) / 128, gridDim.y = 2;
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) f();
}
""" + "".join(
    f"""
extern "C" void draw_noise_{kind}(float* out, {KEY}) {{
  each_thread(columns, [&] {{ draw_noise<{type_}>(out, rows, columns, seed, site, draw, first_row); }});
}}
extern "C" void noisy_relu_{kind}(float* y, const float* x, float level, {KEY}) {{
  each_thread(columns, [&] {{ noisy_relu<{type_}>(y, x, level, rows, columns, seed, site, draw, first_row); }});
}}
"""
    for kind, type_ in example.KINDS.items()
)

# Every formula, beside the kernels of the example.
FORMULAS = """
template <nk::Mode M, class F>
__global__ void formula(const F* x, F* y, F a, F m, const F* ea, const F* em) {
  const unsigned i = threadIdx.x;
  y[i] = nk::apply_noise<M>(x[i], a, m, ea[i], em[i]);
}
"""
FORMULA_KERNELS = [
    f"formula<nk::Mode::{mode}, {kind}>"
    for mode in ("kAdd", "kMul", "kMulAdd", "kAddMul", "kFold", "kEps")
    for kind in ("float", "double")
]


def keys(rows: int) -> list[dict[str, int]]:
    """Ids at the ends of their ranges and in the middle."""
    return [
        {"seed": 0},
        {"seed": 2**63 + 12345, "site": 54321, "draw": 2**31 + 7, "first_row": 2**31 - rows // 2},
        {"seed": 2**64 - 1, "site": 2**24 - 1, "draw": 2**32 - 1, "first_row": 2**32 - rows},
    ]


def perturbed(x: torch.Tensor, kind: str, draw: int = 0, **key: int) -> torch.Tensor:
    """What `noisy_relu` computes, with level 0.25."""
    return nk.perturb(torch.relu(x), nk.Noise(add=0.25, kind=kind), draws=[draw], **key)


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    library = example.libnvrtc()
    if library is None:
        pytest.skip("NVRTC of CUDA 13 is not installed (pip install nvidia-cuda-nvrtc)")
    return library


def ptx(nvrtc: ctypes.CDLL, *options: str) -> str:
    kernels = [*example.KERNELS, *FORMULA_KERNELS]
    return example.compiled(nvrtc, example.SOURCE + FORMULAS, kernels, [*example.OPTIONS, *options])


# ---------------------------------------------------------------------------------------------------------- no GPU


def test_the_header_that_is_installed_is_the_one_we_compile() -> None:
    assert (Path(nk.get_include()) / "noisykernels/noise.h").read_bytes() == (ROOT / "csrc/noise.h").read_bytes()


def test_the_document_shows_the_example() -> None:
    blocks = re.findall(r"^```(?:python|cuda)\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert block in EXAMPLE.read_text()


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as C++."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(AS_CXX + example.SOURCE + RUN_ALL)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{nk.get_include()}"]
    subprocess.run([compiler, *flags, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def run_on_host(function: Callable[..., None], out: torch.Tensor, *inputs: object, **key: int) -> None:
    ids = [ctypes.c_uint(key.get(name, 0)) for name in ("site", "draw", "first_row")]
    sizes = [ctypes.c_uint(size) for size in out.shape]
    function(ctypes.c_void_p(out.data_ptr()), *inputs, *sizes, ctypes.c_ulonglong(key["seed"]), *ids)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 4097), (70_000, 3)], ids=str)
@pytest.mark.parametrize("kind", example.KINDS)
def test_the_kernels_as_cxx(on_host: ctypes.CDLL, kind: str, shape: tuple[int, int]) -> None:
    x, y, out = torch.randn(shape), torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    for key in keys(shape[0]):
        run_on_host(on_host[f"draw_noise_{kind}"], out, **key)
        assert example.same_bits(out, nk.eps(shape, kind=kind, **key)), key
        run_on_host(on_host[f"noisy_relu_{kind}"], y, ctypes.c_void_p(x.data_ptr()), ctypes.c_float(0.25), **key)
        assert example.same_bits(y, perturbed(x, kind, **key)), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_through_nvrtc(nvrtc: ctypes.CDLL, architecture: int) -> None:
    code = ptx(nvrtc, f"-arch=sm_{architecture}", *CUPYS_OPTIONS)
    assert f".target sm_{architecture}" in code
    assert code.count(".entry ") == len(example.KERNELS) + len(FORMULA_KERNELS)


def test_what_does_not_compile_is_said(nvrtc: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match="no_such_name"):
        example.compiled(nvrtc, example.SOURCE + "int i = no_such_name;", [], example.OPTIONS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_product_and_sum_is_contracted(nvrtc: ctypes.CDLL, architecture: int) -> None:
    arch = f"-arch=sm_{architecture}"
    assert ptx(nvrtc, arch, "--fmad=true") == ptx(nvrtc, arch, "--fmad=false")


def test_a_contraction_would_be_seen(nvrtc: ctypes.CDLL) -> None:
    source = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3]; }'
    assert example.compiled(nvrtc, source, [], ["--fmad=true"]) != example.compiled(nvrtc, source, [], ["--fmad=false"])


@pytest.mark.parametrize("options", [CUPYS_OPTIONS, ("--use_fast_math",)], ids=["CuPy's", "fast math"])
def test_options_flush_subnormals_and_change_nothing_else(nvrtc: ctypes.CDLL, options: tuple[str, ...]) -> None:
    """The eps have no subnormals on the way (tests/noise/test_noise.py: threads that flush them draw the same)."""
    theirs, ours = ptx(nvrtc, "-arch=sm_90", *options), ptx(nvrtc, "-arch=sm_90")
    assert theirs != ours
    assert theirs.replace(".ftz", "") == ours


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if not nk.build_info()["cuda_archs"]:
        pytest.skip("noisykernels was built without CUDA")
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")  # kernels that an older noise.h has left on the disk are not taken
    return module


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 4097), (70_000, 3), (2, 1_000_003)], ids=str)
@pytest.mark.parametrize("kind", example.KINDS)
def test_cupy_draws_our_noise(cupy: ModuleType, kind: str, shape: tuple[int, int]) -> None:
    for key in keys(shape[0]):
        out = torch.full(shape, torch.nan, device="cuda")
        example.launch("draw_noise", cupy.from_dlpack(out), kind=kind, **key)
        on_gpu, on_cpu = nk.eps(shape, kind=kind, device="cuda", **key), nk.eps(shape, kind=kind, **key)
        assert example.same_bits(out, on_gpu), key
        assert example.same_bits(on_gpu.cpu(), on_cpu), key


@pytest.mark.parametrize("kind", example.KINDS)
def test_a_kernel_of_ones_own_adds_our_noise(cupy: ModuleType, kind: str) -> None:
    x = torch.randn(300, 77, device="cuda")
    for key in keys(300):
        y = cupy.empty(x.shape, dtype=cupy.float32)
        example.launch("noisy_relu", y, cupy.from_dlpack(x), cupy.float32(0.25), kind=kind, **key)
        assert example.same_bits(torch.from_dlpack(y), perturbed(x, kind, **key)), key


def test_nothing_is_copied(cupy: ModuleType) -> None:
    eps = nk.eps((5, 6), seed=1, device="cuda")
    there = cupy.from_dlpack(eps)
    assert there.data.ptr == eps.data_ptr() == torch.from_dlpack(there).data_ptr()
    example.launch("draw_noise", there, kind="gaussian", seed=2)
    assert example.same_bits(eps, nk.eps((5, 6), seed=2, device="cuda"))


def test_the_order_of_streams_is_kept(cupy: ModuleType) -> None:
    """DLPack makes the stream that takes a matrix wait for the one that fills it."""
    shape, key = (4096, 4096), {"seed": 3}
    with torch.cuda.stream(torch.cuda.Stream()), cupy.cuda.Stream(non_blocking=True):
        for _ in range(5):
            x = nk.eps(shape, device="cuda", **key)
            y = cupy.empty(shape, dtype=cupy.float32)
            example.launch("noisy_relu", y, cupy.from_dlpack(x), cupy.float32(1), kind="gaussian", **key)
            assert example.same_bits(torch.from_dlpack(y), torch.relu(x) + x)
