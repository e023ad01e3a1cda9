"""Recorded walks: noises, models, weights, options, plateaus, searches, parameters, workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from recorded_digests import Cases, Parts, study_parts
from recorded_models import GRID, MODELS, NOISES, ROWS, WEIGHT_NOISES, cnn, problem, saturating
from recorded_names import ADC, DAC, Noise, Serial, WeightNoise, walk, walk_parameter

case = Cases()


@case
def walk_noises() -> Parts:
    """Each noise on one model, with the engine that shares work and with the plain one."""
    parts: Parts = {}
    model, data = problem("mlp")
    for engine in ("auto", "plain"):
        for name, noise in NOISES.items():
            sites = [1, 2] if name == "channels" else None
            study = walk(model, data, noise=noise, sites=sites, engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_models() -> Parts:
    """Each model under mixed noise of its activations and noise of its weights."""
    parts: Parts = {}
    for name in MODELS:
        model, data = problem(name)
        for engine in ("auto", "plain"):
            study = walk(model, data, noise=Noise(add=1.0, mul=0.125), engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
        study = walk(model, data, noise=WeightNoise(add=0.25), target="weight", **GRID)
        parts |= study_parts(study, f"{name} weight ")
    return parts


@case
def walk_weights() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    for name, noise in WEIGHT_NOISES.items():
        for engine in ("auto", "plain"):
            study = walk(model, data, noise=noise, target="weight", engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
    several = walk(model, data, noise=list(WEIGHT_NOISES.values())[:3], target="weight", **GRID)
    for study, name in zip(several, WEIGHT_NOISES, strict=False):
        parts |= study_parts(study, f"several {name} ")
    return parts


@case
def walk_several_noises() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    chosen = ["add", "mul", "mul_add", "add_mul", "fold"]
    for engine in ("auto", "plain"):
        studies = walk(model, data, noise=[NOISES[n] for n in chosen], engine=engine, **GRID)
        for name, study in zip(chosen, studies, strict=True):
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_options() -> Parts:
    """Rows, float64, chosen sites, floor, axis, sizes of passes, memory, data in batches, a count of draws as ids."""
    parts: Parts = {}
    model, data = problem("cnn")
    grid = {"noise": NOISES["mul_add"], **GRID}
    ways: dict[str, dict[str, Any]] = {
        "rows": {"rows": ROWS},
        "rows permuted": {"rows": torch.tensor(ROWS).flip(0)},
        "sites by name": {"sites": ["conv*", "relu2", 0]},
        "sites by index": {"sites": 3},
        "floor": {"floor": 0.125},
        "axis": {"axis": "linear"},
        "passes": {"batch_rows": 70, "draws_per_pass": 1},
        "memory": {"memory": 200_000},
        "plain memory": {"memory": 200_000, "engine": "plain"},
        "draws": {"draws": [9, 4, 4_000_000_000]},
        "levels": {"levels": torch.tensor([8.0, 0.0, 1.0])},
        "threads": {"threads": 1},
        "description": {"description": ("net", "whole numbers")},
        "seed": {"seed": 2**63 + 11},
    }
    for name, way in ways.items():
        parts |= study_parts(walk(model, data, **{**grid, **way}), f"{name} ")
    batches = [(x, y) for x, y in zip(data[0].split(100), data[1].split(100), strict=True)]
    parts |= study_parts(walk(model, batches, **grid), "batches ")
    double = cnn().double()
    parts |= study_parts(walk(double, (data[0].double(), data[1]), **grid), "float64 ")
    calls: list[tuple[int, int]] = []
    walk(model, data, progress=lambda done, total: calls.append((int(done), int(total))), **grid)
    parts["progress ends with"] = str(calls[-1])
    training = cnn().train()
    walk(training, data, **grid)
    parts["model left in training mode"] = str(all(m.training for m in training.modules()))
    return parts


@case
def walk_plateaus() -> Parts:
    parts: Parts = {}
    for name in ("plain mlp", "cnn"):
        model, data = problem(name, 1200)
        how: dict[str, Any] = {"levels": [1e-4, 0.02, 1.0, 8.0, 1e4, 1e6], "draws": 2, "seed": 5, "plateaus": 0.05}
        for kind in ("gaussian", "uniform"):
            noises = [Noise(add=1.0, kind=kind), Noise(mul=0.25, kind=kind)]
            for study, term in zip(walk(model, data, noise=noises, **how), ("add", "mul"), strict=True):
                parts |= study_parts(study, f"{name} {kind} {term} ")
    return parts


@case
def walk_search() -> Parts:
    """The adaptive walk: activations, several noises, and chips."""
    parts: Parts = {}
    model, data = problem("cnn", 480)
    for engine in ("auto", "plain"):
        how: dict[str, Any] = {"seed": 5, "engine": engine, "sites": ["input", "conv2", "fc"], "rel_ci": 0.15}
        parts |= study_parts(walk(model, data, noise=NOISES["mul_add"], **how), f"{engine} ")
    noises = [Noise(add=1.0), Noise(mul=1.0)]
    for study, name in zip(walk(model, data, noise=noises, seed=6, rel_ci=0.4), ("add", "mul"), strict=True):
        parts |= study_parts(study, f"several {name} ")
    weight = WeightNoise(add=1.0, relative="layer")
    parts |= study_parts(walk(model, data, noise=weight, target="weight", seed=7, rel_ci=0.6), "chips ")
    return parts


def converting(bits: float) -> list[Any]:
    return [DAC(int(bits), "row"), ADC(int(bits), "row")]


def leaking(share: float) -> list[Any]:
    return [Serial(leak=1 - share)]


def stepping(level: float) -> list[Any]:
    return [Serial(step_noise=level)]


@case
def walk_parameters() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    for engine in ("auto", "plain"):
        limits = walk_parameter(model, data, saturating, [2.0, 8.0, 64.0], name="limit", seed=1, engine=engine)
        bits = walk_parameter(model, data, converting, [2, 4, 8], name="bits", axis="linear", engine=engine)
        leaks = walk_parameter(
            model, data, leaking, [0.03125, 0.125], name="leak", larger="worse", sites=["fc"], engine=engine
        )
        steps = walk_parameter(
            model, data, stepping, [0.5, 8.0], name="noise", larger="worse", draws=2, sites=["fc", "conv1"],
            engine=engine, rows=ROWS, floor=0.125,
        )  # fmt: skip
        for name, study in (("limit", limits), ("bits", bits), ("leak", leaks), ("step noise", steps)):
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_workers() -> Parts:
    """Two processes and two threads, also without a tape."""
    parts: Parts = {}
    model, data = problem("cnn")
    grid = {"noise": NOISES["mul_add"], "threads": 1, **GRID}
    parts |= study_parts(walk(model, data, executor=2, **grid), "processes ")
    with ThreadPoolExecutor(2) as executor:
        parts |= study_parts(walk(model, data, executor=executor, **grid), "threads ")
        parts |= study_parts(walk(model, data, executor=executor, engine="plain", **grid), "threads plain ")
        search = {"noise": Noise(add=1.0), "seed": 5, "threads": 1, "rel_ci": 0.2, "sites": ["conv2"]}
        parts |= study_parts(walk(model, data, executor=executor, **search), "threads search ")
    return parts
