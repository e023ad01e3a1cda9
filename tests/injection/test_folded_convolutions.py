"""Convolutions of several values of a row, folded into the batch: frames, clips, patches of it are on one array, and
what is fresh is each row's own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.hardware import ADC, DAC, PCM, ColumnGain, InputNoise, MacNoise, WeightNoise
from noisykernels.injection import programmed

CLIPS, SIDE = 2, 4
LAYERS: dict[str, Any] = {
    "conv1d": lambda: nn.Conv1d(2, 4, 3, padding=1), "conv2d": lambda: nn.Conv2d(2, 4, 3, stride=2, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 4, 3, padding=(1, 0, 1), dilation=(1, 1, 2)),
    "conv3d in groups": lambda: nn.Conv3d(2, 4, 2, groups=2, bias=False),
    "conv_transpose3d": lambda: nn.ConvTranspose3d(2, 4, 3, stride=2, output_padding=1, groups=2),
}  # fmt: skip
HARDWARE: dict[str, list[Any]] = {
    "weights": [WeightNoise(add=0.1, relative="channel")], "pairs": [PCM(time=10.0, over="channel")],
    "products": [WeightNoise(mul=0.1), MacNoise(per_product=0.1, per_step=0.1, read=0.1, relative="channel")],
    "one by one": [MacNoise(per_product=0.1, read=0.1, explicit=True)],
    "serial": [nk.Serial("M6E5", order="ascending")],
    "converters": [InputNoise(add=0.1), DAC(6, "row"), ColumnGain(0.1), ADC(6, "row")],
}  # fmt: skip


class Clips(nn.Module):
    """Each row holds several clips, which a layer sees as rows of their own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = LAYERS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.unflatten(0, (-1, CLIPS))


def run(kind: str, x: Tensor, hardware: Any, **state: Any) -> Tensor:
    """The noisy result."""
    model = Clips(kind).eval()
    with torch.no_grad(), nk.inject(model, None, hardware=hardware, example_input=x), warnings.catch_warnings():
        warnings.simplefilter("error")
        with nk.noise_state(model, seed=1, **state):
            found: Tensor = model(x)
    return found


@pytest.mark.parametrize("devices", HARDWARE)
@pytest.mark.parametrize("kind", LAYERS)
def test_hardware_enters_draw_by_draw_and_row_by_row(kind: str, devices: str) -> None:
    dims = int(kind.partition("d")[0][-1]) if "transpose" not in kind else 3
    x = torch.randn(3, CLIPS, 2, *[SIDE] * dims, generator=torch.Generator().manual_seed(1))
    clean = Clips(kind).eval()(x).detach()
    hardware = HARDWARE[devices]
    both = run(kind, x, hardware, draws=[4, 7])
    assert both.shape == (6, *clean.shape[1:]) and not torch.allclose(both[:3], clean, atol=1e-3)
    assert torch.allclose(run(kind, x, hardware, draws=[7]), both[3:], atol=1e-4)
    assert torch.allclose(run(kind, x[1:2], hardware, draws=[4], rows=[1]), both[1:2], atol=1e-4)
    if devices == "weights":  # one chip for all clips
        same = run(kind, x[:1, :1].expand(1, CLIPS, *x.shape[2:]), hardware)
        assert torch.allclose(same[:, 0], same[:, 1], atol=1e-5)
    if devices in ("weights", "pairs"):
        model = Clips(kind).eval()
        with nk.inject(model, None, hardware=hardware, example_input=x):
            chip = programmed(model, x, seed=1, draw=7)
        model.load_state_dict(chip)
        assert torch.allclose(model(x), both[3:], atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_without_noise_it_is_the_layer_and_so_are_its_gradients(kind: str) -> None:
    dims = int(kind.partition("d")[0][-1]) if "transpose" not in kind else 3
    model, x = Clips(kind), torch.randn(3, CLIPS, 2, *[SIDE] * dims, requires_grad=True)
    clean = model(x)
    wanted = torch.autograd.grad(clean.sin().sum(), [x, *model.parameters()])
    for hardware in ([MacNoise(per_product=1e-9)], [nk.Serial()], [DAC(24, 100.0)]):
        with nk.inject(model, None, hardware=hardware, example_input=x.detach()), nk.noise_state(model, seed=1):
            noisy = model(x)
            assert torch.allclose(noisy, clean, atol=1e-4)
            found = torch.autograd.grad(noisy.sin().sum(), [x, *model.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True))
