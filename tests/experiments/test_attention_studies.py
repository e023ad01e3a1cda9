"""What is inside of attention in every study: noise at its details, converters at its products, as a loop finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.hardware import ADC, DAC

L, E, H = 5, 8, 2


class Network(nn.Module):
    """By torch's kernel, or written out."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head, self.written_out = nn.Linear(E, 3 * E), nn.Linear(L * E, 4), written_out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(-1, L, H, E // H).transpose(1, 2) for t in self.fc(x).chunk(3, 2))
        if self.written_out:
            return self.head(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(1))
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


X = torch.randn(60, L, E, generator=torch.Generator().manual_seed(1))
LABELS = Network(False)(X).argmax(1)
DETAIL: dict[str, Any] = {"detail": "attention"}


def hits(model: nn.Module, draws: list[int], **placed: Any) -> list[int]:
    with nk.inject(model, **{"noise": None, "example_input": X[:2]} | placed | DETAIL):
        with nk.noise_state(model, seed=3, draws=draws):
            return (model(X).argmax(1).view(len(draws), -1) == LABELS).sum(1).tolist()


@pytest.fixture(params=[True, False])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return Network(request.param).eval()


def test_chips_and_votes(model: nn.Module) -> None:
    noise, devices = nk.Noise(add=2.0), {":scores#0": [nk.InputNoise(add=1.0), ADC(3, "row")]}
    for placed, options in (
        ({"noise": noise, "where": ":softmax#0"}, {"noise": noise, "sites": ":softmax#0"}),
        ({"hardware": devices}, {"noise": None, "hardware": devices}),
        (
            {"noise": {":weighted_sum": noise}, "hardware": devices},
            {"noise": {":weighted_sum": noise}, "hardware": devices},
        ),
    ):
        want = hits(model, [0, 1], **placed)
        chips = nk.chips(model, (X, LABELS), draws=2, seed=3, **options, **DETAIL)
        assert (chips.values * 60).round().tolist() == want and max(want) < 60
        votes = nk.vote(model, (X, LABELS), draws=2, seed=3, kinds="majority", **options, **DETAIL)
        assert votes.curves["majority"].values[0] * 120 == pytest.approx(sum(want))
        assert votes.covered == chips.covered


def test_parameters_of_attentions_products(model: nn.Module) -> None:
    """Bits of converters, of the products and of layers alike; devices of arrays walk layers alone."""
    told: dict[str, Any] = {"values": [2.0, 3.0], "seed": 3, "axis": "linear"}
    study = nk.walking.walk_parameter(model, (X, LABELS), lambda bits: [DAC(int(bits), "row")], **told, **DETAIL)
    assert list(dict.fromkeys(r.site for r in study.records)) == [
        "fc:linear#0", ":scores#0", ":weighted_sum#0", "head:linear#0"
    ]  # fmt: skip
    for r in study.records:
        assert [r.correct] == hits(model, [0], hardware={r.site: [DAC(int(r.level), "row")]})
    alone = nk.walking.walk_parameter(
        model, (X, LABELS), lambda level: [nk.WeightNoise(add=level)], **told, larger="worse", **DETAIL
    )
    assert {r.site for r in alone.records} == {"fc:linear#0", "head:linear#0"}
    both = nk.walking.walk_parameter(
        model, (X, LABELS), lambda bits: [DAC(int(bits), "row")], **told, groups={"all": "*"}, **DETAIL
    )
    sites = ["fc:linear#0", ":scores#0", ":weighted_sum#0", "head:linear#0"]
    assert [r.correct for r in both.records if r.level == 2] == hits(
        model, [0], hardware={site: [DAC(2, "row")] for site in sites}
    )


def test_mixed_noise_and_stores(model: nn.Module, tmp_path: Path) -> None:
    told: dict[str, Any] = {"levels": [0.5, 3.0], "draws": 2, "seed": 3, "sites": ":s*"}
    mixed = nk.walk_mixed(model, (X, LABELS), ratios=[0.5], **told, **DETAIL, store=tmp_path / "m.db")
    noise = nk.Noise.amplitude(1.0, 0.5)
    assert mixed.studies[0].records == nk.walk(model, (X, LABELS), noise=noise, **told, **DETAIL).records
    for r in mixed.studies[0].records:
        assert [r.correct] == hits(model, [r.draw], noise=noise.scaled(r.level), where=r.site)
    assert {r.site for r in mixed.studies[0].records} == {":scores#0", ":softmax#0"}


def test_on_the_command_line(capsys: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the model runs no attention"):
        assert main(["sites", "--model", "mlp", "--detail", "attention", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "input"
    with pytest.raises(SystemExit):
        main(["walk", "--detail", "convolution"])
    assert "--detail: expected one of attention, got 'convolution'" in capsys.readouterr().err
