"""Hardware in layers and in models: which devices a contraction gets, levels, measures, and mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from arrays import DEVICES, Neutral
from operators import assert_same_bits
from torch import Tensor

import noisykernels as nk


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 64, 10),
    ).eval()


def test_hardware_of_an_injected_model_is_that_of_its_operators() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    hardware = DEVICES["all"]
    ids = {s.name: s.id for s in nk.sites(model, x)}
    with nk.inject(model, {"0": nk.Noise(add=0.1)}, hardware=hardware, example_input=x):
        with nk.noise_state(model, seed=4, draws=[2, 5], rows=[8, 1, 3]):
            y = model(x)
    key = dict(seed=4, draws=[2, 5], rows=[8, 1, 3])
    conv, norm, *_, last = model
    z = nk.conv2d(x, conv.weight, conv.bias, padding=1, hardware=hardware, noise=nk.Noise(add=0.1), shared=True,
                  site=ids["0:conv2d#0"], **key)  # fmt: skip
    z = torch.relu(norm(z)).flatten(1)
    expected = nk.linear(z, last.weight, last.bias, hardware=hardware, site=ids["4:linear#0"], **key)
    # The injected model's input is repeated before the first layer, so contractions are cut otherwise.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_hardware_of_some_layers() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    noise = [nk.WeightNoise(add=0.5)]
    ways = {
        "dict": {"0": noise},
        "function": lambda name, module: noise if isinstance(module, torch.nn.Conv2d) else None,
    }
    outs = []
    for hardware in ways.values():
        with nk.inject(model, None, hardware=hardware, example_input=x), nk.noise_state(model, seed=4):
            outs.append(model(x))
    layers = network()
    layers[0] = nk.NoisyConv2d(1, 4, 3, padding=1, hardware=noise)
    layers.load_state_dict(model.state_dict())
    with nk.inject(layers.eval(), None, example_input=x), nk.noise_state(layers, seed=4):
        outs.append(layers(x))
    assert_same_bits(outs[0], outs[1])
    assert_same_bits(outs[0], outs[2])
    assert not torch.equal(outs[0], model(x))
    with pytest.raises(ValueError, match="matches no site"):
        nk.inject(model, None, hardware={"convolution": noise}, example_input=x)
    with pytest.raises(TypeError, match="list of devices"):
        nk.inject(model, None, hardware=nk.Noise(add=1.0))


def test_hardware_where_rows_lie_elsewhere() -> None:
    """Attention's projections have their rows along dimension 1."""
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).eval()
    x = torch.randn(5, 3, 8)
    with nk.inject(model, None, hardware=DEVICES["all"], example_input=x[:, :2], row_dims={"input": 1}):
        with nk.noise_state(model, seed=4, rows=[0, 1, 2]):
            whole = model(x)
        with nk.noise_state(model, seed=4, rows=[2]):
            alone = model(x[:, 2:])
    torch.testing.assert_close(alone, whole[:, 2:], rtol=0, atol=1e-5)
    assert not torch.allclose(whole, model(x), atol=0.01)


def test_a_level_scales_the_noise_of_hardware() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    scaled = [d.scaled(0.5) for d in DEVICES["all"]]
    with nk.inject(model, None, hardware=DEVICES["all"], example_input=x):
        with nk.noise_state(model, seed=4, level=0.5):
            half = model(x)
        with pytest.raises(RuntimeError, match="no level for each"), nk.noise_state(model, seed=4, level=torch.ones(3)):
            model(x)
    with nk.inject(model, None, hardware=scaled, example_input=x), nk.noise_state(model, seed=4):
        assert_same_bits(half, model(x))


def test_layers_alone_draw_afresh_and_can_be_switched() -> None:
    x = torch.randn(4, 6)
    layer = nk.NoisyLinear(6, 3, hardware=[nk.WeightNoise(add=0.5)], in_eval=False)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert_same_bits(layer(x), first)
    assert not torch.equal(first, second)
    assert_same_bits(layer.eval()(x), F.linear(x, layer.weight, layer.bias))
    assert "hardware=[WeightNoise(add=0.5)]" in repr(layer)


def test_training_with_noisy_weights_learns() -> None:
    """Loss falls under the same chips, through every kernel's gradient."""
    torch.manual_seed(0)
    model, x, y = network().train(), torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    with nk.inject(model, None, hardware=[nk.WeightNoise(add=0.05, relative="layer")], example_input=x[:2]):
        for step in range(30):
            with nk.noise_state(model, seed=4, draws=[step]):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_what_is_empty() -> None:
    """No inputs, no outputs, no rows, no draws: sums of nothing, and gradients of zeros."""
    for n, k in ((3, 0), (0, 3)):
        for device in (
            nk.WeightNoise(add=1.0, relative="layer"),
            nk.WeightNoise(add=1.0, relative="channel"),
            nk.hardware.PCM(),
        ):
            y = nk.linear(torch.ones(2, k), torch.ones(n, k), hardware=[device], seed=1)
            assert y.shape == (2, n) and (y == 0).all()
    explicit = [nk.MacNoise(0.1, 0.1, 0.1, explicit=True)]
    assert nk.linear(torch.ones(0, 3), torch.ones(4, 3), hardware=explicit, seed=1).shape == (0, 4)
    x, w, b = (
        torch.ones(2, 3, requires_grad=True),
        torch.ones(4, 3, requires_grad=True),
        torch.ones(4, requires_grad=True),
    )
    nk.linear(x, w, b, hardware=[nk.WeightNoise(add=1.0)], seed=1, draws=[], shared=True).sum().backward()
    assert all((t.grad == 0).all() for t in (x, w, b))


def test_devices_that_are_subclasses_stay_so_at_another_level() -> None:
    class Bounded(nk.WeightNoise):
        def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
            return super().weight(weight, draw).clamp(-0.1, 0.1)

    assert isinstance(Bounded(add=1.0).scaled(2.0), Bounded)
    model, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    with nk.inject(model, None, hardware=[Bounded(add=1.0)], example_input=x):
        with nk.noise_state(model, seed=1):
            plain = model(x)
        with nk.noise_state(model, seed=1, level=1.0):
            assert_same_bits(model(x), plain)


@pytest.mark.parametrize(
    "device",
    [nk.hardware.PCM(), nk.hardware.DifferentialPair(0.2), nk.hardware.ColumnOffset(0.5), nk.hardware.ColumnGain(0.5)],
    ids=lambda d: type(d).__name__,
)
def test_a_level_reaches_every_device(device: nk.hardware.Device) -> None:
    model, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    with nk.inject(model, None, hardware=[device], example_input=x):
        with nk.noise_state(model, seed=1, level=0.0):
            silent = model(x)
        with nk.noise_state(model, seed=1):
            noisy = model(x)
    torch.testing.assert_close(silent, model(x), rtol=0, atol=1e-6)
    assert not torch.allclose(noisy, silent, atol=1e-3)

    class Unscaled(nk.hardware.Device):
        operands = ("programming",)

    with nk.inject(model, None, hardware=[Unscaled()], example_input=x), nk.noise_state(model, seed=1, level=0.5):
        with pytest.raises(RuntimeError, match="level_names"):
            model(x)


def test_measures_see_the_hardware() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), torch.randn(50, 4)

    def variance() -> float:
        return next(r.variance for r in nk.training.site_statistics(model, x, seed=1) if r.site == "0:linear#0")

    plain = variance()
    with nk.inject(model, None, hardware=[nk.hardware.ColumnGain(30.0)], example_input=x):
        assert variance() > 20 * plain
    model[0] = nk.NoisyLinear(4, 3, hardware=[nk.hardware.ColumnGain(30.0)])
    assert variance() > 20 * plain


def test_hardware_that_nothing_gets_is_a_mistake() -> None:
    x = torch.randn(2, 4)
    noise = [nk.WeightNoise(add=0.1)]
    for model, hardware in (
        (torch.nn.Sequential(torch.nn.ReLU()), noise),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), {"1": noise}),
    ):
        with pytest.raises(ValueError, match="hardware needs a linear layer, convolution or other contraction"):
            nk.inject(model, None, hardware=hardware, example_input=x)
    for wrong in (
        lambda: nk.WeightNoise(mul=0.1, relative="layer"),
        lambda: nk.MacNoise(per_product=0.1, relative="layer"),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=noise, rows=[1, 2, 3]),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=noise, first_row=2**32 - 1),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=[Neutral()], site=2**24),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=[nk.MacNoise(1e39)], seed=1),
        lambda: nk.WeightNoise(add=0.1).scaled(-1.0),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_votes_of_chips() -> None:
    """One execution is right as often as chips are on average."""
    model, x = network(), torch.randn(60, 1, 8, 8)
    data = x, model(x).argmax(1)
    hardware = [nk.WeightNoise(add=0.3, relative="layer")]
    votes = nk.vote(model, data, noise=None, hardware=hardware, draws=9, seed=3, kinds="majority")
    found = nk.chips(model, data, hardware=hardware, draws=9, seed=3)
    curve = votes.curves["majority"].values
    assert curve[0] == pytest.approx(found.mean, abs=1e-12) and curve[8] > curve[0]


def test_batch_norms_are_recalibrated_under_hardware() -> None:
    """The statistics are those of the noisy layer."""
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)), torch.randn(500, 6)
    hardware = [nk.hardware.ColumnOffset(5.0)]
    with nk.inject(model, None, hardware=hardware, example_input=x[:2]):
        nk.training.recalibrate_bn(model, x, seed=4, batch_size=500)
    sites = {s.name: s.id for s in nk.sites(model, x[:2])}
    layer = model[0]
    y = nk.linear(x, layer.weight, layer.bias, hardware=hardware, seed=4, site=sites["0:linear#0"])
    torch.testing.assert_close(model[1].running_mean, y.mean(0), rtol=1e-5, atol=1e-5)
    assert float((model[1].running_mean - layer(x).mean(0)).abs().max()) > 1
