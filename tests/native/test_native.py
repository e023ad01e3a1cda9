"""The torch-free native tests (CMakeLists.txt, tests/native, tests/cuda/simt), so that pytest covers them too."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_defects import DEFECTS, planted
from native_build import BUILD, JOBS, ROOT, build, run

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


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
