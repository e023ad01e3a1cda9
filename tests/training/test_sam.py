"""SAM, ASAM, SAMSON: the formulas, and that nothing but the weights of the base optimizer's step remains."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk

SGD = torch.optim.SGD
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "sam": (nk.SAM, {"rho": 0.3}),
    "asam": (nk.ASAM, {"rho": 0.7, "eta": 0.05}),
    "samson_inf": (nk.SAMSON, {"rho": 0.4, "eta": 0.05}),
    "samson_2": (nk.SAMSON, {"rho": 0.4, "eta": 0.05, "p": 2}),
    "samson_1": (nk.SAMSON, {"rho": 0.4, "eta": 0.0, "p": 1}),
    "samson_3.5": (nk.SAMSON, {"rho": 0.4, "eta": 0.05, "p": 3.5}),
}
every_method = pytest.mark.parametrize("method", METHODS)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Weights, biases, batch norm's too, and a parameter that the loss does not reach."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    model.register_parameter("idle_weight", nn.Parameter(torch.ones(2, dtype=dtype)))
    return model


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (12,), generator=generator)


def made(method: str, model: nn.Module, base: type = SGD, **options: Any) -> Any:
    kind, settings = METHODS[method]
    return kind(model.named_parameters(), base, **settings, **{"lr": 0.1, **options})


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1])


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def epsilon(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """What the gradients that are there now make the ascent."""
    before = dict(zip(dict(model.named_parameters()), values(model), strict=True))
    optimizer.ascend()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    optimizer.restore()
    return moved


def reference(method: str, named: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Epsilon by the formulas, element by element in plain Python floats."""
    kind, s = METHODS[method]
    scaled: dict[str, list[tuple[float, float]]] = {}
    for name, g in gradients.items():
        w = [abs(v) for v in named[name].flatten().tolist()]
        size = 1.0
        if kind is nk.SAMSON:
            p = s.get("p", math.inf)
            size = max(w) if p == math.inf else sum(v**p for v in w) ** (1 / p)
        for v, gi in zip(w, g.flatten().tolist(), strict=True):
            t = 1.0 if kind is nk.SAM or "weight" not in name else (v + s["eta"]) / size
            scaled.setdefault(name, []).append((t, t * gi))
    norm = math.sqrt(sum(tg**2 for part in scaled.values() for _, tg in part))
    return {
        name: torch.tensor([s["rho"] * t * tg / (norm + 1e-16) for t, tg in part], dtype=torch.float64).view(
            gradients[name].shape
        )
        for name, part in scaled.items()
    }


# --- the formulas --------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """Loss (3 a^2 + 4 b^2) / 2 of the two weights: gradient (3 a, 4 b)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self) -> Tensor:
        return (torch.tensor([3.0, 4.0], dtype=torch.float64) * self.weight**2).sum() / 2


@pytest.mark.parametrize(
    ("kind", "settings", "start", "ascent"),
    [
        # g = (3, 4), norm 5, epsilon = 0.5 (3, 4) / 5
        (nk.SAM, {"rho": 0.5}, (1, 1), (1.3, 1.4)),
        # T = (1, 2), g = (3, 8), T g = (3, 16), T^2 g = (3, 32), norm sqrt(265)
        (nk.ASAM, {"rho": 0.5, "eta": 0}, (1, 2), (1 + 1.5 / math.sqrt(265), 2 + 16 / math.sqrt(265))),
        # T = (1.5, 1.5) alike: epsilon = 1.5 * 0.5 (3, -4) / 5
        (nk.ASAM, {"rho": 0.5, "eta": 0.5}, (1, -1), (1.45, -1.6)),
        # the largest is 2: T = (1, 2) / 2, half of ASAM's epsilon
        (nk.SAMSON, {"rho": 0.5, "eta": 0}, (1, 2), (1 + 0.75 / math.sqrt(265), 2 + 8 / math.sqrt(265))),
        # sum of magnitudes 2: T = (1.5, 1.5) / 2
        (nk.SAMSON, {"rho": 0.5, "eta": 0.5, "p": 1}, (1, -1), (1.225, -1.3)),
        # Euclidean norm 5, w = (4, 3), g = (12, 12), T = (0.8, 0.6): T g = (9.6, 7.2), norm 12
        (nk.SAMSON, {"rho": 0.5, "eta": 0, "p": 2}, (4, 3), (4.32, 3.18)),
        # cubic: w = (1, -1), norm 2^(1/3)
        (nk.SAMSON, {"rho": 0.5, "eta": 0, "p": 3}, (1, -1), (1 + 0.3 / 2 ** (1 / 3), -1 - 0.4 / 2 ** (1 / 3))),
    ],
)
def test_ascent_point_of_a_quadratic_by_hand(
    kind: type, settings: dict[str, float], start: tuple[float, float], ascent: tuple[float, float]
) -> None:
    """A few double roundings; the step with lr 0.1 takes the gradient (3 a, 4 b) of the ascent point."""
    model = Quadratic(*start)
    optimizer = kind(model.named_parameters(), SGD, lr=0.1, **settings)
    seen = []
    for _ in optimizer.passes():
        seen.append(model.weight.tolist())
        model().backward()
    assert seen[0] == list(start) == model.weight.tolist()
    assert seen[1] == pytest.approx(ascent, rel=1e-14)
    optimizer.step()
    expected = [start[0] - 0.1 * 3 * ascent[0], start[1] - 0.1 * 4 * ascent[1]]
    assert model.weight.tolist() == pytest.approx(expected, rel=1e-14)


@every_method
def test_epsilon_is_that_of_the_plain_formula(method: str) -> None:
    model = network()
    loss_of(model, batch()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    expected = reference(method, dict(model.named_parameters()), gradients)
    found = epsilon(made(method, model), model)
    assert not found.pop("idle_weight").any() and found.keys() == expected.keys()
    for name, e in expected.items():  # w + e - w rounds at the size of w
        torch.testing.assert_close(found[name], e, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


@every_method
@pytest.mark.parametrize("base", [SGD, torch.optim.Adam])
def test_steps_equal_those_written_out(method: str, base: type) -> None:
    """Three steps of the optimizer against functional gradients at w + epsilon."""
    model, plain = network(), network()
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1} if base is SGD else {"lr": 0.05}
    optimizer, other = made(method, model, base, **options), base(plain.parameters(), **options)
    data = batch()
    for _ in range(3):
        for _ in optimizer.passes():
            loss_of(model, data).backward()
        optimizer.step()
        optimizer.zero_grad()
        named = dict(plain.named_parameters())
        used = {n: p for n, p in named.items() if n != "idle_weight"}
        gradients = dict(zip(used, torch.autograd.grad(loss_of(plain, data), list(used.values())), strict=True))
        e = reference(method, named, gradients)
        there = {n: (p.detach() + e[n]).requires_grad_() for n, p in used.items()}
        out = torch.func.functional_call(plain, there, data[0])
        second = torch.autograd.grad(F.cross_entropy(out, data[1]), list(there.values()))
        for p, g in zip(used.values(), second, strict=True):
            p.grad = g
        other.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is 1e-8 a rounding of 1e-16 becomes 1e-8 of the step.
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)


def test_asam_goes_along_with_a_rescaled_network() -> None:
    """Weights (c, 1 / c) of two layers with a relu between compute the same: epsilon scales as the weights do."""
    c = 4.0  # a power of two: exact
    x = batch()[0]
    models = [nn.Sequential(nn.Linear(5, 6, False), nn.ReLU(), nn.Linear(6, 3, False)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        models[1][0].weight *= c
        models[1][2].weight /= c
    found = []
    for kind, more in ((nk.ASAM, {"eta": 0.0}), (nk.SAM, {})):
        for model in models:
            model.zero_grad()
            F.cross_entropy(model(x), batch()[1]).backward()
            optimizer = kind(model.named_parameters(), SGD, lr=0.1, rho=0.5, **more)
            found.append(epsilon(optimizer, model))
    one, two, sam_one, sam_two = found
    for name, factor in (("0.weight", c), ("2.weight", 1 / c)):
        torch.testing.assert_close(two[name], factor * one[name], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(sam_two[name], factor * sam_one[name], rtol=0.1)


@pytest.mark.parametrize("p", [1, 2, 5, math.inf])
def test_samson_does_not_see_the_scale_of_a_tensor(p: float) -> None:
    """For the same gradient: T is that of the tensor divided by its norm. ASAM's changes."""
    found: dict[tuple[type, float], dict[str, Tensor]] = {}
    for kind in (nk.SAMSON, nk.ASAM):
        for c in (1.0, 64.0):
            model = network()
            loss_of(model, batch()).backward()
            with torch.no_grad():
                model[0].weight *= c
            more = {"p": p} if kind is nk.SAMSON else {}
            optimizer = kind(model.named_parameters(), SGD, lr=0.1, rho=0.5, eta=0.0, **more)
            found[kind, c] = epsilon(optimizer, model)
    for name in found[nk.SAMSON, 1.0]:
        torch.testing.assert_close(found[nk.SAMSON, 64.0][name], found[nk.SAMSON, 1.0][name], rtol=1e-11, atol=1e-13)
    assert not torch.allclose(found[nk.ASAM, 64.0]["3.weight"], found[nk.ASAM, 1.0]["3.weight"], rtol=0.1)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_samson_is_asam_where_all_norms_are_one(p: float) -> None:
    model = network()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "weight" in name:
                w /= torch.linalg.vector_norm(w, p)
    found = []
    for kind, more in ((nk.ASAM, {}), (nk.SAMSON, {"p": p})):
        model.zero_grad()
        loss_of(model, batch()).backward()
        found.append(epsilon(kind(model.named_parameters(), SGD, lr=0.1, rho=0.5, eta=0.01, **more), model))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-11, atol=1e-14)


def test_norms_of_high_order_neither_under_nor_overflow() -> None:
    """0.01^200 is no float32, 100^200 none either; the 200-norm lies within 2^(1/200) of the largest."""
    for size in (0.01, 100.0):
        found = []
        for p in (200.0, math.inf):
            model = nn.Linear(2, 1, bias=False)
            nn.init.constant_(model.weight, size)
            model.weight.grad = torch.tensor([[3.0, 4.0]])
            found.append(epsilon(nk.SAMSON(model.named_parameters(), SGD, lr=0.1, p=p, eta=0.0), model)["weight"])
        torch.testing.assert_close(found[0], found[1] / 2 ** (1 / 200), rtol=0, atol=2e-7 * max(size, 1))


def test_half_types_are_computed_in_single() -> None:
    """The norm of 100,000 gradients of 300 exceeds float16's range, 1e-16 lies below it."""
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.full((100_000,), 0.01, dtype=torch.float16)))
    for g in (300.0, 0.0):
        model.weight.grad = torch.full_like(model.weight, g)
        found = epsilon(nk.SAM(model.parameters(), SGD, rho=2.0, lr=0.1), model)["weight"]
        expected = torch.full_like(found, 2.0 / math.sqrt(100_000) if g else 0.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-17)  # w + e is rounded near 0.016


def test_a_tensor_of_zeros_is_left_unscaled() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    found = epsilon(nk.SAMSON(model.named_parameters(), SGD, lr=0.1, rho=0.5), model)
    torch.testing.assert_close(found["weight"], torch.tensor([[0.3, 0.0]]))


@every_method
def test_the_scale_of_the_gradient_does_not_matter(method: str) -> None:
    model = network()
    loss_of(model, batch()).backward()
    first = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    one = epsilon(made(method, model), model)
    for p, g in zip(model.parameters(), first, strict=True):
        p.grad = None if g is None else g * 2.0**16
    two = epsilon(made(method, model), model)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-14)


def test_maximising_goes_to_where_the_objective_is_lowest() -> None:
    """As minimising the negated objective."""
    models = [Quadratic(1.0, 2.0), Quadratic(1.0, 2.0)]
    for model, sign in zip(models, (1, -1), strict=True):
        optimizer = nk.ASAM(model.named_parameters(), SGD, lr=0.1, maximize=sign == 1)
        optimizer.step(lambda model=model, sign=sign: (sign * model()).backward())
    assert torch.equal(models[0].weight, models[1].weight)


def test_groups_have_their_own_settings_and_one_norm() -> None:
    model = Quadratic(1.0, 1.0)
    other = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    groups: list[dict[str, Any]] = [
        {"params": [("weight", model.weight)], "rho": 1.0, "eta": 1.0, "lr": 0.5},
        {"params": [("bias", other)]},
    ]
    optimizer = nk.ASAM(groups, SGD, rho=0.5, eta=0.0, lr=0.1)
    model.weight.grad, other.grad = torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0]).double()
    optimizer.ascend()  # T = 2, 2, 1: the norm is 3
    assert model.weight.tolist() == pytest.approx([1 + 4 / 3, 1 + 4 / 3], rel=1e-15)
    assert other.tolist() == pytest.approx([2 + 0.5 / 3], rel=1e-15)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]


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
    nk.SAMSON([("weight", empty)], SGD, lr=0.1).ascend()


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
    nk.SAM(model.parameters(), SGD, rho=0, lr=0.1).step(lambda: loss_of(model, batch()).backward())
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
    optimizer = nk.SAM(model.parameters(), SGD, rho=0.0, lr=0.0, same_noise=again)
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
        lambda: nk.SAM(model.parameters(), SGD, lr=0.1).step(lambda: model(x).sum().backward()),
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
    held = nk.SAM(model.parameters(), SGD, lr=0.1, model=model)
    held.step(lambda: loss_of(model, data).backward())
    loss_of(plain, data)
    nk.SAM(both.parameters(), SGD, lr=0.1).step(lambda: loss_of(both, data).backward())
    for name, value in plain[1].named_buffers():
        assert torch.equal(value, getattr(model[1], name))
        assert not torch.equal(value, getattr(both[1], name))
    assert same(values(model), values(both))  # the gradients are those of training mode
    assert [model[i].track_running_stats for i in (1, 4, 5)] == [True, True, False]
    assert all(torch.equal(value, getattr(model[4], name)) for name, value in frozen.named_buffers())


def test_batch_norm_records_again_after_an_error() -> None:
    model = network()
    optimizer = nk.SAM(model.parameters(), SGD, lr=0.1, model=model)
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
    optimizer = nk.SAM(model.parameters(), SGD, rho=5.0, lr=0.1)
    x, outputs = torch.randn(8, 64), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in optimizer.passes():
            out = model(x)
            outputs.append(out.detach())
            out.float().square().sum().backward()
        after = model(x)
    assert outputs[0].dtype == torch.bfloat16
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], after)


# --- as torch's optimizers -----------------------------------------------------------------------


def test_one_list_of_groups_and_one_state() -> None:
    model = network()
    optimizer = made("asam", model, momentum=0.9)
    base = optimizer.base_optimizer
    assert isinstance(optimizer, torch.optim.Optimizer) and type(base) is SGD
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(lambda: loss_of(model, batch()).backward())
    schedule.step()  # without a warning that no step was taken
    assert base.param_groups[0]["lr"] == 0.05 and "momentum_buffer" in base.state[model[0].weight]
    assert "rho" in repr(optimizer)


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy"])
@every_method
def test_a_stored_optimizer_goes_on_as_if_nothing_happened(method: str, way: str) -> None:
    model = network(torch.float32)
    data = batch(torch.float32)

    def run(model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            optimizer.step(lambda: loss_of(model, data).backward())

    optimizer = made(method, model, torch.optim.Adam, lr=0.01)
    run(model, optimizer)
    optimizer.param_groups[0]["rho"] *= 2  # is stored
    if way == "deepcopy":
        twin, other = copy.deepcopy((model, optimizer))
    else:
        twin = network(torch.float32)
        twin.load_state_dict(model.state_dict())
        other = made(method, twin, torch.optim.Adam, lr=0.5)
        stored = copy.deepcopy(optimizer.state_dict())  # torch's optimizers share the tensors of what they load
        if way == "file":
            file = io.BytesIO()
            torch.save(stored, file)
            file.seek(0)
            stored = torch.load(file, weights_only=True)
        other.load_state_dict(stored)
    assert other.param_groups is other.base_optimizer.param_groups and other.state is other.base_optimizer.state
    assert other.param_groups[0]["lr"] == 0.01
    run(model, optimizer)
    run(twin, other)
    assert same(values(model), values(twin)) and optimizer.state is not other.state


def test_the_state_of_a_base_optimizer_alone_can_be_loaded_and_the_other_way_round() -> None:
    model = network()
    base = SGD(model.named_parameters(), lr=0.3, momentum=0.9)
    loss_of(model, batch()).backward()
    base.step()
    optimizer = made("asam", model, momentum=0.9)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]["rho"] == 0.7 and optimizer.param_groups[0]["lr"] == 0.3
    assert torch.equal(
        optimizer.state[model[0].weight]["momentum_buffer"], base.state[model[0].weight]["momentum_buffer"]
    )
    optimizer.step(lambda: loss_of(model, batch()).backward())
    base.load_state_dict(optimizer.state_dict())
    base.step()


def test_added_group() -> None:
    model, head = network(), nn.Linear(3, 2).double()
    optimizer = made("samson_2", model)
    optimizer.add_param_group({"params": list(head.named_parameters()), "rho": 2.0, "lr": 0.7})
    assert len(optimizer.base_optimizer.param_groups) == 2
    assert {k: optimizer.param_groups[1][k] for k in ("rho", "eta", "p", "lr")} == {
        "rho": 2.0, "eta": 0.05, "p": 2, "lr": 0.7}  # fmt: skip
    before = values(head)
    optimizer.step(lambda: head(model(batch()[0])).square().sum().backward())
    assert not any(torch.equal(a, b) for a, b in zip(values(head), before, strict=True))
    with pytest.raises(ValueError, match="rho"):
        optimizer.add_param_group({"params": [("weight", nn.Parameter(torch.ones(1)))], "rho": -1.0})
    assert len(optimizer.param_groups) == 2


W = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nk.SAM([W], SGD([W], lr=0.1)), TypeError, "optimizer's class, .* got an object of class SGD"),
        (lambda: nk.SAM([W], nn.Linear, lr=0.1), TypeError, "optimizer's class, .* got the class Linear"),
        (lambda: nk.SAM([W], SGD, lr=0.1, rho=-0.1), ValueError, "rho must be finite and not negative, got -0.1"),
        (lambda: nk.SAM([W], SGD, lr=0.1, rho=math.nan), ValueError, "rho must be finite"),
        (lambda: nk.SAM([W], SGD, lr=0.1, rho=math.inf), ValueError, "rho must be finite"),
        (lambda: nk.SAM([W], SGD, lr=0.1, rho="0.1"), TypeError, "rho must be a number, got str"),
        (lambda: nk.SAM([W], SGD, lr=0.1, rho=True), TypeError, "rho must be a number, got bool"),
        (lambda: nk.SAM([{"params": [W], "rho": -1}], SGD, lr=0.1), ValueError, "rho must be"),
        (lambda: nk.SAM([W], torch.optim.Adadelta), ValueError, "Adadelta has settings of the same name: rho"),
        (lambda: nk.SAM([W], SGD, lr=0.1, model=W), TypeError, "model must be a torch.nn.Module"),
        (lambda: nk.SAM([W], SGD, lr=0.1, eta=1.0), TypeError, "eta"),
        (lambda: nk.SAM([], SGD, lr=0.1), ValueError, "empty parameter list"),
        (lambda: nk.ASAM([W], SGD, lr=0.1), ValueError, "give model.named_parameters"),
        (lambda: nk.ASAM([("weight", W)], SGD, lr=0.1, eta=-1), ValueError, "eta must be finite"),
        (lambda: nk.SAMSON([W], SGD, lr=0.1), ValueError, "give model.named_parameters"),
        (lambda: nk.SAMSON([("weight", W)], SGD, lr=0.1, p=0.5), ValueError, "p must be at least 1, got 0.5"),
        (lambda: nk.SAMSON([("weight", W)], SGD, lr=0.1, p=math.nan), ValueError, "p must be at least 1"),
    ],
)
def test_what_is_refused(make: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_calls_out_of_order_are_refused() -> None:
    model = network()
    before, optimizer = values(model), made("sam", model)
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="not at the ascent point"):
        optimizer.restore()
    loss_of(model, batch()).backward()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match="already"):
        optimizer.ascend()
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.restore()
    assert same(values(model), before)
    optimizer.step()
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.ascend()
    optimizer.restore()
    optimizer.ascend()  # the step before was left out, as a loss scaler does
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    optimizer.restore()
    optimizer.step()
    for _ in optimizer.passes():
        break
    with pytest.raises(RuntimeError, match="both passes"):
        optimizer.step()
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="of weight is sparse"):
        nk.SAM(table.named_parameters(), SGD, lr=0.1).ascend()


# --- two processes -------------------------------------------------------------------------------


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(_small())
    x, y = (part[rank::2] for part in batch())
    found = []
    for synced in (True, False):
        optimizer = nk.ASAM(model.named_parameters(), SGD, lr=0.1)
        for number in optimizer.passes():
            for i, part in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
                alone = i == 0 or (number == 0 and not synced)
                with model.no_sync() if alone else contextlib.nullcontext():
                    (loss_of(model, part) / 2).backward()
            if number == 1:
                found.append(values(model))  # where the second gradient is taken
        optimizer.step()
        optimizer.zero_grad()
        found.append(values(model))
    torch.save(found, folder / f"{rank}.pt")
    while not (folder / f"{1 - rank}.pt").exists():  # a rank that leaves early breaks the other's connection
        time.sleep(0.01)
    torch.distributed.destroy_process_group()


def _small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.full
def test_two_ranks_and_no_sync(tmp_path: Path) -> None:
    """Synchronised passes make the step of the whole batch. With the first pass under `no_sync` each rank ascends by
    its own gradient, and the weights still agree to the bit afterwards."""
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    agree = [same(a, b) for a, b in zip(*ranks, strict=True)]
    assert agree == [True, True, False, True]  # ascent point and step, synchronised; the same without
    whole = _small()
    optimizer = nk.ASAM(whole.named_parameters(), SGD, lr=0.1)
    optimizer.step(lambda: loss_of(whole, batch()).backward())
    for p, q in zip(values(whole), ranks[0][1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
