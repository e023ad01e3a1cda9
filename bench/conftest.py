"""Timing for the benchmarks: contenders run interleaved, so that a drift of the machine meets all of them alike.

Every figure is a ratio of medians from one run. `contest` keeps the ratios in pytest-benchmark's
`extra_info`; the table of all budgets is printed at the end.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from noisykernels import _C

ROWS: list[dict[str, Any]] = []
COLUMNS = ("what", "base us", "ours", "spread", "bar", "met")

# Freed memory stays with the process: fresh pages from the system cost more than the noise, for every contender.
ctypes.CDLL(None).mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int, target: float) -> dict[str, list[float]]:
    """Seconds per call of each contender, `rounds` times; each timing repeats the call for about `target` seconds."""
    repeats = {}
    for name, call in contenders.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(target / max(1e-7, time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


@pytest.fixture
def contest(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., dict[str, float]]:
    """contest(title, ours=..., baseline=..., bar=..., **others): times all interleaved and records medians and ratios.

    The ratio is ours / baseline (smaller is better), or baseline / ours for a bar given as `at_least`.
    """

    def run(
        title: str,
        *,
        ours: Callable[[], Any],
        baseline: Callable[[], Any],
        bar: float | None = None,
        at_least: float | None = None,
        rounds: int = 15,
        target: float = 0.01,
        **others: Callable[[], Any],
    ) -> dict[str, float]:
        with torch.inference_mode():
            times = interleaved({"ours": ours, "baseline": baseline, **others}, rounds, target)
        # Ratios pair by pair within a round, then their median: a slow spell touches all of a round.
        ratios = {
            name: statistics.median(t / b for t, b in zip(series, times["baseline"], strict=True))
            for name, series in times.items()
        }
        pairs = sorted(t / b for t, b in zip(times["ours"], times["baseline"], strict=True))
        ratio, spread = ratios["ours"], (pairs[len(pairs) // 10], pairs[-1 - len(pairs) // 10])
        if at_least is not None:  # how many times faster, not slower
            ratio, spread = 1 / ratio, (1 / spread[1], 1 / spread[0])
        row = {
            "what": title,
            "base us": 1e6 * statistics.median(times["baseline"]),
            "ours": ratio,
            "spread": spread,
            "bar": bar if at_least is None else at_least,
            "met": ratio <= bar if bar is not None else ratio >= at_least if at_least is not None else None,
            **{name: ratios[name] for name in others},
        }
        ROWS.append(row)
        benchmark.extra_info.update({k: v for k, v in row.items() if k != "what"})
        with torch.inference_mode():
            benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
        return ratios

    return run


@pytest.fixture
def small(request: pytest.FixtureRequest) -> bool:
    """Whether studies only show that they run."""
    return bool(request.config.getoption("--small"))


@pytest.fixture
def record_row() -> Callable[[dict[str, Any]], None]:
    """Adds a line to the table."""
    return ROWS.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One table of everything that was measured."""
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    setting = f"threads 2 unless said; CPU level {_C.cpu_level()}; torch {torch.__version__}"
    write(f"{setting}; ratios to the base in the same rounds")
    others = list(dict.fromkeys(k for row in ROWS for k in row if k not in COLUMNS))
    head = f"{'what':52s} {'base us':>9s} {'ours':>7s} {'p10..p90':>13s} {'bar':>7s} {'':6s} "
    write(head + " ".join(f"{name:>14s}" for name in others))
    for row in ROWS:
        low, high = row["spread"]
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        cells = " ".join(f"{row[name]:14.2f}" if name in row else " " * 14 for name in others)
        numbers = f"{row['base us']:9.1f} {row['ours']:7.2f} {low:6.2f}-{high:6.2f} {bar:>7s} {verdict:6s}"
        write(f"{row['what']:52s} {numbers} {cells}")


def pytest_addoption(parser: Any) -> None:
    """--compile adds torch.compile's version of plain torch's noise (slow to build); --small, that studies run."""
    parser.addoption("--compile", action="store_true", help="also time torch.compile of the plain noise")
    parser.addoption("--small", action="store_true", help="studies of a few cells, whose ratios mean nothing")
