"""The noisy layers: constructors, when they are noisy, alone and as parts of models."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from operators import assert_same_bits, bits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id
from noisykernels.reference import noise as reference

NOISE = nk.Noise(add=0.5, mul=0.25)

# class, torch's own, constructor arguments, shape of an input
LAYERS = [
    (nk.NoisyLinear, nn.Linear, dict(in_features=6, out_features=5), (3, 6)),
    (nk.NoisyLinear, nn.Linear, dict(in_features=6, out_features=5, bias=False), (3, 2, 6)),
    (nk.NoisyConv1d, nn.Conv1d, dict(in_channels=4, out_channels=2, kernel_size=3), (3, 4, 9)),
    (
        nk.NoisyConv2d,
        nn.Conv2d,
        dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2),
        (3, 4, 9, 8),
    ),
    (
        nk.NoisyConv2d,
        nn.Conv2d,
        dict(in_channels=2, out_channels=2, kernel_size=4, padding="same", padding_mode="reflect"),
        (3, 2, 7, 7),
    ),
    (
        nk.NoisyConv3d,
        nn.Conv3d,
        dict(in_channels=1, out_channels=2, kernel_size=2),
        (2, 1, 4, 4, 4),
    ),
    (
        nk.NoisyConvTranspose1d,
        nn.ConvTranspose1d,
        dict(in_channels=3, out_channels=4, kernel_size=2, stride=2),
        (3, 3, 5),
    ),
    (
        nk.NoisyConvTranspose2d,
        nn.ConvTranspose2d,
        dict(in_channels=3, out_channels=4, kernel_size=3, stride=2, output_padding=1, bias=False),
        (3, 3, 4, 4),
    ),
    (
        nk.NoisyConvTranspose3d,
        nn.ConvTranspose3d,
        dict(in_channels=2, out_channels=2, kernel_size=2, dilation=2),
        (2, 2, 3, 3, 3),
    ),
]
each_layer = pytest.mark.parametrize(
    ("noisy", "plain", "options", "shape"), LAYERS, ids=lambda v: getattr(v, "__name__", None)
)


def twins(noisy, plain, options, **more) -> tuple[nn.Module, nn.Module]:
    """A noisy layer and torch's own with the same whole-number weights: every product is exact."""
    torch.manual_seed(0)
    ours = noisy(**options, noise=NOISE, **more)
    torch.manual_seed(0)
    theirs = plain(**options)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)  # initialised alike, from torch's generator
        with torch.no_grad():
            p.copy_((p * 9).round())
            q.copy_(p)
    return ours, theirs


def whole(shape) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float()


@each_layer
def test_output_is_torchs_with_the_oracles_noise(noisy, plain, options, shape) -> None:
    layer, own = twins(noisy, plain, options)
    x, site = (
        whole(shape),
        f":{plain.__name__.lower()}#0".replace("convtranspose", "conv_transpose"),
    )
    rows = list(range(7, 7 + shape[0]))
    with nk.noise_state(layer, seed=4, rows=rows, draws=[2, 0]):
        y = layer(x)
    key = dict(seed=4, site=hashed_id(site), rows=rows, draws=[2, 0], shared=True)
    assert_same_bits(y, reference.perturb(own(x), NOISE, **key))
    assert [s.name for s in nk.sites(layer, x)] == ["input", site]


@each_layer
def test_is_torchs_layer(noisy, plain, options, shape) -> None:
    layer, own = twins(noisy, plain, options)
    assert isinstance(layer, plain) and list(layer.state_dict()) == list(own.state_dict())
    layer.load_state_dict(own.state_dict())
    assert "noise=Noise(add=0.5, mul=0.25)" in repr(layer)
    x = whole(shape)
    layer.noise = None
    assert torch.equal(layer(x), own(x))
    assert noisy(**options).noise is None  # noise is an option


@each_layer
def test_gradients_are_those_of_the_same_factors(noisy, plain, options, shape) -> None:
    layer, own = twins(noisy, plain, options)
    x = whole(shape).requires_grad_()
    layer.noise = nk.Noise(mul=0.5)
    with nk.noise_state(layer, seed=4):
        y = layer(x)
    y.square().sum().backward()
    got = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    clean = own(x)
    factor = torch.where(clean == 0, 1.0, y.detach() / clean.detach())
    (clean * factor).square().sum().backward()
    for a, b in zip(got, [x.grad, *(p.grad for p in own.parameters())], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


def test_alone_each_forward_draws_anew_under_torchs_seed() -> None:
    layer, x = nk.NoisyLinear(6, 5, noise=NOISE), torch.randn(3, 6)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_switches() -> None:
    x = torch.randn(3, 6)
    for train, evaluate in ((True, True), (True, False), (False, True), (False, False)):
        layer = nk.NoisyLinear(6, 5, noise=NOISE, in_training=train, in_eval=evaluate)
        assert layer.noisy is train and layer.eval().noisy is evaluate
        for expected in (evaluate, train):
            clean = nn.functional.linear(x, layer.weight, layer.bias)
            assert torch.equal(layer(x), clean) is not expected
            layer.train()
    site = nk.NoiseSite(NOISE, in_eval=False).eval()
    assert site(x) is x and nk.NoiseSite()(x) is x


def test_a_site_is_noise_alone() -> None:
    model = nn.Sequential(nk.NoiseSite(NOISE), nn.ReLU(), nk.NoiseSite(NOISE))
    x = torch.randn(3, 6)
    with nk.noise_state(model, seed=4, draws=[1], rows=[5, 6, 7]):
        y = model(x)
    key = dict(seed=4, draws=[1], rows=[5, 6, 7])
    expected = reference.perturb(x, NOISE, site=hashed_id("0:noise#0"), **key).relu()
    expected = reference.perturb(expected, NOISE, site=hashed_id("2:noise#0"), **key)
    assert_same_bits(y, expected)


def test_layers_of_a_model_never_share_noise() -> None:
    """Neither in one model, nor alone, nor between calls of one layer."""
    model = nn.Sequential(*(nk.NoiseSite(nk.Noise(add=1.0)) for _ in range(3)))
    model.append(model[0])
    values: list[Tensor] = []
    for layer in model[:3]:
        layer.register_forward_hook(lambda m, a, out: values.append(out - a[0]))
    for context in (nk.noise_state(model, seed=1), None):
        values.clear()
        x = torch.zeros(50, 40)
        if context is None:
            for layer in model:
                layer(x)
        else:
            with context:
                model(x)
        assert len(values) == 4
        for i, a in enumerate(values):
            for b in values[:i]:
                # Correlation of 2000 pairs: standard deviation 1 / sqrt(2000); six of them.
                assert abs((a * b).mean()) < 6 / 2000**0.5 and not torch.equal(a, b)


def test_in_an_injected_model_layers_keep_their_own_noise() -> None:
    own, other, x = nk.Noise(add=0.25), nk.Noise(add=3.0), torch.randn(3, 6)
    model = nn.Sequential(nk.NoisyLinear(6, 5, noise=own), nn.ReLU())
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    with nk.inject(model, other), nk.noise_state(model, seed=1):
        y = model(x)
    key = dict(seed=1)
    inner = reference.perturb(torch.zeros(3, 5), own, site=hashed_id("0:linear#0"), **key).relu()
    assert_same_bits(y, reference.perturb(inner, other, site=hashed_id("1:relu#0"), **key))


def test_copies() -> None:
    model, x = (
        nn.Sequential(nk.NoisyLinear(6, 5, noise=NOISE), nk.NoiseSite(NOISE)),
        torch.randn(3, 6),
    )
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for twin in (model, *twins):
        with nk.noise_state(twin, seed=1):
            twin.expected = twin(x)
    assert all(torch.equal(bits(model.expected), bits(t.expected)) for t in twins)


@each_layer
def test_weights_go_from_torchs_layer_to_ours_and_back(noisy, plain, options, shape) -> None:
    """Whole-number weights, so that equal weights give equal outputs to the bit."""
    layer, own = twins(noisy, plain, options)
    x = whole(shape)
    layer.noise = None
    for source, target in ((own, layer), (layer, own)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(1).neg_()
        assert not torch.equal(source(x), target(x))
        target.load_state_dict(source.state_dict())
        assert torch.equal(source(x), target(x))
        assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_transposed_output_size() -> None:
    layer, x = nk.NoisyConvTranspose2d(2, 2, 3, stride=2, noise=NOISE), torch.randn(1, 2, 4, 4)
    assert layer(x, output_size=[10, 10]).shape == (1, 2, 10, 10)
    assert layer(x).shape == (1, 2, 9, 9)


def test_unbatched_inputs_alone() -> None:
    assert nk.NoisyLinear(6, 5, noise=NOISE)(torch.randn(6)).shape == (5,)
    assert nk.NoisyConv2d(2, 3, 3, noise=NOISE)(torch.randn(2, 5, 5)).shape == (3, 3, 3)


@pytest.mark.parametrize("layer", [c for c, *_ in LAYERS] + [nk.NoiseSite])
def test_constructing_with_something_that_is_no_noise(layer) -> None:
    options = next((o for c, _, o, _ in LAYERS if c is layer), {})
    with pytest.raises(TypeError, match=f"{layer.__name__}: noise must be a Noise or None, got float"):
        layer(**options, noise=0.1)
