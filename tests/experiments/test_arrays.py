"""`arrays=` of the studies that put an arithmetic everywhere: what it draws for a chip is shared as it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.experiments import order_sensitivity, sweep_formats
from noisykernels.hardware import Draw


class Twice(nn.Module):
    """A layer that is called twice: the scores are what its two calls differ in."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - self.layer(x) + torch.tensor([1.0, 0.0])


class Noisy(nk.Serial):
    """An arithmetic with weights of its own on each chip."""

    operands = (*nk.Serial.operands, "programming")

    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        return super().contract(x, weight + 9 * draw.fixed(weight.shape, "programming"), draw)


X, LABELS = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(("arrays", "same"), [("module", True), ("parameter", True), ("call", False)])
def test_two_calls_of_a_layer_are_one_chip(arrays: Any, same: bool) -> None:
    torch.manual_seed(0)
    accuracies = {
        sweep_formats(
            Twice(nn.Linear(4, 2)), (X, LABELS), ["M20E6"], seed=seed, arrays=arrays, arithmetic=Noisy
        ).results[0].normalised
        for seed in range(8)
    }  # fmt: skip
    assert (accuracies == {1.0}) is same
    layer = nk.NoisyLinear(4, 2, hardware=[nk.WeightNoise(add=9.0), nk.Serial(ordered=True)])
    found = {
        order_sensitivity(Twice(layer), (X, LABELS), permutations=2, seed=seed, arrays=arrays).orders["none"]
        for seed in range(8)
    }
    assert (found == {1.0}) is same


def test_a_store_belongs_to_its_arrays(tmp_path: Any) -> None:
    def sweep(arrays: Any) -> None:
        sweep_formats(
            Twice(nn.Linear(4, 2)), (X, LABELS), ["M20E6"], seed=1, arrays=arrays, store=tmp_path / "s.db"
        )  # fmt: skip

    torch.manual_seed(0)
    sweep("module")
    torch.manual_seed(0)
    with pytest.raises(nk.walking.StoreError, match="arrays"):
        sweep("call")
