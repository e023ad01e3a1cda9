"""Results of blocks are places, too, where a block is asked for by name or type and no site inside makes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from injecting import NOISE, oracle, run
from torch import Tensor, nn

import noisykernels as nk


class Norm(nn.Module):
    """As written out in language models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc, self.drop = Norm(), nn.Linear(6, 6), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc(self.norm(x)))


def model_of() -> nn.Module:
    return nn.Sequential(Block(), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), Block())


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


def names(model: nn.Module, where: Any, x: Any = X, **options: Any) -> list[str]:
    with nk.inject(model, NOISE, where, example_input=x, **options):
        return [s.name for s in nk.sites(model)]


def test_results_are_sites_where_they_are_asked_for() -> None:
    model = model_of().eval()
    usual = ["input", "0.fc:linear#0", "1.0:linear#0", "1.1:relu#0", "2.fc:linear#0"]
    assert [s.name for s in nk.sites(model, X)] == names(model, None) == names(model, "*fc*") == usual
    assert names(model, "1") == names(model, nn.ReLU) == usual  # whose results are those of sites
    assert [n for n in names(model, Norm) if n not in usual] == ["0.norm:module#0", "2.norm:module#0"]
    assert [n for n in names(model, "0") if n not in usual] == ["0:module#0"]
    assert [n for n in names(model, ["2:module#0", "0.drop"]) if n not in usual] == ["0.drop:module#0", "2:module#0"]


@pytest.mark.parametrize("traced", [True, False])
def test_noise_enters_at_the_result(traced: bool) -> None:
    model = model_of().eval()
    options = {"example_input": X} if traced else {}
    block, rest = model[0], model[1:]
    normed = oracle(block.norm(X), "0.norm:module#0")
    got = run(model, X, "0.norm", **options)
    assert torch.allclose(got, rest(X + block.fc(normed)), atol=1e-6)
    got = run(model, X, "0:module#0", **options)
    assert torch.allclose(got, rest(oracle(block(X), "0:module#0")), atol=1e-6)
    inside = oracle(block.fc(block.norm(X)), "0.fc:linear#0")
    assert torch.allclose(run(model, X, "0", **options), rest(oracle(X + inside, "0:module#0")), atol=1e-5)
    two = run(model, X, Block, draws=[0, 1], **options)
    assert torch.allclose(two[:3], run(model, X, Block, draws=[0], **options), atol=1e-6)


def test_embeddings_and_compiled() -> None:
    model, t = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2)), torch.randint(9, (3, 5))
    assert torch.allclose(run(model, t, nn.Embedding), model[1](oracle(model[0](t), "0:module#0")), atol=1e-6)
    torch._dynamo.reset()
    whole = model_of().eval()
    with nk.inject(whole, NOISE, Norm), nk.noise_state(whole, seed=1), torch.no_grad():
        want = whole(X)
        assert torch.allclose(torch.compile(whole, backend="eager", fullgraph=True)(X), want, atol=1e-6)
    assert not torch.allclose(want, whole(X), atol=1e-3)
