"""Files that version 0.1.0 wrote, and how: a study, stores whole and half, a checkpoint."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from recorded_models import GRID, NOISES, WEIGHT_NOISES, filled, problem
from recorded_names import Noise, NoiseSite, NoisyLinear, noise_state, set_cpu_level, walk
from torch import nn

from noisykernels.study import Study
from noisykernels.training import train

FOLDER = Path(__file__).resolve().parents[1] / "data" / "v0_1_0"


def activation_walk(store: Path | None) -> Study:
    """The walk of study.json and of the stores activation.db and activation-half.db, at one level of kernels."""
    model, data = problem("cnn")
    return of_one_level(lambda: walk(model, data, noise=NOISES["mul_add"], store=store, threads=1, **GRID))


def weight_walk(store: Path | None) -> Study:
    """The walk of the stores weight.db and weight-half.db."""
    model, data = problem("cnn")
    how = {"noise": WEIGHT_NOISES["layer"], "target": "weight", "store": store, "threads": 1, **GRID}
    return of_one_level(lambda: walk(model, data, **how))


STORES = {"activation": activation_walk, "weight": weight_walk}


def of_one_level(run: Callable[[], Any]) -> Any:
    """Runs with the kernels that every machine has: a store belongs to the level of its kernels."""
    set_cpu_level("portable")
    try:
        return run()
    finally:
        set_cpu_level("auto")


SETTINGS: dict[str, Any] = {"model": "recorded", "data": "whole numbers", "epochs": 2, "seed": 5}


def noisy_net() -> nn.Module:
    return filled(nn.Sequential(
        nn.Flatten(), NoisyLinear(16, 12, noise=Noise(add=0.5)), nn.BatchNorm1d(12), nn.ReLU(),
        NoiseSite(Noise(mul=0.25)), NoisyLinear(12, 5, noise=Noise(add=0.25)),
    ), 61, 0.125)  # fmt: skip


def trained(model: nn.Module, epochs: int, first_draw: int) -> list[dict[str, float]]:
    """Training of a model with noisy layers, on one thread, with noise that does not repeat."""
    _, (inputs, labels) = problem("mlp", 96)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return of_one_level(lambda: train(
            model, (inputs / 4, labels), epochs=epochs, batch_size=32, seed=5,
            on_step=lambda step, rows: noise_state(model, seed=1, draws=[first_draw + step], rows=rows),
        ))  # fmt: skip
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, str]:
    """What the bits of a training depend on beside the code."""
    return {"torch": str(torch.__version__), "cpu": torch.backends.cpu.get_cpu_capability()}


def lose_half(source: Path, target: Path) -> None:
    """A copy of a store as if its process had been killed half-way: every second task is only claimed, for a time that
    is over."""
    target.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(target)) as db, db:
        for (task,) in db.execute("SELECT task FROM tasks ORDER BY finished, task").fetchall()[1::2]:
            db.execute("DELETE FROM tasks WHERE task = ?", (task,))
            db.execute("INSERT INTO claims VALUES (?, 'killed', 1, 1)", (task,))
    with closing(sqlite3.connect(target)) as db:
        db.execute("VACUUM")
