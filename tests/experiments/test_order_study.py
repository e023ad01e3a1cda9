"""Order sensitivity: against a loop over orders, the cases without any, and whose permutations they are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.arithmetic import Serial, random_order
from noisykernels.brainscales import BrainScaleS2, BSS2Linear, ConvertingReLU
from noisykernels.experiments import OrderStudy, order_sensitivity

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 5)).eval()


def made(rows: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, 40, generator=g), torch.randint(5, (rows,), generator=g)


def test_figures_are_those_of_a_loop() -> None:
    """One layer, all permutations made by hand."""
    torch.manual_seed(0)
    layer, (x, _) = nn.Linear(40, 12, bias=False), made()
    limits: dict[str, Any] = {"low": -0.5, "high": 0.7}
    (found,) = order_sensitivity(
        layer, x, Serial(**limits), permutations=6, seed=3, compute=nk.Compute(batch_rows=7)
    ).layers
    weight = layer.weight.detach()

    def sums(order: Any, **how: float) -> np.ndarray:
        return nk.linear(x, weight, hardware=[Serial(order=order, **how)]).double().numpy()

    orders = [random_order(40, 3, found.name, p) for p in range(6)]
    y = np.stack([sums(order, **limits) for order in orders])
    twin = (x @ weight.T).clamp(-0.5, 0.7).double().numpy()
    assert (found.name, found.steps, found.outputs) == (":linear#0", 40, 360)
    # The twin's sums are the library's, whose rounding depends on the number of rows.
    assert found.std == pytest.approx(twin.std(), rel=1e-5)
    assert found.spread == pytest.approx(math.sqrt(y.var(0, ddof=1).mean()) / twin.std(), rel=1e-5)
    assert found.saturated == np.mean([y[p] != sums(orders[p]) for p in range(6)])
    for order, shift in found.shift.items():
        expected = math.sqrt(np.square(sums(order, **limits) - twin).mean()) / twin.std()
        assert shift == pytest.approx(expected, rel=1e-5)
    expected = np.quantile(y.std(0, ddof=1) / twin.std(), np.linspace(0, 1, 101))
    np.testing.assert_allclose(found.quantiles, expected, rtol=1e-4, atol=1e-6)
    assert found.saturated > 0.1 and found.shift["positive_first"] > found.spread > 0.01


def test_no_spread_without_saturation() -> None:
    """Sums of whole numbers are exact: 0, not nearly 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 5))
    for p in model.parameters():
        p.data = torch.randint(-9, 10, p.shape).float()
    x, y = torch.randint(-9, 10, (20, 40)).float(), torch.randint(5, (20,))
    wide = order_sensitivity(model, (x, y), Serial(low=-1e6, high=1e6), permutations=4, seed=1)
    for layer in wide.layers:
        assert layer.spread == layer.saturated == 0 and set(layer.shift.values()) == {0.0}
        assert not layer.quantiles.any()
    assert wide.disagreement == wide.changed == 0 and len({*wide.values, *wide.orders.values()}) == 1
    narrow = order_sensitivity(model, (x, y), Serial(low=-100, high=100), permutations=4, seed=1)
    assert all(layer.spread > 0 and layer.saturated > 0 for layer in narrow.layers)


def test_network_under_permutations() -> None:
    """All layers permuted at once, against the model with its orders put in by hand."""
    model, data = mlp(), made(200)
    for p in model.parameters():
        p.data *= 4 if p.dim() > 1 else 0
    arithmetic = Serial(low=-1.0, high=1.0)
    found = order_sensitivity(model, data, arithmetic, permutations=4, seed=3)
    predictions = []
    for p in range(4):
        hardware = {
            layer.name: [Serial(low=-1.0, high=1.0, order=random_order(layer.steps, 3, layer.name, p))]
            for layer in found.layers
        }
        with nk.inject(model, None, hardware=hardware):
            predictions.append(model(data[0]).argmax(1))
    assert len({tuple(p.tolist()) for p in predictions}) == 4
    assert found.values.tolist() == [float((p == data[1]).double().mean()) for p in predictions]
    pairs = [float((a != b).double().mean()) for a, b in itertools.combinations(predictions, 2)]
    assert found.disagreement == pytest.approx(np.mean(pairs)) and found.disagreement > 0
    with nk.inject(model, None, hardware=[arithmetic.unordered()]):
        twin = model(data[0]).argmax(1)
    assert found.orders["none"] == float((twin == data[1]).double().mean())
    assert found.changed == pytest.approx(np.mean([float((p != twin).double().mean()) for p in predictions]))


def test_permutations_are_pure_functions() -> None:
    a = random_order(100, 5, "fc:linear#0", 2)
    assert torch.equal(a, random_order(100, 5, "fc:linear#0", 2)) and sorted(a.tolist()) == list(range(100))
    others = [random_order(100, *k) for k in ((6, "fc:linear#0", 2), (5, "fc2:linear#0", 2), (5, "fc:linear#0", 3))]
    assert all(not torch.equal(a, other) for other in others)
    few, more = (order_sensitivity(mlp(), made(), Serial(low=-0.4, high=0.4), permutations=p, seed=2) for p in (3, 5))
    assert few.values.tolist() == more.values[:3].tolist()
    batches = order_sensitivity(
        mlp(), made(), Serial(low=-0.4, high=0.4), permutations=3, seed=2, compute=nk.Compute(batch_rows=11)
    )
    assert batches.values.tolist() == few.values.tolist()


def test_permutations_are_uniform() -> None:
    """Each operand comes first equally often; chi-square of 8 cells, false alarm 1e-6."""
    from scipy import stats

    firsts = torch.stack([random_order(8, 1, "a", p)[0] for p in range(2000)])
    assert stats.chisquare(firsts.bincount(minlength=8).numpy()).pvalue > 1e-6


def test_layers_with_hardware_of_their_own() -> None:
    """Noise inside does not count as spread; other devices of the list stay; the layers are left as they were."""
    torch.manual_seed(0)
    device = BrainScaleS2(0.05, 2.0, ordered=True)
    model = nn.Sequential(
        BSS2Linear(140, 16, False, device=device), ConvertingReLU(2), BSS2Linear(16, 5, False, device=device)
    )
    x, y = torch.randint(0, 32, (30, 140)).float(), torch.randint(5, (30,))
    before = [layer.hardware for layer in model if isinstance(layer, BSS2Linear)]
    found = order_sensitivity(model, (x, y), permutations=4, seed=1)
    assert [(layer.name, layer.steps) for layer in found.layers] == [("0:linear#0", 140), ("2:linear#0", 16)]
    assert found.layers[0].spread > 0 and found.layers[0].saturated > 0
    assert [layer.hardware for layer in model if isinstance(layer, BSS2Linear)] == before and model.training
    with nk.noise_state(model, seed=1):
        natural = model(x).argmax(1)
    assert found.orders["natural"] == float((natural == y).double().mean())
    wide = BrainScaleS2(0.002, 2.0, ordered=True, low=-1e4, high=1e4)
    silent = order_sensitivity(model, x, wide, permutations=3, seed=1)  # instead of the layers' own
    assert all(layer.spread == 0 == layer.shift["positive_first"] for layer in silent.layers)
    assert silent.layers[0].std > 2 and math.isnan(silent.disagreement) and silent.orders == {}


def test_convolutions_and_layers_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).mean((2, 3))

    torch.manual_seed(0)
    data = torch.randn(6, 2, 5, 5), torch.randint(2, (6,))
    found = order_sensitivity(Twice(), data, Serial(low=-0.2, high=0.2), permutations=3, seed=1)
    assert [(a.name, a.steps, a.outputs) for a in found.layers] == [
        ("conv:conv2d#0", 18, 300),
        ("conv:conv2d#1", 18, 300),
    ]
    assert all(a.spread > 0 for a in found.layers)


def test_synapses_that_saturate() -> None:
    model, (x, _) = mlp(), made()
    found = order_sensitivity(model, x, Serial(synapse_limit=0.2, synapse_decay=0.5), permutations=3, seed=1)
    assert all(layer.saturated > 0 and layer.spread > 0 for layer in found.layers)


def test_results_can_be_told(tmp_path: Any) -> None:
    found = order_sensitivity(mlp(), made(), Serial(low=-0.4, high=0.4), permutations=3, orders=("natural",), seed=3)
    text = repr(found)
    assert text == found.table() and "2:linear#0" in text and "accuracy of permutations" in text
    assert len(text.splitlines()) == 8
    table = pytest.importorskip("pandas") and found.to_pandas()
    assert list(table.columns) == ["site", "steps", "outputs", "std", "spread", "saturated", "shift_natural"]
    assert table["spread"].tolist() == [layer.spread for layer in found.layers]
    pytest.importorskip("matplotlib").use("agg")
    figure = found.plot()
    figure.savefig(tmp_path / "order.png")
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 2
    single = order_sensitivity(mlp(), made()[0], Serial(low=-0.4, high=0.4), permutations=1, seed=3)
    assert math.isnan(single.layers[0].spread) and "accuracy" not in single.table()
    assert math.isnan(order_sensitivity(mlp(), made(), Serial(high=0.4), permutations=1, seed=3).disagreement)
    assert isinstance(single, OrderStudy) and single.plot() is not None


def test_quantiles_are_of_all_outputs() -> None:
    """More outputs than are kept, of which every other one alone depends on the order."""
    weight = torch.randn(128, 40, generator=torch.Generator().manual_seed(2))
    weight[::2] = weight[::2].abs() * 1e-3  # never at a limit
    layer = nn.Linear(40, 128, bias=False)
    layer.weight.data = weight
    whole = nk.Compute(batch_rows=2048)
    (found,) = order_sensitivity(layer, made(2048)[0].abs(), Serial(low=-2.0, high=2.0), permutations=2, orders=(),
                                 seed=3, compute=whole).layers  # fmt: skip
    assert found.quantiles[45] < 1e-5 < 1e-2 < found.quantiles[95]


def test_errors() -> None:
    model, data = mlp(), made()
    for bad in (Serial(low=-1, ordered=False), BrainScaleS2(), nk.MacNoise(per_step=0.1), "Serial"):
        with pytest.raises(ValueError, match="arithmetic must be"):
            order_sensitivity(model, data, bad, seed=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer of the model has an ordered arithmetic"):
        order_sensitivity(model, data, seed=1)
    with pytest.raises(ValueError, match="hardware needs a linear layer"):
        order_sensitivity(nn.ReLU(), data, Serial(low=-1), seed=1)
    with pytest.raises(ValueError, match="permutations must be"):
        order_sensitivity(model, data, Serial(low=-1), permutations=0, seed=1)
    with pytest.raises(ValueError, match="orders must be"):
        order_sensitivity(model, data, Serial(low=-1), orders=("sideways",), seed=1)
    with pytest.raises(ValueError, match="data must be"):
        order_sensitivity(model, data[0][:0], Serial(low=-1), seed=1)
    assert type(model) is nn.Sequential


def test_some_layers_alone() -> None:
    """By name, by what holds them or by type: their figures are those among all, the others add up exactly."""
    model, data = mlp(), made()
    told: dict[str, Any] = {"arithmetic": Serial(low=-0.5, high=0.5), "permutations": 3, "seed": 2}
    whole, first = (order_sensitivity(model, data, **told, sites=sites) for sites in (None, "0"))
    assert [layer.name for layer in whole.layers] == ["0:linear#0", "2:linear#0"]
    assert [layer.name for layer in first.layers] == ["0:linear#0"]
    assert first.layers[0].spread == whole.layers[0].spread
    assert first.covered["arithmetic"] == pytest.approx(40 * 12 / (40 * 12 + 12 * 5), abs=1e-6)
    by_type = order_sensitivity(model, data, **told, sites=nn.Linear)
    assert by_type == whole and order_sensitivity(model, data, **told, sites=[1]) == first
    with nk.inject(model, None, hardware={"0": [Serial(low=-0.5, high=0.5)]}, example_input=data[0][:2]):
        with nk.noise_state(model, seed=2):
            hits = float((model(data[0]).argmax(1) == data[1]).float().mean())
    assert first.orders["natural"] == pytest.approx(hits)
    with pytest.raises(ValueError, match="no site 'nothing'"):
        order_sensitivity(model, data, **told, sites="nothing")
