"""The torch-free native tests (CMakeLists.txt, tests/native, tests/simt), so that pytest covers them too."""

import importlib.util
import json
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
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_limits_of_the_cuda_kernels() -> None:
    """No spills, registers and shared memory within tools/cuda_limits.json, on one of its architectures."""
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "tools" / "cuda_check.py")
    assert spec is not None and spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    check.BUILD.mkdir(parents=True, exist_ok=True)
    limits = json.loads(check.LIMITS.read_text())
    facts = {k: f for source in check.SOURCES for k, f in check.compile_for(source, 90, "true")[1].items()}
    assert len(facts) > 100
    assert not [wrong for kernel, fact in facts.items() for wrong in check.wrong_of(kernel, fact, limits)]


@pytest.mark.full
def test_all_cases_of_the_cuda_kernels() -> None:
    build(ROOT, BUILD, "--target", "test_simt")
    run(BUILD / "test_simt", "--full")


# A defect of each kind in csrc/cuda: what to replace, and by what.
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
    "the line below is the same": (
        "row.values(top + width, {top + width, 1, 0, 4})",
        "row.values(top, {top, 1, 0, 4})",
    ),
    "product: no barrier between stages": (
        "__syncthreads();  // all copies of this stage",
        "// all copies of this stage",
    ),
    "product: too weak a wait": ("wait_for_copies<kStages - 2>", "wait_for_copies<kStages - 1>"),
    "product: copies that nothing waits for": ("  wait_for_copies<0>();", ""),
    "product: no barrier before the results": ("  __syncthreads();\n  static_assert", "  static_assert"),
    "product: columns dealt wrongly": ("column / 2 * 4 + which * 2", "column / 2 * 4 + (1 - which) * 2"),
    "product: no warp barrier before the noise": (
        "shared);\n    __syncwarp();\n    const int columns",
        "shared);\n    const int columns",
    ),
    "product: no warp barrier before the store": (
        "    __syncwarp();\n    constexpr int kLanes",
        "    constexpr int kLanes",
    ),
    "product: no warp barrier after the store": (
        "column0 + c, 1, 0, 4}, y);\n    }\n    __syncwarp();",
        "column0 + c, 1, 0, 4}, y);\n    }",
    ),
    "product: beyond the inner dimension": ("in_a = k < g.K && ", "in_a = "),
    "product: beyond the rows": ("k < g.K && row0 + row < g.M", "k < g.K"),
    "product: columns on top of each other": (
        "values[16 * i + 8 * below + lane / 4][column + c] =",
        "values[16 * i + 8 * below + lane / 4][column] =",
    ),
    "product: a stage too far": ("(step + kStages - 1) * kDepth", "(step + kStages) * kDepth"),
    "product: rows of the first tiles again": ("(group * kRowsTogether + at % rows_here)", "(at % rows_here)"),
    "product: chunks looked for elsewhere": (
        "place_w(row, chunk + lane / 8 % 2)",
        "place_a(row, chunk + lane / 8 % 2)",
    ),
    "serial: no barrier before the steps": ("__syncthreads();\n    const int count", "const int count"),
    "serial: no barrier after the steps": ("    __syncthreads();\n  }\n#pragma", "  }\n#pragma"),
    "serial: beyond the steps": (" && step + p < s.K;", ";"),
    "serial: beyond the lines": ("first + line < lines && ", ""),
    "serial: outputs beyond the last": ("if (i < s.I && j < s.J) ", ""),
    "serial: one matrix for all": ("t % s.Tb", "0"),
    "serial: rows of another layout": ("k_stride == 1 ? i % kDepth : i / kTile", "i % kDepth"),
    "serial: no order": ("s.order == nullptr ? position : s.order[position]", "position"),
    "serial: one order for all": ("s.order + output * s.K", "s.order"),
    "serial: noise by position": ("element = place.element + k;", "element = place.element + p;"),
    "serial: a block of noise for all": ("if (block != block_) {", "if (block_ < 0) {"),
    "serial: one stream for both roundings": ("Operand::kRoundingOfSum", "Operand::kRoundingOfProduct"),
    "serial: bad ids": ("const bool valid = id.valid || ", "const bool valid = true || "),
    "serial: sums instead of positions": ("s.track ? state.last : state.v", "state.v"),
    "serial: always clamped": ("C(0), C(0), C(0), C(-1)", "C(0), C(0), C(0), C(0)"),
    "serial: noise in tiles": ("s.noisy || s.order_of_each", "s.order_of_each"),
    "gradient: before the last clamp, of a": (
        "where_less(last[row * g.J + j], position, grad[row * g.J + j], C(0))",
        "grad[row * g.J + j]",
    ),
    "gradient: before the last clamp, of b": (
        "where_less(last[output], position, grad[output], C(0))",
        "grad[output]",
    ),
    "gradient: one matrix for all": ("b[(t * g.K + k) * g.J + j]", "b[k * g.J + j]"),
    "quantize: the tail is not cut": ("least(first + 4, q.n)", "first + 4"),
    "quantize: one draw for all": ("row / q.noise.B, row % q.noise.B", "0, row % q.noise.B"),
    "quantize: bad ids": ("random && !id.valid ? kNaN<C> : rounded", "rounded"),
    "quantize: a signalling NaN": (
        "where_less(C(-1), abs_of(v), round_by<Rule::kAny>(c, v, u), kNaN<C>)",
        "round_by<Rule::kAny>(c, v, u)",
    ),
}
# Of them, those of code that the host runs.
OF_THE_HOST = ("one block too few of a channel", "serial: noise in tiles")


def planted(defect: str, csrc: Path) -> Path:
    """Puts a defect into a copy of our sources; returns the kernels that have it."""
    old, new = DEFECTS[defect]
    (file,) = (f for f in (csrc / "cuda").iterdir() if old in f.read_text())
    file.write_text(file.read_text().replace(old, new))
    kernels = {"gemm.cu": "gemm.cu", "ptx.h": "gemm.cu", "serial.cu": "serial.cu"}
    return csrc / "cuda" / kernels.get(file.name, "epilogue.cu")


@pytest.mark.full
def test_the_cuda_tests_notice_defects(tmp_path: Path) -> None:
    for part in ("CMakeLists.txt", "csrc", "tests", "bench"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    unnoticed = []
    for defect in DEFECTS:
        planted(defect, tmp_path / "csrc")
        build(tmp_path, tmp_path / "build", "--target", "test_simt")
        if subprocess.run([tmp_path / "build" / "test_simt"], stdout=subprocess.DEVNULL).returncode == 0:
            unnoticed.append(defect)
        shutil.copytree(
            ROOT / "csrc" / "cuda", tmp_path / "csrc" / "cuda", dirs_exist_ok=True, copy_function=shutil.copy
        )
    assert not unnoticed
