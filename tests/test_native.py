"""The torch-free native tests (CMakeLists.txt, tests/native), so that pytest covers them too."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_native() -> None:
    build = ROOT / "build" / "native"
    jobs = str(min(4, os.cpu_count() or 1))
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build)],
        ["cmake", "--build", str(build), "--parallel", jobs],
        ["ctest", "--test-dir", str(build), "--parallel", jobs, "--output-on-failure", "--no-tests=error"],
    ):
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout[-8000:]}"
