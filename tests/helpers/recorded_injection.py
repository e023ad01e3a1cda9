"""Recorded sites and scores of models that run noisily."""

from __future__ import annotations

import torch
from recorded_digests import Cases, Parts, six
from recorded_models import MODELS, problem
from recorded_names import Noise, inject, noise_state, sites_of

case = Cases()


@case
def injection() -> Parts:
    """Names and numbers of sites, and scores of models that run noisily."""
    parts: Parts = {}
    for name in MODELS:
        model, (inputs, _) = problem(name, 12)
        parts[f"{name} sites"] = "\n".join(
            str((s.index, s.name, s.id, s.shape, s.row_dim)) for s in sites_of(model, inputs[:2])
        )
        if name in ("attention", "plain mlp"):  # its scores depend on the order of sums
            continue
        with torch.inference_mode(), inject(model, Noise(add=1.0, mul=0.125), example_input=inputs[:2]):
            with noise_state(model, seed=3, draws=[2, 7], rows=list(range(5, 17))):
                parts[f"{name} scores"] = model(inputs)
        linear = None if name == "own" else {"*:linear": Noise(add=1.0)}  # whose layers keep their own
        with torch.inference_mode(), inject(model, linear, repeats=2, example_input=inputs[:2]):
            with noise_state(model, seed=3):
                parts[f"{name} repeats"] = six(model(inputs))
    model, (inputs, _) = problem("own", 12)
    with torch.inference_mode(), noise_state(model, seed=3, draws=[0, 1]):
        parts["own layers"] = model(inputs)
    parts["own repr"] = repr(model)
    return parts
