"""One test for each known defect of the alternatives, so that none of them comes back here."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk

NOISE = nk.Noise(add=0.5, mul=0.25)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def test_a_row_keeps_its_noise_in_another_batch() -> None:
    """Every alternative numbers rows by their place in the batch."""
    x = torch.randn(20, 16)
    whole = nk.perturb(x, NOISE, seed=1)
    some = torch.tensor([17, 3, 4])
    assert torch.equal(nk.perturb(x[some], NOISE, seed=1, rows=some), whole[some])
    assert torch.equal(nk.perturb(x[5:6], NOISE, seed=1, first_row=5), whole[5:6])


def test_one_thread_and_two_draw_the_same(threads) -> None:
    x, values = torch.randn(300, 1000), []
    for count in (1, 2):
        threads(count)
        values.append(nk.perturb(x, NOISE, seed=1))
    assert torch.equal(*values)


def test_manual_seed_has_an_effect() -> None:
    layer, x = nk.NoisyLinear(16, 4, noise=NOISE), torch.randn(3, 16)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(layer(x))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_no_table_of_normals() -> None:
    """A table of 32,768 entries repeats, and ends at 4.5 sigma.

    Two normals rounded to float32 coincide with probability 1.4e-8 (the integral of the squared
    density times the spacing of floats), so that of 2^22 all but 3 % differ. The largest lies
    beyond 4.8 sigma but for a chance of exp(-2^22 * 1.6e-6) = 0.1 %, which did not come here.
    """
    e = nk.eps((2**22,), seed=0)
    assert len(e.unique()) > 0.96 * 2**22
    assert 4.8 < e.abs().max() < 6.7
    assert not torch.equal(e, nk.eps((2**22,), seed=0, draw=1))  # nor does the next call repeat


def test_constructors_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    nk.NoiseSite(NOISE)
    model = nn.Sequential(nn.ReLU())
    with nk.inject(model, NOISE, example_input=torch.zeros(1, 2)), nk.noise_state(model, seed=0):
        model(torch.zeros(1, 2))
    assert torch.equal(before, torch.get_rng_state())
    np_before = np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy generator is what others reseed
    nk.eps((4, 4), seed=0)
    assert (np.random.get_state()[1] == np_before).all()  # noqa: NPY002


def test_multiplicative_noise_has_mean_one() -> None:
    """Mean of 10^6 factors within five standard errors of 1."""
    factor = nk.perturb(torch.ones(1000, 1000), nk.Noise(mul=0.5), seed=0)
    assert abs(factor.mean() - 1) < 5 * 0.5 / 1000 and abs(factor.std() - 0.5) < 5 * 0.5 / math.sqrt(2e6)


def test_recomputation_does_not_redraw() -> None:
    def gradient(layer: nn.Module, recompute: bool) -> torch.Tensor:
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 48).view(3, 16).requires_grad_()
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        y.square().sum().backward()
        return x.grad

    alone = nk.NoisyLinear(16, 4, noise=nk.Noise(mul=0.5))  # a fresh seed in each forward
    assert torch.equal(gradient(alone, True), gradient(alone, False))

    class Model(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.net, self.recompute = net(), recompute

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.net, x, use_reentrant=False) if self.recompute else self.net(x)

    found = []
    for recompute in (True, False):
        model = Model(recompute)
        with nk.inject(model, NOISE):
            found.append(gradient(model, False))
    assert torch.equal(*found)


def test_noise_in_evaluation_mode_too() -> None:
    model, x = net().eval(), torch.randn(3, 16)
    with nk.inject(model, NOISE):
        assert not torch.equal(model(x), model(x))
    layer = nk.NoisyLinear(16, 4, noise=NOISE).eval()
    assert not torch.equal(layer(x), layer(x))


def test_every_layer_and_call_has_noise_of_its_own() -> None:
    shared = nn.Identity()
    model = nn.Sequential(nn.ReLU(), shared, nn.ReLU(), nn.ReLU())
    model.append(model[0])  # called twice
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=0):
        found = nk.sites(model, torch.zeros(2, 2))
    noises = [nk.eps((40, 50), seed=0, site=s.id).flatten() for s in found]
    assert len({s.id for s in found}) == len(found) == 5
    correlations = torch.corrcoef(torch.stack(noises)).fill_diagonal_(0)
    assert correlations.abs().max() < 6 / math.sqrt(2000)  # six standard deviations


def test_neighbouring_seeds_are_unrelated() -> None:
    """Where a seed is a counter that others add to, seed 1 is seed 0 a step later."""
    noises = torch.stack([nk.eps((1, 4000), seed=s).flatten() for s in range(4)])
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 6 / math.sqrt(4000)
    assert torch.isin(noises[1], noises[0]).sum() < 10  # expected by chance: 0.2
