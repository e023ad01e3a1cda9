"""Devices act at a look-up, and at a product of two values, as far as they can, and where none of them does that is
said: in warnings and in the account of what was reached."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id


class Tokens(nn.Module):
    """A look-up, a bag of entries, a product of two values and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.bag, self.fc = nn.Embedding(9, 4), nn.EmbeddingBag(9, 4), nn.Linear(4, 3)

    def forward(self, t: Tensor) -> Tensor:
        x = self.emb(t)
        return self.fc((x @ x.mT @ x).mean(1) + self.bag(t))


T, ROWS = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(1)), [3, 4, 5]
MODEL = Tokens().eval()


def run(hardware: Any, traced: bool = True, draws: Any = None) -> tuple[Tensor, nk.Coverage, list[str]]:
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        with nk.inject(MODEL, None, hardware=hardware, example_input=T if traced else None):
            with nk.noise_state(MODEL, seed=1, rows=ROWS, draws=draws):
                return MODEL(T), nk.coverage(MODEL, T), [str(w.message) for w in told]


def by_hand(looked_up: Tensor) -> Tensor:
    return MODEL.fc((looked_up @ looked_up.mT @ looked_up).mean(1) + MODEL.bag(T))


def drawn(operand: str, draw: int = 0) -> Tensor:
    rows, site = torch.tensor(ROWS), hashed_id("emb:embedding#0")
    return nk.eps((3, 5, 4), seed=1, site=site, operand=operand, rows=rows, draw=draw)


@pytest.mark.parametrize("traced", [True, False])
def test_noise_of_products_steps_and_readings_at_a_look_up(traced: bool) -> None:
    """An entry is one product with 1, one step and one reading."""
    y, largest = MODEL.emb(T).detach(), float(MODEL.emb.weight.detach().abs().max())
    for device, spread in (
        (nk.MacNoise(per_product=0.3), 0.3 * y.abs()),
        (nk.MacNoise(read=0.2, relative="layer"), torch.tensor(0.2 * largest)),
        (nk.MacNoise(per_product=0.3, per_step=0.2, read=0.1), ((0.3 * y) ** 2 + 0.04 + 0.01).sqrt()),
    ):
        got, found, told = run({"emb": [device]}, traced)
        assert torch.allclose(got, by_hand(y + spread * drawn("per_product")), atol=1e-5)
        assert not told and next(row for row in found if row.name == "emb.weight").hardware
    explicit = nk.MacNoise(per_product=0.3, per_step=0.2, read=0.1, explicit=True)
    want = y + 0.3 * y * drawn("per_product") + 0.2 * drawn("per_step") + 0.1 * drawn("read")
    assert torch.allclose(run({"emb": [explicit]}, traced)[0], by_hand(want), atol=1e-5)


def test_draws_and_what_the_array_holds() -> None:
    weights, macs = nk.WeightNoise(add=0.5), nk.MacNoise(per_product=0.3)
    both = run({"emb": [weights, macs]}, draws=[0, 2])[0]
    held = MODEL.emb.weight.detach() + 0.5 * nk.eps(
        (9, 4), seed=1, site=hashed_id("emb:embedding#0"), operand="weight", draw=2
    )
    want = by_hand(held[T] + 0.3 * held[T].abs() * drawn("per_product", 2))
    assert torch.allclose(both[3:], want, atol=1e-5)


@pytest.mark.parametrize("device", [nk.Serial(step_noise=0.5), nk.InputNoise(add=0.5), nk.hardware.DAC(2, "row")])
@pytest.mark.parametrize("traced", [True, False])
def test_what_cannot_act_at_a_look_up_is_told(device: Any, traced: bool) -> None:
    got, found, told = run({"emb": [device]}, traced)
    assert torch.equal(got, by_hand(MODEL.emb(T)).detach())
    assert any("hardware does nothing at 'emb:embedding#0'" in text for text in told)
    assert any("does not reach emb.weight" in text for text in told)
    for row in (row for row in found if row.name in ("emb.weight", "emb:embedding#0")):
        assert not row.reached and "a look-up has no inputs to convert" in row.why
    _, found, told = run([device], traced)
    assert any("does not reach emb.weight, bag.weight" in text for text in told)
    assert not any("does nothing" in text for text in told)
    _, found, told = run({"emb": [nk.WeightNoise(add=0.1), device]}, traced)
    row = next(row for row in found if row.name == "emb:embedding#0")
    assert row.hardware and not row.arithmetic and not told


@pytest.mark.parametrize("traced", [True, False])
def test_devices_of_arrays_at_products_of_values_are_told(traced: bool) -> None:
    device = nk.WeightNoise(add=0.5)
    for hardware in ({":matmul": [device]}, lambda name, _: [device] if "matmul" in name else None):
        got, _, told = run(hardware, traced)
        assert torch.equal(got, by_hand(MODEL.emb(T)).detach())
        assert any("hardware does nothing at ':matmul#0', ':matmul#1': products of two values" in text for text in told)
    for hardware in ([device], {":matmul": [device, nk.InputNoise(add=0.1)], "fc": [device]}):
        assert not any("does nothing" in text for text in run(hardware, traced)[2])


def test_attention_alone_is_told() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    model = nn.Sequential()
    model.add_module("attn", attention)
    model.forward = lambda x: attention(x, x, x)[0]  # type: ignore[method-assign]
    x = torch.randn(3, 5, 4)
    with pytest.warns(UserWarning, match="does nothing at 'attn:scores#0'"):
        nk.inject(model, None, hardware={"attn:scores#0": [nk.WeightNoise(add=0.1)]}, example_input=x)
