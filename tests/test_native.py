"""The torch-free native tests (CMakeLists.txt, tests/native, tests/simt), so that pytest covers them too."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "native"
JOBS = str(min(4, os.cpu_count() or 1))

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-8000:]}"


def build(source: Path, folder: Path, *target: str) -> None:
    run("cmake", "-S", source, "-B", folder)
    run("cmake", "--build", folder, "--parallel", JOBS, *target)


def test_native() -> None:
    build(ROOT, BUILD)
    run("ctest", "--test-dir", BUILD, "--parallel", JOBS, "--output-on-failure", "--no-tests=error")


@pytest.mark.full
def test_all_cases_of_the_cuda_kernels() -> None:
    build(ROOT, BUILD, "--target", "test_simt")
    run(BUILD / "test_simt", "--full")


# A defect of each kind in csrc/cuda/epilogue.cu: what to replace, and by what.
DEFECTS = {
    "no barrier before the maximum": ("__syncthreads();\n        const int64_t drawn", "const int64_t drawn"),
    "no barrier after the maximum": ("        }\n        __syncthreads();\n      }\n", "        }\n      }\n"),
    "the tail is not cut": ("least(4, end - element)", "4"),
    "alignment is not looked at": (" && reinterpret_cast<uintptr_t>(row + item) % alignof(Four<T>) == 0", ""),
    "a shared input is not": ("(kGiven || e.shared ? ids_.b : i)", "i"),
    "rows beyond the last": ("if (i >= cut.rows) continue;", ""),
    "a bad level of two": ("a.v[k] = m.v[k] = kNaN<C>", "m.v[k] = kNaN<C>"),
    "bad ids": ("ids_.valid ? z.v[k] : kNaN<float>", "z.v[k]"),
    "bad levels": ("return kGiven ? level : checked_level(level);", "return level;"),
    "the bias does not repeat": ("work_.bias(place.item + k * place.stride).remainder", "place.item"),
    "one operand for both": ("Operand::kMul))", "Operand::kAdd))"),
    "one tile for each block": ("tile += gridDim.x", "tile += cut.tiles"),
    "no shared block of channels": ("(begin / 4 + block) * 4", "((begin + 3) / 4 + block) * 4"),
    "one block too few of a channel": (" + (positions % 4 != 0)", ""),
    "no ReLU": ("work_.e.relu ? C(0) : -kInfinity<C>", "-kInfinity<C>"),
    "a line too short": ("last.element(last.y0 + line, last.x1)", "last.element(last.y0 + line, last.x1 - 1)"),
    "the row of other eps": ("work.given(i).remainder", "ids_.b"),
}


@pytest.mark.full
def test_the_cuda_tests_notice_defects(tmp_path: Path) -> None:
    for part in ("CMakeLists.txt", "csrc", "tests", "bench"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    kernels = tmp_path / "csrc" / "cuda" / "epilogue.cu"
    right = kernels.read_text()
    unnoticed = []
    for name, (old, new) in DEFECTS.items():
        assert old in right, name
        kernels.write_text(right.replace(old, new))
        build(tmp_path, tmp_path / "build", "--target", "test_simt")
        if subprocess.run([tmp_path / "build" / "test_simt"], stdout=subprocess.DEVNULL).returncode == 0:
            unnoticed.append(name)
    assert not unnoticed
