"""`SAM` where gradients are accumulated over several batches: all of them in both passes, or an error, never some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisykernels.training import ASAM, SAM, SAMSON

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
PARTS = [(x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)]
KINDS = [SAM, ASAM, SAMSON]


def made(kind: Any = SAM, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    return model, kind(model.named_parameters(), torch.optim.SGD, lr=0.1, **options)


def part(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), y) / len(PARTS)
    loss.backward()
    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_batches_in_both_passes_are_one_batch(kind: Any) -> None:
    """By `passes`, and by a closure that runs all of them."""
    model, optimizer = made(kind)
    optimizer.zero_grad()
    for _ in optimizer.passes():
        (nn.functional.cross_entropy(model(X), Y)).backward()
    optimizer.step()
    expected = [p.detach().clone() for p in model.parameters()]
    model, optimizer = made(kind)
    for _ in optimizer.passes():
        for x, y in PARTS:
            part(model, x, y)
    optimizer.step()
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q)
    model, optimizer = made(kind)

    def closure() -> None:
        optimizer.zero_grad()
        for x, y in PARTS:
            part(model, x, y)

    optimizer.step(closure)
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_from_before_are_refused(kind: Any, frozen: bool) -> None:
    """A trainer that steps on every third batch: its closure adds the last batch to what is there."""
    model, optimizer = made(kind)
    model[1].requires_grad_(not frozen)
    before = [p.detach().clone() for p in model.parameters()]
    for x, y in PARTS[:-1]:
        part(model, x, y)
    for run in (lambda: optimizer.step(lambda: part(model, *PARTS[-1])), lambda: list(passes(model, optimizer))):
        with pytest.raises(RuntimeError, match=rf"{kind.__name__}: gradients from before the first pass would be lost"):
            run()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert not any(p._backward_hooks for p in model.parameters())


def passes(model: nn.Module, optimizer: Any) -> Any:
    for number in optimizer.passes():
        part(model, *PARTS[0])
        yield number


def by_none(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None


def by_zero(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


@pytest.mark.parametrize("clear", [nn.Module.zero_grad, by_none, by_zero], ids=["zero_grad", "None", "zero_"])
def test_gradients_may_be_left_where_the_closure_clears_them(clear: Callable[[nn.Module], None]) -> None:
    results = []
    for left in (False, True):
        model, optimizer = made()

        def closure(model: nn.Module = model) -> Tensor:
            clear(model)
            return part(model, X, Y)

        for _ in range(3):
            optimizer.step(closure)
            if not left:
                optimizer.zero_grad()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_a_base_that_evaluates_a_closure_is_refused_when_made() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            return super().step(closure)

    for base in (torch.optim.LBFGS, Twice):
        for kind in KINDS:
            with pytest.raises(ValueError, match=f"base_optimizer must step from one gradient, and {base.__name__}"):
                kind(nn.Linear(2, 2).named_parameters(), base, lr=0.1)
