"""Recorded walks that keep their results in a store, and go on from it."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from recorded_digests import Cases, Parts, study_parts
from recorded_models import GRID, LEVELS, NOISES, WEIGHT_NOISES, problem, saturating
from recorded_names import Noise, walk, walk_parameter

case = Cases()


def tasks_of(path: Path) -> dict[str, str]:
    """Name and result of every task that a store holds."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT task, result FROM tasks ORDER BY task"))


def claimed(path: Path) -> list[tuple[Any, ...]]:
    """Task, owner and time of everything that a store holds: it stays as it is if nothing is evaluated again."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT task, owner, finished FROM tasks ORDER BY task").fetchall()


@case
def walk_store() -> Parts:
    """Fresh, again, enlarged; several noises, weights, a parameter and a search in stores."""
    parts: Parts = {}
    model, data = problem("cnn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activation.db"
        grid = {"noise": NOISES["mul_add"], "store": path, **GRID}
        parts |= study_parts(walk(model, data, sites=["conv1", "fc"], **grid), "fresh ")
        parts["fresh tasks"], before = tasks_of(path), claimed(path)
        parts |= study_parts(walk(model, data, sites=["conv1", "fc"], **grid), "again ")
        parts["again evaluated"] = str(len(set(claimed(path)) - set(before)))
        larger = {**grid, "levels": [*LEVELS, 2.0], "draws": 3}
        parts |= study_parts(walk(model, data, sites=["conv1", "fc", "relu2"], **larger), "enlarged ")
        parts["enlarged tasks"] = tasks_of(path)
        parts["enlarged kept"] = str(set(before) <= set(claimed(path)))
        others: dict[str, Callable[[Path], Any]] = {
            "several": lambda p: walk(model, data, noise=[NOISES["add"], NOISES["mul"]], store=p, **GRID)[1],
            "weight": lambda p: walk(model, data, noise=WEIGHT_NOISES["layer"], target="weight", store=p, **GRID),
            "parameter": lambda p: walk_parameter(model, data, saturating, [2.0, 8.0], name="limit", store=p),
            "search": lambda p: walk(model, data, noise=Noise(add=1.0), seed=5, sites=["fc"], rel_ci=0.2, store=p),
        }
        for name, run in others.items():
            path = Path(folder) / f"{name}.db"
            parts |= study_parts(run(path), f"{name} ")
            before = claimed(path)
            parts[f"{name} tasks"] = str(len(before)) if name == "search" else tasks_of(path)
            parts |= study_parts(run(path), f"{name} again ")
            parts[f"{name} again evaluated"] = str(len(set(claimed(path)) - set(before)))
    return parts
