"""Layers of BrainScaleS-2: clamped weights, training, rectifiers, calibration."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import noisykernels as nk
from noisykernels.brainscales import BrainScaleS2, BSS2Conv2d, BSS2Linear, BSS2ReLU, ConvertingReLU, bss2_calibration

pytestmark = pytest.mark.usefixtures("one_thread")


def test_layers_clamp_their_weights() -> None:
    torch.manual_seed(0)
    layer = BSS2Linear(200, 6, device=BrainScaleS2(noise_std=0.0))
    assert float(layer.weight.detach().abs().max()) <= 63 and 15 < float(layer.weight.detach().std()) < 22
    with torch.no_grad():
        layer.weight[0] = 100.0
        layer.bias[:] = torch.tensor([300.0, -0.5, 0.0, 1.7, -300.0, 2.0])
    x = torch.full((1, 200), 3.0)
    y = layer(x)
    sums = (0.002 * 3 * layer.weight.detach().clamp(-63, 63).round()).split(128, 1)
    digital = torch.stack([part.sum(1).floor() for part in sums]).sum(0)
    assert torch.equal(y[0], (digital + torch.tensor([127.0, -1.0, 0.0, 1.0, -128.0, 2.0])).clamp(-128, 127))
    y.sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((6, 200), 0.006))  # of clamped weights too
    assert torch.equal(layer.bias.grad, torch.ones(6))
    copied = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert torch.equal(copied(x), y) and copied.state_dict().keys() == {"weight", "bias"}
    conv = BSS2Conv2d(3, 4, 3, padding=1, bias=False)
    assert conv(torch.full((2, 3, 5, 5), 31.0)).shape == (2, 4, 5, 5)


def test_a_network_of_layers_learns() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 32, (256, 20)).float()
    labels = (x[:, :10].sum(1) > x[:, 10:].sum(1)).long()
    device = BrainScaleS2(0.02, ordered=True)
    model = nn.Sequential(
        BSS2Linear(20, 32, False, device=device), ConvertingReLU(2), BSS2Linear(32, 2, False, device=device)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    for step in range(40):
        optimizer.zero_grad()
        with nk.noise_state(model, seed=1, draws=[step]):
            F.cross_entropy(model(x) / 8, labels).backward()
        optimizer.step()
    with nk.noise_state(model, seed=2):
        assert float((model(x).argmax(1) == labels).float().mean()) > 0.9


def test_rectifiers() -> None:
    x = torch.tensor([-5.0, 0.0, 0.9, 1.0, 7.9, 126.5, 127.0, 300.0], requires_grad=True)
    y = BSS2ReLU()(x)
    assert y.tolist() == [0, 0, 0, 1, 7, 126, 127, 127]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    for shift, expected in ((0, [0, 0, 0, 1, 7, 31, 31, 31]), (2, [0, 0, 0, 0, 1, 31, 31, 31])):
        y = ConvertingReLU(shift)(x)
        assert y.tolist() == expected
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, *[0.5**shift] * 6]


def test_calibration_finds_the_parameters() -> None:
    """With errors of five standard deviations of each estimate allowed."""
    torch.manual_seed(0)
    rows, neurons = 2000, 15
    x, weight = torch.randint(0, 32, (rows, 100)).float(), torch.randint(-63, 64, (neurons, 100)).float()
    exact = x @ weight.T
    # The floor takes half an LSB off, which shifts the ratio of small sums only, to both sides.
    gain, noise_std = bss2_calibration(nk.linear(x, weight, hardware=[BrainScaleS2(0.003, 1.5)], seed=1), exact)
    assert abs(gain / 0.003 - 1) < 0.01
    assert abs(noise_std / math.hypot(1.5, 1 / math.sqrt(12)) - 1) < 5 * 1.2 / math.sqrt(2 * rows)
    with pytest.raises(ValueError, match="other numbers than 0"):
        bss2_calibration(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="two arrays"):
        bss2_calibration(torch.zeros(3), torch.zeros(3))
