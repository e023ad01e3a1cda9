"""Progress bars, where tqdm is installed, or the caller's own function."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress_bar", "progress_of"]


def progress_bar(total: int | None, text: str, **options: Any) -> Any:
    """A tqdm bar on standard error, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    pause = 0.1 if sys.stderr.isatty() else 10.0  # seconds between updates; a log wants few lines
    return tqdm(total=total, desc=text, mininterval=pause, **options)


@contextlib.contextmanager
def progress_of(
    name: str, wanted: bool | Callable[[int, int], object], total: int
) -> Iterator[Callable[[float], object]]:
    """A function to call with the work done since: nothing, a caller's (done, total), or a bar."""
    told, done = 0, 0.0
    bar = progress_bar(total, name, unit="step") if wanted is True else None

    def advance(more: float) -> None:
        nonlocal told, done
        done += more
        while told < min(total, int(done + 1e-6)):
            told += 1
            if callable(wanted):
                wanted(told, total)
            elif bar is not None:
                bar.update()

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
