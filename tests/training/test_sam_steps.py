"""Nothing but the base optimizer's step remains: weights, two passes, noise, batch norm, mixed precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sam_models import SGD, batch, every_method, loss_of, made, network, same, values
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the weights come back -----------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_come_back_to_the_bit(method: str, dtype: torch.dtype) -> None:
    """Subtracting epsilon would not do it: at the ascent point the sum was rounded."""
    model = network(dtype)
    before = values(model)
    optimizer = made(method, model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.ascend()
    assert not same(values(model), before)
    optimizer.restore()
    assert same(values(model), before)


def test_an_error_in_the_second_pass_brings_the_weights_back() -> None:
    model = network()
    before, optimizer, calls = values(model), made("sam", model), []

    def closure() -> None:
        calls.append(values(model))
        if len(calls) == 2:
            raise MemoryError
        loss_of(model, batch()).backward()

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert not same(calls[1], before) and same(values(model), before)
    optimizer.step(lambda: loss_of(model, batch()).backward())  # goes on


def test_without_gradients_nothing_moves() -> None:
    model = network()
    before, optimizer = values(model), made("samson_2", model)
    optimizer.step(lambda: None)
    assert same(values(model), before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in optimizer.passes():
        assert same(values(model), before)  # zero gradients: 0 / 1e-16
    empty = nn.Parameter(torch.zeros(0))
    empty.grad = torch.zeros(0)
    nk.training.SAMSON([("weight", empty)], SGD, lr=0.1).ascend()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_method
def test_a_gradient_that_is_not_finite_does_not_move_the_weights(method: str, bad: float) -> None:
    model = network()
    before, optimizer = values(model), made(method, model)
    loss_of(model, batch()).backward()
    model[3].bias.grad[1] = bad
    optimizer.ascend()
    assert same(values(model), before)


# --- two passes ----------------------------------------------------------------------------------


@every_method
def test_closure_passes_and_verbs_are_one(method: str) -> None:
    models = [network(torch.float32) for _ in range(3)]
    optimizers = [made(method, m, torch.optim.Adam, lr=0.01) for m in models]
    data = batch(torch.float32)
    for _ in range(3):
        start = loss_of(models[0].eval(), data)
        models[0].train()

        def closure() -> Tensor:
            optimizers[0].zero_grad()
            loss = loss_of(models[0], data)
            loss.backward()
            return loss

        first = loss_of(copy.deepcopy(models[0]), data)
        assert torch.equal(optimizers[0].step(closure), first)  # the loss at the weights
        numbers = []
        for number in optimizers[1].passes():
            numbers.append(number)
            loss_of(models[1], data).backward()
        assert numbers == [0, 1] and start.requires_grad
        assert optimizers[1].step() is None
        optimizers[1].zero_grad()
        loss_of(models[2], data).backward()
        optimizers[2].ascend()
        loss_of(models[2], data).backward()
        optimizers[2].restore()
        optimizers[2].step()
        optimizers[2].zero_grad()
    assert same(values(models[0]), values(models[1])) and same(values(models[0]), values(models[2]))
    assert not same(values(models[0]), values(network(torch.float32)))


def test_closure_runs_without_grad_mode_around() -> None:
    model = network()
    before = values(model)
    with torch.no_grad():
        made("sam", model).step(lambda: loss_of(model, batch()).backward())
    assert not same(values(model), before)


def test_rho_zero_is_the_base_optimizer() -> None:
    model, plain = network(), network()
    nk.training.SAM(model.parameters(), SGD, rho=0, lr=0.1).step(lambda: loss_of(model, batch()).backward())
    base = SGD(plain.parameters(), lr=0.1)
    loss_of(plain, batch()).backward()
    base.step()
    assert same(values(model), values(plain))


@every_method
def test_accumulated_parts_make_the_whole_batch(method: str) -> None:
    """Without batch norm, whose statistics are the batch's; up to double roundings."""
    models = [nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = batch()
    for model, parts in zip(models, (1, 3), strict=True):
        optimizer = made(method, model)
        for _ in optimizer.passes():
            for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (loss_of(model, part) / parts).backward()
        optimizer.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


# --- noise ---------------------------------------------------------------------------------------


def noisy(kind: str) -> Any:
    if kind == "layers":
        return nn.Sequential(nk.NoisyLinear(5, 4, noise=nk.Noise(add=1.0)), nn.Dropout(0.5))
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))
    nk.inject(model, nk.Noise(add=1.0), where="0")
    return torch.compile(model, backend="aot_eager") if kind == "compiled" else model


@pytest.mark.parametrize("kind", ["layers", "injected", "compiled"])
@pytest.mark.parametrize("again", [True, False])
def test_the_noise_of_the_two_passes(kind: str, again: bool) -> None:
    """With rho 0 the passes differ by their noise alone, which is seen in the output; dropout goes with it."""
    model, x = noisy(kind), torch.randn(3, 5)
    optimizer = nk.training.SAM(model.parameters(), SGD, rho=0.0, lr=0.0, same_noise=again)
    outputs: list[Tensor] = []

    def closure() -> None:
        outputs.append(model(x))
        outputs[-1].sum().backward()

    for _ in range(2):
        optimizer.step(closure)
    for _ in optimizer.passes():
        closure()
    for first in (0, 2, 4):
        assert torch.equal(outputs[first], outputs[first + 1]) == again
    assert not torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[2], outputs[4])
    for _ in range(2):  # a seed that is given serves both passes
        with nk.noise_state(model.eval(), seed=7):
            optimizer.step(closure)
    assert all(torch.equal(outputs[6], other) for other in outputs[7:])


def test_a_step_takes_as_much_of_the_generator_as_one_pass() -> None:
    model, x = noisy("layers"), torch.randn(3, 5)
    states = []
    for run in (
        lambda: model(x),
        lambda: nk.training.SAM(model.parameters(), SGD, lr=0.1).step(lambda: model(x).sum().backward()),
    ):
        torch.manual_seed(5)
        run()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# --- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_records_the_first_pass_only(momentum: float | None) -> None:
    model, plain, both = (network() for _ in range(3))
    frozen = nn.BatchNorm1d(3).double().eval()  # goes on normalising with what it has
    for m in (model, plain, both):
        m[1].momentum = momentum
        m.append(copy.deepcopy(frozen))
        m.append(nn.BatchNorm1d(3, track_running_stats=False).double())
    data = batch()
    held = nk.training.SAM(model.parameters(), SGD, lr=0.1, model=model)
    held.step(lambda: loss_of(model, data).backward())
    loss_of(plain, data)
    nk.training.SAM(both.parameters(), SGD, lr=0.1).step(lambda: loss_of(both, data).backward())
    for name, value in plain[1].named_buffers():
        assert torch.equal(value, getattr(model[1], name))
        assert not torch.equal(value, getattr(both[1], name))
    assert same(values(model), values(both))  # the gradients are those of training mode
    assert [model[i].track_running_stats for i in (1, 4, 5)] == [True, True, False]
    assert all(torch.equal(value, getattr(model[4], name)) for name, value in frozen.named_buffers())


def test_batch_norm_records_again_after_an_error() -> None:
    model = network()
    optimizer = nk.training.SAM(model.parameters(), SGD, lr=0.1, model=model)
    loss_of(model, batch()).backward()
    with pytest.raises(MemoryError):
        for number in optimizer.passes():
            if number == 1:
                assert not model[1].track_running_stats
                raise MemoryError
    assert model[1].track_running_stats


# --- mixed precision -----------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaler(method: str, fused: bool) -> None:
    """The scaled run equals the plain one; powers of two leave the gradients' bits as they are."""
    models = [network(torch.float32) for _ in range(2)]
    data = batch(torch.float32)
    plain, scaled = (made(method, m, fused=f) for m, f in zip(models, (False, fused), strict=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for _ in range(3):
        plain.step(lambda: loss_of(models[0], data).backward())
        plain.zero_grad()
        for _ in scaled.passes():
            scaler.scale(loss_of(models[1], data)).backward()
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
    assert scaler.get_scale() == 2.0**13
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # epsilon's norm rounds otherwise


@pytest.mark.parametrize("overflow", [[0], [1], [0, 1]])
def test_overflow_of_a_scaled_loss(overflow: list[int]) -> None:
    """In either pass it leaves the weights as they were, or lets a plain step be taken; the scale is halved."""
    model, plain = network(torch.float32), network(torch.float32)
    data = batch(torch.float32)
    optimizer = made("asam", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = values(model)
    for number in optimizer.passes():
        factor = math.inf if number in overflow else 1.0
        scaler.scale(loss_of(model, data) * factor).backward()
    scaler.step(optimizer)
    scaler.update()
    if 1 in overflow:
        assert same(values(model), before) and scaler.get_scale() == 2.0**9
    else:  # nothing moved, and the second gradient was that of the weights
        base = SGD(plain.parameters(), lr=0.1)
        loss_of(plain, data).backward()
        base.step()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    optimizer.zero_grad()
    for _ in optimizer.passes():
        scaler.scale(loss_of(model, data)).backward()
    scaler.step(optimizer)  # goes on


def test_autocast_around_both_passes_sees_the_moved_weights() -> None:
    model = nn.Linear(64, 64)
    optimizer = nk.training.SAM(model.parameters(), SGD, rho=5.0, lr=0.1)
    x, outputs = torch.randn(8, 64), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in optimizer.passes():
            out = model(x)
            outputs.append(out.detach())
            out.float().square().sum().backward()
        after = model(x)
    assert outputs[0].dtype == torch.bfloat16
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], after)
