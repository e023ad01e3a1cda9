"""Models that `torch.func.vmap` maps over samples under a seed: each has the noise of its own row, as in a batch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from injecting import SEED
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import noisykernels as nk

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6) % 2
NOISE = nk.Noise(add=1.0, mul=0.5)


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "layers":
        return nn.Sequential(nk.NoisyLinear(4, 5, noise=NOISE), nn.ReLU(), nk.NoisyLinear(5, 2, noise=NOISE))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    hardware = {"noise": None, "hardware": [nk.InputNoise(add=0.5), nk.WeightNoise(add=0.1)]}.get(kind)
    nk.inject(model, NOISE, hardware=hardware)
    return model


def one(model: nn.Module, x: Tensor) -> Tensor:
    return model(x[None])[0]


@pytest.mark.parametrize("kind", ["noise", "hardware", "layers"])
def test_each_sample_has_its_own_row(kind: str) -> None:
    model = made(kind)
    for rows in (None, [7, 3, 9, 0, 4, 5]):
        with nk.noise_state(model, seed=SEED, rows=rows):
            whole = model(X)
            torch.testing.assert_close(vmap(lambda x: one(model, x))(X), whole)
            torch.testing.assert_close(vmap(lambda x: one(model, x), in_dims=1)(X.t()), whole)
            torch.testing.assert_close(vmap(model)(X.view(3, 2, 4)).view(6, 2), whole)
            torch.testing.assert_close(vmap(vmap(lambda x: one(model, x)))(X.view(3, 2, 4)).view(6, 2), whole)
    with nk.noise_state(model, seed=SEED):
        alike = vmap(lambda x: one(model, x))(torch.ones(6, 4))
    assert len({tuple(row) for row in alike.tolist()}) == 6


@pytest.mark.parametrize("kind", ["noise", "hardware"])
def test_gradients_of_each_sample_are_those_of_its_row(kind: str) -> None:
    model = made(kind)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (x[None],)), y[None])

    with nk.noise_state(model, seed=SEED):
        found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, X, Y)
    for i in range(len(X)):
        with nk.noise_state(model, seed=SEED, rows=[i]):
            expected = grad(loss)(parameters, X[i], Y[i])
        for name, g in expected.items():
            torch.testing.assert_close(found[name][i], g)


def test_parts_of_a_map_count_on_or_are_told_of() -> None:
    model = made("noise")
    with nk.noise_state(model, seed=SEED):
        whole = model(X)
    with nk.noise_state(model, seed=SEED, rows="advance"):
        torch.testing.assert_close(vmap(lambda x: one(model, x), chunk_size=2)(X), whole)
    with (
        nk.noise_state(model, seed=SEED),
        pytest.warns(UserWarning, match="other data get the noise of the call before"),
    ):
        vmap(lambda x: one(model, x), chunk_size=2)(X)


def test_ids_that_samples_would_share_are_refused() -> None:
    model = made("noise")
    with nk.noise_state(model, seed=SEED, rows=[3]):
        with pytest.raises(RuntimeError, match=r"one id for each of the 6 rows of the 6 samples .* got 1"):
            vmap(lambda x: one(model, x))(X)


def test_maps_over_other_things_than_samples_share_the_noise() -> None:
    """An ensemble of weights on one batch; and without a seed it is vmap's randomness that says it."""
    model = made("noise")
    weights = torch.stack([model[0].weight.detach()] * 2)

    def with_weight(weight: Tensor) -> Any:
        return functional_call(model, {"0.weight": weight}, (X,))

    with nk.noise_state(model, seed=SEED):
        first, second = vmap(with_weight)(weights)
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(first, model(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = vmap(lambda x: one(model, x), randomness="same")(torch.ones(3, 4))
        different = vmap(lambda x: one(model, x), randomness="different")(torch.ones(3, 4))
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: one(model, x))(X)
