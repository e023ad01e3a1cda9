"""`recalibrate_bn`: the averages asked for, under the noise asked for, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


def network(momentum: float | None = 0.1) -> nn.Sequential:
    """Two batch norms, the second behind the first; dropout; one without statistics of its own."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(36, 5), nn.BatchNorm1d(5, momentum=momentum), nn.BatchNorm1d(5, track_running_stats=False),
    )  # fmt: skip
    for module in (model[1], model[6]):
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)
        module.num_batches_tracked.fill_(17)
    return model


def inputs(rows: int = 24) -> Tensor:
    return torch.randn(rows, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([b.double().flatten() for n, b in model.named_buffers() if "running" in n])


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_without_noise_they_are_torchs_cumulative_averages(momentum: float | None) -> None:
    """torch.optim.swa_utils.update_bn, but in training mode only where batch norms are."""
    model, plain = network(momentum).eval(), network(momentum)
    batches = list(inputs().split(8))
    nk.training.recalibrate_bn(model, batches)
    for module in plain:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.reset_running_stats()
            module.momentum = None
    plain[3].eval()
    with torch.no_grad():
        for x in batches:
            plain(x)
    for name, value in plain.state_dict().items():
        # float32 sums of 8 * 9 values and three batches, in another order
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert model[1].num_batches_tracked == 3 and model[1].momentum == momentum


@pytest.mark.parametrize(("d", "kind"), [(1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)])
def test_one_batch_by_hand_in_every_dimension(d: int, kind: type) -> None:
    x = torch.randn(6, 3, *[4] * d, dtype=torch.float64) * 3 + 1
    for data in (x, (x, torch.zeros(6)), [x], [(x, torch.zeros(6))]):
        layer = kind(3).double()
        nk.training.recalibrate_bn(layer, data)
        flat = x.movedim(1, 0).reshape(3, -1)
        torch.testing.assert_close(layer.running_mean, flat.mean(1), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(layer.running_var, flat.var(1), rtol=1e-13, atol=1e-14)


def test_rows_of_a_batch() -> None:
    layer, x = nn.BatchNorm1d(3), torch.randn(10, 3)
    nk.training.recalibrate_bn(layer, x, batch_size=4)
    torch.testing.assert_close(layer.running_mean, torch.stack([p.mean(0) for p in x.split(4)]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([p.var(0) for p in x.split(4)]).mean(0))
    assert layer.num_batches_tracked == 3


def test_noise_widens_by_what_it_should() -> None:
    """Var + a^2 and Var + m^2 E[x^2] for 40,000 values: the standard error of a variance is v sqrt(2 / n) = 0.7 %,
    somewhat more for the product; 4 % is beyond five of them."""
    x = torch.randn(40_000, 2) * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 3.0])
    for noise, expected in (
        (nk.Noise(add=1.5), [1 + 2.25, 4 + 2.25]),
        (nk.Noise(mul=0.5), [1 + 0.25 * 1, 4 + 0.25 * 13]),
    ):
        model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2)).eval()
        with nk.inject(model, noise, where="input"):
            nk.training.recalibrate_bn(model, x, seed=1, batch_size=10_000)
        torch.testing.assert_close(model[1].running_var, torch.tensor(expected), rtol=0.04, atol=0)
        torch.testing.assert_close(model[1].running_mean, torch.tensor([0.0, 3.0]), rtol=0, atol=0.08)


@pytest.mark.parametrize("kind", ["injected", "layers"])
def test_the_same_for_the_same_seed_with_a_row_its_noise_in_any_batch(kind: str) -> None:
    """In one batch or several the first batch norm sees the same noisy values, seen by a hook."""
    x, seen = torch.randn(12, 4), []
    first: Any = nk.NoisyLinear(4, 3, noise=nk.Noise(add=1.0)) if kind == "layers" else nn.Linear(4, 3)
    model = nn.Sequential(first, nn.BatchNorm1d(3))
    if kind == "injected":
        nk.inject(model, nk.Noise(add=1.0), where="0")
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))

    def run(**options: Any) -> Tensor:
        seen.clear()
        nk.training.recalibrate_bn(model, x, **options)
        return torch.cat(seen)

    whole = run(seed=3)
    after = statistics(model)
    assert torch.equal(run(seed=3), whole) and torch.equal(statistics(model), after)
    assert torch.equal(run(seed=3, batch_size=5), whole)
    assert not torch.equal(run(seed=4), whole)
    noise = whole - torch.nn.functional.linear(x, model[0].weight, model[0].bias)
    assert len(noise.unique()) == noise.numel()  # no two rows share it
    torch.manual_seed(8)
    fresh = run()
    assert not torch.equal(run(), fresh)
    torch.manual_seed(8)
    assert torch.equal(run(), fresh)


def test_nothing_else_changes() -> None:
    model = network().train()
    model[0].eval()
    frozen = model[1].requires_grad_(False)
    frozen.eval()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    before, modes = state(model), [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    with nk.inject(model, nk.Noise(add=0.5)):
        nk.training.recalibrate_bn(model, inputs(), seed=1, batch_size=8)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in (1, 6) for name in names}
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight)) and model[1].momentum == 0.1
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_noise_enters_where_it_does_in_evaluation() -> None:
    """Also after the batch norm itself; noise of training mode only does not."""
    outcomes = {}
    for where in ("1", "0"):
        for when in ("in_training", "in_eval"):
            model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
            flags = {"in_training": False, "in_eval": False} | {when: True}
            with nk.inject(model, nk.Noise(add=5.0), where=where, **flags):
                nk.training.recalibrate_bn(model, torch.randn(2000, 3), seed=1)
            outcomes[where, when] = float(model[1].running_var.mean())
    assert outcomes["0", "in_eval"] > 20  # 1 + 25
    assert all(v < 2 for k, v in outcomes.items() if k != ("0", "in_eval"))


def test_outputs_under_noise_are_standard_again() -> None:
    """Also behind a rectifier, where noise moves the mean: 0.4 a for noise of level a on zeros."""
    x = torch.randn(5000, 8) * 0.01
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.BatchNorm1d(4)).eval()
    nn.init.zeros_(model[0].bias)
    nk.training.recalibrate_bn(model, x)
    found = []
    with nk.inject(model, nk.Noise(add=0.3), where="0"), torch.no_grad():
        for seed in (1, 2):
            with nk.noise_state(model, seed=5):  # another draw than that of the calibration
                z = model(x)
            found.append((float(z.mean()), float(z.var())))
            nk.training.recalibrate_bn(model, x, seed=seed)
    assert found[0][0] > 5 and found[0][1] > 100
    assert found[1] == pytest.approx((0, 1), abs=0.1)  # 20,000 values: standard errors of 0.01 and about 0.02


def test_wrapped_models() -> None:
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model, other = network(), network()
        wrapped = wrap(model.eval())
        wrapped(inputs())  # compiled without the hooks that come
        nk.training.recalibrate_bn(wrapped, inputs())
        nk.training.recalibrate_bn(other, inputs())
        assert torch.equal(statistics(model), statistics(other))


def test_shared_and_uncalled_layers() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.idle = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x) + self.norm(3 * x)

    model, x = Calls(), torch.randn(20, 2)
    before = state(model.idle)
    nk.training.recalibrate_bn(model, x)
    torch.testing.assert_close(model.norm.running_var, (x.var(0) + 9 * x.var(0)) / 2)
    assert all(torch.equal(before[name], value) for name, value in model.idle.state_dict().items())


def broken() -> Iterator[Tensor]:
    yield inputs(8)
    raise OSError("disk")


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (list, ValueError, "data must hold at least one row, got none"),
        (lambda: torch.zeros(0, 2, 5, 5), ValueError, "data must hold at least one row, got none"),
        (lambda: [(inputs(1),), (inputs(1),)], ValueError, "more than one value per channel"),
        (lambda: [inputs(8), "text"], TypeError, "a batch of data must be of tensors or numbers, got 'text'"),
        (lambda: [inputs(8), inputs(8), torch.zeros(3, 7)], RuntimeError, "Expected 3D|Expected"),
        (broken, OSError, "disk"),
    ],
)
def test_an_error_leaves_everything_as_it_was(data: Any, error: type[Exception], text: str) -> None:
    model = network().train()
    before = state(model)
    with pytest.raises(error, match=text):
        nk.training.recalibrate_bn(model, data())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_what_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch reached a batch norm"):
        nk.training.recalibrate_bn(nn.Linear(2, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"batch_size must be a whole number from 1 to .*, got 0"):
        nk.training.recalibrate_bn(network(), inputs(), batch_size=0)
    inner = network()
    nk.inject(inner[1], nk.Noise(add=1.0))
    clean = network()
    nk.training.recalibrate_bn(clean, inputs())
    nk.training.recalibrate_bn(inner, inputs(), seed=0)  # a part of it is injected: its noise enters
    assert not torch.equal(statistics(inner), statistics(clean))
