"""Recorded errors: types and words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recorded_digests import KINDS_THEN, Cases, Parts
from recorded_models import GRID, mlp, problem, saturating
from recorded_names import (
    ADC,
    Noise,
    Serial,
    WeightNoise,
    chips,
    compare,
    inject,
    layer_formats,
    op,
    order_sensitivity,
    running_sums,
    search_format,
    sweep_formats,
    vote,
    walk,
    walk_mixed,
    walk_parameter,
)
from torch import nn

import noisykernels as nk
from noisykernels.noise.contract import KINDS
from noisykernels.study import Study

case = Cases()


def wrong_calls() -> dict[str, Callable[[], Any]]:
    model, data = problem("mlp", 20)
    noise, x, w = Noise(add=1.0), torch.ones(2, 3), torch.ones(4, 3)

    def of_walk(**how: Any) -> Callable[[], Any]:
        return lambda: walk(model, data, **{"noise": noise, **GRID, **how})

    def on(values: Any) -> Callable[[], Any]:
        return lambda: walk(model, values, noise=noise, **GRID)

    return {
        "walk target": of_walk(target="bias"),
        "walk engine": of_walk(engine="fast"),
        "walk noise": of_walk(noise=1.0),
        "walk weight noise": of_walk(noise=WeightNoise(add=1.0)),
        "walk levels alone": of_walk(draws=None),
        "walk level": of_walk(levels=[-1.0]),
        "walk levels twice": of_walk(levels=[1.0, 1.0]),
        "walk level too large": of_walk(levels=[1e39]),
        "walk draws": of_walk(draws=0),
        "walk draw ids": of_walk(draws=[-1]),
        "walk seed": of_walk(seed=-1),
        "walk sites": of_walk(sites=["conv9"]),
        "walk rel_ci": of_walk(levels=None, draws=None, rel_ci=2.0),
        "walk plateaus": of_walk(plateaus=0.9),
        "walk plateaus of weights": of_walk(plateaus=0.1, noise=WeightNoise(add=1.0), target="weight"),
        "walk executor": of_walk(executor=0),
        "walk rows": of_walk(rows=[1, 2]),
        "walk batch_rows": of_walk(batch_rows=0),
        "walk memory": of_walk(memory=-1),
        "walk levels by row": of_walk(noise=Noise(add=torch.ones(1, 20, 1))),
        "walk order of relative": of_walk(noise=Noise(add=1.0, mul=1.0), target="weight"),
        "walk floor of a search": of_walk(levels=None, draws=None, floor=0.99),
        "walk data": on((data[0], data[1].float())),
        "walk labels": on((data[0], data[1] + 9)),
        "walk nan": on((data[0] / 0 * 0, data[1])),
        "walk no weights": lambda: walk(nn.Flatten(), data, noise=noise, target="weight", **GRID),
        "walk scores": lambda: walk(nn.Identity(), data, noise=noise, **GRID),
        "walk_parameter name": lambda: walk_parameter(model, data, saturating, [1.0], name=""),
        "walk_parameter larger": lambda: walk_parameter(model, data, saturating, [1.0], larger="wider"),
        "walk_parameter make": lambda: walk_parameter(model, data, 3, [1.0]),
        "walk_parameter devices": lambda: walk_parameter(model, data, str, [1.0]),
        "walk_mixed ratios": lambda: walk_mixed(model, data, ratios=[2.0], seed=1),
        "vote kinds": lambda: vote(model, data, noise=noise, draws=2, seed=1, kinds=["most"]),
        "vote without noise": lambda: vote(model, data, noise=None, draws=2, seed=1),
        "vote sites": lambda: vote(model, data, noise={"1": noise}, draws=2, seed=1, sites=["1"]),
        "chips without noise": lambda: chips(model, data, seed=1),
        "chips draws": lambda: chips(model, data, noise=noise, draws=0, seed=1),
        "sweep_formats none": lambda: sweep_formats(model, data, []),
        "sweep_formats format": lambda: sweep_formats(model, data, ["M99E1"]),
        "search_format target": lambda: search_format(
            model, data, nk.experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 2), target=2.0
        ),
        "layer_formats evaluations": lambda: layer_formats(model, data, "M4E5", evaluations=0),
        "order_sensitivity orders": lambda: order_sensitivity(model, data, None, orders=["up"], seed=1),
        "order_sensitivity arithmetic": lambda: order_sensitivity(model, data, Serial(ordered=False), seed=1),
        "running_sums": lambda: running_sums(x, w, None),
        "compare names": lambda: compare(*[studies_of_two()[0]] * 2, ["a", "a"]),
        "inject twice": lambda: [inject(model, noise) for _ in range(2)],
        "inject pattern": lambda: inject(mlp(), {"conv9": noise}, example_input=data[0][:2]),
        "noise level": lambda: Noise(add=-1.0),
        "noise kind": lambda: Noise(add=1.0, kind="poisson"),
        "noise fold": lambda: Noise(add=1.0, mul=1.0, kind="uniform", fold=True),
        "perturb operand": lambda: op("perturb")(x, noise, seed=1, operand="sum"),
        "perturb draws": lambda: op("perturb")(x, noise, seed=1, draws=3),
        "perturb rows": lambda: op("perturb")(x, noise, seed=1, rows=[0, 1, 2]),
        "linear shapes": lambda: op("linear")(x, w.T, noise=noise, seed=1),
        "linear hardware": lambda: op("linear")(x, w, hardware=[1], seed=1),
        "linear same stream": lambda: op("linear")(x, w, hardware=[WeightNoise(add=1.0)] * 2, seed=1),
        "conv2d weight": lambda: op("conv2d")(x, w, noise=noise, seed=1),
        "eps kind": lambda: op("eps")((2, 3), kind="poisson", seed=1),
        "quantize format": lambda: op("quantize")(x, "M99E1"),
        "serial order": lambda: Serial(order="up"),
        "adc bits": lambda: ADC(0, 1.0),
        "study file": lambda: Study.load(Path(__file__).with_name("recorded.py")),
        "study export": lambda: studies_of_two()[0].export("records.xlsx"),
    }


def studies_of_two() -> tuple[Study, Study]:
    model, data = problem("mlp", 20)
    return walk(model, data, noise=Noise(add=1.0), **GRID), walk(model, data, noise=Noise(mul=1.0), **GRID)


@case
def messages() -> Parts:
    """Types and words of errors."""
    parts: Parts = {}
    for name, call in wrong_calls().items():
        try:
            call()
        except Exception as error:
            text = str(error).replace(str(Path(__file__).resolve().parent), "").replace(str(Path(__file__).parent), "")
            text = text.replace(", ".join(KINDS), ", ".join(KINDS_THEN))
            parts[name] = f"{type(error).__name__}: {text}".split("\nException raised from")[0]
        else:
            parts[name] = "no error"
    return parts
