"""Sharpness: against a hand computation, and what it must leave alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import noisykernels as nk


@pytest.mark.parametrize(
    "ascent, options",
    [(nk.training.SAM, {}), (nk.training.ASAM, {"eta": 0.01}), (nk.training.SAMSON, {"eta": 0.01, "p": 2.0})],
)
def test_by_hand(ascent: Any, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(5, 3, bias=False), torch.randn(7, 5), torch.arange(7) % 3
    weight, rho = model.weight.detach().double(), 0.3
    expected = 0.0
    for rows in (slice(0, 4), slice(4, 7)):
        w = weight.clone().requires_grad_()
        here = F.cross_entropy(x[rows].double() @ w.T, y[rows])
        (g,) = torch.autograd.grad(here, w)
        t = torch.ones_like(weight)
        if ascent is not nk.training.SAM:
            t = weight.abs() + options["eta"]
        if ascent is nk.training.SAMSON:
            t = t / weight.norm()
        moved = weight + rho * t**2 * g / (t * g).norm()
        there = F.cross_entropy(x[rows].double() @ moved.T, y[rows])
        expected += float(there - here) * (rows.stop - rows.start) / 7
    found = nk.training.m_sharpness(model, (x, y), rho=rho, ascent=ascent, batch_size=4, **options)
    assert found == pytest.approx(expected, rel=1e-4)  # float32, a difference of losses of about one
    assert expected > 0.01


def test_nothing_of_the_model_changes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)).train()
    x, y = torch.randn(8, 5), torch.arange(8) % 3
    F.cross_entropy(model(x), y).backward()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    nk.training.m_sharpness(model, (x, y), rho=0.5)
    with pytest.raises((ValueError, IndexError)):
        nk.training.m_sharpness(model, (x, y + 7), rho=0.5)
    with pytest.raises(ValueError, match="labels"):
        nk.training.m_sharpness(model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True)) and model.training


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_larger_ball_is_worse_and_sharpness_aware_training_flatter(start: int) -> None:
    """From the same start, on the same steps: what the optimizer makes smaller is smaller."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 10), torch.randint(3, (200,))
    sharp = []
    for rho in (0.0, 0.5):
        torch.manual_seed(start)
        model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
        optimizer = nk.training.SAM(model.named_parameters(), torch.optim.SGD, rho=rho, lr=0.1, momentum=0.9)
        for _ in range(100):
            for _ in optimizer.passes():
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        rises = [nk.training.m_sharpness(model, (x, y), rho=r) for r in (0.01, 0.1, 0.5)]
        assert rises == sorted(rises)
        sharp.append(rises[-1])
    assert sharp[1] < sharp[0]


def test_another_measure_is_the_loss() -> None:
    model, x = torch.nn.Linear(4, 3), torch.randn(12, 4)
    labels = torch.arange(12) % 3
    of = functools.partial(nk.training.m_sharpness, model, batch_size=4, rho=0.1)
    assert of((x, labels), metric="nll") == pytest.approx(of((x, labels)), rel=1e-5)
    assert of((x, torch.randn(12, 3)), metric="mse") > 0
    assert of((x, torch.randn(12, 3)), metric="cosine") > 0  # of which less is worse
    with pytest.raises(ValueError, match="m_sharpness: metric must have a gradient, which accuracy has not"):
        of((x, labels), metric="accuracy")
    for metric in ("kl", "f1"):
        with pytest.raises(ValueError, match="m_sharpness: metric must be of rows against labels"):
            of((x, labels), metric=metric)
    with pytest.raises(ValueError, match="m_sharpness: metric must say its direction"):
        of((x, labels), metric=lambda y, t: y.sum(-1))
