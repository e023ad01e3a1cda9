"""What tests of the command line run: a small walk, the environment of a child, and Ctrl-C at a call."""

from __future__ import annotations

import os
from pathlib import Path

from noisykernels.cli.main import main
from noisykernels.cli.reading import LEVELS, Numbers

ROOT = Path(__file__).parents[2]
numbers = Numbers(LEVELS)


def small_walk(cache: str, *flags: object) -> int:
    fixed = ["--epochs", "1", "--cache", cache, "--rows", "60", "--draws", "1", "--quiet"]
    levels = [] if "--levels" in flags else ["--levels", "0.1,1,100"]
    return main(["walk", *fixed, *levels, *map(str, flags)])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
