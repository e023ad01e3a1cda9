"""What injection leaves as it was: models, hooks, copies, generators, threads, gradients."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, SEED, integers, small, whole, with_noise
from operators import assert_same_bits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels.noise.contract import hashed_id
from noisykernels.reference import noise as reference

# ----------------------------------------------------------------------------- what stays as it was


def fingerprint(model: nn.Module) -> dict:
    return {
        path: (
            type(m),
            {k: (id(v), dict(v) if isinstance(v, dict) else None) for k, v in vars(m).items()},
        )
        for path, m in model.named_modules()
    }


def test_nothing_changes_but_the_noise() -> None:
    model = small(norm=True)
    model[3].weight = nn.Parameter(model[3].weight.detach())
    model[0].register_forward_hook(lambda *a: None)
    before, keys = fingerprint(model), list(model.state_dict())
    parameters, text = [id(p) for p in model.parameters()], repr(model)
    children, generator = list(model.children()), torch.get_rng_state()
    nk.inject(model, NOISE, example_input=torch.zeros(2, 6))
    assert list(model.state_dict()) == keys and [id(p) for p in model.parameters()] == parameters
    assert list(model.children()) == children and repr(model) == text and isinstance(model, nn.Sequential)
    assert len(model) == 4 and model[0] is children[0] and list(model) == children
    with nk.noise_state(model, seed=1, draws=[0, 1], rows=[3, 4]):
        assert list(model.state_dict()) == keys and not dict(model.named_buffers()).keys() & {"seed"}
        model.eval()(torch.ones(2, 6))
        with pytest.warns(UserWarning, match="part '1' is called outside of the model's forward"):
            assert model[1:3](torch.ones(2, 5)).shape == (4, 5)
        model.load_state_dict(model.state_dict(), strict=True)
    nk.remove(model.train())
    nk.remove(model)  # a second time does nothing
    assert fingerprint(model) == before
    assert torch.equal(generator, torch.get_rng_state())


def test_exceptions_leave_a_clean_state() -> None:
    class Fails(nn.Module):
        def forward(self, x):
            if x.sum() > 100:
                raise KeyError("on purpose")
            return x

    model = nn.Sequential(nn.ReLU(), nn.Sequential(Fails()), nn.ReLU())
    before, x = fingerprint(model), torch.ones(2, 3)
    expected = with_noise(model, NOISE, x)
    with pytest.raises(KeyError, match="on purpose"), nk.inject(model, NOISE):
        with nk.noise_state(model, seed=SEED, draws=[1]):
            model(x * 100)
    assert fingerprint(model) == before and not torch._C._is_torch_function_mode_enabled()
    with nk.inject(model, NOISE):
        with pytest.raises(KeyError), nk.noise_state(model, seed=1, draws=[5, 6]):
            model(x * 100)
        state = model.__dict__["_noise_state"]
        assert state.seed is None and state.draws is None
        with nk.noise_state(model, seed=SEED):
            assert_same_bits(model(x), expected)
    with pytest.raises(ValueError, match="matches no site"):
        nk.inject(model, NOISE, "fc", example_input=x)
    assert fingerprint(model) == before


def test_a_caught_exception_does_not_shift_names() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.ReLU(), nn.ReLU()
            self.first.register_forward_pre_hook(self.refuse)

        def refuse(self, module, args):
            if self.armed:
                raise ValueError("on purpose")

        def forward(self, x):
            with contextlib.suppress(ValueError):
                x = self.first(x)
            return torch.tanh(self.second(x))

    model = Tries()
    for model.armed in (False, True):
        names = [s.name for s in nk.sites(model, torch.ones(2, 3))]
        assert names[-2:] == ["second:relu#0", ":tanh#0"]


def test_hooks_of_the_user_fire_with_noisy_values() -> None:
    model, seen = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), []
    model[0].register_forward_pre_hook(lambda m, a: seen.append("pre"))
    model[0].register_forward_hook(lambda m, a, out: seen.append(out))
    model.register_forward_hook(lambda m, a, out: seen.append(out))
    model[1].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    model.register_full_backward_pre_hook(lambda m, go: seen.append("backward pre"))
    x = torch.randn(2, 3, requires_grad=True)
    y = with_noise(model, NOISE, x)
    y.sum().backward()
    assert seen[0] == "pre" and seen[3:] == ["backward pre", "backward"]
    assert not torch.equal(seen[1], model[0](x)) and torch.equal(seen[2], y)


def test_copies_carry_their_noise_and_nothing_is_shared() -> None:
    model, x = small(), torch.randn(3, 6)
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
        expected = model(x)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
    for twin in copies:
        assert_same_bits(twin(x), expected)  # with the state of the moment of copying
        assert list(twin.state_dict()) == list(model.state_dict())
        assert type(nk.remove(twin)) is nn.Sequential
        assert torch.equal(twin(x), model(x)) and twin[0].weight is not model[0].weight


def test_moves() -> None:
    model, x = small(), torch.randn(3, 6)

    def noisy(value: Tensor, name: str) -> Tensor:
        rows = torch.tensor([1, 2, 3])
        return reference.perturb(value, NOISE, seed=SEED, site=hashed_id(name), draws=[1], rows=rows)

    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED, draws=[1], rows=[1, 2, 3]):
        single, kept = model(x), copy.deepcopy(model.state_dict())
        wide = model.double()(x.double())
        assert wide.dtype == torch.float64 and torch.allclose(wide, single.double(), atol=1e-5)
        half = model.bfloat16()(x.bfloat16())
        # The library's own contractions in bfloat16 (operators.py), and the noise of every other type.
        hidden = noisy(F.linear(noisy(x.bfloat16(), "input"), model[0].weight, model[0].bias), "0:linear#0")
        hidden = noisy(F.relu(hidden), "2:relu#0")
        assert_same_bits(half, noisy(F.linear(hidden, model[3].weight, model[3].bias), "3:linear#0"))
        assert model.float().to("meta")(x.to("meta")).shape == (3, 3)
        model.to_empty(device="cpu").load_state_dict(kept)
        assert_same_bits(model(x), single)  # the key of the block is where it was


def test_half_precision_draws_the_noise_of_single() -> None:
    model, x = nn.Sequential(nn.ReLU()), torch.randn(3, 7).bfloat16()
    y = with_noise(model, NOISE, x, "0")
    assert_same_bits(y, reference.perturb(F.relu(x), NOISE, seed=SEED, site=hashed_id("0:relu#0")))


def test_autocast_and_inference_mode() -> None:
    model, x = whole(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), integers(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = with_noise(model, NOISE, x, "0")
        clean = model[0](x)
    assert y.dtype == clean.dtype == torch.bfloat16
    key = dict(seed=SEED, site=hashed_id("0:linear#0"))
    assert_same_bits(y, F.relu(reference.perturb(clean, NOISE, **key)))
    with torch.inference_mode():
        assert torch.equal(with_noise(model, NOISE, x, "0"), with_noise(model, NOISE, x, "0"))


def test_memory_formats() -> None:
    model, x = whole(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), integers(2, 3, 8, 8)
    expected = with_noise(model, NOISE, x)
    y = with_noise(
        model.to(memory_format=torch.channels_last),
        NOISE,
        x.contiguous(memory_format=torch.channels_last),
    )
    assert torch.allclose(y, expected, rtol=0, atol=1e-5)  # the input is noisy: sums may round otherwise
    y = with_noise(model, NOISE, x.contiguous(memory_format=torch.channels_last), "0")
    assert_same_bits(y.contiguous(), with_noise(model, NOISE, x, "0").contiguous())


# ----------------------------------------------------------------------------------- seeds, threads


def test_a_given_seed_leaves_torchs_generator_alone() -> None:
    model, x = small(), torch.randn(3, 6)
    nk.NoisyLinear(2, 2, noise=NOISE)
    state = torch.get_rng_state()
    nk.sites(model, x)
    with nk.inject(model, NOISE, example_input=x):
        with nk.noise_state(model, seed=1, draws=[0, 1]):
            model(x).sum().backward()
    with nk.inject(model, None):
        model(x)  # no seed, but no noise either
    assert torch.equal(state, torch.get_rng_state())


def test_manual_seed_governs_forwards_without_a_seed() -> None:
    model, x = small(), torch.randn(3, 6)
    with nk.inject(model, NOISE):
        torch.manual_seed(3)
        first, second = model(x), model(x)
        torch.manual_seed(3)
        again = model(x)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_seeds_as_numbers_and_tensors() -> None:
    model, x = nn.ReLU(), torch.randn(3, 6)
    top = with_noise(model, NOISE, x, seed=2**64 - 1)
    assert_same_bits(top, with_noise(model, NOISE, x, seed=torch.tensor(-1)))
    assert not torch.equal(top, with_noise(model, NOISE, x, seed=2**64 - 2))


def test_threads() -> None:
    """Two threads at once, each with its own model and block; a third that is in none has fresh seeds."""
    models_, x = [small(), small()], torch.randn(50, 6)
    results: dict[int, Tensor] = {}
    expected = [with_noise(m, NOISE, x, seed=i) for i, m in enumerate(models_)]

    def work(i: int, model: nn.Module) -> None:
        with nk.noise_state(model, seed=i):
            for _ in range(20):
                results[i] = model(x)

    def free(model: nn.Module) -> None:
        results[2] = model(x)

    with nk.inject(models_[0], NOISE), nk.inject(models_[1], NOISE):
        threads = [threading.Thread(target=work, args=(i, m)) for i, m in enumerate(models_)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert all(torch.equal(results[i], expected[i]) for i in (0, 1))
        thread = threading.Thread(target=free, args=(models_[0],))
        thread.start()
        thread.join()
        assert not torch.equal(results[2], expected[0])


# ------------------------------------------------------------------------------------ checkpointing


class Checkpointed(nn.Module):
    """A shared module, functional sites and an in-place one, in three checkpointed parts."""

    def __init__(self, how: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.last, self.how = nn.Linear(6, 6), nn.Linear(6, 3), how
        self.drop = nn.Dropout(0.5)

    def part(self, function, x: Tensor) -> Tensor:
        if self.how is None:
            return function(x)
        return checkpoint(function, x, use_reentrant=self.how == "reentrant")

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        x = self.part(lambda v: self.drop(F.relu(self.shared(torch.tanh(v)))), x)
        x = self.part(self.shared, x)
        x = self.part(lambda v: self.part(lambda w: F.gelu(w * 2), self.shared(v)).relu_(), x)
        return self.last(torch.tanh(x))


def gradients(how: str | None, seed: int | None, draws=None) -> list[Tensor]:
    model, x = Checkpointed(how), torch.linspace(-1, 1, 24).view(4, 6).requires_grad_()
    torch.manual_seed(7)
    with (
        nk.inject(model, nk.Noise(add=0.3, mul=0.4)),
        nk.noise_state(model, seed=seed, draws=draws),
    ):
        y = model(x)
        y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("seed", [5, None])
def test_checkpointing_recomputes_the_same_noise(how: str, seed: int | None) -> None:
    for mine, plain in zip(gradients(how, seed), gradients(None, seed), strict=True):
        assert_same_bits(mine, plain)
    for mine, plain in zip(gradients(how, 5, [2, 9]), gradients(None, 5, [2, 9]), strict=True):
        assert_same_bits(mine, plain)


def test_backward_may_run_after_the_state_and_the_injection_are_gone() -> None:
    model, x = Checkpointed("not reentrant").eval(), torch.ones(2, 6)
    with nk.inject(model, NOISE), nk.noise_state(model, seed=5):
        y = model(x)
    z = Checkpointed(None).eval()
    with nk.inject(z, NOISE), nk.noise_state(z, seed=5):
        z(x).sum().backward()
    y.sum().backward()
    for p, q in zip(model.parameters(), z.parameters(), strict=True):
        assert_same_bits(p.grad, q.grad)


# ----------------------------------------------------------------------------------------- training


def test_training_with_noise() -> None:
    """A draw per step, rows of the data set, clamped weights; reproduced to the bit."""
    from noisykernels.training import train

    data = torch.randn(40, 6), torch.randint(3, (40,))

    def run(seed: int) -> nn.Module:
        model, steps = small(norm=True), []
        with nk.inject(model, NOISE, "3:linear#0"):
            train(
                model, data, epochs=2, batch_size=16, clamp=0.2, seed=1,
                on_step=lambda step, rows: steps.append(rows)
                or nk.noise_state(model, seed=seed, draws=[step], rows=rows),
            )  # fmt: skip
        assert len(steps) == 6 and sorted(torch.cat(steps[:3]).tolist()) == list(range(40))
        assert model[0].weight.abs().max() <= 0.2
        return model

    one, same, other = run(1), run(1), run(2)
    assert torch.equal(one[3].weight, same[3].weight) and not torch.equal(one[3].weight, other[3].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with nk.inject(one, NOISE), pytest.raises(RuntimeError, match="mix the draws of a batch"):
            with nk.noise_state(one.train(), seed=1, draws=[0, 1]):
                one(data[0])
