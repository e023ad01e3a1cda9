"""What the tests of injected models share: small models, a run under noise, the oracle's value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id
from noisykernels.reference import noise as reference

NOISE = nk.Noise(add=0.5)
SEED = 2**63 + 11


def integers(*shape: int) -> Tensor:
    """Small whole numbers, with which every contraction is exact."""
    g = torch.Generator().manual_seed(len(shape))
    return torch.randint(-2, 3, shape, generator=g).float()


def whole(model: nn.Module) -> nn.Module:
    """The model with whole-number parameters."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randint(-2, 3, p.shape, generator=torch.Generator().manual_seed(i)))
    return model.eval()


def small(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def with_noise(model: nn.Module, noise: nk.Noise, x: Tensor, where=None, **state) -> Tensor:
    with nk.inject(model, noise, where), nk.noise_state(model, **{"seed": SEED, **state}):
        return model(x)


def names(model: nn.Module, x) -> list[str]:
    return [s.name for s in nk.sites(model, x)]


def run(model: nn.Module, x, where=None, noise=NOISE, seed=SEED, draws=None, rows=None, **options):
    """Output of the injected model; `x` is one argument, a tuple of them, or a dict."""
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    with nk.inject(model, noise, where, **options):
        with nk.noise_state(model, seed=seed, draws=draws, rows=rows):
            return model(*args, **kwargs)


def oracle(value: Tensor, name: str, dim: int = 0, **ids) -> Tensor:
    """The noisy value at a site of which dimension `dim` counts rows."""
    rows_first = value.detach().movedim(dim, 0)
    return reference.perturb(rows_first, NOISE, seed=SEED, site=hashed_id(name), **ids).movedim(0, dim)
