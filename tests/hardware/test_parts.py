"""Weight noise relative to the largest weight of a group or tile of inputs: which weights have which unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weight_models import problem, walk

import noisykernels as nk
from noisykernels.hardware import ADC, panels
from noisykernels.hardware.noises import part_sizes
from noisykernels.plotting.style import level_label

KEY: dict[str, Any] = dict(seed=3, site=5)


def sizes_of(relative: str, inputs: int) -> list[int]:
    part, _, most = relative.partition(":")
    return part_sizes(part, int(most), inputs)


def unit(weight: Tensor, sizes: list[int]) -> Tensor:
    """max|W| of the part of each weight of (N, K)."""
    return torch.cat([p.abs().amax(1, keepdim=True).expand_as(p) for p in weight.split(sizes, 1)], 1)


def test_sizes_of_groups_and_tiles() -> None:
    """Of a tile as IBM/analog-foundation-models deals them out: as few as there must be, the first ones one larger."""
    assert part_sizes("group", 128, 300) == [128, 128, 44] and part_sizes("group", 400, 300) == [300]
    assert part_sizes("tile", 512, 2048) == [512] * 4 and part_sizes("tile", 512, 513) == [257, 256]
    assert part_sizes("tile", 512, 1537) == [385, 384, 384, 384] and part_sizes("tile", 7, 0) == []


@pytest.mark.parametrize("relative", ["group:4", "tile:4", "group:1", "tile:1000"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_linear_layers_weights(dtype: torch.dtype, relative: str) -> None:
    """Seen through one-hot inputs, by the kernels, the devices and the gradient's own way."""
    torch.manual_seed(1)
    weight = torch.randn(6, 9).to(dtype)
    level = 0.25 * unit(weight, sizes_of(relative, 9)).double()
    expected = nk.perturb(weight, nk.Noise(add=level.unsqueeze(0)), draws=[2, 4], shared=True, operand="weight", **KEY)
    noise = nk.WeightNoise(add=0.25, relative=relative)
    for hardware in ([noise], [noise, ADC(24, 100.0)][: 1 + (dtype == torch.float64)]):
        y = nk.linear(torch.eye(9, dtype=dtype), weight, hardware=hardware, draws=[2, 4], shared=True, **KEY)
        seen = y.view(2, 9, 6).transpose(1, 2).reshape(12, 9)
        assert torch.allclose(seen, expected, rtol=0, atol=0 if len(hardware) == 1 else 1e-4)


@pytest.mark.parametrize("relative", ["group:5", "tile:8"])
def test_convolutions_count_inputs_as_they_are_multiplied(relative: str) -> None:
    torch.manual_seed(1)
    noise = nk.WeightNoise(add=0.5, relative=relative)
    weight = torch.randn(6, 2, 3, 3)  # of two groups
    parts = unit(weight.flatten(1), sizes_of(relative, 18)).view_as(weight)
    by_hand = nk.perturb(weight, nk.Noise(add=0.5 * parts.double().unsqueeze(0)), operand="weight", **KEY)
    x = torch.randn(3, 4, 7, 7)
    y = nk.conv2d(x, weight, groups=2, hardware=[noise], **KEY)
    assert torch.allclose(y, torch.nn.functional.conv2d(x, by_hand, groups=2), atol=1e-5)
    # A transposed one holds (inputs, outputs of a group, ...): an output is what all inputs of its group make.
    weight = torch.randn(4, 3, 3)
    parts = torch.empty_like(weight)
    for g in range(2):
        for o in range(3):
            block = weight[2 * g : 2 * g + 2, o].reshape(1, -1)
            parts[2 * g : 2 * g + 2, o] = unit(block, sizes_of(relative, 6)).view(2, 3)
    by_hand = nk.perturb(weight, nk.Noise(add=0.5 * parts.double().unsqueeze(0)), operand="weight", **KEY)
    x = torch.randn(2, 4, 6)
    y = nk.conv_transpose1d(x, weight, groups=2, hardware=[noise], **KEY)
    assert torch.allclose(y, torch.nn.functional.conv_transpose1d(x, by_hand, groups=2), atol=1e-5)


class Stored(nn.Module):
    """GPT-2's way: (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.Parameter(torch.randn(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.held


def test_an_array_that_is_stored_the_other_way_round() -> None:
    torch.manual_seed(1)
    model, x = Stored(), torch.eye(9)

    def seen(noise: nk.WeightNoise) -> Tensor:
        with nk.inject(model, None, hardware=[noise], example_input=x[:2]), nk.noise_state(model, seed=3):
            return model(x).detach()

    eps = seen(nk.WeightNoise(add=1.0)) - model.held.detach()
    expected = model.held.detach() + 0.5 * unit(model.held.detach().T, [4, 4, 1]).T * eps
    assert torch.allclose(seen(nk.WeightNoise(add=0.5, relative="group:4")), expected, atol=1e-5)


@pytest.mark.parametrize("relative", ["group:4", "tile:4"])
@pytest.mark.parametrize("shape", ["linear", "transposed"])
def test_panels_hold_what_the_whole_holds(shape: str, relative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients; a transposed weight is never cut, as its rows are inputs."""

    def found() -> list[Tensor]:
        torch.manual_seed(2)
        op = nk.linear if shape == "linear" else nk.conv_transpose1d
        sizes = [(3, 7), (12, 7)] if shape == "linear" else [(3, 12, 6), (12, 2, 3)]
        x, w = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes)
        hardware = [nk.WeightNoise(add=0.1, relative=relative)]
        y = op(x, w, hardware=hardware, draws=[4, 1], shared=True, **KEY)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))]

    whole = found()
    for name, value in (("LARGE", 0), ("LEAST", 20)):
        monkeypatch.setattr(panels, name, value)
    monkeypatch.setattr("noisykernels.hardware.execute.LARGE", 0)
    for part, right in zip(found(), whole, strict=True):
        torch.testing.assert_close(part, right, rtol=1e-12, atol=1e-12)


WRONG = ["group", "group:0", "group:-1", "tile:1.5", "tile: 8", "column", "Group:8", "group:8 ", 8, True]


@pytest.mark.parametrize("word", WRONG)
def test_what_is_no_part_is_refused(word: Any) -> None:
    with pytest.raises(ValueError, match="relative must be None, 'layer', 'channel', or 'group:N' or 'tile:N'"):
        nk.WeightNoise(add=0.1, relative=word)


def test_a_part_of_zeros_has_no_noise() -> None:
    weight = torch.cat([torch.zeros(3, 4), torch.ones(3, 4)], 1)
    y = nk.linear(torch.eye(8), weight, hardware=[nk.WeightNoise(add=0.5, relative="group:4")], **KEY).T
    assert torch.equal(y[:, :4], weight[:, :4]) and bool((y[:, 4:] != 1).all())


def test_compiled_layers_and_empty_ones() -> None:
    model, x = nn.Sequential(nn.Linear(9, 6), nn.ReLU()), torch.randn(3, 9)
    hardware = [nk.WeightNoise(add=0.5, relative="tile:4")]
    torch._dynamo.reset()
    with nk.inject(model, None, hardware=hardware, example_input=x), nk.noise_state(model, seed=torch.tensor(1)):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()
    for shape in ((0, 4), (3, 0), (0, 0)):
        weight = torch.ones(shape)
        y = nk.linear(torch.ones(2, shape[1]), weight, hardware=[nk.WeightNoise(add=0.5, relative="group:4")], **KEY)
        assert y.shape == (2, shape[0])


@pytest.mark.parametrize("relative", ["group:4", "tile:5"])
def test_walks_of_weights_count_what_the_plain_engine_counts(relative: str, one_thread: None) -> None:
    """Of convolutions in groups, transposed ones and a linear layer; the study says its unit."""
    model, data = problem("convolutions", 60)
    noise = nk.WeightNoise(add=1.0, relative=relative)
    shared, plain = (walk(model, data, noise, engine=engine) for engine in ("auto", "plain"))
    assert shared.records == plain.records and min(r.correct for r in shared.records) < 50
    assert shared.meta.noise["relative"] == relative and relative in level_label(shared)
