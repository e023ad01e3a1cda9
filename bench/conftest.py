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

ROWS: list[dict[str, Any]] = []

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
        unit: float = 1.0,
        **others: Callable[[], Any],
    ) -> dict[str, float]:
        with torch.inference_mode():
            times = interleaved({"ours": ours, "baseline": baseline, **others}, rounds, target)
        # Ratios pair by pair within a round, then their median: what a slow spell touches, it touches in all of a round.
        ratios = {
            name: statistics.median(t / b for t, b in zip(times[name], times["baseline"], strict=True)) for name in times
        }
        pairs = sorted(t / b for t, b in zip(times["ours"], times["baseline"], strict=True))
        row = {
            "what": title,
            "noiseless us" if at_least is None else "baseline us": 1e6 * statistics.median(times["baseline"]) / unit,
            "ours": ratios["ours"] if at_least is None else 1 / ratios["ours"],
            "spread": (pairs[len(pairs) // 10], pairs[-1 - len(pairs) // 10]),
            "bar": bar if at_least is None else at_least,
            "met": ratios["ours"] <= bar if bar is not None else (1 / ratios["ours"] >= at_least if at_least else None),
            **{name: ratios[name] for name in others},
        }
        ROWS.append(row)
        benchmark.extra_info.update({k: v for k, v in row.items() if k != "what"})
        with torch.inference_mode():
            benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
        return ratios

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One table of everything that was measured."""
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    write(f"threads {torch.get_num_threads()}, torch {torch.__version__}; ratios to the noiseless torch op in the same rounds")
    others = list(dict.fromkeys(k for r in ROWS for k in r if k not in ("what", "noiseless us", "baseline us", "ours", "spread", "bar", "met")))
    write(f"{'what':46s} {'base us':>9s} {'ours':>7s} {'p10..p90':>13s} {'bar':>7s}      " + " ".join(f"{o:>14s}" for o in others))
    for r in ROWS:
        base = r.get("noiseless us", r.get("baseline us"))
        low, high = r["spread"]
        verdict = "" if r["met"] is None else ("ok" if r["met"] else "MISSED")
        cells = " ".join(f"{r[o]:14.2f}" if o in r else " " * 14 for o in others)
        bar = "" if r["bar"] is None else f"{r['bar']:.2f}"
        write(f"{r['what']:46s} {base:9.1f} {r['ours']:7.2f} {low:6.2f}-{high:6.2f} {bar:>7s} {verdict:6s} {cells}")


def pytest_addoption(parser: Any) -> None:
    """--compile adds torch.compile's version of plain torch's noise (slow to build)."""
    parser.addoption("--compile", action="store_true", help="also time torch.compile of the plain noise")
