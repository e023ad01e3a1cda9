"""Exported programs of injected models: constants are found, parts have the names that they have without noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import hardware


class Block(nn.Module):
    """Makes a constant of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block = nn.Linear(6, 6), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.relu(self.first(x)))


X = torch.randn(3, 6)
NOISE = nk.Noise(add=0.1)
PLACED: dict[str, dict[str, Any]] = {
    "noise": dict(noise=NOISE),
    "a function": dict(noise=NOISE, where=lambda name, module: nk.Noise(add=0.3) if "fc" in name else None),
    "converters": dict(noise=None, hardware=[hardware.DAC(4, limit=3.0), hardware.ADC(4, limit=3.0)]),
    "weights": dict(noise=None, hardware=[nk.WeightNoise(add=0.1), nk.MacNoise(read=0.1)]),
    "cells": dict(noise=None, hardware=[hardware.DifferentialPair(0.1), hardware.PCM(), hardware.ColumnOffset(0.1)]),
    "arithmetic": dict(noise=None, arithmetic=nk.Serial("fp16")),
}


def parts(program: Any) -> set[Any]:
    """The paths of the modules that a program's operations come from."""
    return {path for n in program.graph.nodes for path, _ in n.meta.get("nn_module_stack", {}).values()}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("placed", PLACED)
def test_an_exported_program_has_the_noise_and_the_names(placed: str, strict: bool) -> None:
    torch._dynamo.reset()
    model = Net()
    clean = torch.export.export(model, (X,), strict=strict)
    with nk.inject(model, **PLACED[placed]), nk.noise_state(model, seed=1), torch.no_grad():
        want = model(X)
        program = torch.export.export(model, (X,), strict=strict)
    assert torch.allclose(program.module()(X), want, atol=1e-5)
    assert parts(program) == parts(clean) == {"", "first", "block", "block.fc"}
    targets = {spec.target for spec in program.graph_signature.input_specs}
    assert any(str(target).startswith("block.lifted_tensor") for target in targets) or not strict
    assert not any(str(target).startswith("forward") for target in targets)
