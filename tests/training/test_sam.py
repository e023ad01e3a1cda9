"""SAM, ASAM, SAMSON: the formulas, by hand and in plain Python, and what they do not see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sam_models import METHODS, SGD, batch, every_method, loss_of, made, network, values
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


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
        if kind is nk.training.SAMSON:
            p = s.get("p", math.inf)
            size = max(w) if p == math.inf else sum(v**p for v in w) ** (1 / p)
        for v, gi in zip(w, g.flatten().tolist(), strict=True):
            t = 1.0 if kind is nk.training.SAM or "weight" not in name else (v + s["eta"]) / size
            scaled.setdefault(name, []).append((t, t * gi))
    norm = math.sqrt(sum(tg**2 for part in scaled.values() for _, tg in part))
    return {
        name: torch.tensor([s["rho"] * t * tg / (norm + 1e-16) for t, tg in part], dtype=torch.float64).view(
            gradients[name].shape
        )
        for name, part in scaled.items()
    }


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
        (nk.training.SAM, {"rho": 0.5}, (1, 1), (1.3, 1.4)),
        # T = (1, 2), g = (3, 8), T g = (3, 16), T^2 g = (3, 32), norm sqrt(265)
        (nk.training.ASAM, {"rho": 0.5, "eta": 0}, (1, 2), (1 + 1.5 / math.sqrt(265), 2 + 16 / math.sqrt(265))),
        # T = (1.5, 1.5) alike: epsilon = 1.5 * 0.5 (3, -4) / 5
        (nk.training.ASAM, {"rho": 0.5, "eta": 0.5}, (1, -1), (1.45, -1.6)),
        # the largest is 2: T = (1, 2) / 2, half of ASAM's epsilon
        (nk.training.SAMSON, {"rho": 0.5, "eta": 0}, (1, 2), (1 + 0.75 / math.sqrt(265), 2 + 8 / math.sqrt(265))),
        # sum of magnitudes 2: T = (1.5, 1.5) / 2
        (nk.training.SAMSON, {"rho": 0.5, "eta": 0.5, "p": 1}, (1, -1), (1.225, -1.3)),
        # Euclidean norm 5, w = (4, 3), g = (12, 12), T = (0.8, 0.6): T g = (9.6, 7.2), norm 12
        (nk.training.SAMSON, {"rho": 0.5, "eta": 0, "p": 2}, (4, 3), (4.32, 3.18)),
        # cubic: w = (1, -1), norm 2^(1/3)
        (
            nk.training.SAMSON,
            {"rho": 0.5, "eta": 0, "p": 3},
            (1, -1),
            (1 + 0.3 / 2 ** (1 / 3), -1 - 0.4 / 2 ** (1 / 3)),
        ),
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
    for kind, more in ((nk.training.ASAM, {"eta": 0.0}), (nk.training.SAM, {})):
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
    for kind in (nk.training.SAMSON, nk.training.ASAM):
        for c in (1.0, 64.0):
            model = network()
            loss_of(model, batch()).backward()
            with torch.no_grad():
                model[0].weight *= c
            more = {"p": p} if kind is nk.training.SAMSON else {}
            optimizer = kind(model.named_parameters(), SGD, lr=0.1, rho=0.5, eta=0.0, **more)
            found[kind, c] = epsilon(optimizer, model)
    for name in found[nk.training.SAMSON, 1.0]:
        torch.testing.assert_close(
            found[nk.training.SAMSON, 64.0][name], found[nk.training.SAMSON, 1.0][name], rtol=1e-11, atol=1e-13
        )
    assert not torch.allclose(
        found[nk.training.ASAM, 64.0]["3.weight"], found[nk.training.ASAM, 1.0]["3.weight"], rtol=0.1
    )


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_samson_is_asam_where_all_norms_are_one(p: float) -> None:
    model = network()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "weight" in name:
                w /= torch.linalg.vector_norm(w, p)
    found = []
    for kind, more in ((nk.training.ASAM, {}), (nk.training.SAMSON, {"p": p})):
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
            found.append(
                epsilon(nk.training.SAMSON(model.named_parameters(), SGD, lr=0.1, p=p, eta=0.0), model)["weight"]
            )
        torch.testing.assert_close(found[0], found[1] / 2 ** (1 / 200), rtol=0, atol=2e-7 * max(size, 1))


def test_half_types_are_computed_in_single() -> None:
    """The norm of 100,000 gradients of 300 exceeds float16's range, 1e-16 lies below it."""
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.full((100_000,), 0.01, dtype=torch.float16)))
    for g in (300.0, 0.0):
        model.weight.grad = torch.full_like(model.weight, g)
        found = epsilon(nk.training.SAM(model.parameters(), SGD, rho=2.0, lr=0.1), model)["weight"]
        expected = torch.full_like(found, 2.0 / math.sqrt(100_000) if g else 0.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-17)  # w + e is rounded near 0.016


def test_a_tensor_of_zeros_is_left_unscaled() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    found = epsilon(nk.training.SAMSON(model.named_parameters(), SGD, lr=0.1, rho=0.5), model)
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
        optimizer = nk.training.ASAM(model.named_parameters(), SGD, lr=0.1, maximize=sign == 1)
        optimizer.step(lambda model=model, sign=sign: (sign * model()).backward())
    assert torch.equal(models[0].weight, models[1].weight)


def test_groups_have_their_own_settings_and_one_norm() -> None:
    model = Quadratic(1.0, 1.0)
    other = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    groups: list[dict[str, Any]] = [
        {"params": [("weight", model.weight)], "rho": 1.0, "eta": 1.0, "lr": 0.5},
        {"params": [("bias", other)]},
    ]
    optimizer = nk.training.ASAM(groups, SGD, rho=0.5, eta=0.0, lr=0.1)
    model.weight.grad, other.grad = torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0]).double()
    optimizer.ascend()  # T = 2, 2, 1: the norm is 3
    assert model.weight.tolist() == pytest.approx([1 + 4 / 3, 1 + 4 / 3], rel=1e-15)
    assert other.tolist() == pytest.approx([2 + 0.5 / 3], rel=1e-15)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
