"""How the torch-free native tests are built."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "native"
JOBS = str(min(4, os.cpu_count() or 1))


def run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-8000:]}"


def build(source: Path, folder: Path, *target: str) -> None:
    run("cmake", "-S", source, "-B", folder)
    run("cmake", "--build", folder, "--parallel", JOBS, *target)
